"""A model, a folder or a repository of the Hub as one callable: audio in, text out."""

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoProcessor, PreTrainedModel, ProcessorMixin, pipeline
from transformers.pipelines.automatic_speech_recognition import rescale_stride

from ..speech_recognition_pipeline import SpeechRecognitionPipeline
from .beam_search import BeamSearchDecoder
from .decoder_folder import decoder_of
from .emissions import frame_scores

HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "trust_remote_code")


class BeamSearchPipeline(SpeechRecognitionPipeline):
    """
    The same with a beam search and its language model, where there is one beside the model:

        pipeline("automatic-speech-recognition", model=..., pipeline_class=BeamSearchPipeline)

    `decoder` is a [`BeamSearchDecoder`] or the folder of one; not given, it is what the model's folder has in
    `decoder/`, and False leaves that out. Chunks are searched as one text, whose lengths don't matter.

    Raises:
        ImportError: a `decoder` was asked for, and flashlight-text is not installed.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *args,
        decoder: BeamSearchDecoder | str | Path | Literal[False] | None = None,
        **kwargs,
    ):
        super().__init__(model, *args, **kwargs)
        if decoder and self.type != "ctc":
            raise ValueError(f"decoder: a {type(model).__name__} writes its own text; only CTC and ASG take one.")
        self.beam_search = decoder_of(model, self.tokenizer, decoder) if self.type == "ctc" else None

    def _hear(self, model_inputs: dict[str, Any], **kwargs) -> dict[str, Any]:
        return super()._hear(model_inputs, **kwargs) if self.beam_search is None else self._emissions(model_inputs)

    def _emissions(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        """What the beam search reads of each chunk, and how many of its frames count."""
        attention_mask, stride = model_inputs.pop("attention_mask", None), model_inputs.pop("stride", None)
        inputs = model_inputs.pop(self.model.main_input_name)
        outputs = {"emissions": frame_scores(self.model(inputs, attention_mask=attention_mask)).float()}
        if stride is not None:
            strides = rescale_stride([stride] if isinstance(stride, tuple) else stride, 1 / self._align_to)
            outputs["stride"] = strides[0] if isinstance(stride, tuple) else strides
        if attention_mask is not None:
            num_samples = (attention_mask != 0).sum(dim=-1)
            outputs["num_frames"] = self.model._get_feat_extract_output_lengths(num_samples)
        return {**outputs, **model_inputs}

    def postprocess(self, model_outputs: list[dict[str, Any]], return_timestamps=None, **kwargs) -> dict[str, Any]:
        if self.beam_search is None:
            return super().postprocess(model_outputs, return_timestamps=return_timestamps, **kwargs)
        chunks = []
        for outputs in model_outputs:
            emissions, stride = outputs.pop("emissions")[0], outputs.pop("stride", None)
            num_frames = outputs.pop("num_frames", [len(emissions)])[0]
            first, last = (stride[1], stride[0] - stride[2]) if stride else (0, num_frames)
            chunks.append(emissions[first : min(last, num_frames)])
        best = self.beam_search.decode(torch.cat(chunks))[0]
        paths = torch.tensor([best.symbols]).split([len(chunk) for chunk in chunks], dim=1)
        for outputs, path in zip(model_outputs, paths, strict=True):
            outputs["tokens"] = path
        result = super().postprocess(model_outputs, return_timestamps=return_timestamps, **kwargs)
        result["text"] = best.text
        if return_timestamps == "word" and self.beam_search.lexicon is not None:
            # A lexicon may write its words in other letters than the model hears; one that breaks off is no word.
            words = zip(result["chunks"], best.text.split(), strict=False)
            result["chunks"] = [{**chunk, "text": word} for chunk, word in words]
        return result


def transcriber(
    model_or_folder: PreTrainedModel | str | Path, *, processor: ProcessorMixin | None = None, **kwargs
) -> BeamSearchPipeline:
    """A [`BeamSearchPipeline`] of a model, a folder or a repository of the Hub.

    Args:
        processor: needed with a model; a folder or repository brings its own tokenizer and feature extractor along.
        kwargs: `decoder`, and those of `transformers.pipeline`: `device`, `dtype`, `chunk_length_s`, `batch_size` ...
    """
    if isinstance(model_or_folder, PreTrainedModel):
        if processor is None:
            raise ValueError(f"processor=None came with a {type(model_or_folder).__name__}; a model needs one.")
    else:
        model_or_folder = str(model_or_folder)
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        own = own_class(model_or_folder, **hub)
        if own is not None:
            processor = processor or AutoProcessor.from_pretrained(model_or_folder, **hub)
            dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
            options = kwargs.pop("model_kwargs", {})
            model_or_folder = own.from_pretrained(model_or_folder, dtype=dtype, **options, **hub)
            kwargs = {name: value for name, value in kwargs.items() if name not in hub}
    if processor is not None:
        kwargs |= {"tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
    return pipeline("automatic-speech-recognition", model=model_or_folder, pipeline_class=BeamSearchPipeline, **kwargs)


def own_class(folder: str | Path, **hub: Any) -> type[PreTrainedModel] | None:
    """The class of this package that a folder or repository names as its architecture, or None.

    Transformers' own class of the same name loads the same weights, but lets padding change its answers.
    """
    import hf_wav2vec_family

    name = (AutoConfig.from_pretrained(folder, **hub).architectures or [""])[0]
    own = getattr(hf_wav2vec_family, name, None)
    if own is not None and not name.endswith("ForCTC"):
        raise ValueError(f"{folder} holds a {name}, which gives no text; a model fine-tuned with CTC is needed.")
    return own
