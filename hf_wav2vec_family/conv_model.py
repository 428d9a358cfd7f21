"""What models on strided convolutions have in common: lengths, checks, initialisation, code that travels."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .conv import num_frames, num_valid, receptive_field, sample_lengths, valid_frames
from .future_prediction import StepPredictor
from .quantizers import UniformLinear


class ConvModelMixin:
    """For a `PreTrainedModel` whose configuration has `conv_kernel` and `conv_stride`."""

    # every class of the folder that an Auto class finds, as {Auto class: file.Class}
    travelling_classes: ClassVar[dict[str, str]] = {}

    def num_frames(self, num_samples: int | Tensor) -> int | Tensor:
        """Frames of the convolutions for a number of samples at 16 kHz (or a tensor of them)."""
        return num_frames(num_samples, self.config.conv_kernel, self.config.conv_stride)

    def _get_feat_extract_output_lengths(self, input_lengths: int | Tensor) -> int | Tensor:
        return self.num_frames(input_lengths)

    def frame_mask(self, attention_mask: Tensor, total: int) -> Tensor:
        """Mask of samples [B, S] -> mask of the `total` = T frames, [B, T] bool."""
        return valid_frames(self.num_frames(num_valid(attention_mask)), total)

    def sample_lengths(self, input_values: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """Valid samples [B] of each row, None without a mask; a row without a single frame is refused."""
        needed = receptive_field(self.config.conv_kernel, self.config.conv_stride)
        return sample_lengths(input_values, attention_mask, needed)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Linear layers of heads N(0, initializer_range), norms 1 and 0, all else as PyTorch starts it.

        Each tensor is set at the module that owns it: Transformers passes over modules without tensors of their own.
        """
        super()._init_weights(module)
        if hasattr(module, "layer_weights"):
            init.constant_(module.layer_weights, 1.0 / len(module.layer_weights))
        if isinstance(module, nn.Conv1d):
            bound = (module.in_channels // module.groups * module.kernel_size[0]) ** -0.5
        elif isinstance(module, UniformLinear):
            bound = module.in_features**-0.5
        elif isinstance(module, nn.GRU):
            bound = module.hidden_size**-0.5
        elif isinstance(module, StepPredictor):
            bound = module.initial_bound
        else:
            return
        for parameter in module.parameters(recurse=False):
            init.uniform_(parameter, -bound, bound)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As Transformers', with every class that an Auto class finds in the folder."""
        self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **self.travelling_classes}
        super().save_pretrained(save_directory, *args, **kwargs)
