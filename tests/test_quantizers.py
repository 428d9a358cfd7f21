"""The Gumbel quantizer: equal to one-hot vectors times codebooks, bounded perplexities, no hidden state."""

import math

import pytest
import torch
from torch.nn import functional as F

from hf_wav2vec_family import quantizers
from hf_wav2vec_family.quantizers import GumbelVectorQuantizer, codebook_perplexity, sample_gumbel

BATCH, FRAMES, CHANNELS, GROUPS, ENTRIES, WIDTH = 3, 7, 5, 2, 4, 6
VARIANTS = {
    "separate": {},
    "shared": {"share_codevectors": True},
    "deep": {"depth": 2, "hidden_factor": 2, "activation": torch.nn.ReLU},
    "deep and shared": {"depth": 2, "share_codevectors": True},
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make_quantizer(**options):
    quantizer = GumbelVectorQuantizer(
        CHANNELS, num_groups=GROUPS, num_codevectors=ENTRIES, codevector_dim=WIDTH, **options
    )
    generator = seeded(1)
    for parameter in quantizer.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return quantizer


def make_frames():
    return torch.randn(BATCH, FRAMES, CHANNELS, generator=seeded(2))


def make_noise():
    return sample_gumbel(torch.empty(BATCH, FRAMES, GROUPS, ENTRIES), seeded(3))


def slow_logits(quantizer, frames):
    layers = [layer for layer in quantizer.weight_proj.modules() if not list(layer.children())]
    for layer in layers:
        frames = layer(frames)
    return frames.view(*frames.shape[:2], GROUPS, ENTRIES)


def slow_quantized(quantizer, choice):
    """One-hot (or soft) choices [B, T, G, V] times the codebooks, group by group."""
    books = quantizer.codevectors.view(-1, ENTRIES, WIDTH // GROUPS)
    return torch.cat([choice[:, :, group] @ books[group % len(books)] for group in range(GROUPS)], dim=-1)


def slow_perplexity(choices, valid):
    """Equation (4)'s entropy, its exponential summed over groups, from choices [B, T, G, V]."""
    total = 0.0
    for group in range(GROUPS):
        mean = choices[:, :, group][valid].mean(dim=0)
        total = total + torch.exp(-sum(p * torch.log(p + 1e-7) for p in mean))
    return total


@pytest.mark.parametrize("temperature", [2.0, 0.5])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_training_equals_straight_through_one_hot_vectors_times_codebooks(monkeypatch, options, temperature):
    noise = make_noise()
    monkeypatch.setattr(quantizers, "sample_gumbel", lambda like, generator=None: noise)
    ours, reference = make_quantizer(**options).train(), make_quantizer(**options)
    frames, reference_frames = make_frames().requires_grad_(), make_frames().requires_grad_()
    valid = torch.rand(BATCH, FRAMES, generator=seeded(4)) < 0.7
    output = ours(frames, temperature, valid=valid)

    logits = slow_logits(reference, reference_frames)
    soft = torch.softmax((logits + noise) / temperature, dim=-1)
    hard = F.one_hot(soft.argmax(dim=-1), ENTRIES).float()
    quantized = slow_quantized(reference, hard - soft.detach() + soft)
    perplexity = slow_perplexity(torch.softmax(logits, dim=-1), valid)
    code_perplexity = slow_perplexity(F.one_hot(logits.argmax(dim=-1), ENTRIES).float(), valid)

    torch.testing.assert_close(output.quantized, quantized)
    assert torch.equal(output.codes, hard.argmax(dim=-1))
    torch.testing.assert_close(output.perplexity, perplexity)
    torch.testing.assert_close(output.code_perplexity, code_perplexity)

    direction = torch.randn(quantized.shape, generator=seeded(5))
    ((output.quantized * direction).sum() + 3 * output.perplexity).backward()
    ((quantized * direction).sum() + 3 * perplexity).backward()
    torch.testing.assert_close(frames.grad, reference_frames.grad, rtol=1e-4, atol=1e-5)
    for (name, mine), theirs in zip(ours.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_training_equals_pytorch_s_gumbel_softmax_with_the_same_seed():
    quantizer = make_quantizer().train()
    frames = make_frames()
    torch.manual_seed(0)
    output = quantizer(frames, 0.7)
    torch.manual_seed(0)
    choice = F.gumbel_softmax(slow_logits(quantizer, frames), tau=0.7, hard=True)
    torch.testing.assert_close(output.quantized, slow_quantized(quantizer, choice))


def test_noise_changes_the_choice_and_the_generator_decides_it():
    quantizer = make_quantizer().train()
    frames = make_frames().repeat(1, 20, 1)
    codes = [quantizer(frames, 1.0, generator=seeded(seed)).codes for seed in (0, 0, 1)]
    assert torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_evaluation_takes_the_entry_with_the_highest_logit(options):
    quantizer = make_quantizer(**options).eval()
    frames = make_frames()
    before = torch.get_rng_state()
    output = quantizer(frames, 2.0)
    codes = slow_logits(quantizer, frames).argmax(dim=-1)
    assert torch.equal(output.codes, codes)
    torch.testing.assert_close(output.quantized, slow_quantized(quantizer, F.one_hot(codes, ENTRIES).float()))
    assert torch.equal(torch.get_rng_state(), before)


def test_looking_up_the_codes_gives_the_quantized_frames():
    quantizer = make_quantizer().train()
    output = quantizer(make_frames(), 2.0, generator=seeded())
    assert torch.equal(quantizer.look_up(output.codes), output.quantized)


def test_a_shared_codebook_gives_every_group_the_same_entries():
    quantizer = make_quantizer(share_codevectors=True)
    assert quantizer.codevectors.shape == (1, ENTRIES, WIDTH // GROUPS)
    halves = quantizer.look_up(torch.tensor([[[1, 1], [3, 3]]])).unflatten(-1, (GROUPS, -1))
    assert torch.equal(halves[:, :, 0], halves[:, :, 1])
    assert make_quantizer().codevectors.shape == (1, GROUPS * ENTRIES, WIDTH // GROUPS)


def constant_logits(quantizer, logits):
    torch.nn.init.zeros_(quantizer.weight_proj.weight)
    quantizer.weight_proj.bias.data = logits.repeat(GROUPS)
    return quantizer.eval()


def test_the_perplexities_of_frames_all_alike_are_the_number_of_groups():
    quantizer = constant_logits(make_quantizer(), torch.tensor([50.0, 0.0, 0.0, 0.0]))
    output = quantizer(make_frames(), 2.0)
    assert output.perplexity.item() == pytest.approx(GROUPS, abs=1e-4)
    assert output.code_perplexity.item() == pytest.approx(GROUPS, abs=1e-4)


def test_undecided_logits_have_the_highest_soft_perplexity_and_the_lowest_hard_one():
    output = constant_logits(make_quantizer(), torch.zeros(ENTRIES))(make_frames(), 2.0)
    assert output.perplexity.item() == pytest.approx(GROUPS * ENTRIES, abs=1e-3)
    assert output.code_perplexity.item() == pytest.approx(GROUPS, abs=1e-4)


def test_entries_used_evenly_have_the_highest_perplexities():
    quantizer = GumbelVectorQuantizer(ENTRIES, num_groups=GROUPS, num_codevectors=ENTRIES, codevector_dim=WIDTH)
    torch.nn.init.zeros_(quantizer.weight_proj.bias)
    quantizer.weight_proj.weight.data = 100 * torch.eye(ENTRIES).repeat(GROUPS, 1)
    output = quantizer.eval()(torch.eye(ENTRIES)[None], 2.0)
    assert output.perplexity.item() == pytest.approx(GROUPS * ENTRIES, abs=1e-3)
    assert output.code_perplexity.item() == pytest.approx(GROUPS * ENTRIES, abs=1e-3)


def test_the_perplexities_leave_the_noise_out():
    quantizer = make_quantizer()
    trained, evaluated = quantizer.train()(make_frames(), 2.0), quantizer.eval()(make_frames(), 2.0)
    assert torch.equal(trained.perplexity, evaluated.perplexity)
    assert torch.equal(trained.code_perplexity, evaluated.code_perplexity)


def test_without_a_valid_frame_perplexities_are_finite():
    frames = make_frames().requires_grad_()
    output = make_quantizer().train()(frames, 2.0, valid=torch.zeros(BATCH, FRAMES, dtype=torch.bool))
    output.perplexity.backward()
    assert output.perplexity.isfinite()
    assert frames.grad.isfinite().all()


def test_codebook_perplexity_is_the_exponential_of_the_entropy():
    skewed = torch.tensor([[0.5, 0.25, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0]])
    assert codebook_perplexity(skewed).item() == pytest.approx(2**1.5 + 1, rel=1e-5)


def test_gumbel_noise_has_the_mean_and_the_variance_of_its_distribution():
    noise = sample_gumbel(torch.empty(200_000), seeded())
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.03)


def test_gumbel_noise_is_float32_beside_half_precision():
    assert sample_gumbel(torch.empty(3, dtype=torch.bfloat16), seeded()).dtype == torch.float32


def test_a_width_that_the_groups_do_not_divide_is_refused_with_both_named():
    with pytest.raises(ValueError, match=r"codevector_dim.*7 for 2 groups"):
        GumbelVectorQuantizer(CHANNELS, num_groups=2, num_codevectors=ENTRIES, codevector_dim=7)


@pytest.mark.parametrize("training", [True, False])
def test_forward_changes_no_state(training):
    quantizer = make_quantizer(depth=2).train(training)
    before = {name: values.clone() for name, values in quantizer.state_dict().items()}
    attributes = set(vars(quantizer))
    quantizer(make_frames(), 2.0)
    assert all(torch.equal(values, before[name]) for name, values in quantizer.state_dict().items())
    assert set(vars(quantizer)) == attributes


@pytest.mark.parametrize("training", [True, False])
def test_half_precision_weights_give_half_precision_frames_and_float32_perplexities(training):
    quantizer = make_quantizer().bfloat16().train(training)
    output = quantizer(make_frames().bfloat16(), 2.0)
    output.quantized.sum().backward()
    assert output.quantized.dtype == torch.bfloat16
    assert output.perplexity.dtype == output.code_perplexity.dtype == torch.float32
    assert quantizer.codevectors.grad.isfinite().all()
