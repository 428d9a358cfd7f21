"""The two stacks of wav2vec and vq-wav2vec: waveform to latent frames z, latent frames to context c that looks back.

Schneider et al., 2019 (arXiv:1904.05862), section 3.1. Inside, frames are [B, C, T]; see conv.py for the letters.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .conv import MaskedGroupNorm, num_frames
from .fast_conv import convolve
from .fused import Dropout


class FrameGroupNorm(nn.GroupNorm):
    """Group norm over the channels of each frame by itself, so that no frame sees a later one."""

    def forward(self, hidden_states: Tensor, lengths: Tensor | None = None) -> Tensor:
        """[B, C, T] -> [B, C, T]; `lengths` make no difference."""
        # F.group_norm would want frames as rows, and a graph of B * T rows is made for more than one clip
        groups = hidden_states.transpose(1, 2).float().unflatten(-1, (self.num_groups, -1))
        normed = F.layer_norm(groups, groups.shape[-1:], eps=self.eps).flatten(-2)
        if self.weight is not None:
            normed = normed * self.weight.float() + self.bias.float()
        return normed.transpose(1, 2).to(hidden_states.dtype)


NORMS: dict[str, type[nn.GroupNorm]] = {"group": MaskedGroupNorm, "layer": FrameGroupNorm}


class Streamed(NamedTuple):
    """`frames` [B, C, T] that a chunk completes, T may be 0, and the `state` to hand over with the next chunk."""

    frames: Tensor
    state: list[Tensor]


class ConvBlock(GradientCheckpointingLayer):
    """Convolution without padding, dropout, norm, activation.

    Args:
        norm: "group", one group over all channels and all frames, as published; "layer", over the channels of a frame.
        affine: whether the norm has a weight and a bias.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        bias: bool,
        norm: str,
        affine: bool,
        activation: Callable[[Tensor], Tensor],
        dropout: float,
    ):
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride
        self.conv = nn.Conv1d(in_channels, channels, kernel_size, stride, bias=bias)
        self.dropout = Dropout(dropout)
        self.layer_norm = NORMS[norm](1, channels, affine=affine)
        self.activation = activation

    def forward(self, hidden_states: Tensor, lengths: Tensor | None = None) -> Tensor:
        """[B, C, T] -> [B, C', T']; `lengths` [B] counts the valid frames that come out."""
        convolved = self.dropout(convolve(self.conv, hidden_states, norm_over="time"))
        return self.activation(self.layer_norm(convolved, lengths))


