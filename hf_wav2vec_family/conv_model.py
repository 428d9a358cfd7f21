"""What models on strided convolutions have in common: lengths, heads' initialisation, code that travels."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .conv import frame_centers, num_frames, num_samples_needed, num_valid, sample_lengths, valid_frames

# what an Auto class is asked for, and what the class it finds is called behind the name of the architecture
HEADS = {
    "AutoModel": "Model",
    "AutoModelForPreTraining": "ForPreTraining",
    "AutoModelForCTC": "ForCTC",
    "AutoModelForAudioClassification": "ForSequenceClassification",
    "AutoModelForAudioFrameClassification": "ForAudioFrameClassification",
}

SPEECH_RECOGNITION = "automatic-speech-recognition"


def classes_of(architecture: str, prefix: str) -> dict[str, str]:
    """{Auto class: file.Class} of all classes of an architecture, e.g. of "vq_wav2vec", "VQWav2Vec"."""
    models = {auto_class: f"modeling_{architecture}.{prefix}{head}" for auto_class, head in HEADS.items()}
    return {"AutoConfig": f"configuration_{architecture}.{prefix}Config", **models}


class ConvModelMixin:
    """For a `PreTrainedModel` whose configuration has `conv_kernel` and `conv_stride`."""

    # every class of the folder that an Auto class finds, as {Auto class: file.Class}
    travelling_classes: ClassVar[dict[str, str]] = {}
    # a model without attention computes it in any way that a model around it is asked for
    _supports_sdpa = True

    def get_input_embeddings(self) -> nn.Module | None:
        """None: a waveform is looked up in no table. Accelerate's FSDP2 asks, and Transformers' answer is an error."""
        return None

    def num_frames(self, num_samples: int | Tensor) -> int | Tensor:
        """Frames of the convolutions for a number of samples at 16 kHz (or a tensor of them)."""
        return num_frames(num_samples, self.config.conv_kernel, self.config.conv_stride)

    def frame_centers(self, total: int) -> Tensor:
        """[total] float64: the sample in the middle of what each frame sees; over 16,000 its time in seconds."""
        return frame_centers(total, self.config.conv_kernel, self.config.conv_stride)

    @property
    def num_frames_needed(self) -> int:
        """The fewest frames that the model, or the objective on top of it, can do anything with."""
        return 1

    @property
    def num_samples_needed(self) -> int:
        """The fewest samples that make so many frames."""
        return num_samples_needed(self.num_frames_needed, self.config.conv_kernel, self.config.conv_stride)

    def _get_feat_extract_output_lengths(self, input_lengths: int | Tensor) -> int | Tensor:
        return self.num_frames(input_lengths)

    def refuse_attentions(self, asked: bool | None):
        """ValueError where attentions are asked for, here or in the configuration: frames attend to nothing."""
        if self.config.output_attentions if asked is None else asked:
            raise ValueError(f"output_attentions: a {type(self).__name__} gives none; got True, accepted is False.")

    def frame_mask(self, attention_mask: Tensor, total: int) -> Tensor:
        """Mask of samples [B, S] -> mask of the `total` = T frames, [B, T] bool."""
        return valid_frames(self.num_frames(num_valid(attention_mask)), total)

    def sample_lengths(self, input_values: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """Valid samples [B] of each row, None without a mask; a row without a single frame is refused."""
        return sample_lengths(input_values, attention_mask, self.num_samples_needed)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Linear layers of heads N(0, initializer_range), norms 1 and 0, weights of layers all alike.

        Each tensor is set at the module that owns it: Transformers passes over modules without tensors of their own.
        """
        super()._init_weights(module)
        if hasattr(module, "layer_weights"):
            init.constant_(module.layer_weights, 1.0 / len(module.layer_weights))

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As Transformers', with every class that an Auto class or, for CTC, `pipeline` finds in the folder."""
        # here, because no model needs it; it is also what makes Transformers copy the file
        from .speech_recognition_pipeline import SpeechRecognitionPipeline

        # saving adds only the class of the model itself
        self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **self.travelling_classes}
        own_class = next(kind for kind in type(self).__mro__ if not kind.__module__.startswith("torch."))
        transcribes = self.travelling_classes["AutoModelForCTC"].endswith(f".{own_class.__name__}")
        file = SpeechRecognitionPipeline.__module__.rpartition(".")[2]
        custom = {"impl": f"{file}.{SpeechRecognitionPipeline.__name__}", "pt": ["AutoModelForCTC"]}
        self.config.custom_pipelines = {SPEECH_RECOGNITION: custom} if transcribes else {}
        # FSDP2 puts a class of its making over that of the model, whose name and file would go into the folder
        kind = type(self)
        self.__class__ = own_class
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.__class__ = kind
