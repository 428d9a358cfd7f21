"""Each fast form of `fused.py`, `fast_conv.py` and `wide_conv.py` against the plain operations it stands for.

python -m benchmarks.fast_forms --threads 2 --seconds 10
python -m benchmarks.fast_forms --device cuda --batch-size 10 --seconds 15.6

At the sizes of BASE; forward and backward pass, except for the cached spectrum, which is for inference alone. What is
random is for a CPU, and compared in the tests, with the same draws on both sides.
"""

import json
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_wav2vec_family.conv import MaskedGroupNorm
from hf_wav2vec_family.fast_conv import convolve_channels_last, convolve_norm_gelu
from hf_wav2vec_family.fused import Dropout, attention_weights, attention_with_dropout, choose_rows
from hf_wav2vec_family.wide_conv import WideConvolution

from .comparing import Way, alternate, compare, differences, options_of, prepare, report
from .wav2vec2_sizes import num_frames_of

WIDTH, INNER, HEADS, CHANNELS = 768, 3072, 12, 512
GROUPS, CODEVECTORS, CODE_WIDTH = 2, 320, 128
Case = tuple[str, Way, Way, list[Tensor]]


def random_cases(batch_size: int, total: int, dtype: torch.dtype) -> Iterator[Case]:
    values = torch.randn(batch_size, total, INNER, dtype=dtype, requires_grad=True)
    fast = Dropout(0.1)
    yield "dropout", lambda: F.dropout(values, 0.1).sum(), lambda: fast(values).sum(), []
    shape = (batch_size, HEADS, total, WIDTH // HEADS)
    query, key, value = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))

    def plain() -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=0.1).sum()

    def ours() -> Tensor:
        return attention_with_dropout(query, key, value, None, prob=0.1, scaling=shape[-1] ** -0.5).sum()

    yield "attention with dropout", plain, ours, []


def attention_cases(batch_size: int, total: int, dtype: torch.dtype) -> Iterator[Case]:
    """Without dropout, of which only bfloat16 has a form of its own."""
    if dtype != torch.bfloat16:
        return
    shape = (batch_size, HEADS, total, WIDTH // HEADS)
    query, key, value = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))

    def ours() -> Tensor:
        return (attention_weights(query, key, None, shape[-1] ** -0.5) @ value).sum()

    plain = F.scaled_dot_product_attention
    yield "attention without dropout", lambda: plain(query, key, value).sum(), ours, [query, key, value]


def choice_cases(batch_size: int, total: int, dtype: torch.dtype) -> Iterator[Case]:
    books = torch.randn(GROUPS, CODEVECTORS, CODE_WIDTH, dtype=dtype, requires_grad=True)
    logits = torch.randn(batch_size, total, GROUPS, CODEVECTORS, requires_grad=True)
    direction = torch.randn(batch_size, total, GROUPS, CODE_WIDTH, dtype=dtype)
    codes = logits.argmax(dim=-1)
    rows = codes + torch.arange(GROUPS) * CODEVECTORS

    def plain() -> Tensor:
        soft = torch.softmax(logits, dim=-1)
        hard = F.one_hot(codes, CODEVECTORS) - soft.detach() + soft
        return (torch.einsum("btgv,gvd->btgd", hard.to(dtype), books) * direction).sum()

    yield (
        "hard choice",
        plain,
        lambda: (choose_rows(books, torch.softmax(logits, dim=-1), rows) * direction).sum(),
        [books, logits],
    )


