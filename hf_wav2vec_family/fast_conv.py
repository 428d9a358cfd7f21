"""Convolutions as matrix products and spectra, each equal to the plain one that it stands for.

Frames are rows here, [B, T, C], so that taps that lie side by side in memory are one long row of a matrix product,
a norm over channels reads what it needs in one piece, and no window is ever copied.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conv import valid_frames
from .fused import WeightCache, dtype_of, eager_on_cpu


def _tap_rows(frames: Tensor, clip: int, total_out: int, *, first_tap: int, num_taps: int, stride: int) -> Tensor:
    """Of a clip of contiguous `frames` [B, T, C] what `num_taps` taps see, [T', num_taps * C], without a copy."""
    _, total, channels = frames.shape
    begin = (clip * total + first_tap) * channels + frames.storage_offset()
    return frames.as_strided((total_out, num_taps * channels), (stride * channels, 1), begin)


class _ConvolveRows(torch.autograd.Function):
    """As many taps as the stride are one matrix product on a view; what is left over is another."""

    @staticmethod
    def forward(ctx, frames: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        channels_out, channels, taps = weight.shape
        rows = weight.permute(2, 1, 0).reshape(taps * channels, channels_out)
        total_out = (frames.shape[1] - taps) // stride + 1
        output = frames.new_empty(len(frames), total_out, channels_out)
        for clip, out in enumerate(output):
            for tap in range(0, taps, stride):
                width = min(stride, taps - tap)
                seen = _tap_rows(frames, clip, total_out, first_tap=tap, num_taps=width, stride=stride)
                part = rows[tap * channels : (tap + width) * channels]
                if tap:
                    out.addmm_(seen, part)
                elif bias is None:
                    torch.mm(seen, part, out=out)
                else:
                    torch.addmm(bias, seen, part, out=out)
        ctx.save_for_backward(frames, rows)
        ctx.stride, ctx.shape, ctx.has_bias = stride, weight.shape, bias is not None
        return output

    @staticmethod
    def backward(ctx, gradient: Tensor):
        frames, rows = ctx.saved_tensors
        (channels_out, channels, taps), stride = ctx.shape, ctx.stride
        gradient = gradient.contiguous()
        frame_gradient = torch.zeros_like(frames) if ctx.needs_input_grad[0] else None
        row_gradient = torch.zeros_like(rows)
        for clip, out in enumerate(gradient):
            for tap in range(0, taps, stride):
                width = min(stride, taps - tap)
                where = {"first_tap": tap, "num_taps": width, "stride": stride}
                part = slice(tap * channels, (tap + width) * channels)
                row_gradient[part].addmm_(_tap_rows(frames, clip, len(out), **where).t(), out)
                if frame_gradient is not None:
                    _tap_rows(frame_gradient, clip, len(out), **where).addmm_(out, rows[part].t())
        weight_gradient = row_gradient.view(taps, channels, channels_out).permute(2, 1, 0)
        return frame_gradient, weight_gradient, gradient.sum(dim=(0, 1)) if ctx.has_bias else None, None


def convolve_rows(frames: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """`F.conv1d` without padding of frames [B, T, C], its weight [C', C, taps] -> [B, T', C']."""
    if weight.shape[1] == 1:
        return F.linear(frames.squeeze(-1).unfold(1, weight.shape[-1], stride), weight[:, 0], bias)
    return _ConvolveRows.apply(frames.contiguous(), weight, bias, stride)


def convolve(conv: nn.Conv1d, hidden_states: Tensor) -> Tensor:
    """`conv` of [B, C, T], the channels of a frame lying together in memory in what comes out, [B, C', T'].

    A norm over channels reads them so without a copy, and the next convolution takes them as they are.
    """
    stride, padding = conv.stride[0], conv.padding[0]
    if not eager_on_cpu(hidden_states):
        frames, weight = (
            values.unsqueeze(2).contiguous(memory_format=torch.channels_last)
            for values in (hidden_states, conv.weight)
        )
        return F.conv2d(frames, weight, conv.bias, stride=(1, stride), padding=(0, padding)).squeeze(2)
    dtype = dtype_of(conv.weight)
    frames = hidden_states.transpose(1, 2).to(dtype)
    if padding:
        frames = F.pad(frames, (0, 0, padding, padding))
    bias = None if conv.bias is None else conv.bias.to(dtype)
    return convolve_rows(frames, conv.weight.to(dtype), bias, stride).transpose(1, 2)


class _ConvolveGelu(torch.autograd.Function):
    """gelu(windows @ weight + bias); what the GELU saw is made again in the backward pass rather than kept."""

    @staticmethod
    def forward(ctx, windows: Tensor, weight: Tensor, bias: Tensor, valid: Tensor | None) -> Tensor:
        ctx.save_for_backward(windows, weight, bias, valid)
        output = F.gelu(torch.baddbmm(bias, windows, weight))
        return output if valid is None else output.masked_fill_(~valid, 0.0)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        windows, weight, bias, valid = ctx.saved_tensors
        if valid is not None:
            gradient = gradient.masked_fill(~valid, 0.0)
        gradient = torch.ops.aten.gelu_backward(gradient, torch.baddbmm(bias, windows, weight))
        window_gradient = gradient @ weight.transpose(1, 2) if ctx.needs_input_grad[0] else None
        return window_gradient, windows.transpose(1, 2) @ gradient, gradient.sum(dim=(0, 1)), None


def convolve_norm_gelu(waveforms: Tensor, conv: nn.Conv1d, norm: nn.GroupNorm, lengths: Tensor | None) -> Tensor:
    """gelu(norm(conv(waveforms))) of [B, 1, S] with a norm of each channel over time -> [B, C, T].

    Mean and variance of all channels follow from the mean and the covariance of the windows, a few numbers for a
    clip; they scale the taps, and convolution and norm are one product. Of its size nothing but the result is kept.

    Args:
        conv: one channel in, no padding, no bias (which the norm would take away).
        norm: as many groups as channels.
        lengths: [B] valid frames of what comes out; the others are no part of the statistics, and come out as 0.
    """
    dtype = dtype_of(conv.weight)
    # float64, because a channel may be a millionth as loud as the waveform it filters
    windows = waveforms[:, 0].double().unfold(-1, conv.kernel_size[0], conv.stride[0])  # [B, T, taps]
    valid, count = None, windows.shape[1]
    if lengths is not None:
        valid = valid_frames(lengths, windows.shape[1]).unsqueeze(-1)  # [B, T, 1]
        windows = torch.where(valid, windows, 0.0)
        count = lengths.clamp(min=1)[:, None, None]
    centred = windows - windows.sum(dim=1, keepdim=True) / count
    if valid is not None:
        centred = torch.where(valid, centred, 0.0)
    filters = conv.weight[:, 0].double()  # [C, taps]
    variance = ((filters @ (centred.transpose(1, 2) @ centred / count)) * filters).sum(dim=-1)  # [B, C]
    scale = norm.weight * torch.rsqrt(variance.clamp(min=0.0) + norm.eps)
    weight = (scale.unsqueeze(-1) * filters).transpose(1, 2)  # [B, taps, C]
    with torch.autocast(waveforms.device.type, enabled=False):
        rows = _ConvolveGelu.apply(centred.to(dtype), weight.to(dtype), norm.bias.to(dtype), valid)
    return rows.transpose(1, 2)


def convolution_spectrum(weight: Tensor, groups: int) -> Tensor:
    """Weight [C', C / groups, taps] of a grouped convolution -> [groups * F, C / groups, C' / groups] complex.

    F = taps + 1 frequencies, those of blocks of twice as many frames as there are taps.
    """
    taps = weight.shape[-1]
    spectrum = torch.fft.rfft(weight.float(), n=2 * taps).conj()  # [C', C / groups, F]
    per_group = spectrum.unflatten(0, (groups, -1)).permute(0, 3, 2, 1)
    return per_group.reshape(-1, weight.shape[1], weight.shape[0] // groups).resolve_conj()


def convolve_spectrum(
    hidden_states: Tensor, spectrum: Tensor, bias: Tensor | None, *, taps: int, groups: int, padding: int
) -> Tensor:
    """What `F.conv1d` gives, [B, C, T] -> [B, C', T'] with stride 1, from the spectrum of its weight (overlap-save).

    Blocks overlap by `taps` - 1 frames, so that one spectrum serves clips of every length.
    """
    batch_size, _, total = hidden_states.shape
    size, hop = 2 * taps, taps + 1
    total_out = total + 2 * padding - taps + 1
    num_blocks = -(-total_out // hop)
    padded = F.pad(hidden_states, (padding, (num_blocks - 1) * hop + size - total - padding))
    blocks = torch.fft.rfft(padded.unfold(-1, size, hop))  # [B, C, blocks, F]
    blocks = blocks.unflatten(1, (groups, -1)).permute(1, 4, 0, 3, 2)  # [groups, F, B, blocks, C / groups]
    product = torch.bmm(blocks.reshape(len(spectrum), batch_size * num_blocks, -1), spectrum)
    product = product.view(groups, size // 2 + 1, batch_size, num_blocks, -1).permute(2, 0, 4, 3, 1)
    output = torch.fft.irfft(product, n=size)[..., :hop]  # [B, groups, C' / groups, blocks, hop]
    output = output.reshape(batch_size, -1, num_blocks * hop)[..., :total_out]
    return output if bias is None else output + bias[:, None]


class WideConvolution:
    """A convolution of stride 1 over many taps, read through a cached spectrum where nothing is learned.

    Worth it in float32 on a CPU, for clips at least as long as the convolution is wide: a spectrum has to be read
    whole for the shortest clip.
    """

    def __init__(self):
        self.spectrum = WeightCache()

    def __call__(self, conv: nn.Conv1d, hidden_states: Tensor) -> Tensor:
        """`conv(hidden_states)`, [B, C, T] -> [B, C', T']."""
        taps = conv.kernel_size[0]
        gains = taps >= 64 and hidden_states.shape[-1] >= taps and hidden_states.dtype == torch.float32
        learns = torch.is_grad_enabled()
        if learns or not gains or not eager_on_cpu(hidden_states) or torch.is_autocast_enabled("cpu"):
            return conv(hidden_states)
        # of weight norm the two parts, so that the weight is not put together for every clip
        spectrum = self.spectrum.get(list(conv.parameters()), lambda: convolution_spectrum(conv.weight, conv.groups))
        return convolve_spectrum(
            hidden_states, spectrum, conv.bias, taps=taps, groups=conv.groups, padding=conv.padding[0]
        )
