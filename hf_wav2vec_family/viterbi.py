"""Best paths of ASG (asg.py): through all symbols, to decode, and through a target, to align it. Shapes as there."""

from typing import NamedTuple

import torch
from torch import Tensor

from .asg import check_shapes, refuse_bad_targets
from .path_scores import NEVER, target_graph


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
    graph = target_graph(scores, transitions.double().clamp(min=NEVER), targets)
    best = torch.full_like(graph.emitted, NEVER)
    best[0, :, 0] = graph.emitted[0, :, 0]
    places = torch.arange(targets.shape[1], device=targets.device)
    came_from = places.repeat(num_frames, len(targets), 1)
    for t in range(1, num_frames):
        stayed = best[t - 1] + graph.stay
        moved = torch.nn.functional.pad(best[t - 1, :, :-1], (1, 0), value=NEVER) + graph.move
        came_from[t] -= (moved > stayed).long()
        torch.add(torch.maximum(stayed, moved), graph.emitted[t], out=best[t])
    last, final = (input_lengths - 1).clamp(min=0), (target_lengths - 1).clamp(min=0)
    total = best[last, torch.arange(len(last), device=last.device), final]
    paths = targets.gather(1, _trace(came_from.clamp(min=0), final, last))
    frames = torch.arange(num_frames, device=last.device)
    paths = paths.masked_fill(frames >= input_lengths[:, None], -1)
    return BestPaths(paths, total.masked_fill(total < NEVER / 2, -torch.inf).to(emissions.dtype))


def _trace(came_from: Tensor, final: Tensor, last: Tensor) -> Tensor:
    """[B, T], the way back along `came_from` [T, B, states] from the state `final` [B] at frame `last` [B]."""
    state, states = final, []
    for t in range(len(came_from) - 1, -1, -1):
        state = torch.where(t >= last, final, state)
        states.append(state)
        state = came_from[t].gather(1, state.unsqueeze(1)).squeeze(1)
    return torch.stack(states[::-1], dim=1)
