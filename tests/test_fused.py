"""Fast forms equal the plain ones: values and every gradient, on fresh random inputs, lengths and masks."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_wav2vec_family import wide_conv
from hf_wav2vec_family.conv import MaskedGroupNorm, num_frames
from hf_wav2vec_family.fast_conv import MIN_FRAMES, convolve_channels_last, convolve_norm_gelu, rows_pay
from hf_wav2vec_family.fused import (
    Dropout,
    WeightCache,
    attention_with_dropout,
    choose_rows,
    draw_kept,
    sdpa,
)
from hf_wav2vec_family.wide_conv import WideConvolution, convolve_blocks


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def assert_equal(found, expected, inputs):
    """Values and gradients within 1e-4 of the size of what is expected."""
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    direction = torch.randn_like(expected)
    for a, b in zip(*(torch.autograd.grad(y, inputs, direction) for y in (found, expected)), strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_hard_choice_has_the_gradients_of_one_hot_vectors(dtype, shared):
    books = torch.randn(1 if shared else 2, 7, 3).to(dtype).requires_grad_()
    logits = torch.randn(3, 5, 2, 7, requires_grad=True)
    codes = logits.argmax(dim=-1)
    found = choose_rows(books.expand(2, -1, -1), torch.softmax(logits, dim=-1), codes + torch.tensor([0, 7]))
    soft = torch.softmax(logits, dim=-1)
    hard = F.one_hot(codes, 7) - soft.detach() + soft
    expected = torch.einsum("btgv,gvd->btgd", hard.to(dtype), books.expand(2, -1, -1))
    if dtype == torch.float32:
        assert_equal(found, expected, [books, logits])
    else:
        assert torch.equal(found, books.expand(2, -1, -1)[torch.arange(2), codes])
        direction = torch.randn_like(expected)
        for a, b in zip(*(torch.autograd.grad(y, [books, logits], direction) for y in (found, expected)), strict=True):
            assert a.dtype == b.dtype
            assert (a - b).norm() <= 2e-2 * b.norm()


@pytest.mark.parametrize("prob", [0.05, 0.1, 0.5])
def test_dropout_drops_the_promised_share_and_keeps_the_mean(prob):
    kept, scale = draw_kept(torch.empty(1000, 1001), prob)
    assert kept.float().mean().item() == pytest.approx(1 - prob, abs=2e-3)
    assert scale == pytest.approx(1 / (1 - prob), rel=1e-4)
    neighbours = (kept[:, 1:] & kept[:, :-1]).float().mean().item()
    assert neighbours == pytest.approx((1 - prob) ** 2, abs=2e-3)


def test_gradients_pass_dropout_where_values_do():
    dropout = Dropout(0.3)
    values = torch.rand(7, 9, 5).add_(1).requires_grad_()
    dropped = dropout(values)
    dropped.sum().backward()
    torch.testing.assert_close(values.grad * values, dropped)
    assert torch.equal(values.grad == 0, dropped == 0)
    torch.manual_seed(0)
    values = torch.rand(7, 9, 5)
    assert torch.equal(dropout.eval()(values), values)
    assert dropout(torch.empty(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("layout", ["rows", "columns", "every second"])
def test_what_dropout_keeps_lies_in_memory_as_the_values_do(layout):
    values = torch.rand(4, 500, 60)
    values = {"rows": values, "columns": values.transpose(1, 2), "every second": values[:, ::2]}[layout]
    kept, _ = draw_kept(values, 0.3)
    assert kept.shape == values.shape
    if layout != "every second":
        assert kept.stride() == values.stride()
    assert kept.float().mean().item() == pytest.approx(0.7, abs=1e-2)


def test_dropout_is_drawn_from_the_global_seed():
    first, second, third = (torch.manual_seed(seed) and Dropout(0.5)(torch.ones(99)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


@pytest.mark.parametrize("masked", [None, "bool", "added"])
def test_attention_with_dropout_equals_the_steps_it_stands_for(masked, monkeypatch):
    query, key, value = (torch.randn(2, 3, 11, 4, requires_grad=True) for _ in range(3))
    allowed = torch.arange(11) < torch.tensor([11, 7])[:, None, None, None]
    mask = {None: None, "bool": allowed, "added": torch.where(allowed, 0.0, float("-inf"))}[masked]
    kept, scale = draw_kept(torch.empty(2, 3, 11, 11), 0.2)
    monkeypatch.setattr("hf_wav2vec_family.fused.draw_kept", lambda values, prob: (kept, scale))
    found = attention_with_dropout(query, key, value, mask, prob=0.2, scaling=0.5)
    scores = query @ key.transpose(-2, -1) * 0.5
    if mask is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    assert_equal(found, (torch.softmax(scores, dim=-1) * kept * scale) @ value, (query, key, value))


@pytest.mark.parametrize("masked", [None, "bool", "added"])
@pytest.mark.parametrize("max_scores", [0, 2**20])
def test_attention_in_bfloat16_equals_that_in_float32_with_its_gradients(masked, max_scores, monkeypatch):
    monkeypatch.setattr("hf_wav2vec_family.fused.MAX_SCORES", max_scores)
    asked = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: asked.append(1) or kernel(*a, **k))
    inputs = [torch.randn(2, 3, 11, 4).bfloat16().requires_grad_() for _ in range(3)]
    allowed = torch.arange(11) < torch.tensor([11, 7])[:, None, None, None]
    mask = {None: None, "bool": allowed, "added": torch.where(allowed, 0.0, float("-inf")).bfloat16()}[masked]
    direction = torch.randn(2, 11, 3, 4)

    module = nn.Identity()
    module.is_causal = False

    def outcome(*inputs, dtype):
        added = mask.to(dtype) if masked == "added" else mask
        found, weights = sdpa(module, *(x.to(dtype) for x in inputs), added, scaling=0.5)
        assert weights is None
        return [found.float(), *torch.autograd.grad((found.float() * direction).sum(), inputs)]

    expected = outcome(*inputs, dtype=torch.float32)
    asked.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = outcome(*inputs, dtype=torch.bfloat16)
    # the products take the place of PyTorch's kernel where there are few enough scores
    assert len(asked) == (0 if max_scores else 1)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.float(), other.float(), atol=0.03, rtol=0.03)


@pytest.mark.parametrize(("dtype", "dropout"), [(torch.bfloat16, 0.0), (torch.float32, 1e-9)])
def test_a_causal_module_without_a_mask_is_left_to_transformers(dtype, dropout):
    query, key, value = (torch.randn(2, 3, 11, 4, dtype=dtype) for _ in range(3))
    found, _ = sdpa(nn.Identity(), query, key, value, None, dropout=dropout)  # causal, if nothing else is said
    torch.testing.assert_close(found[:, 0], value[:, :, 0], atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("taps", [64, 128])
def test_a_wide_convolution_under_autocast_is_that_of_float32(taps):
    conv = nn.Conv1d(12, 12, taps, padding=taps // 2, groups=3).requires_grad_(False)
    hidden_states = torch.randn(2, 12, 150)
    expected = conv(hidden_states)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = WideConvolution()(conv, hidden_states)
    assert found.dtype == torch.bfloat16
    with torch.no_grad():
        in_float32 = WideConvolution()(conv, hidden_states)
    torch.testing.assert_close(in_float32, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(found, in_float32.bfloat16())


@pytest.mark.parametrize(
    ("taps", "stride", "padding"), [(3, 2, 0), (2, 2, 0), (8, 4, 2), (10, 5, 3), (3, 1, 1), (2, 3, 0)]
)
@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("bias", [True, False])
def test_convolving_rows_equals_the_convolution_and_leaves_channels_together(taps, stride, padding, channels, bias):
    conv = nn.Conv1d(channels, 6, taps, stride, padding=padding, bias=bias)
    hidden_states = torch.randn(3, channels, 41, requires_grad=True)
    found = convolve_channels_last(conv, hidden_states)
    assert found.transpose(1, 2).is_contiguous()
    assert_equal(found, conv(hidden_states), (hidden_states, *conv.parameters()))


def test_convolving_rows_takes_the_type_of_autocast():
    conv = nn.Conv1d(4, 6, 3, 2)
    hidden_states = torch.randn(2, 4, 41)
    with torch.autocast("cpu", torch.bfloat16):
        found = convolve_channels_last(conv, hidden_states)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), conv(hidden_states), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("lengths", [(2000, 2000, 2000), (2000, 400, 1234)])
@pytest.mark.parametrize("loudness", [1e-3, 1.0, 100.0])
def test_a_folded_norm_equals_convolution_norm_and_activation(lengths, loudness):
    conv, norm = nn.Conv1d(1, 8, 10, 5, bias=False), MaskedGroupNorm(8, 8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    # most of the energy lies where the filters hardly hear it
    waveforms = loudness * (torch.randn(3, 1, 2000) + 5 + 20 * torch.sin(torch.arange(2000) / 50))
    waveforms.requires_grad_()
    ragged = min(lengths) < 2000
    found = convolve_norm_gelu(waveforms, conv, norm, num_frames(torch.tensor(lengths), [10], [5]) if ragged else None)
    weight, scale, shift = (parameter.double() for parameter in (conv.weight, norm.weight, norm.bias))
    alone = [
        F.gelu(F.group_norm(F.conv1d(row[None, :, :n].double(), weight, stride=5), 8, scale, shift, norm.eps))
        for row, n in zip(waveforms, lengths, strict=True)
    ]
    expected = torch.cat([F.pad(row, (0, found.shape[-1] - row.shape[-1])) for row in alone]).float()
    assert_equal(found, expected, (waveforms, *conv.parameters(), *norm.parameters()))


@pytest.mark.parametrize(("taps", "groups", "channels_out"), [(16, 4, 32), (7, 2, 16), (1, 1, 8)])
@pytest.mark.parametrize("total", [1, 5, 16, 33])
def test_convolving_a_few_frames_at_a_time_equals_the_convolution(taps, groups, channels_out, total):
    conv = nn.Conv1d(32, channels_out, taps, padding=taps // 2, groups=groups)
    hidden_states = torch.randn(2, 32, total, requires_grad=True)
    found = convolve_blocks(hidden_states, conv.weight, conv.bias, groups=groups, padding=taps // 2)
    assert_equal(found, conv(hidden_states), (hidden_states, *conv.parameters()))


def positional_convolution() -> nn.Conv1d:
    conv = nn.Conv1d(32, 32, 64, padding=32, groups=4)
    return nn.utils.parametrizations.weight_norm(conv, name="weight", dim=2).requires_grad_(False)


@pytest.mark.parametrize("total", [64, 65, 129, 200, 499])
def test_a_spectrum_serves_clips_of_every_length(total):
    conv, convolution = positional_convolution(), WideConvolution()
    hidden_states = torch.randn(2, 32, total)
    with torch.no_grad():
        found = convolution(conv, hidden_states)
        assert convolution.spectrum._entry is not None
        torch.testing.assert_close(found, conv(hidden_states), atol=1e-5, rtol=1e-5)
        spectrum = convolution.spectrum._entry[1]
        convolution(conv, torch.randn(1, 32, 100))
        assert convolution.spectrum._entry[1] is spectrum


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_have_a_spectrum_at_least_as_exact_as_their_convolution(dtype):
    conv, convolution = positional_convolution().to(dtype), WideConvolution()
    hidden_states = torch.randn(2, 32, 499).to(dtype)
    with torch.no_grad():
        exact = copy.deepcopy(conv).double()(hidden_states.double())
        found, plain = convolution(conv, hidden_states), conv(hidden_states)
        assert found.dtype == dtype
        assert convolution.spectrum._entry[1].dtype == torch.complex64
        assert (found - exact).norm() <= (plain - exact).norm()
        # no further from it than rounding the result
        torch.testing.assert_close(found, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-5)
        conv.parametrizations.weight.original1.data[3, 2, 1] += 10
        torch.testing.assert_close(convolution(conv, hidden_states), conv(hidden_states), atol=0.03, rtol=0.03)


def test_weights_in_half_precision_learn_what_their_convolution_does():
    conv = positional_convolution().requires_grad_(True).bfloat16()
    hidden_states = torch.randn(2, 32, 499).bfloat16().requires_grad_()
    found, expected = WideConvolution()(conv, hidden_states), conv(hidden_states)
    assert torch.equal(found, expected)
    inputs, direction = (hidden_states, *conv.parameters()), torch.randn_like(expected)
    for a, b in zip(*(torch.autograd.grad(y, inputs, direction) for y in (found, expected)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("change", ["in place", "through data", "one weight", "loaded", "bias"])
def test_a_cached_spectrum_notices_weights_that_change(change):
    conv, convolution = positional_convolution(), WideConvolution()
    hidden_states = torch.randn(1, 32, 200)
    with torch.no_grad():
        before = convolution(conv, hidden_states)
        direction = conv.parametrizations.weight.original1
        if change == "in place":
            direction.mul_(torch.rand_like(direction))
        elif change == "through data":
            direction.data.copy_(torch.randn_like(direction))
        elif change == "one weight":
            direction.data[3, 2, 1] += 10
        elif change == "loaded":
            conv.load_state_dict(positional_convolution().state_dict())
        else:
            conv.bias.data += 1
        after = convolution(conv, hidden_states)
        torch.testing.assert_close(after, conv(hidden_states), atol=1e-5, rtol=1e-5)
        assert not torch.equal(before, after)


def test_a_cache_is_neither_copied_nor_saved():
    cache = WeightCache()
    weights = [torch.ones(1000)]
    assert cache.get(weights, lambda: weights[0] * 2)[0] == 2
    assert cache.get(weights, lambda: pytest.fail("made twice"))[0] == 2
    assert copy.deepcopy(cache)._entry is None
    torch.save(cache, file := io.BytesIO())
    assert len(file.getvalue()) < 4000


@pytest.mark.parametrize(
    ("batch_size", "total", "by_spectrum"), [(1, 192, True), (3, 70, True), (1, 191, False), (9, 63, False)]
)
def test_what_is_learned_has_the_gradients_of_the_convolution(batch_size, total, by_spectrum, monkeypatch):
    conv, convolution = positional_convolution().requires_grad_(True), WideConvolution()
    hidden_states = torch.randn(batch_size, 32, total, requires_grad=True)
    made = []
    frames_of = wide_conv._frames_of
    monkeypatch.setattr(wide_conv, "_frames_of", lambda *args, **given: made.append(args) or frames_of(*args, **given))
    found = convolution(conv, hidden_states)
    assert_equal(found, conv(hidden_states), (hidden_states, *conv.parameters()))
    assert bool(made) == by_spectrum
    # a step later the weights are others
    with torch.no_grad():
        conv.parametrizations.weight.original1.mul_(torch.rand(32, 8, 64))
    torch.testing.assert_close(convolution(conv, hidden_states), conv(hidden_states), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "batch_size", "num_frames_out", "pays"),
    [
        (torch.bfloat16, 1, MIN_FRAMES - 1, False),
        (torch.bfloat16, 1, MIN_FRAMES, True),
        (torch.bfloat16, 2, MIN_FRAMES // 2, True),
        (torch.float32, 1, MIN_FRAMES, False),
    ],
)
def test_rows_are_for_many_frames_in_half_precision_and_for_all_that_learn(dtype, batch_size, num_frames_out, pays):
    conv, hidden_states = nn.Conv1d(4, 4, 3, 2).to(dtype), torch.zeros(batch_size, 4, 2 * num_frames_out, dtype=dtype)
    with torch.no_grad():
        assert rows_pay(conv, hidden_states) == pays
    assert rows_pay(conv, hidden_states)
