"""vq-wav2vec: both quantizers against brute force, codes, their bookkeeping, and the parts of the loss."""

import math

import pytest
import torch
from causal_models import (
    ENTRIES,
    GROUPS,
    HOP,
    VQ_WAV2VEC,
    WIDTH,
    close,
    config,
    pretraining_model,
    ragged_batch,
    samples,
)
from torch import nn

import hf_wav2vec_family as family
from hf_wav2vec_family.kmeans import KmeansVectorQuantizer
from hf_wav2vec_family.quantizers import code_usage


def make_kmeans(**options) -> KmeansVectorQuantizer:
    torch.manual_seed(1)
    quantizer = KmeansVectorQuantizer(WIDTH, num_groups=GROUPS, num_codevectors=ENTRIES, **options)
    nn.init.normal_(quantizer.codevectors)
    return quantizer


def make_frames(batch: int = 2, frames: int = 9) -> torch.Tensor:
    return torch.randn(batch, frames, WIDTH, generator=torch.Generator().manual_seed(2), requires_grad=True)


@pytest.mark.parametrize("shared", [False, True])
def test_kmeans_takes_the_nearest_entry_as_brute_force_does(shared):
    quantizer = make_kmeans(share_codevectors=shared)
    frames = make_frames()
    output = quantizer(frames)
    projected = quantizer.project(frames)
    for b in range(2):
        for t in range(9):
            vectors = []
            for g in range(GROUPS):
                book = quantizer.codevectors[0 if shared else g]
                distances = [(projected[b, t, g] - entry).norm().item() for entry in book]
                assert output.codes[b, t, g] == distances.index(min(distances))
                vectors.append(book[output.codes[b, t, g]])
            close(output.quantized[b, t], torch.cat(vectors))
    close(quantizer.look_up(output.codes), output.quantized)
    assert torch.equal(quantizer.encode(frames), output.codes)


