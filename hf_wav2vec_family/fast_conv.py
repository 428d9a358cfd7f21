"""Convolutions as matrix products, each equal to the plain one that it stands for.

Frames are rows here, [B, T, C], so that taps that lie side by side in memory are one long row of a matrix product,
a norm over channels reads what it needs in one piece, and no window is ever copied.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conv import calls_nothing_else, valid_frames
from .fused import eager
from .precision import HALF, dtype_of, without_autocast

# what a convolution as rows pays from on a CPU, where frames have to be copied into rows and back,
MIN_STRIDE = 4
# and in half precision without gradients
MIN_FRAMES = 800


def _tap_rows(frames: Tensor, total_out: int, *, first_tap: int, num_taps: int, stride: int) -> Tensor:
    """Of contiguous `frames` [B, T, C] what `num_taps` taps see, [B, T', num_taps * C], without a copy."""
    batch_size, total, channels = frames.shape
    begin = first_tap * channels + frames.storage_offset()
    shape, strides = (batch_size, total_out, num_taps * channels), (total * channels, stride * channels, 1)
    return frames.as_strided(shape, strides, begin)


def _blocks(*values: Tensor) -> zip:
    """The clips of each that go through all taps together: on a CPU one, which its caches hold, on a GPU all."""
    size = 1 if values[0].device.type == "cpu" else len(values[0])
    return zip(*(value.split(size) for value in values), strict=True)


def _add_product(output: Tensor, rows: Tensor, weight: Tensor, *, anew: bool = False):
    """Adds rows [B, T, K] @ weight [K, N] to output [B, T, N], or writes it there."""
    beta = 0.0 if anew else 1.0
    if len(output) == 1:
        output[0].addmm_(rows[0], weight, beta=beta)
    else:
        output.baddbmm_(rows, weight.expand(len(rows), -1, -1), beta=beta)


def _add_sum_of_products(total: Tensor, rows: Tensor, gradient: Tensor):
    """Adds the sum over clips of rows [B, T, K] transposed @ gradient [B, T, N] to total [K, N]."""
    if len(rows) > 1:
        total.add_(torch.bmm(rows.transpose(1, 2), gradient).sum(dim=0, dtype=total.dtype))
    elif total.dtype == rows.dtype:
        total.addmm_(rows[0].t(), gradient[0])
    else:
        total.add_(rows[0].t() @ gradient[0])


def _rows_of(weight: Tensor) -> Tensor:
    """[C', C, taps] -> [taps * C, C']."""
    return weight.permute(2, 1, 0).reshape(-1, len(weight))


class _ConvolveRows(torch.autograd.Function):
    """As many taps as the stride are one matrix product on a view; what is left over is another."""

    @staticmethod
    def forward(ctx, frames: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        channels_out, channels, taps = weight.shape
        rows = _rows_of(weight)
        total_out = (frames.shape[1] - taps) // stride + 1
        output = frames.new_empty(len(frames), total_out, channels_out)
        if bias is not None:
            output.copy_(bias)
        for heard, made in _blocks(frames, output):
            for tap in range(0, taps, stride):
                width = min(stride, taps - tap)
                seen = _tap_rows(heard, total_out, first_tap=tap, num_taps=width, stride=stride)
                part = rows[tap * channels : (tap + width) * channels]
                _add_product(made, seen, part, anew=tap == 0 and bias is None)
        ctx.save_for_backward(frames, weight)
        ctx.stride, ctx.has_bias = stride, bias is not None
        return output

    @staticmethod
    def backward(ctx, gradient: Tensor):
        frames, weight = ctx.saved_tensors
        bias_gradient = gradient.sum(dim=(0, 1)) if ctx.has_bias else None
        if torch.is_grad_enabled():  # gradients of gradients
            plain = (gradient.transpose(1, 2), frames.transpose(1, 2), weight, None, [ctx.stride], [0], [1], False)
            wanted = [*ctx.needs_input_grad[:2], False]
            learnt, weight_gradient, _ = torch.ops.aten.convolution_backward(*plain, [0], 1, wanted)
            return None if learnt is None else learnt.transpose(1, 2), weight_gradient, bias_gradient, None
        (channels_out, channels, taps), stride = weight.shape, ctx.stride
        rows, gradient = _rows_of(weight), gradient.contiguous()
        # one that nobody asked for is an empty tensor, so that both are cut into the same blocks
        frame_gradient = torch.zeros_like(frames) if ctx.needs_input_grad[0] else frames.new_empty(len(frames), 0)
        # in half precision a sum over clips would be rounded with each of them
        row_gradient = torch.zeros_like(rows, dtype=torch.promote_types(rows.dtype, torch.float32))
        for heard, learnt, came in _blocks(frames, frame_gradient, gradient):
            for tap in range(0, taps, stride):
                width = min(stride, taps - tap)
                where = {"first_tap": tap, "num_taps": width, "stride": stride}
                part = slice(tap * channels, (tap + width) * channels)
                _add_sum_of_products(row_gradient[part], _tap_rows(heard, came.shape[1], **where), came)
                if ctx.needs_input_grad[0]:
                    _add_product(_tap_rows(learnt, came.shape[1], **where), came, rows[part].t())
        weight_gradient = row_gradient.to(rows.dtype).view(taps, channels, channels_out).permute(2, 1, 0)
        return frame_gradient if ctx.needs_input_grad[0] else None, weight_gradient, bias_gradient, None


def convolve_rows(frames: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """`F.conv1d` without padding of frames [B, T, C], its weight [C', C, taps] -> [B, T', C']."""
    if weight.shape[1] == 1:
        return F.linear(frames.squeeze(-1).unfold(1, weight.shape[-1], stride), weight[:, 0], bias)
    return _ConvolveRows.apply(frames.contiguous(), weight, bias, stride)


def _learns(conv: nn.Conv1d, hidden_states: Tensor) -> bool:
    return torch.is_grad_enabled() and (conv.weight.requires_grad or hidden_states.requires_grad)


def rows_pay(conv: nn.Module, hidden_states: Tensor, *, norm_over: str | None = None) -> bool:
    """Whether `convolve_channels_last` of [B, C, T] is faster than `conv` itself; never where `conv` has hooks.

    It is before a norm "channels". Without a norm it is on a GPU and, on a CPU in eager steps, wherever there is a
    backward pass: a forward pass alone, in float32, is a tenth faster by a CPU's own convolution, and so is one of few
    frames in half precision, whose taps take longer to put in order. A norm over "time" wants [B, C, T] again; the
    copies take longer than they save but for a long stride, with a backward pass, and not in half precision.
    """
    if not isinstance(conv, nn.Conv1d):
        return False
    stride, on_gpu = conv.stride[0], hidden_states.is_cuda
    if not eager(hidden_states):
        return norm_over == "channels" or (norm_over is None and on_gpu)
    if not calls_nothing_else(conv) or hidden_states.shape[-1] + 2 * conv.padding[0] < conv.kernel_size[0]:
        return False
    if norm_over == "channels":
        return True
    in_half = dtype_of(conv.weight) in HALF
    if norm_over == "time":
        strided = stride >= MIN_STRIDE and conv.in_channels > 1
        return strided and not on_gpu and not in_half and _learns(conv, hidden_states)
    if on_gpu or _learns(conv, hidden_states):
        return True
    return in_half and len(hidden_states) * (hidden_states.shape[-1] // stride) >= MIN_FRAMES


def convolve(conv: nn.Module, hidden_states: Tensor, *, norm_over: str | None = None) -> Tensor:
    """`conv` of [B, C, T], in the form that is fastest here.

    Args:
        norm_over: "channels" or "time", what a norm that comes next takes together; None if there is none.
    """
    if rows_pay(conv, hidden_states, norm_over=norm_over):
        return convolve_channels_last(conv, hidden_states)
    return conv(hidden_states)


def convolve_channels_last(conv: nn.Conv1d, hidden_states: Tensor) -> Tensor:
    """`conv` of [B, C, T], the channels of a frame lying together in memory in what comes out, [B, C', T'].

    A norm over channels reads them so without a copy, and the next convolution takes them as they are.
    """
    stride, padding = conv.stride[0], conv.padding[0]
    if not eager(hidden_states):
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
    """gelu(windows @ weight); what the GELU saw is made again in the backward pass rather than kept."""

    @staticmethod
    def forward(ctx, windows: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(windows, weight)
        return F.gelu(torch.bmm(windows, weight))

    @staticmethod
    def backward(ctx, gradient: Tensor):
        windows, weight = ctx.saved_tensors
        gradient = torch.ops.aten.gelu_backward(gradient, torch.bmm(windows, weight))
        window_gradient = gradient @ weight.transpose(1, 2) if ctx.needs_input_grad[0] else None
        return window_gradient, windows.transpose(1, 2) @ gradient


def convolve_norm_gelu(waveforms: Tensor, conv: nn.Conv1d, norm: nn.GroupNorm, lengths: Tensor | None) -> Tensor:
    """gelu(norm(conv(waveforms))) of [B, 1, S] with a norm of each channel over time -> [B, C, T].

    Mean and variance of all channels follow from the mean and the covariance of the windows, a few numbers for a
    clip; they scale the taps, and convolution and norm are one product. Of its size nothing but the result is kept.

    Args:
        conv: one channel in, no padding, no bias (which the norm would take away).
        norm: as many groups as channels.
        lengths: [B] valid frames of what comes out; the others are no part of the statistics, and come out as 0.
    """
    dtype, taps = dtype_of(conv.weight), conv.kernel_size[0]
    # float64, because a channel may be a millionth as loud as the waveform it filters
    windows = waveforms[:, 0].double().unfold(-1, taps, conv.stride[0])  # [B, T, taps]
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
    # the bias is one more tap, of a window that is 1 where a frame is valid; a GPU is slow at widths other than 8 n
    one = torch.ones_like(centred[..., :1]) if valid is None else valid.to(centred.dtype)
    spare = 0 if waveforms.device.type == "cpu" else -(taps + 1) % 8
    centred = F.pad(torch.cat([centred.to(dtype), one.to(dtype)], dim=-1), (0, spare))
    weight = torch.cat([weight, norm.bias.to(weight.dtype).expand(len(weight), 1, -1)], dim=1)
    with without_autocast(waveforms.device):
        rows = _ConvolveGelu.apply(centred, F.pad(weight.to(dtype), (0, 0, 0, spare)))
    return rows.transpose(1, 2)
