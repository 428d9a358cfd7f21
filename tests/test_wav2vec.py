"""wav2vec: its objective against slow loops, its norms and negatives, how it starts, what it refuses."""

import copy
import math

import pytest
import torch
from causal_models import (
    FIELD,
    HOP,
    WAV2VEC,
    close,
    config,
    negatives_of,
    pretraining_model,
    ragged_batch,
    samples,
)
from torch import nn

import hf_wav2vec_family as family
from hf_wav2vec_family.causal_conv import CausalGRU
from hf_wav2vec_family.future_prediction import (
    FuturePrediction,
    align_with_targets,
    binary_nce,
    info_nce,
    reduce_over_targets,
)


def slow_losses(model, outputs, targets, negatives, frames: list[int]) -> list[torch.Tensor]:
    """One loss for each pair of a context and a step, from equation (1) with loops."""
    predictor, options = model.prediction.predictor, model.config
    flat, losses = targets.flatten(0, 1), []
    for row, length in enumerate(frames):
        for k in range(options.num_prediction_steps):
            bias = predictor.bias[k if len(predictor.bias) > 1 else 0]
            for t in range(length - options.first_predicted_frame - k):
                u = t + options.first_predicted_frame + k
                expected = predictor.weight[k] @ outputs.last_hidden_state[row, t] + bias
                positive = targets[row, u] @ expected
                others = [flat[i] @ expected for i in negatives[row, :, u].tolist()]
                if options.objective == "info_nce":
                    losses.append(-(positive - torch.logsumexp(torch.stack([positive, *others]), dim=0)))
                else:
                    weight = 1 / options.num_negatives if options.balanced_classes else 1.0
                    noise = sum(torch.log(torch.sigmoid(-score)) for score in others)
                    losses.append(-torch.log(torch.sigmoid(positive)) - weight * noise)
    return losses


@pytest.mark.parametrize("variant", WAV2VEC)
def test_loss_equals_the_slow_loop_from_the_equations_with_padding(variant):
    model = pretraining_model(variant).eval()
    waveforms, mask = ragged_batch(samples(14), samples(11))
    frames = [14, 11]
    negatives = negatives_of(model, frames, 14)
    with torch.no_grad():
        found = model(waveforms, mask, negatives)
        outputs = model.wav2vec(waveforms, mask)
        targets = model.targets(outputs.extract_features, torch.tensor(frames))
        losses = torch.stack(slow_losses(model, outputs, targets, negatives, frames))
    assert found.num_targets == len(losses)
    close(found.loss, losses.mean())
    close(found.contrastive_loss, found.loss)
    steps, offset = model.config.num_prediction_steps, model.config.first_predicted_frame
    counts = [sum(n - offset - k for n in frames) for k in range(steps)]
    assert found.num_targets == sum(counts)
    close((found.step_losses * torch.tensor(counts)).sum() / sum(counts), found.loss)
    first_step = losses[: frames[0] - offset].sum()  # step 0 of clip 0; the rest of step 0 begins clip 1
    begin = sum(frames[0] - offset - k for k in range(steps))
    close(found.step_losses[0], (first_step + losses[begin : begin + frames[1] - offset].sum()) / counts[0])


def test_the_accuracy_of_a_step_is_the_share_of_its_own_pairs_whose_positive_wins():
    scores = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])  # [K, 1 + N]: the first step wins, the second loses
    scores = scores.t()[None, None].repeat(1, 3, 1, 1)  # [1, 3, 1 + N, K]
    valid = torch.tensor([[[True, True], [True, False], [True, False]]])
    found = reduce_over_targets(torch.zeros(1, 3, 2), scores, valid)
    assert found.step_accuracies.tolist() == [1.0, 0.0]
    assert found.accuracy.item() == pytest.approx(3 / 4)


def test_step_k_is_moved_k_frames_on():
    predictions = torch.randn(2, 7, 3, 4, requires_grad=True)
    found = align_with_targets(predictions)
    assert found.shape == predictions.shape
    for t in range(7):
        for k in range(min(t + 1, 3)):
            assert torch.equal(found[:, t, k], predictions[:, t - k, k])
    found[:, 6].sum().backward()
    arrived = {(t, k) for _, t, k, _ in predictions.grad.nonzero().tolist()}
    assert arrived == {(6, 0), (5, 1), (4, 2)}


def test_a_negative_that_is_the_positive_ties_with_it_wherever_it_stands():
    torch.manual_seed(0)
    prediction = FuturePrediction(48, 48, num_steps=12, offset=3, objective="info_nce", num_negatives=10)
    nn.init.normal_(prediction.predictor.weight)
    nn.init.normal_(prediction.predictor.bias)
    own = torch.arange(60).view(2, 1, 30).expand(-1, 10, -1)
    found = prediction(torch.randn(2, 30, 48), torch.randn(2, 30, 48), sampled_negative_indices=own)
    assert torch.equal(found.scores, found.scores[:, :, :1].expand_as(found.scores))


