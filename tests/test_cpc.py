"""CPC: laws of the model, its objective and its streams."""

import math
from itertools import pairwise

import pytest
import torch
from causal_models import close
from torch import nn

import hf_wav2vec_family as family
from hf_wav2vec_family.conv import num_frames, num_samples_needed
from hf_wav2vec_family.modeling_cpc import (
    ChannelNorm,
    MaskedBatchNorm,
    clips_to_draw_from,
    future_scores,
    make_predictors,
    sample_negative_frames,
)

TINY = {
    "conv_dim": (16,) * 5,
    "hidden_size": 16,
    "num_prediction_steps": 3,
    "num_negatives": 6,
    "predictor_intermediate_size": 32,
    "predictor_attention_heads": 2,
    "vocab_size": 12,
    "classifier_proj_size": 8,
}
VARIANTS = {
    "paper": {},
    "channel-lstm": {"feat_extract_norm": "channel", "context_network": "lstm", "num_hidden_layers": 2},
    "batch-rnn": {"feat_extract_norm": "batch", "context_network": "rnn"},
    "instance": {"feat_extract_norm": "instance"},
    "reversed": {"feat_extract_norm": "channel", "reversed_time": True},
}
PREDICTORS = {
    "linear": {},
    "feed_forward": {"predictor": "feed_forward"},
    "conv": {"predictor": "conv", "predictor_kernel_size": 4},
    "transformer": {"predictor": "transformer", "predictor_max_positions": 120},
}
HOP, FIRST, LAST = 160, -153, 311  # frame t sees the samples 160 t - 153 to 160 t + 311


def config(**fields) -> family.CPCConfig:
    return family.CPCConfig(**{**TINY, **fields})


def pretraining_model(**fields) -> family.CPCForPreTraining:
    """A model whose weights are large enough for every path to matter."""
    torch.manual_seed(0)
    model = family.CPCForPreTraining(config(**fields))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(2.0)
    return model


def encoder(**fields) -> family.CPCModel:
    return pretraining_model(**fields).cpc.eval()


def waveform(num_samples: int, batch_size: int = 1, seed: int = 7) -> torch.Tensor:
    return torch.randn(batch_size, num_samples, generator=torch.Generator().manual_seed(seed))


