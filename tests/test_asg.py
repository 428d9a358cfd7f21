"""ASG: the loss, its gradients and its best paths are what counting every path gives."""

import itertools

import pytest
import torch
from torch import Tensor

from hf_wav2vec_family import path_scores
from hf_wav2vec_family.asg import AutoSegmentationCriterion, asg_loss, linear_path
from hf_wav2vec_family.replabels import decode_path, encode_target
from hf_wav2vec_family.viterbi import align_targets, best_paths


def small_case(num_frames, num_symbols, batch_size=1, seed=0):
    torch.manual_seed(seed)
    emissions = torch.randn(batch_size, num_frames, num_symbols, dtype=torch.double, requires_grad=True)
    transitions = torch.randn(num_symbols, num_symbols, dtype=torch.double, requires_grad=True)
    return emissions, transitions


def targets_of(num_symbols, longest):
    """All that ASG can spell: no symbol after itself."""
    for length in range(1, longest + 1):
        for target in itertools.product(range(num_symbols), repeat=length):
            if all(a != b for a, b in itertools.pairwise(target)):
                yield list(target)


def padded(targets, padding=-100):
    lengths = torch.tensor([len(target) for target in targets])
    rows = [target + [padding] * (int(lengths.max()) - len(target)) for target in targets]
    return torch.tensor(rows), lengths


def every_path(num_frames, num_symbols):
    return torch.tensor(list(itertools.product(range(num_symbols), repeat=num_frames)))  # [P, T]


def scores_of_paths(emissions, transitions, paths):
    """[P], straight from the definition; emissions [T, V]."""
    emitted = emissions[torch.arange(paths.shape[1]), paths].sum(1)
    return emitted + transitions[paths[:, 1:], paths[:, :-1]].sum(1)


def spells(paths, target):
    """[P] bool: merging runs of a path gives the target."""
    merged = [[symbol for symbol, _ in itertools.groupby(path)] for path in paths.tolist()]
    return torch.tensor([path == target for path in merged])


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("num_symbols", [2, 3, 4])
@pytest.mark.parametrize("num_frames", range(1, 7))
def test_loss_and_gradients_are_those_of_all_paths_counted(num_frames, num_symbols, exact, monkeypatch):
    monkeypatch.setattr(path_scores, "ORDINARY_RANGE", 0 if exact else 300)
    emissions, transitions = small_case(num_frames, num_symbols)
    targets = [target for target in targets_of(num_symbols, 4) if len(target) <= num_frames]
    labels, lengths = padded(targets)
    paths = every_path(num_frames, num_symbols)
    scores = scores_of_paths(emissions[0], transitions, paths)
    merged = [tuple(s for s, _ in itertools.groupby(path)) for path in paths.tolist()]
    inside = torch.tensor([[tuple(target) == path for path in merged] for target in targets])
    expected = scores.logsumexp(0) - scores.expand_as(inside).masked_fill(~inside, -torch.inf).logsumexp(1)

    repeated = emissions.expand(len(targets), -1, -1)
    frames = torch.full((len(targets),), num_frames)
    losses = asg_loss(repeated, transitions, labels, frames, lengths, reduction="none")
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=1e-10)
    weights = torch.rand(len(targets), dtype=torch.double)
    ours = torch.autograd.grad((losses * weights).sum(), (emissions, transitions))
    theirs = torch.autograd.grad((expected * weights).sum(), (emissions, transitions))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("num_replabels", [1, 2])