def test_kmeans_frames_are_projected_group_by_group_before_they_are_compared():
    quantizer = make_kmeans()
    frames = make_frames(1)
    projected = quantizer.project(frames)
    weight = quantizer.projection.weight[..., 0].view(GROUPS, WIDTH // GROUPS, -1)
    for g in range(GROUPS):
        mixed = frames[..., g * 6 : g * 6 + 6] @ weight[g].T
        close(projected[:, :, g], (mixed - mixed.mean()) / (mixed.var(correction=0) + 1e-5).sqrt())


def test_the_gradient_passes_the_kmeans_quantizer_straight_through():
    quantizer = make_kmeans()
    frames = make_frames()
    output = quantizer(frames)
    arriving = torch.randn(output.quantized.shape)
    found = torch.autograd.grad(output.quantized, [frames, quantizer.codevectors], arriving, allow_unused=True)
    expected = torch.autograd.grad(quantizer.project(frames).flatten(-2), frames, arriving)[0]
    close(found[0], expected)
    assert found[1] is None


def test_each_kmeans_loss_moves_its_own_side():
    quantizer = make_kmeans()
    frames = make_frames()
    output = quantizer(frames)
    projected = quantizer.project(frames).flatten(-2)
    distance = (projected - output.quantized).square().mean()
    close(output.codebook_loss, distance)
    close(output.commitment_loss, 0.25 * distance)
    both = [frames, quantizer.codevectors]
    of_codebook = torch.autograd.grad(output.codebook_loss, both, retain_graph=True, allow_unused=True)
    of_frames = torch.autograd.grad(output.commitment_loss, both, allow_unused=True)
    assert of_codebook[0] is None
    assert of_frames[1] is None
    assert of_codebook[1].abs().sum() > 0
    assert of_frames[0].abs().sum() > 0


@pytest.mark.parametrize("shared", [False, True])
def test_kmeans_plus_plus_starts_every_entry_on_a_frame_of_its_own(shared):
    quantizer = make_kmeans(share_codevectors=shared)
    frames = make_frames(3, 20).detach()
    lengths = torch.tensor([20, 12, 5])
    before = quantizer(frames, lengths).codebook_loss
    quantizer.initialize_codebook(frames, lengths, torch.Generator().manual_seed(0))
    projected = quantizer.project(frames, lengths)
    valid = torch.arange(20) < lengths[:, None]
    for g, book in enumerate(quantizer.codevectors):
        points = projected[valid].flatten(0, 1) if shared else projected[valid][:, g]
        distances = torch.cdist(book, points)
        assert distances.amin(dim=1).max() < 1e-3
        assert len(set(distances.argmin(dim=1).tolist())) == ENTRIES
    usage = code_usage(quantizer.encode(frames, lengths), ENTRIES, valid)
    used = usage.counts.sum(dim=0) > 0 if shared else usage.counts > 0
    assert used.all()
    assert quantizer(frames, lengths).codebook_loss < before


def test_kmeans_plus_plus_takes_far_frames_before_near_ones():
    quantizer = KmeansVectorQuantizer(2, num_groups=1, num_codevectors=2)
    points = torch.tensor([[0.0, 0.0]] * 50 + [[30.0, 0.0]])
    quantizer.project = lambda hidden_states, lengths=None: points.view(1, -1, 1, 2)
    for seed in range(5):
        quantizer.initialize_codebook(points[None], generator=torch.Generator().manual_seed(seed))
        assert sorted(quantizer.codevectors[0, :, 0].tolist()) == [0.0, 30.0]
    points = points[:1]
    with pytest.raises(ValueError, match=r"at least 2 vectors.*got 1"):
        quantizer.initialize_codebook(points[None])


def test_dead_entries_are_moved_onto_frames_and_living_ones_stay():
    quantizer = make_kmeans()
    frames = make_frames().detach()
    with torch.no_grad():
        quantizer.codevectors[0, 2] = 100.0
        quantizer.codevectors[1, 4] = -100.0
    before = quantizer.codevectors.clone()
    counts = code_usage(quantizer.encode(frames), ENTRIES).counts
    dead = counts == 0
    assert dead[0, 2]
    assert dead[1, 4]
    moved = quantizer.restart_dead_codes(frames, counts, generator=torch.Generator().manual_seed(0))
    assert moved == dead.sum()
    assert torch.equal(quantizer.codevectors[~dead], before[~dead])
    projected = quantizer.project(frames).flatten(0, 1)
    for g, v in dead.nonzero().tolist():
        assert (projected[:, g] - quantizer.codevectors[g, v]).norm(dim=-1).min() < 1e-5
    with pytest.raises(ValueError, match=r"\(2, 6\).*\(6,\)"):
        quantizer.restart_dead_codes(frames, counts[0])


def test_usage_counts_codes_pairs_and_perplexity():
    codes = torch.tensor([[[0, 1], [0, 1], [2, 1], [3, 3]], [[2, 0], [5, 5], [5, 5], [5, 5]]])
    valid = torch.tensor([[True] * 4, [True] + [False] * 3])
    usage = code_usage(codes, ENTRIES, valid)
    assert usage.counts.tolist() == [[2, 0, 2, 1, 0, 0], [1, 3, 0, 1, 0, 0]]
    assert usage.num_used_codes == 6
    assert usage.num_used_tuples == 4
    entropies = [-sum(p * math.log(p) for p in group) for group in ([0.4, 0.4, 0.2], [0.2, 0.6, 0.2])]
    assert usage.perplexity == pytest.approx(sum(map(math.exp, entropies)), rel=1e-4)
    assert code_usage(codes, ENTRIES).counts.sum() == 16
    for wrong in (codes, codes[:0]):
        with pytest.raises(ValueError, match="num_codevectors - 1 = 4"):
            code_usage(wrong, 5)


@pytest.mark.parametrize("variant", VQ_WAV2VEC)
def test_codes_are_those_of_forward_and_need_no_evaluation_mode(variant):
    model = pretraining_model(variant)
    waveforms, mask = ragged_batch(samples(20), samples(9))
    codes = model.eval().quantize(waveforms, mask)
    assert codes.shape == (2, 20, GROUPS)
    assert codes.dtype == torch.int64
    outputs = model.vq_wav2vec(waveforms, mask)
    assert torch.equal(outputs.codes, codes)
    close(model.vq_wav2vec.quantizer.look_up(codes), outputs.quantized_features)
    assert torch.equal(model.train().quantize(waveforms, mask), codes)


@pytest.mark.parametrize("variant", VQ_WAV2VEC)
def test_loss_is_the_sum_of_its_named_parts(variant):
    model = pretraining_model(variant)
    for mode in (model.train(), model.eval()):
        output = mode(*ragged_batch(samples(20), samples(15)))
        assert output.loss.isfinite()
        if variant.startswith("kmeans"):
            assert output.diversity_loss is None
            close(output.loss, output.contrastive_loss + output.quantizer_loss)
            inner = mode.vq_wav2vec(*ragged_batch(samples(20), samples(15)))
            weight = mode.config.quantizer_loss_weight
            close(output.quantizer_loss, weight * (inner.codebook_loss + inner.commitment_loss))
        else:
            assert output.quantizer_loss is None
            close(output.loss, output.contrastive_loss + output.diversity_loss)
            spread = GROUPS * ENTRIES - output.codevector_perplexity
            close(output.diversity_loss, mode.config.diversity_loss_weight * spread)
        assert GROUPS - 1e-3 <= output.code_perplexity <= GROUPS * ENTRIES


@pytest.mark.parametrize("variant", ["gumbel", "kmeans"])
def test_forward_changes_no_state(variant):
    model = pretraining_model(variant).train()
    before = {name: value.clone() for name, value in [*model.state_dict().items(), *model.named_buffers()]}
    model(*ragged_batch(samples(20), samples(15))).loss.backward()
    for name, value in [*model.state_dict().items(), *model.named_buffers()]:
        assert torch.equal(value, before[name]), name


def test_the_temperature_reaches_the_gradient_and_not_the_choice():
    model = pretraining_model("gumbel", diversity_loss_weight=0.0).train()
    waveforms, _ = ragged_batch(samples(20))
    codes, gradients = [], []
    for temperature in (2.0, 0.5):
        model.set_gumbel_temperature(temperature)
        model.zero_grad()
        output = model(waveforms, generator=torch.Generator().manual_seed(0))
        output.loss.backward()
        codes.append(output.codes)
        gradients.append(model.vq_wav2vec.quantizer.weight_proj[-1].weight.grad.clone())
    assert torch.equal(*codes)
    assert not torch.allclose(*gradients)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        model.set_gumbel_temperature(0.0)
    with pytest.raises(ValueError, match="quantizer_type"):
        pretraining_model("kmeans").set_gumbel_temperature(1.0)


def test_noise_comes_from_the_generator_in_training_and_is_absent_in_evaluation():
    model = pretraining_model("gumbel").train()
    waveforms, _ = ragged_batch(samples(40))
    seeds = (1, 1, 2)
    codes = [model(waveforms, generator=torch.Generator().manual_seed(seed)).codes for seed in seeds]
    assert torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])
    model.eval()
    assert torch.equal(model(waveforms).codes, model(waveforms).codes)


