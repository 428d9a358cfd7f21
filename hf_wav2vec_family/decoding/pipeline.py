"""A model, a folder or a repository of the Hub as one callable: audio in, text out."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoProcessor, PreTrainedModel, ProcessorMixin, pipeline

from ..speech_recognition_pipeline import SpeechRecognitionPipeline

HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "trust_remote_code")


def transcriber(
    model_or_folder: PreTrainedModel | str | Path, *, processor: ProcessorMixin | None = None, **kwargs
) -> SpeechRecognitionPipeline:
    """A [`SpeechRecognitionPipeline`] of a model, a folder or a repository of the Hub.

    Args:
        processor: needed with a model; a folder or repository brings its own tokenizer and feature extractor along.
        kwargs: as of `transformers.pipeline`: `device`, `dtype`, `chunk_length_s`, `batch_size` and so on.
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
    return pipeline(
        "automatic-speech-recognition", model=model_or_folder, pipeline_class=SpeechRecognitionPipeline, **kwargs
    )


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