@pytest.mark.parametrize(
    ("fields", "chance"),
    [
        ({}, 6 * math.log(2)),
        ({"balanced_classes": True}, 2 * math.log(2)),
        ({"objective": "info_nce"}, math.log(6)),
        ({"objective": "info_nce", "num_cross_sample_negatives": 4}, math.log(10)),
    ],
)
def test_a_context_that_knows_nothing_costs_chance_and_wins_nothing(fields, chance):
    model = pretraining_model("base", **fields)
    nn.init.zeros_(model.prediction.predictor.weight)
    nn.init.zeros_(model.prediction.predictor.bias)
    output = model(ragged_batch(samples(20))[0])
    assert output.loss.item() == pytest.approx(chance, rel=1e-5)
    assert output.accuracy == 0


def test_a_perfect_score_costs_nothing():
    scores = torch.full((1, 2, 4, 3), -50.0)
    scores[:, :, 0] = 50.0
    assert binary_nce(scores).max() < 1e-6
    assert info_nce(scores).max() < 1e-6


def test_the_published_norm_sees_the_whole_clip_though_the_convolutions_look_back():
    waveform, _ = ragged_batch(samples(12))
    changed = waveform.clone()
    changed[:, -HOP:] += 1.0
    published, without_norm = pretraining_model("base").wav2vec.eval(), pretraining_model("base").wav2vec.eval()
    for layer in [*without_norm.feature_extractor.conv_layers, *without_norm.context_network.conv_layers]:
        layer.layer_norm = type("Nothing", (nn.Module,), {"forward": lambda self, x, lengths: x})()
    with torch.no_grad():
        first, other = (published(x).last_hidden_state[:, 0] for x in (waveform, changed))
        assert (first - other).abs().max() > 1e-4
        first, other = (without_norm(x).last_hidden_state for x in (waveform, changed))
    assert torch.equal(first[:, :11], other[:, :11])
    assert not torch.equal(first[:, 11:], other[:, 11:])


def test_without_padding_invariance_the_norm_sees_padding_as_the_original_does():
    waveforms, mask = ragged_batch(samples(15), samples(6))
    model = pretraining_model("base", padding_invariant=False).wav2vec.eval()
    close(model(waveforms, mask).last_hidden_state, model(waveforms).last_hidden_state)
    alone = model(waveforms[1:, : samples(6)]).last_hidden_state
    assert (model(waveforms, mask).last_hidden_state[1, :6] - alone[0]).abs().max() > 1e-3


@pytest.mark.parametrize("variant", ["base", "causal"])
@pytest.mark.parametrize("project_features", ["none", "same", "new"])
def test_loss_and_gradient_do_not_depend_on_how_clips_are_batched(variant, project_features):
    model = pretraining_model(variant, project_features=project_features).eval()
    frames = [14, 11]
    waveforms, mask = ragged_batch(*map(samples, frames))
    negatives = negatives_of(model, frames, 14)
    weight = model.wav2vec.feature_extractor.conv_layers[0].conv.weight
    together = model(waveforms, mask, negatives)
    gradient = torch.autograd.grad(together.loss, weight)[0]
    loss, summed = 0.0, torch.zeros_like(gradient)
    for row, length in enumerate(frames):
        own = negatives[row : row + 1, :, :length] - row * 14
        alone = model(waveforms[row : row + 1, : samples(length)], None, own)
        share = alone.num_targets / together.num_targets
        loss = loss + alone.loss * share
        summed = summed + torch.autograd.grad(alone.loss, weight)[0] * share
    close(together.loss, loss)
    torch.testing.assert_close(gradient, summed, atol=1e-5, rtol=1e-4)


def test_drawn_negatives_are_other_valid_frames_of_the_clip_and_of_the_batch():
    prediction = FuturePrediction(
        3, 3, num_steps=2, offset=1, objective="binary_nce", num_negatives=300, num_cross_sample_negatives=300
    )
    valid = torch.arange(9) < torch.tensor([9, 5])[:, None]
    drawn = prediction.sample(valid, torch.Generator().manual_seed(0))
    assert drawn.shape == (2, 600, 9)
    for row, length in enumerate((9, 5)):
        for t in range(length):
            others = set(range(row * 9, row * 9 + length)) - {row * 9 + t}
            assert set(drawn[row, :300, t].tolist()) == others
            assert set(drawn[row, 300:, t].tolist()) == (set(range(9)) | set(range(9, 14))) - {row * 9 + t}


def test_weights_missing_from_a_folder_start_as_the_original_ones(tmp_path):
    pretraining_model("recurrent").wav2vec.save_pretrained(tmp_path)
    loaded = family.Wav2VecForPreTraining.from_pretrained(tmp_path)
    bound = (4 * 12) ** -0.5  # PyTorch's for a transposed convolution
    for parameter in loaded.prediction.parameters():
        assert 0.5 * bound < parameter.abs().max() <= bound
    fresh = family.Wav2VecModel(config("recurrent"))
    for convolution in [layer.conv for layer in fresh.feature_extractor.conv_layers]:
        bound = (convolution.in_channels * convolution.kernel_size[0]) ** -0.5
        assert 0.8 * bound < convolution.weight.abs().max() <= bound
    assert 0.8 < fresh.context_network.gru.weight_ih_l0.abs().max() * 9**0.5 <= 1
    headed = family.Wav2VecForCTC.from_pretrained(tmp_path)
    assert headed.lm_head.weight.std() < 0.05