def ragged_batch(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise of different lengths, NaN after the end of each, and the mask."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.where(mask, waveform(max(lengths), len(lengths)), float("nan")), mask.long()


def test_the_defaults_are_the_papers_and_the_variant_has_as_many_parameters_as_the_published_model():
    paper = family.CPCConfig()
    assert paper.inputs_to_logits_ratio == HOP
    with torch.device("meta"):
        published = family.CPCModel(family.CPCConfig.modified())
        model = family.CPCForPreTraining(paper)
    assert published.num_parameters() == 1_843_456
    assert model.predictors.weight.shape == (12 * 512, 256)


def test_frames_are_counted_as_the_convolutions_make_them():
    model = encoder()
    for samples in (159, 160, 318, 319, 320, 1599, 1600):
        frames = model(waveform(samples)).last_hidden_state.shape[1]
        assert frames == model.num_frames(samples) == (samples + 1) // HOP
    sizes = (model.config.conv_kernel, model.config.conv_stride, model.config.conv_padding)
    for frames in range(1, 8):
        needed = num_samples_needed(frames, *sizes)
        assert [num_frames(n, *sizes) for n in (needed - 1, needed)] == [frames - 1, frames]
    assert num_frames(torch.tensor([0, 1, 158, 159]), *sizes).tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_changes_no_answer(variant):
    model = encoder(**VARIANTS[variant])
    # statistics over a clip need two frames
    lengths = (4_000, 3_219, 1_999, 319 if variant == "instance" else 159)
    waveforms, mask = ragged_batch(*lengths)
    together = model(waveforms, attention_mask=mask)
    for row, length in enumerate(lengths):
        alone = model(waveforms[row : row + 1, :length])
        valid = model.num_frames(length)
        for name in ("last_hidden_state", "extract_features"):
            close(together[name][row, :valid], alone[name][0])


def test_padding_goes_through_the_encoder_if_it_is_let_through():
    model = encoder(padding_invariant=False)
    waveforms, mask = ragged_batch(4_000, 2_000)
    zeros = waveforms.nan_to_num()
    found = model(zeros, attention_mask=mask).last_hidden_state
    assert torch.equal(found, model(zeros).last_hidden_state)
    assert not torch.allclose(found[1, 11], model(zeros[1:, :2_000]).last_hidden_state[0, 11], atol=1e-4)


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("reversed_time", [False, True])
def test_loss_does_not_depend_on_how_rows_are_batched(predictor, reversed_time):
    model = pretraining_model(reversed_time=reversed_time, **PREDICTORS[predictor]).eval()
    lengths = (4_000, 2_500)
    waveforms, mask = ragged_batch(*lengths)
    total = model.num_frames(max(lengths))
    rows, negatives = [], torch.zeros(2, 6, total - 3, dtype=torch.long)
    for row, length in enumerate(lengths):
        frames = model.num_frames(length)
        own = torch.randint(frames, (1, 6, frames - 3), generator=torch.Generator().manual_seed(row))
        negatives[row, :, : frames - 3] = own + row * total
        rows.append(model(waveforms[row : row + 1, :length], sampled_negative_indices=own))
    together = model(waveforms, mask, sampled_negative_indices=negatives)
    counts = [row.num_targets for row in rows]
    assert together.num_targets == sum(counts)
    for name in ("loss", "accuracy"):
        close(together[name], sum(row[name] * n for row, n in zip(rows, counts, strict=True)) / sum(counts))
    together.loss.backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    sum(row.loss * n for row, n in zip(rows, counts, strict=True)).div(sum(counts)).backward()
    for a, b in zip(found, [p.grad for p in model.parameters()], strict=True):
        close(a, b)


@pytest.mark.parametrize("variant", ["paper", "channel-lstm", "batch-rnn"])
def test_a_frame_sees_no_sample_beyond_its_look_ahead_whatever_the_prefix(variant):
    model = encoder(**VARIANTS[variant])
    whole = waveform(2_400)
    expected = model(whole)
    for length in range(HOP * 2 + LAST + 1, 2_400, 61):
        complete = (length - LAST - 1) // HOP + 1
        prefix = model(whole[:, :length])
        for name in ("last_hidden_state", "extract_features"):
            close(prefix[name][:, :complete], expected[name][:, :complete])


@pytest.mark.parametrize(("reversed_time", "unchanged"), [(False, slice(0, 7)), (True, slice(10, 15))])
def test_context_depends_on_one_side_of_the_clip_alone(reversed_time, unchanged):
    model = encoder(reversed_time=reversed_time)
    first, last = 7 * HOP + LAST + 1 - HOP, 10 * HOP + FIRST - 1
    other = waveform(2_400).clone()
    other[:, first:last] += 1.0
    before, after = model(waveform(2_400)), model(other)
    seen = ~(before.extract_features == after.extract_features).all(-1)[0]
    assert seen.nonzero().flatten().tolist() == [7, 8, 9]
    changed = ~(before.last_hidden_state == after.last_hidden_state).all(-1)[0]
    assert not changed[unchanged].any()
    assert changed.sum() == 15 - len(range(*unchanged.indices(15)))


def test_a_frame_sees_exactly_the_samples_it_is_said_to_see():
    model = encoder()
    clip = waveform(2_400).requires_grad_()
    model(clip).extract_features[0, 6].sum().backward()
    seen = clip.grad[0].nonzero().flatten()
    assert (seen.min().item(), seen.max().item()) == (6 * HOP + FIRST, 6 * HOP + LAST)


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_a_prediction_depends_on_no_later_context_and_on_no_length(predictor):
    torch.manual_seed(0)
    predictors = make_predictors(config(**PREDICTORS[predictor])).eval()
    context = torch.randn(2, 20, 16)
    whole = predictors(context)
    assert whole.shape == (2, 20, 3, 16)
    for length in (1, 7, 19):
        close(predictors(context[:, :length]), whole[:, :length])


def loop_objective(model: family.CPCForPreTraining, output) -> tuple[list[float], list[float]]:
    """Equation 4 context by context: losses and accuracies of each step."""
    frames, context = output.extract_features, output.last_hidden_state
    if model.config.reversed_time:
        frames, context = frames.flip(1), context.flip(1)
    batch_size, total, width = frames.shape
    steps = model.config.num_prediction_steps
    flat = frames.reshape(-1, width)
    divisor = width if model.config.score == "mean" else 1
    predictions = model.predictors(context[:, : total - steps])
    losses, accuracies = [], []
    for step in range(1, steps + 1):
        costs, wins = [], []
        for row in range(batch_size):
            for t in range(total - steps):
                target = row * total + t + step
                candidates = [target, *output.sampled_negative_indices[row, :, t].tolist()]
                scores = torch.stack([predictions[row, t, step - 1] @ flat[i] / divisor for i in candidates])
                costs.append(-scores.log_softmax(0)[0].item())
                others = [s for i, s in zip(candidates[1:], scores[1:], strict=True) if i != target]
                wins.append(all(scores[0] > s for s in others))
        losses.append(sum(costs) / len(costs))
        accuracies.append(sum(wins) / len(wins))
    return losses, accuracies


@pytest.mark.parametrize("score", ["sum", "mean"])
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_loss_and_accuracy_equal_a_loop_over_contexts_and_steps(predictor, score):
    reversed_time = predictor == "conv"
    model = pretraining_model(score=score, reversed_time=reversed_time, **PREDICTORS[predictor]).eval()
    with torch.no_grad():
        output = model(waveform(2_000, 2))
        losses, accuracies = loop_objective(model, output)
    assert output.step_losses.tolist() == pytest.approx(losses, rel=1e-5)
    assert output.step_accuracies.tolist() == pytest.approx(accuracies)
    assert output.loss.item() == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert output.accuracy.item() == pytest.approx(sum(accuracies) / 3)
    assert output.num_targets == 2 * (model.num_frames(2_000) - 3) * 3


def test_predictions_that_say_nothing_cost_the_logarithm_of_the_number_of_candidates():
    model = pretraining_model(num_negatives=11)
    nn.init.zeros_(model.predictors.weight)
    output = model(waveform(4_000, 2))
    close(output.step_losses, torch.full((3,), math.log(12)))
    assert output.accuracy == 0


def test_a_negative_that_is_the_target_itself_costs_but_does_not_win():
    frames = torch.eye(4)[None]
    predictions = torch.eye(4)[None, 1:, None]  # each sure of the frame that comes
    scores = future_scores(predictions, frames, torch.tensor([[[1, 0, 0], [3, 3, 1]]]))
    assert scores.positive.flatten().tolist() == [1, 1, 1]
    assert scores.negative[0, :, 0].tolist() == [[1, 0], [0, 0], [0, 0]]
    assert scores.is_target[0, :, 0].tolist() == [[True, False], [False, False], [False, False]]


def drawn_clips(mode: str, speakers: list[int], lengths=(20, 20, 20, 20)) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips and frames of the negatives of four clips under a mode."""
    allowed = clips_to_draw_from(mode, 4, torch.tensor(speakers), torch.device("cpu"))
    torch.manual_seed(0)
    index = sample_negative_frames(torch.tensor(lengths), allowed, total=20, num_contexts=15, num_negatives=40)
    return index // 20, index % 20


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("mixed_speaker", [{0, 1, 2, 3}] * 4),
        ("same_speaker", [{0, 2}, {1}, {0, 2}, {3}]),
        ("mixed_speaker_excluded", [{1, 2, 3}, {0, 2, 3}, {0, 1, 3}, {0, 1, 2}]),
        ("same_speaker_excluded", [{2}, None, {0}, None]),
        ("current_sequence", [{0}, {1}, {2}, {3}]),
    ],
)
def test_negatives_come_from_the_clips_that_the_mode_promises(mode, expected):
    clips, _ = drawn_clips(mode, [5, 6, 5, 7])
    for row, promised in enumerate(expected):
        if promised is not None:
            assert set(clips[row].unique().tolist()) == promised


def test_negatives_are_valid_frames_drawn_evenly_and_never_the_number_of_the_context():
    lengths = torch.tensor([20, 5, 20, 1])
    clips, frames = drawn_clips("mixed_speaker", [0, 0, 0, 0], lengths.tolist())
    assert (frames < lengths[clips]).all()
    context = torch.arange(15).expand_as(frames)
    assert not ((frames == context) & (lengths[clips] > 1)).any()
    share = torch.bincount(clips.flatten(), minlength=4) / clips.numel()
    close(share, lengths / lengths.sum(), tolerance=0.03)
    offsets = torch.bincount(((frames - context) % 20)[lengths[clips] == 20], minlength=20)
    assert offsets[0] == 0
    assert offsets[1:].min() > 0.6 * offsets[1:].max()


def test_a_clip_with_nothing_to_draw_from_has_no_target():
    model = pretraining_model(negative_sampling="same_speaker_excluded").eval()
    clips = waveform(2_000, 3)
    output = model(clips, speaker_ids=torch.tensor([4, 9, 4]))
    assert output.num_targets == 2 * (model.num_frames(2_000) - 3) * 3
    nothing = model(clips, speaker_ids=torch.tensor([1, 2, 3]))
    assert (nothing.num_targets, nothing.loss) == (0, 0)


def test_a_row_of_too_few_frames_has_no_target():
    model = pretraining_model().eval()
    waveforms, mask = ragged_batch(2_000, 3 * HOP)
    output = model(waveforms, mask)
    assert output.num_targets == (model.num_frames(2_000) - 3) * 3
    assert output.loss.isfinite()
    assert set((output.sampled_negative_indices[0] // model.num_frames(2_000)).unique().tolist()) == {0, 1}
    assert (
        (output.sampled_negative_indices[0] % 12)
        .lt(torch.tensor([12, 3])[output.sampled_negative_indices[0] // 12])
        .all()
    )


def test_the_same_generator_draws_the_same_negatives():
    model = pretraining_model()
    drawn = [
        model(waveform(2_000, 2), generator=torch.Generator().manual_seed(seed)).sampled_negative_indices
        for seed in (3, 3, 4)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_compiled_graph_of_any_size_draws_the_same_negatives():
    def draw(frames: torch.Tensor) -> torch.Tensor:
        batch_size, total = frames.shape
        lengths, allowed = torch.full((batch_size,), total), torch.ones(batch_size, batch_size, dtype=torch.bool)
        return sample_negative_frames(lengths, allowed, total=total, num_contexts=total - 3, num_negatives=4)

    compiled = torch.compile(draw, backend="eager", dynamic=True, fullgraph=True)
    for shape in ((2, 20), (3, 31)):
        torch.manual_seed(0)
        expected = draw(torch.zeros(shape))
        torch.manual_seed(0)
        assert torch.equal(compiled(torch.zeros(shape)), expected)


CUTS = {"a sample": 1, "10 ms": 160, "100 ms": 1_600, "1 s": 16_000}


def streamed(model: family.CPCModel, chunks) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Context and frames of all chunks, and the most numbers the state ever kept in memory."""
    state, contexts, frames, largest = None, [], [], 0
    for i, chunk in enumerate(chunks):
        output = model.stream(chunk, state, final=i == len(chunks) - 1)
        contexts.append(output.last_hidden_state)
        frames.append(output.extract_features)
        state = output.state
        if state is not None:
            held = (*state.conv_inputs, *state.recurrent)
            largest = max(largest, sum(t.untyped_storage().nbytes() // t.element_size() for t in held))
    assert state is None
    return torch.cat(contexts, dim=1), torch.cat(frames, dim=1), largest


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("variant", ["paper", "channel-lstm", "batch-rnn"])
@torch.no_grad()
def test_chunks_of_any_size_equal_one_pass(variant, cut):
    model = encoder(**VARIANTS[variant])
    clip = waveform(900 if cut == "a sample" else 2 * CUTS[cut] + 777, batch_size=2)
    whole = model(clip)
    context, frames, _ = streamed(model, clip.split(CUTS[cut], dim=1))
    close(context, whole.last_hidden_state)
    close(frames, whole.extract_features)


@torch.no_grad()
def test_chunks_of_random_sizes_equal_one_pass_and_the_state_stays_small():
    model = encoder(**VARIANTS["channel-lstm"])
    clip = waveform(12_345)
    whole = model(clip)
    generator = torch.Generator().manual_seed(1)
    largest = {}
    for longest in (50, 3_000):
        sizes = torch.randint(longest, (1_000,), generator=generator)  # some are empty
        ends = [0, *sizes.cumsum(0).clamp(max=12_345).tolist()]
        chunks = [clip[:, a:b] for a, b in pairwise(ends) if a < 12_345] + [clip[:, 12_345:]]
        context, _, largest[longest] = streamed(model, chunks)
        close(context, whole.last_hidden_state)
    kernels = (10, 8, 4, 4, 4)
    bound = kernels[0] - 1 + 16 * sum(k - 1 for k in kernels[1:]) + 2 * 2 * 16
    assert max(largest.values()) <= bound


@torch.no_grad()
def test_a_frame_comes_with_the_last_sample_it_sees():
    model = encoder()
    clip = waveform(1_000)
    assert model.stream(clip[:, : 2 * HOP + LAST]).last_hidden_state.shape[1] == 2
    assert model.stream(clip[:, : 2 * HOP + LAST + 1]).last_hidden_state.shape[1] == 3


@torch.no_grad()
def test_chunks_that_carry_the_recurrent_state_alone_depend_on_the_cut():
    model = encoder(**VARIANTS["channel-lstm"])
    clip = waveform(3_200)
    first = model.stream(clip[:, :1_600], carry_convolutions=False)
    second = model.stream(clip[:, 1_600:], first.state, carry_convolutions=False)
    alone = model(clip[:, 1_600:])
    assert torch.equal(second.extract_features, alone.extract_features)
    assert not torch.allclose(second.last_hidden_state, alone.last_hidden_state, atol=1e-3)
    context, _ = model.context_network(torch.cat([first.extract_features, second.extract_features], dim=1))
    close(torch.cat([first.last_hidden_state, second.last_hidden_state], dim=1), context)


@pytest.mark.parametrize("fields", [{"reversed_time": True}, {"feat_extract_norm": "instance"}])
def test_a_model_that_needs_the_whole_clip_refuses_to_stream(fields):
    with pytest.raises(ValueError, match="cannot stream"):
        encoder(**fields).stream(waveform(1_000))


def test_a_stream_refuses_what_does_not_go_on_from_its_state():
    model = encoder()
    state = model.stream(waveform(1_000)).state
    with pytest.raises(ValueError, match="1 streams, but chunk has 2 rows"):
        model.stream(waveform(1_000, 2), state)
    with pytest.raises(ValueError, match="carry_convolutions"):
        model.stream(waveform(1_000), state, carry_convolutions=False)
    with pytest.raises(ValueError, match="training True"):
        encoder(feat_extract_norm="batch").train().stream(waveform(1_000))


def test_channel_norm_divides_by_the_unbiased_standard_deviation():
    torch.manual_seed(0)
    norm = ChannelNorm(6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    values = torch.randn(2, 6, 5)
    expected = (values - values.mean(1, keepdim=True)) / (values.var(1, keepdim=True) + 1e-5).sqrt()
    close(norm(values), expected * norm.weight[:, None] + norm.bias[:, None])


def test_batch_norm_in_training_takes_its_statistics_from_valid_frames():
    torch.manual_seed(0)
    masked, plain = MaskedBatchNorm(4), nn.BatchNorm1d(4)
    values, lengths = torch.randn(3, 4, 7), torch.tensor([7, 2, 4])
    valid = torch.arange(7) < lengths[:, None]
    found = masked(torch.where(valid[:, None], values, float("nan")), lengths)
    frames = values.transpose(1, 2)[valid]  # all valid frames as one batch
    close(found.transpose(1, 2)[valid], plain(frames))
    close(masked.running_mean, plain.running_mean)
    close(masked.running_var, plain.running_var)
    assert masked.num_batches_tracked == 1


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_every_parameter_gets_a_gradient(variant, predictor):
    model = pretraining_model(**VARIANTS[variant], **PREDICTORS[predictor]).train()
    waveforms, mask = ragged_batch(4_000, 2_500)
    output = model(waveforms, mask)
    output.loss.backward()
    assert output.loss.isfinite()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # softmax takes the same from every score, and before it the instance norm takes a bias away
    assert [n for n in without if not (variant == "instance" and n.endswith("conv.bias"))] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_forty_steps_on_one_batch_lower_the_loss():
    torch.manual_seed(0)
    model = family.CPCForPreTraining(config(feat_extract_norm="channel"))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    clips = waveform(4_000, 2)
    negatives = model(clips).sampled_negative_indices
    losses = []
    for _ in range(40):
        loss = model(clips, sampled_negative_indices=negatives).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.3


def test_dropout_on_predictions_acts_in_training_alone():
    model = pretraining_model(predictor_dropout=0.5)
    clips, negatives = waveform(2_000, 2), None
    losses = {}
    for mode in (True, False):
        model.train(mode)
        outputs = []
        for _ in range(2):
            output = model(clips, sampled_negative_indices=negatives)
            negatives = output.sampled_negative_indices
            outputs.append(model(clips, sampled_negative_indices=negatives).loss.item())
        losses[mode] = outputs
    assert losses[True][0] != losses[True][1]
    assert losses[False][0] == losses[False][1]


def test_bfloat16_autocast_trains():
    model = pretraining_model(**PREDICTORS["transformer"]).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(*ragged_batch(4_000, 3_000))
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert output.loss.isfinite()


@pytest.mark.parametrize("variant", ["paper", "channel-lstm"])
def test_training_forward_compiles_to_one_graph_and_gives_the_same(variant):
    torch._dynamo.reset()
    fields = {**VARIANTS[variant], "num_hidden_layers": 1, "negative_sampling": "same_speaker"}
    model = pretraining_model(**fields).train()
    waveforms, mask = ragged_batch(800, 700)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    output = compiled(waveforms, mask, torch.tensor([1, 1]))
    output.loss.backward()
    expected = model(waveforms, mask, sampled_negative_indices=output.sampled_negative_indices)
    close(output.loss, expected.loss)


def test_saved_and_loaded_models_give_the_same(tmp_path):
    for predictor, fields in PREDICTORS.items():
        model = pretraining_model(feat_extract_norm="batch", **fields).eval()
        clips = waveform(2_000, 2)
        negatives = model(clips).sampled_negative_indices
        model.save_pretrained(tmp_path / predictor)
        loaded, info = family.CPCForPreTraining.from_pretrained(tmp_path / predictor, output_loading_info=True)
        assert not any(info.values())
        assert loaded(clips, sampled_negative_indices=negatives).loss == model(clips, None, None, negatives).loss


def test_weights_missing_from_a_folder_are_initialised(tmp_path):
    encoder(feat_extract_norm="channel").save_pretrained(tmp_path)
    for predictor, fields in PREDICTORS.items():
        torch.manual_seed(0)
        loaded, info = family.CPCForPreTraining.from_pretrained(tmp_path, output_loading_info=True, **fields)
        torch.manual_seed(0)
        fresh = make_predictors(loaded.config)
        assert {name.partition(".")[0] for name in info["missing_keys"]} == {"predictors"}, predictor
        for name, parameter in loaded.predictors.named_parameters():
            assert parameter.std().item() == pytest.approx(fresh.get_parameter(name).std().item(), abs=0.1), name


def test_convolutions_and_context_start_as_pytorch_starts_them():
    torch.manual_seed(0)
    model = family.CPCModel(config(conv_dim=(64,) * 5, hidden_size=64))
    for module, fan_in in ((model.encoder.layers[1].conv, 64 * 8), (model.encoder.layers[4].conv, 64 * 4)):
        assert module.weight.abs().max().item() == pytest.approx(fan_in**-0.5, rel=0.01)
    assert model.context_network.weight_hh_l0.abs().max().item() == pytest.approx(64**-0.5, rel=0.01)


HEADS = {
    "AutoModelForCTC": family.CPCForCTC,
    "AutoModelForAudioClassification": family.CPCForSequenceClassification,
    "AutoModelForAudioFrameClassification": family.CPCForAudioFrameClassification,
}


@pytest.mark.parametrize("auto_class", HEADS)
def test_heads_answer_a_padded_row_as_they_answer_it_alone(auto_class):
    torch.manual_seed(0)
    mixes = {"use_weighted_layer_sum": True} if "Classification" in auto_class else {}
    model = HEADS[auto_class](config(num_labels=5, **mixes)).eval()
    waveforms, mask = ragged_batch(4_000, 2_500)
    together = model(waveforms, attention_mask=mask).logits
    alone = model(waveforms[1:, :2_500]).logits
    if together.dim() == 3:
        together = together[:, : alone.shape[1]]
    close(together[1:], alone)


def test_heads_train():
    waveforms, mask = ragged_batch(4_000, 2_500)
    labels = {
        family.CPCForCTC: torch.tensor([[1, 2, 3], [4, 5, -100]]),
        family.CPCForSequenceClassification: torch.tensor([1, 0]),
        family.CPCForAudioFrameClassification: torch.randint(2, (2, 25)),
    }
    for model_class, given in labels.items():
        torch.manual_seed(0)
        model = model_class(config(final_dropout=0.0))
        model.freeze_feature_encoder()
        model(waveforms, attention_mask=mask, labels=given).loss.backward()
        assert all((p.grad is None) == ("encoder" in n) for n, p in model.named_parameters())


@pytest.mark.parametrize("samples", [0, 1, 158])
def test_audio_without_a_frame_is_refused(samples):
    with pytest.raises(ValueError, match=rf"at least 159 samples.*\(1, {samples}\)"):
        encoder()(torch.zeros(1, samples))


def test_a_row_without_a_frame_is_refused_by_number():
    with pytest.raises(ValueError, match="row 1 marks 100"):
        encoder()(*ragged_batch(2_000, 100))


def test_a_crop_without_a_context_that_has_all_its_steps_is_refused():
    model = pretraining_model()
    assert model(waveform(639)).loss.isfinite()
    with pytest.raises(ValueError, match="at least 639 samples, 4 frames, to predict 3 steps ahead, but have 3"):
        model(waveform(638))


@pytest.mark.parametrize("mode", ["same_speaker", "same_speaker_excluded"])
@pytest.mark.parametrize(
    ("speakers", "message"),
    [
        (None, r"needs speaker_ids of shape \(2,\), got None"),
        ([[1, 2]], r"got \(1, 2\)"),
        ([0, -1], "not be negative"),
    ],
)
def test_modes_of_one_speaker_need_to_know_the_speakers(mode, speakers, message):
    model = pretraining_model(negative_sampling=mode)
    given = None if speakers is None else torch.tensor(speakers)
    with pytest.raises(ValueError, match=message):
        model(waveform(2_000, 2), speaker_ids=given)


def test_a_single_clip_cannot_draw_from_others():
    with pytest.raises(ValueError, match="at least 2 clips in a batch, got 1"):
        pretraining_model(negative_sampling="mixed_speaker_excluded")(waveform(2_000))


def test_given_negatives_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"B = 1 and W = 9 .*got \(1, 6, 12\)"):
        pretraining_model()(waveform(2_000), sampled_negative_indices=torch.zeros(1, 6, 12, dtype=torch.long))


def test_more_contexts_than_relative_positions_are_refused():
    model = pretraining_model(predictor="transformer", predictor_max_positions=8)
    with pytest.raises(ValueError, match="reach 8 contexts, but the clips have 9"):
        model(waveform(2_000))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"feat_extract_norm": "layer"}, "feat_extract_norm must be one of none, channel"),
        ({"context_network": "GRU"}, "context_network"),
        ({"predictor": "conv4"}, "predictor must be one of"),
        ({"score": "max"}, "score"),
        ({"negative_sampling": "uniform"}, "negative_sampling"),
        ({"conv_dim": (16,) * 4}, "conv_dim 4, conv_kernel 5"),
        ({"conv_padding": (5, 2, 1, 1, 1)}, "padding 5"),
        ({"conv_stride": (11, 4, 2, 2, 2)}, "stride 11"),
        ({"num_prediction_steps": 0}, "num_prediction_steps must be at least 1, got 0"),
        ({"num_negatives": 0}, "num_negatives"),
        ({"predictor": "transformer", "hidden_size": 8}, "got 8, 16 and 2"),
        ({"predictor": "transformer", "predictor_attention_heads": 3}, "16 and 3"),
        ({"use_weighted_layer_sum": True, "hidden_size": 8}, "use_weighted_layer_sum"),
        ({"ctc_loss_reduction": "mean", "ctc_loss_per_utterance": True}, "ctc_loss_per_utterance"),
        ({"num_negatives": 1.5}, "num_negatives"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(fields, message):
    with pytest.raises(Exception, match=message):
        config(**fields)


def test_past_only_augmentation_predicts_clean_frames_from_the_context_of_the_augmented():
    model, clean = pretraining_model().eval(), waveform(2_000, 2)
    augmented = clean + 0.3 * waveform(2_000, 2, seed=1)
    negatives = model(clean).sampled_negative_indices
    output = model(augmented, clean_input_values=clean, sampled_negative_indices=negatives)
    close(output.extract_features, model.cpc(augmented).extract_features)
    output.extract_features = model.cpc(clean).extract_features
    losses, accuracies = loop_objective(model, output)
    assert output.step_losses.tolist() == pytest.approx(losses, rel=1e-5)
    assert output.step_accuracies.tolist() == pytest.approx(accuracies)
    same = model(clean, clean_input_values=clean, sampled_negative_indices=negatives)
    assert same.loss == model(clean, sampled_negative_indices=negatives).loss


def test_clean_clips_of_another_length_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"clean_input_values must be \(2, 2000\).*got \(2, 1999\)"):
        pretraining_model()(waveform(2_000, 2), clean_input_values=waveform(1_999, 2))
