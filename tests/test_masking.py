"""Masks: the paper's share and span length, within the clip, the same for the same seed."""

import itertools

import pytest
import torch

from hf_wav2vec_family.masking import masked_frames, max_masked_frames, sample_span_mask, take_frames

# section 3.1 of the paper: 15.6 s of audio, p = 0.065 of the frames begin a span of M = 10
FRAMES, START_PROB, SPAN = 779, 0.065, 10
PAPER = {"mask_prob": START_PROB * SPAN, "mask_length": SPAN}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def sample(lengths, total=None, *, seed=0, **options):
    lengths = torch.tensor(lengths)
    total = int(lengths.max()) if total is None else total
    return sample_span_mask(lengths, total, generator=seeded(seed), **{**PAPER, **options})


def runs(row):
    """Lengths of the unbroken stretches of masked frames."""
    return [len(list(frames)) for masked, frames in itertools.groupby(row.tolist()) if masked]


def test_the_mask_has_the_share_and_the_span_length_of_the_paper():
    mask = sample([FRAMES] * 1000)
    lengths = [length for row in mask for length in runs(row)]
    assert mask.float().mean().item() == pytest.approx(0.49, abs=0.004)
    assert sum(lengths) / len(lengths) == pytest.approx(14.7, abs=0.15)


def test_no_span_is_cut_short():
    assert min(length for row in sample([FRAMES, 40, 11, 10] * 50) for length in runs(row)) == SPAN


def test_the_number_of_spans_is_rounded_up_or_down_so_that_its_mean_is_exact():
    num_starts = sample([30] * 4000, mask_prob=0.15, mask_length=1).sum(dim=1)  # 4.5 in the mean
    assert set(num_starts.tolist()) == {4, 5}
    assert num_starts.float().mean().item() == pytest.approx(4.5, abs=0.03)


def test_each_row_has_spans_in_proportion_to_its_own_length():
    num_starts = sample([100, 40, 7] * 300, mask_prob=0.1, mask_length=1).sum(dim=1).view(-1, 3).float().mean(dim=0)
    torch.testing.assert_close(num_starts, torch.tensor([10.0, 4.0, 0.7]), rtol=0, atol=0.1)


def test_spans_begin_everywhere_alike():
    mask = sample([20] * 20_000, mask_prob=0.3, mask_length=1)
    torch.testing.assert_close(mask.float().mean(dim=0), torch.full((20,), 0.3), rtol=0, atol=0.015)


def test_starts_are_drawn_without_replacement():
    assert sample([50] * 20, mask_prob=1.0, mask_length=1).all()


def test_spans_stay_within_the_length_of_their_row():
    lengths = [60, 33, 12, 10, 4, 0] * 50
    mask = sample(lengths, total=64, mask_prob=3.0)
    padding = torch.arange(64) >= torch.tensor(lengths)[:, None]
    assert mask.any()
    assert not mask[padding].any()


@pytest.mark.parametrize("length", [30, 17, 10])
def test_the_first_and_the_last_frame_of_a_row_can_be_masked(length):
    mask = sample([length] * 300, total=30)
    assert mask[:, 0].any()
    assert mask[:, length - 1].any()


def test_a_row_has_the_least_number_of_spans_where_they_fit():
    num_masked = sample([50] * 200, mask_prob=0.0, mask_length=3, min_spans=2).sum(dim=1)
    assert set(num_masked.tolist()) == {4, 5, 6}
    assert sample([3] * 10, mask_prob=0.0, mask_length=3, min_spans=2).all()


def test_rows_shorter_than_a_span_stay_whole():
    mask = sample([9, 5, 1, 0] * 20, total=40, mask_prob=5.0, min_spans=2)
    assert not mask.any()
    assert not sample([9], total=9, mask_prob=5.0, min_spans=2).any()


def test_a_probability_of_zero_masks_nothing():
    assert not sample([FRAMES] * 50, mask_prob=0.0).any()


def test_the_same_seed_gives_the_same_mask_and_another_seed_another():
    lengths = [200, 150, 77] * 10
    assert torch.equal(sample(lengths), sample(lengths))
    assert not torch.equal(sample(lengths), sample(lengths, seed=1))


@pytest.mark.parametrize(
    ("total", "options"),
    [
        (779, PAPER),
        (779, {"mask_prob": 0.065, "mask_length": 10, "min_spans": 2}),
        (200, {"mask_prob": 0.65, "mask_length": 10}),
        (23, {"mask_prob": 4.0, "mask_length": 4}),
        (10, {"mask_prob": 0.25, "mask_length": 1}),
        (12, {"mask_prob": 0.0, "mask_length": 3, "min_spans": 2}),
        (5, {"mask_prob": 0.9, "mask_length": 10}),
    ],
)
def test_no_row_has_more_masked_frames_than_foretold(total, options):
    most = max_masked_frames(total, **options)
    assert sample([total] * 2000, **{"min_spans": 0, **options}).sum(dim=1).max() <= most <= total


def test_the_foretold_number_is_reached_where_spans_cannot_overlap():
    most = max_masked_frames(10, mask_prob=0.25, mask_length=1)
    assert sample([10] * 100, mask_prob=0.25, mask_length=1).sum(dim=1).max() == most


@pytest.mark.parametrize(("mask_prob", "mask_length"), [(0.65, 0), (-0.1, 10), (10.5, 10)])
def test_impossible_masks_are_refused_with_both_numbers_named(mask_prob, mask_length):
    with pytest.raises(ValueError, match=f"mask_length.*mask_prob.*{mask_length} and {mask_prob}"):
        sample([50], mask_prob=mask_prob, mask_length=mask_length)


def test_masked_frames_lists_those_of_each_row_in_order():
    mask = torch.rand(6, FRAMES, generator=seeded()) < 0.4
    mask[0], mask[1] = False, True
    places = masked_frames(mask, FRAMES)
    for row, index, valid in zip(mask, places.index, places.valid, strict=True):
        assert index[valid].tolist() == row.nonzero().flatten().tolist()
        assert sorted(index.tolist()) == list(range(FRAMES))


def test_places_that_are_left_over_stand_last_and_point_at_frames_that_are_not_masked():
    mask = torch.tensor([[False, True, False, True], [False, False, True, False]])
    # a graph has the places that it is told of, a mask on the host no more than its fullest row needs
    graph = torch.compile(masked_frames, backend="eager", fullgraph=True)
    for places, expected in (
        (graph(mask, 3), [[True, True, False], [True, False, False]]),
        (masked_frames(mask, 3), [[True, True], [True, False]]),
    ):
        assert places.valid.tolist() == expected
        assert not mask.gather(1, places.index)[~places.valid].any()
    assert masked_frames(torch.zeros(2, 4, dtype=torch.bool), 3).valid.tolist() == [[False], [False]]


def test_as_many_places_as_foretold_hold_every_masked_frame():
    mask = sample([FRAMES, 300, 50] * 20)
    places = masked_frames(mask, max_masked_frames(FRAMES, **PAPER))
    assert torch.equal(places.valid.sum(dim=1), mask.sum(dim=1))


def test_the_frames_taken_at_masked_places_are_the_masked_frames():
    values = torch.randn(4, 12, 3, generator=seeded())
    mask = torch.rand(4, 12, generator=seeded(1)) < 0.5
    places = masked_frames(mask, 12)
    assert torch.equal(take_frames(values, places.index)[places.valid], values[mask])
