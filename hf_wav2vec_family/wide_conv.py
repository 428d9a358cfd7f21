"""A convolution of stride 1 over many taps, as positions are made by, in the form that each device is fast at.

A CPU multiplies every tap, and cuDNN does not make use of groups of few channels: both take many times as long as the
same sums take here.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .conv import calls_nothing_else
from .fused import WeightCache, eager_on_cpu
from .precision import HALF, dtype_of

HOP = 8
FRAMES_PER_TAP = 3  # that a spectrum pays from which is made for one step of training


def convolution_spectrum(weight: Tensor, groups: int) -> Tensor:
    """Weight [C', C / groups, taps] of a grouped convolution -> [groups * F, C / groups, C' / groups] complex.

    F = taps + 1 frequencies, those of blocks of twice as many frames as there are taps.
    """
    taps = weight.shape[-1]
    spectrum = torch.fft.rfft(weight.float(), n=2 * taps).conj()  # [C', C / groups, F]
    per_group = spectrum.unflatten(0, (groups, -1)).permute(0, 3, 2, 1)
    return per_group.reshape(-1, weight.shape[1], weight.shape[0] // groups).resolve_conj()


def _spectra_of(frames: Tensor, groups: int, *, size: int, hop: int) -> Tensor:
    """Spectra of `size` frames from every `hop`-th on of [B, C, T]: [groups * F, B * blocks, C / groups] complex."""
    blocks = torch.fft.rfft(frames.unfold(-1, size, hop))  # [B, C, blocks, F]
    blocks = blocks.unflatten(1, (groups, -1)).permute(1, 4, 0, 3, 2)  # [groups, F, B, blocks, C / groups]
    return blocks.reshape(groups * blocks.shape[1], -1, blocks.shape[-1])


def _frames_of(blocks: Tensor, groups: int, *, batch_size: int, size: int) -> Tensor:
    """The frames of spectra [groups * F, B * blocks, C / groups], [B, groups, C / groups, blocks, size]."""
    blocks = blocks.view(groups, size // 2 + 1, batch_size, -1, blocks.shape[-1])
    return torch.fft.irfft(blocks.permute(2, 0, 4, 3, 1), n=size)


def _num_blocks(total: int, taps: int, padding: int) -> int:
    """How many blocks, each of which gives `taps` + 1 frames, those that come out of `total` frames are in."""
    return -(-(total + 2 * padding - taps + 1) // (taps + 1))


def _pad(frames: Tensor, taps: int, padding: int) -> Tensor:
    """Frames [B, C, T] with `padding` on the left, and as much on the right as the last block wants."""
    total = frames.shape[-1]
    wanted = _num_blocks(total, taps, padding) * (taps + 1) + taps - 1
    return F.pad(frames, (padding, wanted - total - padding))


def _join(blocks: Tensor, taps: int, total_out: int) -> Tensor:
    """Of blocks [B, groups, C / groups, blocks, 2 * taps] what no tap wraps around in, [B, C, total_out]."""
    return blocks[..., : taps + 1].flatten(-2).flatten(1, 2)[..., :total_out]


def convolve_spectrum(
    hidden_states: Tensor, spectrum: Tensor, bias: Tensor | None, *, taps: int, groups: int, padding: int
) -> Tensor:
    """What `F.conv1d` gives, [B, C, T] -> [B, C', T'] with stride 1, from the spectrum of its weight (overlap-save).

    Blocks overlap by `taps` - 1 frames, so that one spectrum serves clips of every length.
    """
    batch_size, _, total = hidden_states.shape
    blocks = _spectra_of(_pad(hidden_states, taps, padding), groups, size=2 * taps, hop=taps + 1)
    frames = _frames_of(torch.bmm(blocks, spectrum), groups, batch_size=batch_size, size=2 * taps)
    output = _join(frames, taps, total + 2 * padding - taps + 1)
    return output if bias is None else output + bias[:, None]


class _ConvolveSpectrum(torch.autograd.Function):
    """`convolve_spectrum` of a weight that learns, a group at a time, since the spectrum of all is large.

    It is made again in the backward pass, where both gradients are products with spectra, too. Of two factors one has
    to be conjugated: the one that is small.
    """

    @staticmethod
    def forward(ctx, frames: Tensor, weight: Tensor, groups: int, padding: int) -> Tensor:
        taps, total = weight.shape[-1], frames.shape[-1]
        blocks = _spectra_of(_pad(frames, taps, padding), groups, size=2 * taps, hop=taps + 1)
        conjugate = blocks.conj().resolve_conj()
        product = torch.empty(*blocks.shape[:2], len(weight) // groups, dtype=blocks.dtype)
        groupwise = (values.chunk(groups) for values in (conjugate, weight, product))
        for part, filters, made in zip(*groupwise, strict=True):
            spectrum = torch.fft.rfft(filters, n=2 * taps)  # [C' / groups, C / groups, F]
            torch.bmm(part, spectrum.permute(2, 1, 0).contiguous(), out=made)
        ctx.save_for_backward(blocks, weight)
        ctx.groups, ctx.padding, ctx.total = groups, padding, total
        output = _frames_of(product.conj(), groups, batch_size=len(frames), size=2 * taps)
        return _join(output, taps, total + 2 * padding - taps + 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        blocks, weight = ctx.saved_tensors
        groups, padding, total, taps = ctx.groups, ctx.padding, ctx.total, weight.shape[-1]
        size, hop = 2 * taps, taps + 1
        num_blocks = _num_blocks(total, taps, padding)
        own = F.pad(gradient, (0, num_blocks * hop - gradient.shape[-1])).unflatten(-1, (num_blocks, hop))
        gradients = _spectra_of(F.pad(own, (0, size - hop)).flatten(-2), groups, size=size, hop=size)
        conjugate = gradients.conj().resolve_conj()
        heard, weight_gradient = torch.empty_like(blocks), torch.empty_like(weight)
        groupwise = (
            values.chunk(groups)
            for values in (blocks.mT.contiguous(), weight, gradients, conjugate, heard, weight_gradient)
        )
        for part, filters, came, conjugate_came, given, learnt in zip(*groupwise, strict=True):
            spectrum = torch.fft.rfft(filters, n=size)
            torch.bmm(came, spectrum.permute(2, 0, 1).contiguous(), out=given)
            spectrum = torch.bmm(part, conjugate_came).permute(2, 1, 0)
            learnt.copy_(torch.fft.irfft(spectrum, n=size)[..., :taps])
        heard = _frames_of(heard, groups, batch_size=len(gradient), size=size).flatten(1, 2)
        frame_gradient = heard.new_zeros(*heard.shape[:2], num_blocks * hop + taps - 1)
        for block in range(num_blocks):
            frame_gradient[..., block * hop : block * hop + size] += heard[:, :, block]
        return frame_gradient[..., padding : padding + total], weight_gradient, None, None


def _windows(frames: Tensor, groups: int, size: int, hop: int) -> Tensor:
    """Frames [B, C, T] -> [groups, B * T / hop, size * C / groups], `size` frames from every `hop`-th on."""
    windows = frames.unflatten(1, (groups, -1)).unfold(-1, size, hop)  # [B, groups, C / groups, blocks, size]
    return windows.permute(1, 0, 3, 4, 2).reshape(groups, len(frames) * windows.shape[3], -1)


def _diagonal(shifted: Tensor) -> Tensor:
    """Of [groups, taps + hop - 1, C, hop, C'] what place i of a hop holds from frame i on, [.., taps, C, hop, C']."""
    groups, size, channels, hop, channels_out = shifted.shape
    by_group, by_frame, by_channel, by_column, _ = shifted.stride()
    strides = (by_group, by_frame, by_channel, by_column + by_frame, 1)
    return shifted.as_strided((groups, size - hop + 1, channels, hop, channels_out), strides)


def _blocks(frames: Tensor, weight: Tensor, groups: int, padding: int) -> Tensor:
    """`F.conv1d(frames, weight, padding=padding, groups=groups)`, `HOP` frames of a group by a row of one product."""
    batch_size, _, total = frames.shape
    channels_out, channels, taps = weight.shape
    total_out = total + 2 * padding - taps + 1
    num_blocks, size = -(-total_out // HOP), taps + HOP - 1
    padded = F.pad(frames, (padding, num_blocks * HOP + taps - 1 - total - padding))
    filters = weight.unflatten(0, (groups, -1)).permute(0, 3, 2, 1)  # [groups, taps, C / groups, C' / groups]
    shifted = weight.new_zeros(groups, size, channels, HOP, channels_out // groups)
    _diagonal(shifted).copy_(filters.unsqueeze(3))
    product = torch.bmm(_windows(padded, groups, size, HOP), shifted.view(groups, size * channels, -1))
    product = product.view(groups, batch_size, num_blocks, HOP, -1).permute(1, 0, 4, 2, 3)
    return product.reshape(batch_size, channels_out, num_blocks * HOP)[..., :total_out]


class _ConvolveBlocks(torch.autograd.Function):
    """Windows and shifted filters, each many times what they are made of, are made again in the backward pass."""

    @staticmethod
    def forward(ctx, frames: Tensor, weight: Tensor, groups: int, padding: int) -> Tensor:
        ctx.save_for_backward(frames, weight)
        ctx.groups, ctx.padding = groups, padding
        return _blocks(frames, weight, groups, padding)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        frames, weight = ctx.saved_tensors
        groups, padding, (_, channels, taps) = ctx.groups, ctx.padding, weight.shape
        mirrored = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flip(-1)
        frame_gradient = _blocks(gradient, mirrored, groups, taps - 1 - padding)
        spare = -gradient.shape[-1] % HOP
        padded = F.pad(frames, (padding, padding + spare))
        columns = _windows(F.pad(gradient, (0, spare)), groups, HOP, HOP)  # [groups, B * blocks, hop * C' / groups]
        windows = _windows(padded, groups, taps + HOP - 1, HOP)
        shifted = torch.bmm(windows.transpose(1, 2), columns).view(groups, taps + HOP - 1, channels, HOP, -1)
        filter_gradient = _diagonal(shifted).sum(dim=3)  # [groups, taps, C / groups, C' / groups]
        return frame_gradient, filter_gradient.permute(0, 3, 2, 1).flatten(0, 1), None, None


def convolve_blocks(
    hidden_states: Tensor, weight: Tensor, bias: Tensor | None, *, groups: int, padding: int
) -> Tensor:
    """What `F.conv1d` gives, [B, C, T] -> [B, C', T'] with stride 1, a few frames at a time.

    Neighbouring frames see nearly the same. A window that is a few frames wider, beside the filters shifted by a
    frame for each, makes a product with several times as many columns: wide enough for a GPU, where a group alone is
    not, and hardly more to multiply.
    """
    dtype = dtype_of(weight)
    output = _ConvolveBlocks.apply(hidden_states.to(dtype), weight.to(dtype), groups, padding)
    return output if bias is None else output + bias.to(dtype)[:, None]


def _whole_weight(conv: nn.Conv1d) -> Tensor:
    """The weight, which is not rounded when weight norm puts it together from parts in half precision."""
    return conv.weight if conv.weight.dtype == torch.float32 else copy.deepcopy(conv).float().weight


class WideConvolution:
    """A convolution of stride 1 over many taps: on a GPU in blocks, on a CPU through a spectrum.

    That is worth it for clips at least as long as the convolution is wide, since the spectrum has to be read whole for
    the shortest; it is cached, but for training, which makes it anew in each step and needs a few such clips. Under
    autocast it stays in float32, as it does for weights of half precision, which have none in training.

    Where there is no spectrum, weight norm puts the weight together in every call. A copy of it would have to be
    compared with its two parts, which reads as much and takes as long, and on a GPU makes the host wait; a version
    number misses what is written through `.data`. `parametrize.remove_parametrizations(conv, "weight")` folds it for
    good, and changes the names of the weights.
    """

    def __init__(self):
        self.spectrum = WeightCache()

    def __call__(self, conv: nn.Conv1d, hidden_states: Tensor) -> Tensor:
        """`conv(hidden_states)`, [B, C, T] -> [B, C', T']."""
        taps = conv.kernel_size[0]
        if not torch.compiler.is_compiling() and not calls_nothing_else(conv):
            return conv(hidden_states)
        if hidden_states.is_cuda and not torch.jit.is_tracing():
            return convolve_blocks(hidden_states, conv.weight, conv.bias, groups=conv.groups, padding=conv.padding[0])
        # of weight norm the two parts, so that the weight is not put together for every clip
        parts = list(conv.parameters())
        learns, total = torch.is_grad_enabled(), hidden_states.shape[-1]
        gains = taps >= 64 and total >= taps and (not learns or len(hidden_states) * total >= FRAMES_PER_TAP * taps)
        dtype = parts[0].dtype
        has_spectrum = dtype == torch.float32 or (dtype in HALF and not learns)
        if not gains or not has_spectrum or not eager_on_cpu(hidden_states):
            return conv(hidden_states)

        place = {"groups": conv.groups, "padding": conv.padding[0]}
        # autocast leaves complex numbers alone
        if learns:
            made = _ConvolveSpectrum.apply(hidden_states.float(), conv.weight, *place.values())
            made = made if conv.bias is None else made + conv.bias[:, None]
        else:
            spectrum = self.spectrum.get(parts, lambda: convolution_spectrum(_whole_weight(conv), conv.groups))
            made = convolve_spectrum(hidden_states.float(), spectrum, conv.bias, taps=taps, **place)
        return made.to(dtype_of(parts[0]))
