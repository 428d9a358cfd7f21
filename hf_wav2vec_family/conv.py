"""Strided 1-D convolutions that turn a waveform into frames: lengths, masks, and norms that ignore padding.

Shapes, in every file of this package:
    B  clips in the batch         S  samples of a waveform      T  frames after the convolutions
    C  channels of a convolution  D  channels of a vector       K  steps predicted ahead
    N  negatives per positive     M  places for masked frames   G  codebook groups
    V  entries per group
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fused import eager_on_cpu

Length = TypeVar("Length", int, Tensor)


def num_frames(
    num_samples: Length, kernel_sizes: Sequence[int], strides: Sequence[int], paddings: Sequence[int] | None = None
) -> Length:
    """Frames that convolutions make of `num_samples` (a number or a tensor of them).

    Each layer maps t to floor((t + 2 * padding - kernel) / stride) + 1, with no padding unless `paddings` are given;
    what is too short has 0 frames.
    """
    paddings = paddings or [0] * len(kernel_sizes)
    for kernel_size, stride, padding in zip(kernel_sizes, strides, paddings, strict=True):
        num_samples = (num_samples + 2 * padding - kernel_size) // stride + 1
    return num_samples.clamp(min=0) if isinstance(num_samples, Tensor) else max(num_samples, 0)


def num_samples_needed(
    frames: int, kernel_sizes: Sequence[int], strides: Sequence[int], paddings: Sequence[int] | None = None
) -> int:
    """The fewest samples that give so many `frames`: the inverse of `num_frames`."""
    paddings = paddings or [0] * len(kernel_sizes)
    for kernel_size, stride, padding in reversed(list(zip(kernel_sizes, strides, paddings, strict=True))):
        frames = (frames - 1) * stride + kernel_size - 2 * padding
    return frames


def receptive_field(kernel_sizes: Sequence[int], strides: Sequence[int]) -> int:
    """Samples that one frame sees, e.g. 400 for wav2vec 2.0 and 465 for CPC and wav2vec."""
    samples, hop = 1, 1
    for kernel_size, stride in zip(kernel_sizes, strides, strict=True):
        samples += (kernel_size - 1) * hop
        hop *= stride
    return samples


def frame_centers(
    total: int, kernel_sizes: Sequence[int], strides: Sequence[int], paddings: Sequence[int] | None = None
) -> Tensor:
    """[total] float64: the sample in the middle of what each frame sees of a waveform, e.g. 320 t + 199.5 for
    wav2vec 2.0 and 160 t + 79 for CPC. Divided by the sampling rate it is the frame's time in seconds.
    """
    first, hop = 0.0, 1
    paddings = paddings or [0] * len(kernel_sizes)
    for kernel_size, stride, padding in zip(kernel_sizes, strides, paddings, strict=True):
        first += ((kernel_size - 1) / 2 - padding) * hop
        hop *= stride
    return first + hop * torch.arange(total, dtype=torch.float64)


def num_valid(attention_mask: Tensor) -> Tensor:
    """[B, S] mask of any dtype -> [B] int64, how many places are not padding. Half precision could not count them."""
    return (attention_mask != 0).sum(dim=-1)


def sample_lengths(input_values: Tensor, attention_mask: Tensor | None, needed: int) -> Tensor | None:
    """Valid samples [B] of the waveforms [B, S], None without a mask, or where one on the host marks them all.

    Args:
        needed: the fewest samples that make a frame.

    Raises:
        ValueError: a waveform too short for a frame, a mask of another shape, and, where the mask is on the host (a
            device would have to be waited for), a row that begins with padding or marks too few samples.
    """
    if input_values.dim() != 2 or input_values.shape[-1] < needed:
        raise ValueError(
            f"input_values must be [B, S] with at least {needed} samples, the fewest that make a frame, but came as"
            f" {tuple(input_values.shape)}."
        )
    if attention_mask is None:
        return None
    if attention_mask.shape != input_values.shape:
        raise ValueError(
            f"attention_mask must be {tuple(input_values.shape)} as input_values, got {tuple(attention_mask.shape)}."
        )
    lengths = num_valid(attention_mask)
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling():
        if not attention_mask[:, 0].all():
            row = int(attention_mask[:, 0].argmin())
            raise ValueError(f"attention_mask must pad on the right, but row {row} begins with padding.")
        if lengths.min() < needed:
            row = int(lengths.argmin())
            raise ValueError(
                f"each row of attention_mask must mark at least {needed} samples, the fewest that make a frame, but"
                f" row {row} marks {int(lengths[row])}."
            )
        if eager_on_cpu(lengths) and lengths.min() == input_values.shape[1]:
            return None  # padding costs copies, and there is none
    return lengths


def valid_frames(lengths: Tensor, total: int) -> Tensor:
    """[B] numbers of valid frames -> [B, total] bool, True where a frame is not padding."""
    return torch.arange(total, device=lengths.device) < lengths[:, None]


def mean_over_valid(values: Tensor, valid: Tensor | None) -> Tensor:
    """Mean of `values` [B, T, D] over all channels of the frames that `valid` [B, T] marks (all if None): a scalar."""
    if valid is None:
        return values.mean()
    weight = valid.unsqueeze(-1).to(values.dtype)
    return (values * weight).sum() / (weight.sum() * values.shape[-1]).clamp(min=1)


def calls_nothing_else(conv: nn.Conv1d) -> bool:
    """Whether a call of `conv` is a convolution with its weights and nothing else.

    Hooks may change what comes out or bring the weights only then, as offloading does; a subclass may do anything.
    """
    hooks = (conv._forward_pre_hooks, conv._forward_hooks, conv._backward_pre_hooks, conv._backward_hooks)
    return type(conv).forward is nn.Conv1d.forward and "forward" not in vars(conv) and not any(hooks)


class MaskedGroupNorm(nn.GroupNorm):
    """Group norm over channels and time whose statistics leave padding out.

    `nn.GroupNorm` averages over all frames, so that the zeros a batch is padded with change every output: a clip then
    has other features beside a longer clip than alone. Here a padded row gives what it would give by itself.

    Attributes:
        statistics: [1, groups, 2], mean and reciprocal deviation that stand for those of the frames, where these are
            a part of a recording (norm_statistics.py).
    """

    statistics: Tensor | None = None

    def forward(self, hidden_states: Tensor, lengths: Tensor | None = None) -> Tensor:
        """[B, C, T] -> [B, C, T]; `lengths` [B] counts the valid frames of each row, None means all of them.

        Statistics are taken in float32 whatever the input. Padded frames come back as 0.
        """
        if self.statistics is not None:
            return self._norm_by(self.statistics, hidden_states, lengths)
        if lengths is None:
            return self._norm(hidden_states)
        if lengths.device.type == "cpu" and not torch.compiler.is_compiling():
            return self._norm_row_by_row(hidden_states, lengths.tolist())
        return self._norm_with_mask(hidden_states, lengths)

    def _norm(self, hidden_states: Tensor) -> Tensor:
        weight, bias = _in_float32(self.weight), _in_float32(self.bias)
        return F.group_norm(hidden_states.float(), self.num_groups, weight, bias, self.eps).to(hidden_states.dtype)

    def _norm_row_by_row(self, hidden_states: Tensor, lengths: list[int]) -> Tensor:
        """Each row cut to its length. Where lengths are known on the host this touches the fewest bytes."""
        total = hidden_states.shape[-1]
        rows = zip(hidden_states.unbind(0), lengths, strict=True)
        return torch.stack([F.pad(self._norm(row[None, :, :n]), (0, total - n))[0] for row, n in rows])

    def _norm_with_mask(self, hidden_states: Tensor, lengths: Tensor) -> Tensor:
        """All rows at once, without asking the device for a length."""
        batch_size, channels, total = hidden_states.shape
        valid = valid_frames(lengths, total)[:, None]  # [B, 1, T]
        # where, not a product: what stands in the padding may be NaN
        kept = torch.where(valid, hidden_states.float(), 0.0)
        grouped = kept.reshape(batch_size, self.num_groups, -1)  # [B, groups, C / groups * T]
        count = (lengths.clamp(min=1) * (channels // self.num_groups))[:, None, None]
        mean = grouped.sum(dim=-1, keepdim=True) / count
        centred = torch.where(valid, kept - _per_channel(mean, channels), 0.0)
        variance = centred.reshape(grouped.shape).square().sum(dim=-1, keepdim=True) / count
        normed = self._scale(centred, torch.rsqrt(variance + self.eps))
        return torch.where(valid, normed, 0.0).to(hidden_states.dtype)

    def _norm_by(self, statistics: Tensor, hidden_states: Tensor, lengths: Tensor | None) -> Tensor:
        mean, deviation = statistics[..., :1], statistics[..., 1:]
        normed = self._scale(hidden_states.float() - _per_channel(mean, hidden_states.shape[1]), deviation)
        if lengths is not None:
            normed = torch.where(valid_frames(lengths, hidden_states.shape[-1])[:, None], normed, 0.0)
        return normed.to(hidden_states.dtype)

    def _scale(self, centred: Tensor, deviation: Tensor) -> Tensor:
        """Frames [B, C, T] without their mean, by the reciprocal deviation [B, groups, 1], weight and bias."""
        scale = _per_channel(deviation, centred.shape[1])
        if self.weight is None:
            return centred * scale
        return centred * (scale * self.weight[:, None]) + self.bias[:, None]


def _per_channel(group_values: Tensor, channels: int) -> Tensor:
    """[B, groups, 1] -> [B, C, 1]: each group's value for each of its channels."""
    return group_values.repeat_interleave(channels // group_values.shape[1], dim=1)


def _in_float32(parameter: Tensor | None) -> Tensor | None:
    """A norm's weight or bias for a norm in float32: no kernel takes float32 frames beside half-precision weights."""
    return None if parameter is None else parameter.float()


class ChannelsLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of a [B, C, T] tensor, each frame by itself."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        weight, bias = _in_float32(self.weight), _in_float32(self.bias)
        normed = F.layer_norm(hidden_states.transpose(1, 2).float(), self.normalized_shape, weight, bias, self.eps)
        return normed.transpose(1, 2).to(hidden_states.dtype)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return values.view_as(values)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.scale, None


def scale_gradient(values: Tensor, scale: float) -> Tensor:
    """`values` themselves; their gradient is multiplied by `scale` on the way back (wav2vec 2.0, section 4.2: 0.1)."""
    return values if scale == 1.0 else _ScaleGradient.apply(values, scale)