def convolution_cases(batch_size: int, seconds: float, dtype: torch.dtype) -> Iterator[Case]:
    waveforms = torch.randn(batch_size, 1, int(16_000 * seconds))
    total = (waveforms.shape[-1] - 10) // 5 + 1
    first, norm = nn.Conv1d(1, CHANNELS, 10, 5, bias=False).to(dtype), MaskedGroupNorm(CHANNELS, CHANNELS).to(dtype)
    first_direction = torch.randn(batch_size, CHANNELS, total, dtype=dtype)
    rows_of_first = as_rows(first_direction)
    yield (
        "first convolution, norm and GELU",
        lambda: (F.gelu(norm(first(waveforms.to(dtype)))) * first_direction).sum(),
        lambda: (convolve_norm_gelu(waveforms, first, norm, None) * rows_of_first).sum(),
        [*first.parameters(), *norm.parameters()],
    )
    second = nn.Conv1d(CHANNELS, CHANNELS, 3, 2, bias=False).to(dtype)
    columns = torch.randn(batch_size, CHANNELS, total, dtype=dtype, requires_grad=True)
    rows = as_rows(columns.detach()).requires_grad_()
    direction = torch.randn(batch_size, CHANNELS, (total - 3) // 2 + 1, dtype=dtype)
    rows_of_direction = as_rows(direction)
    yield (
        "second convolution",
        lambda: (second(columns) * direction).sum(),
        lambda: (convolve_channels_last(second, rows) * rows_of_direction).sum(),
        list(second.parameters()),
    )


def position_cases(batch_size: int, total: int, dtype: torch.dtype) -> Iterator[Case]:
    """Of weights in float32 and under autocast, as training has them: in blocks on a GPU, by spectra on a CPU."""
    conv, wide = positional_convolution(), WideConvolution()
    frames = torch.randn(batch_size, WIDTH, total, requires_grad=True)
    direction = torch.randn(batch_size, WIDTH, total + 1)

    def way(convolved: Callable[[Tensor], Tensor]) -> Way:
        def loss() -> Tensor:
            with torch.autocast(frames.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                return (convolved(frames) * direction).sum()

        return loss

    yield (
        f"positions of {batch_size} x {total} frames that learn",
        way(conv),
        way(lambda frames: wide(conv, frames)),
        [frames, *conv.parameters()],
    )


def positional_convolution() -> nn.Conv1d:
    conv = nn.Conv1d(WIDTH, WIDTH, 128, padding=64, groups=16)
    return nn.utils.parametrizations.weight_norm(conv, name="weight", dim=2)


def as_rows(values: Tensor) -> Tensor:
    """[B, C, T] as fast convolutions leave it: the channels of a frame together."""
    return values.transpose(1, 2).contiguous().transpose(1, 2)


def spectrum_case(total: int, rounds: int) -> dict:
    conv, wide, frames = positional_convolution(), WideConvolution(), torch.randn(1, WIDTH, total)
    with torch.no_grad():
        difference = float((wide(conv, frames) - conv(frames)).abs().max() / conv(frames).abs().max())
        if difference > 1e-4:
            raise ValueError(f"the spectrum's result differs by {difference:.1e}; accepted is 1e-4.")
        measured = alternate(lambda: conv(frames), lambda: wide(conv, frames), rounds)
    return {"case": f"positions of {total} frames, inference", **measured, "difference": difference}


def main():
    parser = options_of(__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    prepare(options)
    torch.set_default_device(options.device)
    total = num_frames_of(int(16_000 * options.seconds))
    on_cpu = options.device == "cpu"
    cases = [spectrum_case(frames, options.rounds) for frames in (total, 2 * total)] if on_cpu else []
    of_cpu = [(make, total) for make in (random_cases, attention_cases, choice_cases)] if on_cpu else []
    for dtype in (torch.float32, torch.bfloat16):
        for make, size in (*of_cpu, (position_cases, total), (convolution_cases, options.seconds)):
            for name, plain, ours, inputs in make(options.batch_size, size, dtype):
                equality = {}
                if inputs:
                    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
                    equality = differences(plain, ours, inputs, tolerance=tolerance)
                measured = compare(plain, ours, options.rounds, options.device)
                cases.append({"case": f"{name}, {dtype}".replace("torch.", ""), **measured, **equality})
                print(json.dumps(cases[-1]), flush=True)
    report(options, cases)


if __name__ == "__main__":
    main()
