"""Contrastive loss: equation (3) as a loop, fair negatives, no reward for collapse, no trace of the batch."""

import math

import pytest
import torch

from hf_wav2vec_family.contrastive import contrastive_scores, info_nce, sample_negatives

TEMPERATURE = 0.1
COUNTS = [6, 9, 0, 1, 2]
PLACES, WIDTH, NEGATIVES, ENTRIES = 9, 8, 5, 4


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def valid_places(counts, total=None):
    return torch.arange(max(counts) if total is None else total) < torch.tensor(counts)[:, None]


def make_batch(num_entries=ENTRIES):
    """Predictions, targets out of so few entries that negatives equal to the target are common, their ids."""
    table = torch.randn(num_entries, WIDTH, generator=seeded(1))
    ids = torch.randint(num_entries, (len(COUNTS), PLACES), generator=seeded(2))
    predictions = torch.randn(len(COUNTS), PLACES, WIDTH, generator=seeded(3))
    return predictions, table[ids], ids


def slow_loss(predictions, targets, negatives, valid):
    """Equation (3), place by place; a distractor equal to the target is left out. Mean loss and accuracy."""
    losses, wins = [], []
    for row, place in valid.nonzero().tolist():
        target = targets[row, place]
        distractors = [targets[row, other] for other in negatives[row, place].tolist()]
        distractors = [distractor for distractor in distractors if not torch.equal(distractor, target)]
        scores = [
            torch.cosine_similarity(predictions[row, place], candidate, dim=0) / TEMPERATURE
            for candidate in (target, *distractors)
        ]
        losses.append(-torch.log(torch.exp(scores[0]) / sum(torch.exp(score) for score in scores)))
        wins.append(bool(distractors) and all(scores[0] > score for score in scores[1:]))
    return sum(losses) / len(losses), sum(wins) / len(wins)


def loss_of(predictions, targets, negatives, ids, valid):
    return info_nce(contrastive_scores(predictions, targets, negatives, ids, temperature=TEMPERATURE), valid)