class ConvEncoder(nn.Module):
    """The encoder network: strided convolutions from the waveform to z.

    Args:
        skip_connections: add a layer's input, thinned to its frames, where the channels agree.
        residual_scale: the sum is multiplied by the square root of this.
        log_compression: z = log(1 + |x|); in the published wav2vec_large, not in the paper.
        block: of `ConvBlock`.
    """

    def __init__(
        self,
        dims: Sequence[int],
        kernel_sizes: Sequence[int],
        strides: Sequence[int],
        *,
        skip_connections: bool = False,
        residual_scale: float = 0.5,
        log_compression: bool = False,
        **block,
    ):
        super().__init__()
        layers = zip([1, *dims[:-1]], dims, kernel_sizes, strides, strict=True)
        self.conv_layers = nn.ModuleList(ConvBlock(*layer, bias=False, **block) for layer in layers)
        self.skip_connections = skip_connections
        self.scale = residual_scale**0.5
        self.log_compression = log_compression

    def forward(self, input_values: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Waveform [B, S], valid samples [B] or None -> z [B, C, T]."""
        hidden_states = input_values[:, None]
        for layer in self.conv_layers:
            if lengths is not None:
                lengths = num_frames(lengths, [layer.kernel_size], [layer.stride])
            hidden_states = self._join(layer, layer(hidden_states, lengths), hidden_states)
        return self._compress(hidden_states)

    def stream(self, chunk: Tensor, state: list[Tensor] | None) -> Streamed:
        """The next samples [B, S] -> the frames they complete. The state is what each layer has not used up."""
        state = state or [chunk.new_zeros(len(chunk), layer.conv.in_channels, 0) for layer in self.conv_layers]
        hidden_states, rest = chunk[:, None], []
        for layer, kept in zip(self.conv_layers, state, strict=True):
            buffer = torch.cat([kept.to(hidden_states.dtype), hidden_states], dim=-1)
            total = num_frames(buffer.shape[-1], [layer.kernel_size], [layer.stride])
            rest.append(buffer[..., total * layer.stride :])
            if total == 0:
                hidden_states = buffer.new_zeros(len(buffer), layer.conv.out_channels, 0)
                continue
            hidden_states = self._join(layer, layer(buffer), buffer)
        return Streamed(self._compress(hidden_states), rest)

    def _join(self, layer: ConvBlock, output: Tensor, residual: Tensor) -> Tensor:
        if not self.skip_connections or output.shape[1] != residual.shape[1]:
            return output
        return (output + residual[..., :: layer.stride][..., : output.shape[-1]]) * self.scale

    def _compress(self, hidden_states: Tensor) -> Tensor:
        return torch.log1p(hidden_states.abs()) if self.log_compression else hidden_states


class CausalConvNetwork(nn.Module):
    """The context network: convolutions padded on the left alone, so that c at frame t sees z up to t.

    Its group norm, as published, does see all frames of a clip: with `norm="group"` only the convolutions are causal.

    Args:
        padding: "replicate" the first frame or "zero".
        skip_connections: add a layer's input, through a 1x1 convolution where channels differ.
        residual_scale: the sum is multiplied by the square root of this.
        block: of `ConvBlock`.
    """

    def __init__(
        self,
        input_dim: int,
        dims: Sequence[int],
        kernel_sizes: Sequence[int],
        *,
        padding: str = "replicate",
        skip_connections: bool = False,
        residual_scale: float = 0.5,
        **block,
    ):
        super().__init__()
        widths = [input_dim, *dims[:-1]]
        layers = zip(widths, dims, kernel_sizes, strict=True)
        self.conv_layers = nn.ModuleList(ConvBlock(*layer, **block) for layer in layers)
        self.pad_mode = {"replicate": "replicate", "zero": "constant"}[padding]
        self.residual_proj = None
        if skip_connections:
            self.residual_proj = nn.ModuleList(
                nn.Identity() if a == b else nn.Conv1d(a, b, kernel_size=1, bias=False)
                for a, b in zip(widths, dims, strict=True)
            )
        self.scale = residual_scale**0.5

    def forward(self, hidden_states: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
        """z [B, C, T], valid frames [B] or None -> the output of each layer [B, C', T]; the last is c."""
        outputs = []
        for i, layer in enumerate(self.conv_layers):
            hidden_states = self._join(i, layer(self._pad(layer, hidden_states), lengths), hidden_states)
            outputs.append(hidden_states)
        return outputs

    def stream(self, hidden_states: Tensor, state: list[Tensor] | None) -> Streamed:
        """The next frames [B, C, T] -> their context. The state is the last `kernel_size` - 1 inputs of each layer."""
        if hidden_states.shape[-1] == 0:
            return Streamed(hidden_states.new_zeros(len(hidden_states), self.output_dim, 0), state)
        past = []
        for i, layer in enumerate(self.conv_layers):
            seen = hidden_states if state is None else torch.cat([state[i], hidden_states], dim=-1)
            buffer = self._pad(layer, seen) if state is None else seen
            past.append(buffer[..., buffer.shape[-1] - (layer.kernel_size - 1) :])
            hidden_states = self._join(i, layer(buffer), hidden_states)
        return Streamed(hidden_states, past)

    @property
    def output_dim(self) -> int:
        return self.conv_layers[-1].conv.out_channels

    def _pad(self, layer: ConvBlock, hidden_states: Tensor) -> Tensor:
        return F.pad(hidden_states, (layer.kernel_size - 1, 0), mode=self.pad_mode)

    def _join(self, index: int, output: Tensor, residual: Tensor) -> Tensor:
        if self.residual_proj is None:
            return output
        return (output + self.residual_proj[index](residual)) * self.scale


class CausalGRU(nn.Module):
    """A recurrent context network, one GRU that goes through time.

    The original code has this option too, but hands [B, T, C] to a GRU that takes [T, B, C]: there it recurs over the
    clips of the batch.
    """

    def __init__(self, input_dim: int, output_dim: int):
        super().__init__()
        self.gru = nn.GRU(input_dim, output_dim, batch_first=True)
        self.output_dim = output_dim

    def forward(self, hidden_states: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
        """z [B, C, T] -> a list of c [B, C', T] alone; padding on the right cannot reach what comes before it."""
        return [self.gru(hidden_states.transpose(1, 2))[0].transpose(1, 2)]

    def stream(self, hidden_states: Tensor, state: list[Tensor] | None) -> Streamed:
        """The next frames [B, C, T] -> their context; the state is the GRU's."""
        if hidden_states.shape[-1] == 0:
            return Streamed(hidden_states.new_zeros(len(hidden_states), self.output_dim, 0), state)
        output, last = self.gru(hidden_states.transpose(1, 2), None if state is None else state[0])
        return Streamed(output.transpose(1, 2), [last])
