"""Forced alignment: the best of all paths that spell a target, whatever is kept of the way."""

import itertools
import math

import pytest
import torch

from hf_wav2vec_family import viterbi
from hf_wav2vec_family.viterbi import align_ctc, align_targets

BLANK = 0


def merged(path) -> tuple[int, ...]:
    """What CTC makes of a path: runs become one symbol, blanks go."""
    return tuple(symbol for symbol, _ in itertools.groupby(path) if symbol != BLANK)


def padded(targets: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, targets))
    # what stands behind a target must not matter
    rows = [[*target, *[7] * (longest - len(target))] for target in targets]
    return torch.tensor(rows, dtype=torch.long), torch.tensor([len(target) for target in targets])


def random_log_probs(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).mul(2).log_softmax(dim=-1)


@pytest.mark.parametrize("block", [1, 2, 3, 1024])
def test_a_ctc_alignment_is_the_best_of_all_paths_that_merge_to_the_target(block, monkeypatch):
    monkeypatch.setattr(viterbi, "BLOCK", block)
    targets = [list(t) for n in range(4) for t in itertools.product([1, 2], repeat=n)]
    labels, lengths = padded(targets)
    frames = torch.tensor([3 + row % 4 if len(t) < 3 else 6 - row % 2 for row, t in enumerate(targets)])
    log_probs = random_log_probs(len(targets), 6, 3)
    found = align_ctc(log_probs, labels, frames, lengths, blank=BLANK)
    for row, target in enumerate(targets):
        num = int(frames[row])
        spelling = [p for p in itertools.product(range(3), repeat=num) if merged(p) == tuple(target)]
        scores = [sum(float(log_probs[row, t, s]) for t, s in enumerate(path)) for path in spelling]
        best = max(range(len(scores)), key=scores.__getitem__)
        assert found.scores[row].item() == pytest.approx(scores[best])
        assert found.paths[row].tolist() == [*spelling[best], *[-1] * (6 - num)]


@pytest.mark.parametrize("block", [1, 4, 7, 32])
def test_what_is_kept_of_the_way_changes_no_alignment(block, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    emissions, transitions = random_log_probs(3, 40, 5), torch.randn(5, 5, generator=generator, dtype=torch.float64)
    targets, lengths = padded([[1, 1, 2, 3, 3, 3, 4, 1], [2, 4], [1] * 14])
    without_repeats, others = padded([[1, 2, 3, 1, 4, 1], [2, 4], [1, 2] * 7])
    frames = torch.tensor([40, 9, 33])
    whole = [
        align_ctc(emissions, targets, frames, lengths, blank=BLANK),
        align_targets(emissions, transitions, without_repeats.clamp(max=4), frames, others),
    ]
    monkeypatch.setattr(viterbi, "BLOCK", block)
    in_blocks = [
        align_ctc(emissions, targets, frames, lengths, blank=BLANK),
        align_targets(emissions, transitions, without_repeats.clamp(max=4), frames, others),
    ]
    for one, other in zip(whole, in_blocks, strict=True):
        assert torch.equal(one.paths, other.paths)
        assert torch.equal(one.scores, other.scores)
    assert [merged(p for p in path if p >= 0) for path in whole[0].paths.tolist()] == [
        tuple(row[:n]) for row, n in zip(targets.tolist(), lengths.tolist(), strict=True)
    ]


def test_the_best_path_is_no_likelier_than_all_paths_together_and_alone_it_is_as_likely():
    log_probs = random_log_probs(1, 4, 3)
    arguments = torch.tensor([[1, 2, 1, 2]]), torch.tensor([4]), torch.tensor([4])
    loss = torch.nn.functional.ctc_loss(log_probs.transpose(0, 1), *arguments, blank=BLANK, reduction="sum")
    # four symbols in four frames have a single path
    assert align_ctc(log_probs, *arguments, blank=BLANK).scores.item() == pytest.approx(-loss.item())
    shorter = torch.tensor([[1, 2]]), torch.tensor([4]), torch.tensor([2])
    loss = torch.nn.functional.ctc_loss(log_probs.transpose(0, 1), *shorter, blank=BLANK, reduction="sum")
    assert align_ctc(log_probs, *shorter, blank=BLANK).scores.item() < -loss.item()


def test_a_target_whose_only_paths_are_impossible_scores_minus_infinity():
    log_probs = random_log_probs(1, 5, 3)
    log_probs[..., 2] = -math.inf
    one = torch.tensor([5]), torch.tensor([1])
    assert align_ctc(log_probs, torch.tensor([[2]]), *one, blank=BLANK).scores.item() == -math.inf
    assert align_ctc(log_probs, torch.tensor([[1]]), *one, blank=BLANK).scores.isfinite()


@pytest.mark.parametrize(
    ("target", "frames", "message"),
    [
        ([1, 1], 2, r"rows \[1\].*blanks between equal ones, than frames"),
        ([1, BLANK], 4, r"rows \[1\].*the blank 0"),
        ([1, 3], 4, r"rows \[1\].*not within 0 and 2"),
        ([1, -1], 4, r"rows \[1\].*not within 0 and 2"),
        ([1], 9, r"rows \[1\].*above the 4 frames"),
    ],
)
def test_targets_that_no_path_spells_are_refused_by_row(target, frames, message):
    targets, lengths = padded([[1, 2], target])
    with pytest.raises(ValueError, match=message):
        align_ctc(random_log_probs(2, 4, 3), targets, torch.tensor([4, frames]), lengths, blank=BLANK)


def test_shapes_that_do_not_fit_are_refused_with_all_of_them_named():
    with pytest.raises(ValueError, match=r"expected \[2, L\] and twice \[2\], got \[1, 2\], \[2\] and \[1\]"):
        align_ctc(
            random_log_probs(2, 4, 3), torch.tensor([[1, 2]]), torch.tensor([4, 4]), torch.tensor([2]), blank=BLANK
        )
