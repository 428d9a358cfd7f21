"""Best paths: of ASG (asg.py) through all symbols, to decode, and of ASG and CTC through a target, to align it.

Shapes as in asg.py; S states of the longest target: its L symbols, and for CTC the blanks around them.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .asg import check_shapes, refuse_bad_targets
from .path_scores import NEVER, target_graph

# Frames between two whole rows of scores that are kept on the way through a target. Between them the way back
# computes again what it needs, at most two states per frame, so that hours of speech fit beside their transcript.
BLOCK = 1024


class BestPaths(NamedTuple):
    """`paths` [B, T] int64: the symbol of each frame, -1 behind the last; `scores` [B]: emissions and transitions."""

    paths: Tensor
    scores: Tensor


@torch.no_grad()
def best_paths(emissions: Tensor, transitions: Tensor, input_lengths: Tensor) -> BestPaths:
    """The path of the highest score for each row; `decode_path` of replabels.py reads what it spells.

    Args:
        emissions: [B, T, V]. transitions: [V, V], `transitions[to, from]`. input_lengths: [B].
    """
    scores = emissions.transpose(0, 1).double().clamp(min=NEVER)
    pairs = transitions.double().clamp(min=NEVER)
    best = torch.empty_like(scores)
    best[0] = scores[0]
    came_from = torch.zeros(scores.shape, dtype=torch.long, device=scores.device)
    for t in range(1, len(scores)):
        arrived = (pairs + best[t - 1].unsqueeze(1)).max(dim=-1)
        torch.add(arrived.values, scores[t], out=best[t])
        came_from[t] = arrived.indices
    last = (input_lengths.to(best.device) - 1).clamp(min=0)
    final = best[last, torch.arange(len(last), device=last.device)].max(dim=-1)
    paths = _trace(came_from, final.indices, last)
    frames = torch.arange(len(scores), device=last.device)
    paths = paths.masked_fill(frames >= input_lengths.to(best.device)[:, None], -1)
    return BestPaths(paths, final.values.to(emissions.dtype))


@torch.no_grad()
def align_targets(
    emissions: Tensor, transitions: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor
) -> BestPaths:
    """The best path that spells each target; arguments and errors are those of `asg_loss`.

    A row that transitions of -inf keep from being spelled scores -inf.
    """
    check_shapes(emissions, transitions, targets, input_lengths, target_lengths)
    _, num_frames, num_symbols = emissions.shape
    refuse_bad_targets(
        targets,
        input_lengths,
        target_lengths,
        num_frames=num_frames,
        num_symbols=num_symbols,
        allow_unreachable=False,
    )
    given = (targets.clamp(0, num_symbols - 1), input_lengths, target_lengths)
    targets, input_lengths, target_lengths = (tensor.to(emissions.device) for tensor in given)
    scores = emissions.transpose(0, 1).double().clamp(min=NEVER)
    graph = target_graph(scores[:1], transitions.double().clamp(min=NEVER), targets)
    places = torch.arange(targets.shape[1], device=targets.device).expand_as(targets)
    chain = Chain(
        symbols=targets,
        begin=_allowed(places == 0),
        stay=graph.stay,
        move=graph.move,
        skip=torch.full_like(graph.move, NEVER),
        end=_allowed(places == target_lengths[:, None] - 1),
    )
    return _best_of_chain(scores, chain, input_lengths, emissions.dtype)


@torch.no_grad()
def align_ctc(
    log_probs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor, *, blank: int
) -> BestPaths:
    """The most probable path that CTC (Graves et al., 2006) merges to each target, blanks included.

    Args:
        log_probs: [B, T, V]; scores that are not normalised give the same paths.
        targets: [B, L] symbols; what stands behind `target_lengths` doesn't matter. An empty one is all blanks.
        input_lengths, target_lengths: [B], how many frames and symbols count.

    A row whose only paths have a probability of 0 scores -inf.

    Raises:
        ValueError: shapes that don't fit; targets with blanks, with symbols outside the alphabet, or with more symbols
            (and blanks between equal neighbours) than frames. Tensors on an accelerator are waited for.
    """
    targets, input_lengths, target_lengths = (t.to(log_probs.device) for t in (targets, input_lengths, target_lengths))
    if targets.dim() != 2 or not len(targets) == len(input_lengths) == len(target_lengths) == len(log_probs):
        raise ValueError(
            f"targets, input_lengths and target_lengths: expected [{len(log_probs)}, L] and twice [{len(log_probs)}],"
            f" got {list(targets.shape)}, {list(input_lengths.shape)} and {list(target_lengths.shape)}."
        )
    _, num_frames, num_symbols = log_probs.shape
    inside = torch.arange(targets.shape[1], device=targets.device) < target_lengths[:, None]
    repeated = F.pad(targets[:, 1:] == targets[:, :-1], (1, 0)) & inside
    foreign = inside & ((targets == blank) | (targets < 0) | (targets >= num_symbols))
    too_long = target_lengths + repeated.sum(dim=1) > input_lengths
    for fault, message in (
        (input_lengths > num_frames, f"input_lengths are above the {num_frames} frames of log_probs"),
        (foreign.any(dim=1), f"a symbol is the blank {blank} or not within 0 and {num_symbols - 1}"),
        (too_long, "there are more symbols, and blanks between equal ones, than frames"),
    ):
        if fault.any():
            raise ValueError(f"targets, rows {fault.nonzero().flatten().tolist()} of the batch: {message}.")
    chain = _ctc_chain(targets.masked_fill(~inside, blank), repeated, target_lengths, blank)
    return _best_of_chain(log_probs.transpose(0, 1).double().clamp(min=NEVER), chain, input_lengths, log_probs.dtype)


class Chain(NamedTuple):
    """States in a row that a path goes through from left to right, [B, S] each: the `symbols` of the states, and what
    it scores to `begin` at a state, to `stay`, to come from the one before (`move`) or from the one before that
    (`skip`), and to `end` there."""

    symbols: Tensor
    begin: Tensor
    stay: Tensor
    move: Tensor
    skip: Tensor
    end: Tensor


def _ctc_chain(targets: Tensor, repeated: Tensor, target_lengths: Tensor, blank: int) -> Chain:
    """Blank, symbol, blank, ... of `targets` [B, L]; the blank between two symbols can be left out where the second
    one is not `repeated` [B, L]."""
    symbols = targets.new_full((len(targets), 2 * targets.shape[1] + 1), blank)
    symbols[:, 1::2] = targets
    leaves_out_blank = torch.zeros_like(symbols, dtype=torch.bool)
    leaves_out_blank[:, 3::2] = ~repeated[:, 1:]
    places = torch.arange(symbols.shape[1], device=symbols.device).expand_as(symbols)
    last = 2 * target_lengths[:, None]
    free = torch.zeros_like(symbols, dtype=torch.float64)
    return Chain(
        symbols=symbols,
        begin=_allowed(places <= 1),
        stay=free,
        move=free,
        skip=_allowed(leaves_out_blank),
        end=_allowed((places >= last - 1) & (places <= last)),
    )


def _allowed(where: Tensor) -> Tensor:
    return torch.zeros_like(where, dtype=torch.float64).masked_fill(~where, NEVER)


def _arrivals(best: Tensor, chain: Chain) -> tuple[Tensor, Tensor, Tensor]:
    """[B, S] each: the scores `best` at a frame, carried to the next by staying, moving and skipping."""
    padded = F.pad(best, (2, 0), value=NEVER)
    return best + chain.stay, padded[:, 1:-1] + chain.move, padded[:, :-2] + chain.skip


def _best_of_chain(scores: Tensor, chain: Chain, input_lengths: Tensor, dtype: torch.dtype) -> BestPaths:
    """The best path through `chain` for `scores` [T, B, V]."""
    num_frames, last = len(scores), (input_lengths - 1).clamp(min=0)
    best = chain.begin + scores[0].gather(1, chain.symbols)
    kept = [best]
    for t in range(1, num_frames):
        stayed, moved, skipped = _arrivals(best, chain)
        arrived = torch.maximum(torch.maximum(stayed, moved), skipped).add_(scores[t].gather(1, chain.symbols))
        best = torch.where((t <= last)[:, None], arrived, best)
        if t % BLOCK == 0:
            kept.append(best)
    final = (best + chain.end).max(dim=1)

    state, states = final.indices, []
    for block in reversed(range(len(kept))):
        begin = block * BLOCK
        part = scores[begin + 1 : begin + 1 + BLOCK]
        ways = _ways_of_block(kept[block], part, chain, state, last - begin)
        states.append(ways)
        state = ways[0]
    paths = torch.cat([states[-1][:1], *(ways[1:] for ways in reversed(states))]).t()
    paths = chain.symbols.gather(1, paths)
    paths = paths.masked_fill(torch.arange(num_frames, device=last.device) >= input_lengths[:, None], -1)
    return BestPaths(paths, final.values.masked_fill(final.values < NEVER / 2, -torch.inf).to(dtype))


def _ways_of_block(best: Tensor, scores: Tensor, chain: Chain, final: Tensor, last: Tensor) -> Tensor:
    """[n + 1, B], the states of the best path at a kept row of scores `best` [B, S] and at the n frames behind it.

    Args:
        scores: [n, B, V] of those frames. final: [B], the state at the last of them.
        last: [B], the last valid frame, counted from the kept row.
    """
    width = min(2 * len(scores) + 1, best.shape[1])
    low = (final - 2 * len(scores)).clamp(min=0)
    places = low[:, None] + torch.arange(width, device=low.device)  # the states that a path to `final` can come from
    best, window = best.gather(1, places), Chain(*(part.gather(1, places) for part in chain))
    came_from = []
    for t, frame in enumerate(scores, start=1):
        stayed, moved, skipped = _arrivals(best, window)
        nearer, inside = torch.maximum(stayed, moved), (t <= last)[:, None]
        steps = torch.where(skipped > nearer, 2, (moved > stayed).long())
        came_from.append(torch.where(inside, steps, 0).to(torch.int8))
        best = torch.where(inside, torch.maximum(nearer, skipped) + frame.gather(1, window.symbols), best)
    states = [final - low]
    for steps in reversed(came_from):
        states.append(states[-1] - steps.gather(1, states[-1][:, None]).squeeze(1))
    return torch.stack(states[::-1]) + low


def _trace(came_from: Tensor, final: Tensor, last: Tensor) -> Tensor:
    """[B, T], the way back along `came_from` [T, B, states] from the state `final` [B] at frame `last` [B]."""
    state, states = final, []
    for t in range(len(came_from) - 1, -1, -1):
        state = torch.where(t >= last, final, state)
        states.append(state)
        state = came_from[t].gather(1, state.unsqueeze(1)).squeeze(1)
    return torch.stack(states[::-1], dim=1)