def test_the_loss_equals_the_loop_over_equation_3_with_duplicates_left_out():
    predictions, targets, ids = make_batch()
    valid = valid_places(COUNTS)
    negatives = sample_negatives(valid, NEGATIVES, generator=seeded())
    leaves = [values.clone().requires_grad_() for values in (predictions, targets, predictions, targets)]
    ours = loss_of(leaves[0], leaves[1], negatives, ids, valid)
    # the loop tells duplicates by comparing vectors, not ids
    loss, accuracy = slow_loss(leaves[2], leaves[3], negatives, valid)
    torch.testing.assert_close(ours.loss, loss)
    assert ours.accuracy.item() == pytest.approx(accuracy)
    assert 0 < accuracy < 1
    ours.loss.backward()
    loss.backward()
    torch.testing.assert_close(leaves[0].grad, leaves[2].grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(leaves[1].grad, leaves[3].grad, rtol=1e-4, atol=1e-6)


def test_negatives_across_the_batch_equal_the_loop_over_one_long_row():
    predictions, targets, ids = make_batch()
    valid = valid_places(COUNTS)
    negatives = sample_negatives(valid, NEGATIVES, across_batch=True, generator=seeded())
    predictions, targets, ids, negatives, valid = (
        values.flatten(0, 1)[None] for values in (predictions, targets, ids, negatives, valid)
    )
    ours = loss_of(predictions, targets, negatives, ids, valid)
    loss, accuracy = slow_loss(predictions, targets, negatives, valid)
    torch.testing.assert_close(ours.loss, loss)
    assert ours.accuracy.item() == pytest.approx(accuracy)


def test_duplicates_of_the_target_score_minus_infinity_and_nothing_else_does():
    predictions, targets, ids = make_batch()
    negatives = sample_negatives(valid_places([PLACES] * len(COUNTS)), NEGATIVES, generator=seeded())
    scores = contrastive_scores(predictions, targets, negatives, ids, temperature=TEMPERATURE)
    duplicate = torch.stack([row_ids[row] == row_ids[:, None] for row_ids, row in zip(ids, negatives, strict=True)])
    assert duplicate.any()
    assert torch.equal(scores[..., 1:].isneginf(), duplicate)
    assert scores[..., 0].isfinite().all()


def test_scores_are_float32_cosines_over_the_temperature_whatever_the_precision():
    predictions, targets, ids = make_batch()
    negatives = sample_negatives(valid_places([PLACES] * len(COUNTS)), NEGATIVES, generator=seeded())
    arguments = predictions.bfloat16(), targets.bfloat16(), negatives, ids
    scores = contrastive_scores(*arguments, temperature=TEMPERATURE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(contrastive_scores(*arguments, temperature=TEMPERATURE), scores)
    expected = torch.cosine_similarity(predictions.bfloat16().float(), targets.bfloat16().float(), dim=-1)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores[..., 0], expected / TEMPERATURE)


def chi_square(counts):
    expected = counts.sum() / counts.numel()
    return ((counts - expected).square() / expected).sum().item()


def test_negatives_are_uniform_over_the_other_valid_places_of_the_row():
    counts = [7, 3, 2]
    negatives = sample_negatives(valid_places(counts), 6000, generator=seeded())
    for row, count in enumerate(counts):
        for place in range(count):
            drawn = torch.bincount(negatives[row, place], minlength=7).float()
            others = torch.arange(7)[:count] != place
            assert drawn[place] == 0
            assert drawn[count:].sum() == 0
            # the 99.99 % quantile of chi-square with 5 degrees of freedom is 25.7
            assert chi_square(drawn[:count][others]) < 26


def test_negatives_across_the_batch_are_uniform_over_all_other_valid_places():
    valid = valid_places([3, 0, 1, 4, 0], total=5)
    negatives = sample_negatives(valid, 8000, across_batch=True, generator=seeded())
    all_places = valid.flatten().nonzero().flatten()
    for row, place in valid.nonzero().tolist():
        own = row * 5 + place
        drawn = torch.bincount(negatives[row, place], minlength=25).float()
        others = all_places[all_places != own]
        assert drawn[others].sum() == 8000
        # the 99.99 % quantile of chi-square with 6 degrees of freedom is 27.9
        assert chi_square(drawn[others]) < 28


@pytest.mark.parametrize("across_batch", [False, True])
def test_valid_places_may_stand_anywhere_in_their_rows(across_batch):
    valid = torch.tensor([[False, True, False, False, True, True], [True, False, False, False, False, True]])
    negatives = sample_negatives(valid, 200, across_batch=across_batch, generator=seeded())
    for row, place in valid.nonzero().tolist():
        own = row * 6 + place if across_batch else place
        candidates = valid.flatten() if across_batch else valid[row]
        assert set(negatives[row, place].tolist()) == set(candidates.nonzero().flatten().tolist()) - {own}


@pytest.mark.parametrize("across_batch", [False, True])
@pytest.mark.parametrize("counts", [[0, 0], [0, 1], [1, 0, 1], [5, 0, 1, 2], [5]])
def test_negatives_are_always_places_that_exist(counts, across_batch):
    valid = valid_places(counts, total=5)
    negatives = sample_negatives(valid, 50, across_batch=across_batch, generator=seeded())
    assert negatives.shape == (len(counts), 5, 50)
    assert negatives.min() >= 0
    assert negatives.max() < (valid.numel() if across_batch else 5)


@pytest.mark.parametrize("across_batch", [False, True])
def test_the_same_seed_draws_the_same_negatives_and_another_seed_others(across_batch):
    first, again, other = (
        sample_negatives(valid_places(COUNTS), 20, across_batch=across_batch, generator=seeded(seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_place_that_stands_alone_gets_itself_and_costs_nothing():
    valid = valid_places([1], total=3)
    negatives = sample_negatives(valid, NEGATIVES, generator=seeded())
    assert (negatives[0, 0] == 0).all()
    predictions = torch.randn(1, 3, WIDTH, generator=seeded())
    outcome = loss_of(predictions, predictions, negatives, torch.arange(3)[None], valid)
    assert outcome.loss == 0
    assert outcome.accuracy == 0


def test_uninformative_predictions_cost_log_of_the_number_of_candidates():
    targets = torch.randn(2, PLACES, WIDTH, generator=seeded())
    ids = torch.arange(PLACES).expand(2, -1)
    valid = valid_places([PLACES, 4])
    negatives = sample_negatives(valid, NEGATIVES, generator=seeded())
    outcome = loss_of(torch.zeros_like(targets), targets, negatives, ids, valid)
    assert outcome.loss.item() == pytest.approx(math.log(NEGATIVES + 1))
    assert outcome.accuracy == 0


def test_perfect_predictions_of_distinct_targets_are_all_right():
    targets = torch.eye(PLACES)[None]
    valid = valid_places([PLACES])
    negatives = sample_negatives(valid, NEGATIVES, generator=seeded())
    outcome = loss_of(targets, targets, negatives, torch.arange(PLACES)[None], valid)
    assert outcome.accuracy == 1
    assert outcome.loss.item() == pytest.approx(math.log(1 + NEGATIVES * math.exp(-1 / TEMPERATURE)), rel=1e-2)


def test_a_collapsed_codebook_has_no_accuracy():
    predictions, targets, _ = make_batch(num_entries=1)
    valid = valid_places(COUNTS)
    negatives = sample_negatives(valid, NEGATIVES, generator=seeded())
    outcome = loss_of(predictions, targets, negatives, torch.zeros(len(COUNTS), PLACES, dtype=torch.long), valid)
    assert outcome.accuracy == 0
    assert outcome.loss == 0


@pytest.mark.parametrize("across_batch", [False, True])
def test_a_batch_without_targets_costs_nothing_and_has_a_finite_gradient(across_batch):
    predictions, targets, ids = make_batch()
    valid = torch.zeros(len(COUNTS), PLACES, dtype=torch.bool)
    negatives = sample_negatives(valid, NEGATIVES, across_batch=across_batch, generator=seeded())
    batch = (predictions.requires_grad_(), targets, negatives, ids, valid)
    outcome = loss_of(*([values.flatten(0, 1)[None] for values in batch] if across_batch else batch))
    outcome.loss.backward()
    assert outcome.loss == 0
    assert outcome.accuracy == 0
    assert (predictions.grad == 0).all()


def test_places_that_are_not_taken_have_no_gradient():
    predictions, targets, ids = make_batch()
    predictions.requires_grad_()
    targets.requires_grad_()
    valid = valid_places(COUNTS)
    loss_of(predictions, targets, sample_negatives(valid, NEGATIVES, generator=seeded()), ids, valid).loss.backward()
    for gradient in (predictions.grad, targets.grad):
        assert (gradient[~valid] == 0).all()
        assert gradient[valid].any()
        assert gradient.isfinite().all()


def test_the_loss_does_not_depend_on_how_rows_are_batched():
    predictions, targets, ids = make_batch()
    valid = valid_places(COUNTS)
    negatives = sample_negatives(valid, NEGATIVES, generator=seeded())
    batch = (predictions, targets, negatives, ids, valid)
    together = loss_of(*batch)
    parts = [[values[rows] for values in batch] for rows in ([3], [1, 4], [2], [0])]
    counts = [part[-1].sum() for part in parts]
    for name in ("loss", "accuracy"):
        apart = sum(getattr(loss_of(*part), name) * count for part, count in zip(parts, counts, strict=True))
        torch.testing.assert_close(getattr(together, name) * valid.sum(), apart)