@pytest.mark.parametrize("variant", ["kmeans", "kmeans-causal"])
def test_the_model_takes_its_codebook_from_a_batch_and_moves_what_is_dead(variant):
    model = pretraining_model(variant).vq_wav2vec.eval()
    waveforms, mask = ragged_batch(samples(40), samples(30))
    with torch.no_grad():
        model.quantizer.codevectors.zero_()
    assert code_usage(model.quantize(waveforms, mask), ENTRIES).num_used_codes <= GROUPS
    model.initialize_codebook(waveforms, mask, torch.Generator().manual_seed(0))
    assert code_usage(model.quantize(waveforms, mask), ENTRIES).num_used_codes > GROUPS
    assert model.restart_dead_codes(waveforms, mask) == 0
    with torch.no_grad():
        model.quantizer.codevectors[:, 3] = 50.0
    assert model.restart_dead_codes(waveforms, mask) == 1
    for method in ("initialize_codebook", "restart_dead_codes"):
        with pytest.raises(ValueError, match=f"{method} is for"):
            getattr(pretraining_model("gumbel").vq_wav2vec, method)(waveforms)


def test_a_new_codebook_starts_as_the_original_one():
    torch.manual_seed(0)
    kmeans = family.VQWav2VecModel(config("kmeans", num_codevectors_per_group=300)).quantizer
    assert kmeans.codevectors.std().item() == pytest.approx(0.01, rel=0.1)
    gumbel = family.VQWav2VecModel(config("gumbel", num_codevectors_per_group=300)).quantizer
    assert 0 <= gumbel.codevectors.min() < 0.01 < 0.99 < gumbel.codevectors.max() <= 1
    bound = WIDTH**-0.5
    assert 0.9 * bound < gumbel.weight_proj[0][0].weight.abs().max() <= bound


def test_sizes_are_those_of_the_published_models():
    with torch.device("meta"):
        sizes = [
            family.VQWav2VecForPreTraining(family.VQWav2VecConfig.published(kind)).num_parameters()
            for kind in ("gumbel", "kmeans")
        ]
    assert sizes == [34_063_488, 33_014_272]


def test_defaults_are_the_papers_and_the_published_models_differ_where_the_docstring_says():
    paper, published = family.VQWav2VecConfig(), family.VQWav2VecConfig.published()
    assert (paper.num_prediction_steps, paper.first_predicted_frame, paper.hidden_act) == (8, 1, "relu")
    assert (published.num_prediction_steps, published.first_predicted_frame, published.hidden_act) == (12, 3, "gelu")
    assert paper.inputs_to_logits_ratio == HOP
    assert paper.expects_normalized_input is False
    assert paper.codevector_dim == 512


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quantizer_type": "lloyd"}, "quantizer_type"),
        ({"num_codevector_groups": 5}, "codevector_dim must be a multiple of num_codevector_groups, got 12 and 5"),
        ({"quantizer_type": "kmeans", "codevector_dim": 8}, "codevector_dim of quantizer_type"),
        ({"quantizer_depth": 0}, "quantizer_depth"),
        ({"gumbel_temperature": 0.0}, "gumbel_temperature"),
        ({"commitment_weight": -1.0}, "commitment_weight"),
        ({"conv_norm": "batch"}, "conv_norm"),
        ({"conv_stride": (5, 4)}, "conv_dim, conv_kernel and conv_stride"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(fields, message):
    with pytest.raises(Exception, match=message):
        config("gumbel", **fields)