def test_gradient_checkpointing_changes_no_gradient():
    model = pretraining_model("base").train()
    checkpointed = copy.deepcopy(model)
    checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for each in (model, checkpointed):
        each(ragged_batch(samples(20))[0], generator=torch.Generator().manual_seed(1)).loss.backward()
    for (name, a), b in zip(model.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_a_recurrent_context_recurs_over_time_and_not_over_the_batch():
    torch.manual_seed(0)
    network = CausalGRU(4, 3)
    frames = torch.randn(2, 4, 6)
    together = network(frames)[0]
    close(together[1:], network(frames[1:])[0])
    changed = frames.clone()
    changed[:, :, 0] += 1.0
    assert (network(changed)[0][:, :, -1] - together[:, :, -1]).abs().min() > 0


def test_sizes_are_those_of_the_published_models():
    with torch.device("meta"):
        sizes = [
            family.Wav2VecForPreTraining(made).num_parameters()
            for made in (family.Wav2VecConfig(), family.Wav2VecConfig.large())
        ]
    assert sizes == [15_491_072, 32_537_088]


def test_a_bias_of_each_step_is_eleven_more_than_a_shared_one():
    with torch.device("meta"):
        shared, own = (
            family.Wav2VecForPreTraining(family.Wav2VecConfig(prediction_bias=bias)).num_parameters()
            for bias in ("shared", "per_step")
        )
    assert own - shared == 11 * 512


def test_the_configuration_knows_its_frames():
    base = family.Wav2VecConfig()
    assert base.inputs_to_logits_ratio == HOP
    assert base.expects_normalized_input is False
    assert (base.first_predicted_frame, family.Wav2VecConfig.large().first_predicted_frame) == (1, 3)
    assert family.Wav2VecConfig.large(prediction_offset=1, log_compression=False).first_predicted_frame == 1
    model = pretraining_model("base")
    for length in (FIELD, FIELD + HOP - 1, FIELD + HOP, 16_000):
        assert model.wav2vec(torch.zeros(1, length)).last_hidden_state.shape[1] == model.num_frames(length)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"conv_norm": "batch"}, "conv_norm"),
        ({"context_type": "lstm"}, "context_type"),
        ({"objective": "nce"}, "objective"),
        ({"conv_kernel": (10, 3)}, "conv_dim, conv_kernel and conv_stride.*5, 2 and 5"),
        ({"conv_kernel": (4, 8, 4, 4, 4)}, "conv_kernel must reach over conv_stride"),
        ({"context_kernel": (3,)}, "context_dim and context_kernel"),
        ({"context_type": "gru"}, "one entry of context_dim"),
        ({"prediction_offset": 0}, "prediction_offset"),
        ({"prediction_offset": "first"}, "prediction_offset"),
        ({"num_prediction_steps": 0}, "num_prediction_steps"),
        ({"num_negatives": 0}, "num_negatives"),
        ({"num_cross_sample_negatives": -1}, "num_cross_sample_negatives"),
        ({"conv_dropout": 1.0}, "conv_dropout"),
        ({"use_weighted_layer_sum": True, "context_dim": (12, 8, 12)}, "use_weighted_layer_sum"),
        ({"ctc_loss_per_utterance": True, "ctc_loss_reduction": "mean"}, "ctc_loss_per_utterance"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(fields, message):
    with pytest.raises(Exception, match=message):
        config("base", **fields)


def test_a_crop_too_short_for_all_steps_is_refused_and_the_shortest_possible_one_is_not():
    model = pretraining_model("base", num_prediction_steps=9, prediction_offset="auto")
    with pytest.raises(ValueError, match=r"at least 12 frames.*num_prediction_steps = 9.*shortest has 11"):
        model(torch.randn(1, samples(11)))
    with pytest.raises(ValueError, match="shortest has 10"):
        model(*ragged_batch(samples(20), samples(10)))
    assert model(torch.randn(1, samples(12))).num_targets == sum(range(1, 10))


def test_more_negatives_than_other_frames_are_refused():
    with pytest.raises(ValueError, match=r"at least 31 frames.*num_negatives = 30.*shortest has 20"):
        pretraining_model("base", num_negatives=30)(torch.randn(1, samples(20)))


def test_given_negatives_of_another_shape_or_clip_are_refused():
    model = pretraining_model("base")
    waveforms, _ = ragged_batch(samples(20), samples(20))
    negatives = negatives_of(model, [20, 20], 20)
    with pytest.raises(ValueError, match=r"\(2, 5, 20\).*\(2, 4, 20\)"):
        model(waveforms, None, negatives[:, 1:])
    with pytest.raises(ValueError, match="other clips"):
        model(waveforms, None, negatives.flip(0))