@pytest.mark.parametrize("num_frames", range(4, 7))
def test_a_repeated_letter_costs_what_the_paths_of_its_replabels_cost(num_frames, num_replabels):
    letters = [symbol for symbol in range(4 - num_replabels)]
    replabels = list(range(4 - num_replabels, 4))
    emissions, transitions = small_case(num_frames, 4)
    paths = every_path(num_frames, 4)
    scores = scores_of_paths(emissions[0], transitions, paths)
    for length in range(1, 5):
        for word in itertools.product(letters, repeat=length):
            target = encode_target(word, replabels)
            lengths = torch.tensor([num_frames]), torch.tensor([len(target)])
            loss = asg_loss(emissions, transitions, torch.tensor([target]), *lengths, reduction="sum")
            expected = scores.logsumexp(0) - scores[spells(paths, target)].logsumexp(0)
            torch.testing.assert_close(loss, expected)
            ours, theirs = (
                torch.autograd.grad(x, (emissions, transitions), retain_graph=True) for x in (loss, expected)
            )
            for a, b in zip(ours, theirs, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
            assert decode_path(target, replabels) == list(word)


def slow_loss(emissions: Tensor, transitions: Tensor, target: Tensor) -> Tensor:
    """One utterance in float64, a logsumexp for every frame, differentiated by autograd."""
    full, aligned = emissions[0], torch.full((len(target),), -1e30, dtype=torch.double)
    aligned = torch.cat([emissions[0, target[:1]], aligned[1:]])
    stay, move = transitions[target, target], transitions[target[1:], target[:-1]]
    for t in range(1, len(emissions)):
        full = torch.logsumexp(transitions + full, dim=1) + emissions[t]
        moved = torch.nn.functional.pad(aligned[:-1] + move, (1, 0), value=-1e30)
        aligned = torch.logaddexp(aligned + stay, moved) + emissions[t, target]
    return full.logsumexp(0) - aligned[-1]


@pytest.mark.parametrize("outlier", [0.0, -1000.0])
def test_at_real_sizes_float32_equals_a_slow_loop_in_float64(outlier):
    """1500 frames, 31 letters, 16 rows; an outlier takes the way that is exact for any range."""
    torch.manual_seed(0)
    emissions = (3 * torch.randn(16, 1500, 31)).requires_grad_()
    transitions = torch.randn(31, 31)
    transitions[3, 5] += outlier
    transitions.requires_grad_()
    steps = torch.randint(1, 31, (16, 180))
    targets = steps.cumsum(1) % 31
    frames, lengths = torch.randint(1200, 1501, (16,)), torch.randint(90, 181, (16,))
    losses = asg_loss(emissions, transitions, targets, frames, lengths, reduction="none")
    row = 7
    emission_gradient, pair_gradient = torch.autograd.grad(losses[row], (emissions, transitions))
    one = emissions[row, : frames[row]].detach().double().requires_grad_()
    pairs = transitions.detach().double().requires_grad_()
    expected = slow_loss(one, pairs, targets[row, : lengths[row]])
    expected.backward()
    assert losses[row].item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(emission_gradient[row, : frames[row]], one.grad.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(pair_gradient, pairs.grad.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("linear", [False, True])
def test_padding_and_other_rows_change_nothing(linear):
    emissions, transitions = small_case(9, 4, batch_size=3)
    targets, lengths = padded([[0, 1, 0], [2], [3, 1]])
    frames = torch.tensor([9, 4, 6])
    options = {"reduction": "none", "linear_segmentation": linear}
    together = asg_loss(emissions, transitions, targets, frames, lengths, **options)
    for row in range(3):
        alone = asg_loss(
            emissions[row : row + 1, : frames[row]],
            transitions,
            targets[row : row + 1, : lengths[row]],
            frames[row : row + 1],
            lengths[row : row + 1],
            **options,
        )
        torch.testing.assert_close(together[row], alone[0])
    (gradient,) = torch.autograd.grad(together.sum(), emissions)
    assert all(gradient[row, frames[row] :].eq(0).all() for row in range(3))


@pytest.mark.parametrize("exact", [False, True])
def test_derivatives_are_right_numerically(exact, monkeypatch):
    monkeypatch.setattr(path_scores, "ORDINARY_RANGE", 0 if exact else 300)
    monkeypatch.setattr(path_scores, "BLOCK", 40)  # several blocks of frames
    emissions, transitions = small_case(7, 3, batch_size=2)
    targets, lengths = padded([[0, 1, 0], [2, 1]])
    frames = torch.tensor([7, 5])
    assert torch.autograd.gradcheck(lambda e, t: asg_loss(e, t, targets, frames, lengths), (emissions, transitions))


def test_forbidden_transitions_are_exact_and_a_target_through_one_costs_infinity():
    emissions, transitions = small_case(5, 3, batch_size=2)
    forbidden = transitions.detach().clone()
    forbidden[1, 0] = -torch.inf
    targets, lengths = padded([[0, 2, 1], [0, 1]])
    frames = torch.tensor([5, 5])
    options = {"reduction": "none"}
    losses = asg_loss(emissions, forbidden.requires_grad_(), targets, frames, lengths, **options)
    paths = every_path(5, 3)
    scores = scores_of_paths(emissions[0], forbidden, paths)
    expected = scores.logsumexp(0) - scores[spells(paths, [0, 2, 1])].logsumexp(0)
    torch.testing.assert_close(losses[0], expected)
    assert losses[1] == torch.inf
    zeroed = asg_loss(emissions, forbidden, targets, frames, lengths, zero_infinity=True, **options)
    assert zeroed.tolist() == [losses[0].item(), 0.0]
    gradients = torch.autograd.grad(zeroed.sum(), (emissions, forbidden))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[0][1].eq(0).all()


def test_the_score_of_viterbis_path_is_the_maximum_over_all_paths():
    emissions, transitions = small_case(6, 4, batch_size=3)
    frames = torch.tensor([6, 1, 4])
    found = best_paths(emissions, transitions, frames)
    for row, length in enumerate(frames.tolist()):
        paths = every_path(length, 4)
        scores = scores_of_paths(emissions[row, :length], transitions, paths)
        torch.testing.assert_close(found.scores[row], scores.max())
        assert found.paths[row].tolist() == paths[scores.argmax()].tolist() + [-1] * (6 - length)


def test_an_alignment_is_the_best_of_the_paths_that_spell_the_target():
    emissions, transitions = small_case(6, 3, batch_size=3)
    targets, lengths = padded([[0, 1, 0], [2], [1, 2, 1, 0]])
    frames = torch.tensor([6, 3, 5])
    found = align_targets(emissions, transitions, targets, frames, lengths)
    for row, length in enumerate(frames.tolist()):
        target = targets[row, : lengths[row]].tolist()
        paths = every_path(length, 3)
        paths = paths[spells(paths, target)]
        scores = scores_of_paths(emissions[row, :length], transitions, paths)
        torch.testing.assert_close(found.scores[row], scores.max())
        assert found.paths[row].tolist() == paths[scores.argmax()].tolist() + [-1] * (6 - length)
        assert decode_path(found.paths[row].tolist()) == target


def test_linear_segmentation_stretches_a_target_evenly_and_costs_its_single_path():
    targets, lengths = padded([[0, 1, 2], [2, 0]])
    frames = torch.tensor([7, 4])
    path = linear_path(targets, frames, lengths, 7)
    assert path.tolist() == [[0, 0, 0, 1, 1, 2, 2], [2, 2, 0, 0, -1, -1, -1]]
    emissions, transitions = small_case(7, 3, batch_size=2)
    losses = asg_loss(emissions, transitions, targets, frames, lengths, reduction="none", linear_segmentation=True)
    for row, length in enumerate(frames.tolist()):
        scores = scores_of_paths(emissions[row, :length], transitions, every_path(length, 3))
        own = scores_of_paths(emissions[row, :length], transitions, path[row : row + 1, :length])
        torch.testing.assert_close(losses[row], scores.logsumexp(0) - own[0])


@pytest.mark.parametrize(
    ("target", "frames", "message"),
    [
        ([0, 1, 0], 2, r"rows \[1\].*more symbols than frames"),
        ([], 4, r"rows \[1\].*there is no symbol"),
        ([0, 3], 4, r"rows \[1\].*not within 0 and 2"),
        ([0, -1, 2], 4, r"rows \[1\].*not within 0 and 2"),
        ([0, 1, 1], 4, r"rows \[1\].*follows itself"),
        ([0], 9, r"rows \[1\].*above the 4 frames"),
    ],
)
def test_targets_that_no_path_spells_are_refused_by_row(target, frames, message):
    emissions, transitions = small_case(4, 3, batch_size=2)
    targets, lengths = padded([[0, 1], target])
    for function in (asg_loss, align_targets):
        with pytest.raises(ValueError, match=message):
            function(emissions, transitions, targets, torch.tensor([4, frames]), lengths)


def test_rows_that_are_too_long_or_empty_cost_nothing_if_asked():
    emissions, transitions = small_case(4, 3, batch_size=3)
    targets, lengths = padded([[0, 1], [0, 1, 0], []])
    frames = torch.tensor([4, 2, 4])
    options = {"reduction": "none", "zero_infinity": True}
    losses = asg_loss(emissions, transitions, targets, frames, lengths, **options)
    assert losses[0] > 0
    assert losses[1:].tolist() == [0, 0]
    gradients = torch.autograd.grad(losses.sum(), (emissions, transitions))
    assert gradients[0][1:].eq(0).all()
    assert all(gradient.isfinite().all() for gradient in gradients)
    with pytest.raises(ValueError, match="follows itself"):
        asg_loss(emissions, transitions, torch.zeros_like(targets), frames, torch.tensor([2, 2, 2]), **options)
    nothing = torch.zeros(3, 0, dtype=torch.long), frames, torch.zeros(3, dtype=torch.long)
    assert asg_loss(emissions, transitions, *nothing, **options).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"rows \[0, 1, 2\] of the batch: there is no symbol"):
        asg_loss(emissions, transitions, *nothing)
    with pytest.raises(ValueError, match=r"rows \[0\] of the batch: input_lengths or target_lengths are below 0"):
        asg_loss(emissions, transitions, targets, frames, torch.tensor([-1, 1, 1]), **options)


def test_what_stands_in_padded_frames_may_be_anything():
    emissions, transitions = small_case(6, 3, batch_size=2)
    targets, lengths = padded([[0, 1], [1, 2, 0]])
    frames = torch.tensor([4, 6])
    found = []
    for padding in (0.0, torch.nan, torch.inf):
        scores = emissions.detach().clone()
        scores[0, 4:] = padding
        scores.requires_grad_()
        loss = asg_loss(scores, transitions, targets, frames, lengths)
        found.append((loss, *torch.autograd.grad(loss, (scores, transitions))))
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_shapes_that_do_not_fit_are_refused():
    emissions, transitions = small_case(4, 3)
    targets, lengths, frames = torch.tensor([[0, 1]]), torch.tensor([2]), torch.tensor([4])
    for name, arguments in {
        "emissions": (emissions[0], transitions, targets, frames, lengths),
        "transitions": (emissions, transitions[:2], targets, frames, lengths),
        "targets": (emissions, transitions, targets[0], frames, lengths),
        "input_lengths": (emissions, transitions, targets, frames[0], lengths),
        "target_lengths": (emissions, transitions, targets, frames, lengths.repeat(2)),
    }.items():
        with pytest.raises(ValueError, match=f"^{name}"):
            asg_loss(*arguments)
    with pytest.raises(ValueError, match="reduction"):
        asg_loss(emissions, transitions, targets, frames, lengths, reduction="average")


def test_half_precision_emissions_give_a_loss_in_float32():
    emissions, transitions = small_case(50, 3)
    arguments = (torch.tensor([[0, 1, 2]]), torch.tensor([50]), torch.tensor([3]))
    half = emissions.detach().bfloat16().requires_grad_()
    loss = asg_loss(half, transitions.float(), *arguments)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(asg_loss(half.double(), transitions, *arguments).item(), rel=1e-6)
    loss.backward()
    assert half.grad.dtype == torch.bfloat16


def test_steps_lower_the_loss_and_train_the_transitions():
    torch.manual_seed(0)
    emissions = torch.randn(2, 12, 4, requires_grad=True)
    criterion = AutoSegmentationCriterion(4, initial_diagonal=0.5)
    assert criterion.transitions.diagonal().eq(0.5).all()
    targets, lengths = padded([[0, 1, 2], [3]])
    optimizer = torch.optim.SGD([emissions, *criterion.parameters()], lr=0.5)
    losses = []
    for step in range(3):
        loss = criterion(emissions, targets, torch.tensor([12, 8]), lengths, linear_segmentation=step == 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(criterion(emissions, targets, torch.tensor([12, 8]), lengths).item())
    assert losses == sorted(losses, reverse=True)
    assert not torch.equal(criterion.transitions, 0.5 * torch.eye(4))


@pytest.mark.parametrize("num_replabels", [1, 2, 3])
def test_replabels_come_back_as_the_symbols_that_they_repeat(num_replabels):
    replabels = [9, 8, 7][:num_replabels]
    for word in itertools.chain.from_iterable(itertools.product([0, 1], repeat=n) for n in range(7)):
        encoded = encode_target(word, replabels)
        assert all(a != b for a, b in itertools.pairwise(encoded))
        assert decode_path(encoded, replabels) == list(word)
        assert decode_path([s for s in encoded for _ in range(3)] + [-1], replabels) == list(word)


def test_ann_is_an1_and_long_runs_begin_anew():
    assert encode_target([0, 13, 13], [27, 28]) == [0, 13, 27]
    assert encode_target([5, 5, 5, 5], [27, 28]) == [5, 28, 5]
    assert encode_target([5, 5, 5, 5, 5], [27, 28]) == [5, 28, 5, 27]
    assert decode_path([27, 5, 28, 27], [27, 28]) == [5, 5, 5]


def test_repeats_without_replabels_are_refused_or_merged_and_replabels_are_no_text():
    with pytest.raises(ValueError, match="2 times in a row"):
        encode_target([1, 2, 2])
    assert encode_target([1, 2, 2, 1], merge=True) == [1, 2, 1]
    with pytest.raises(ValueError, match=r"\[9\] are replabels"):
        encode_target([1, 9], [9])


def test_the_surround_token_stands_once_at_both_ends():
    for text, encoded in {(): [4], (1,): [4, 1, 4], (4, 1): [4, 1, 4], (4, 1, 4): [4, 1, 4], (4,): [4]}.items():
        assert encode_target(text, [9], surround=4) == encoded
    assert decode_path([4, 1, 4, 1, 4, 4], [9], surround=4) == [1, 4, 1]
    assert decode_path([4], surround=4) == []
