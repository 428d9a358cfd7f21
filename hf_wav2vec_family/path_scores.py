"""Summed scores of all paths through symbols, and of those that spell a target: the two halves of ASG's loss (asg.py).

Shapes: B utterances, T frames, V symbols, L symbols of the longest target. `scores` [T, B, V] and `pairs` [V, V], as
`pairs[to, from]`, are float64 and at least `NEVER`. The score of a path of 1500 frames is in the thousands, where
float32 knows no smaller step than 0.0002.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Stands for -inf: a sum over a whole path stays finite, so that no difference of two of them is NaN
NEVER = -1e30
# How many numbers the weights of a block of frames may have in the backward pass: 1 MiB, to stay in the cache
BLOCK = 2**17
# Below it, products of exponentials of differences of scores and of pairs stay far within float64, e^-708 to e^709
ORDINARY_RANGE = 300


def full_score(scores: Tensor, pairs: Tensor, input_lengths: Tensor) -> Tensor:
    """[B], logsumexp of the scores of all paths, exact for any range of scores.

    Where that can be seen without waiting for an accelerator, scores of an ordinary range take the fast way.
    """
    if scores.device.type == "cpu":
        ranges = scores.detach().aminmax(), pairs.detach().aminmax()
        if sum(float(found.max - found.min) for found in ranges) < ORDINARY_RANGE:
            return OrdinaryFullScore.apply(scores, pairs, input_lengths)
    return FullScore.apply(scores, pairs, input_lengths)


class OrdinaryFullScore(torch.autograd.Function):
    """`full_score` by products of exponentials: each frame is one matrix product, scaled to sum to 1.

    No exponential of a difference within `ORDINARY_RANGE` leaves the range of float64, so nothing is lost.
    """

    @staticmethod
    def forward(ctx, scores: Tensor, pairs: Tensor, input_lengths: Tensor) -> Tensor:
        highest, highest_pair = scores.amax(dim=-1), pairs.max()
        emitted = (scores - highest.unsqueeze(-1)).exp()
        weights = (pairs - highest_pair).exp()
        share = torch.empty_like(scores)
        sums = torch.empty_like(scores[..., :1])
        for t in range(len(scores)):
            arrived = torch.mm(share[t - 1], weights.t()).mul_(emitted[t]) if t else emitted[0]
            torch.sum(arrived, dim=-1, keepdim=True, out=sums[t])
            torch.div(arrived, sums[t], out=share[t])
        ctx.save_for_backward(share, weights, (input_lengths - 1).clamp(min=0))
        gains = sums.squeeze(-1).log() + highest
        gains[1:] += highest_pair
        frames = torch.arange(len(scores), device=scores.device)
        return gains.masked_fill(frames[:, None] >= input_lengths, 0.0).sum(dim=0)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        share, weights, last = ctx.saved_tensors
        rows = torch.arange(len(last), device=last.device)
        occupied = torch.zeros_like(share)
        occupied[last, rows] = share[last, rows] * gradient.unsqueeze(-1)
        arrived = share[:-1] @ weights.t()
        flow = torch.empty_like(arrived)
        for t in range(len(share) - 1, 0, -1):
            torch.div(occupied[t], arrived[t - 1], out=flow[t - 1])
            occupied[t - 1].addcmul_(torch.mm(flow[t - 1], weights), share[t - 1])
        return occupied, weights * (flow.flatten(0, 1).t() @ share[:-1].flatten(0, 1)), None


class FullScore(torch.autograd.Function):
    """`full_score` in the log domain, exact for any range and slower by the exponentials of B * V * V sums a frame.

    Forward: the log of the summed paths to each symbol, frame by frame. Backward: the probability of each symbol at
    each frame, from the last to the first, by the probabilities of where a path to it came from.
    """

    @staticmethod
    def forward(ctx, scores: Tensor, pairs: Tensor, input_lengths: Tensor) -> Tensor:
        reached = torch.empty_like(scores)
        reached[0] = scores[0]
        for t in range(1, len(scores)):
            torch.add(torch.logsumexp(pairs + reached[t - 1].unsqueeze(1), dim=-1), scores[t], out=reached[t])
        last = (input_lengths - 1).clamp(min=0)
        ctx.save_for_backward(reached, pairs, last)
        return reached[last, torch.arange(len(last), device=last.device)].logsumexp(dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        reached, pairs, last = ctx.saved_tensors
        num_frames, batch_size, num_symbols = reached.shape
        rows = torch.arange(batch_size, device=last.device)
        occupied = torch.zeros_like(reached)
        occupied[last, rows] = torch.softmax(reached[last, rows], dim=-1) * gradient.unsqueeze(-1)
        pair_gradient = torch.zeros_like(pairs)
        block_size = max(1, BLOCK // (batch_size * num_symbols**2))
        for end in range(num_frames, 1, -block_size):
            begin = max(end - block_size, 1)
            came_from = torch.softmax(pairs + reached[begin - 1 : end - 1].unsqueeze(2), dim=-1)  # [t, B, to, from]
            for t in range(end - 1, begin - 1, -1):
                occupied[t - 1].unsqueeze(1).baddbmm_(occupied[t].unsqueeze(1), came_from[t - begin])
            pair_gradient += came_from.mul_(occupied[begin:end].unsqueeze(-1)).sum(dim=(0, 1))
        return occupied, pair_gradient, None


class AlignedScore(torch.autograd.Function):
    """[B], logsumexp of the scores of the paths that spell the `targets` [B, L].

    A path stays at its place in the target or goes to the next one; it begins at the first and ends at the last.
    """

    @staticmethod
    def forward(
        ctx, scores: Tensor, pairs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor
    ) -> Tensor:
        emitted, stay, move = target_graph(scores, pairs, targets)
        reached = emitted.new_full((emitted.shape[0], emitted.shape[1], emitted.shape[2] + 1), NEVER)
        reached[0, :, 1] = emitted[0, :, 0]  # Place 0 stands before the target, and no path is there
        for t in range(1, len(emitted)):
            before = reached[t - 1]
            arrived = torch.logaddexp(before[:, 1:] + stay, before[:, :-1] + move)
            torch.add(arrived, emitted[t], out=reached[t, :, 1:])
        last = ((input_lengths - 1).clamp(min=0), torch.arange(len(targets), device=targets.device), target_lengths)
        ctx.save_for_backward(reached, stay, move, targets, *last)
        ctx.num_symbols = pairs.shape[0]
        return reached[last]

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        reached, stay, move, targets, *last = ctx.saved_tensors
        occupied = torch.zeros_like(reached)
        occupied[tuple(last)] = gradient
        gain = reached[:-1, :, 1:] + stay - reached[:-1, :, :-1] - move
        stayed, moved = torch.sigmoid(gain), torch.sigmoid(-gain)  # [T - 1, B, L]
        for t in range(len(occupied) - 1, 0, -1):
            stayed[t - 1].mul_(occupied[t, :, 1:])
            moved[t - 1].mul_(occupied[t, :, 1:])
            occupied[t - 1, :, 1:] += stayed[t - 1]
            occupied[t - 1, :, :-1] += moved[t - 1]
        symbols = targets.expand(len(occupied), -1, -1)
        score_gradient = occupied.new_zeros(*symbols.shape[:2], ctx.num_symbols)
        score_gradient.scatter_add_(2, symbols, occupied[:, :, 1:])
        pair_gradient = occupied.new_zeros(ctx.num_symbols, ctx.num_symbols)
        pair_gradient.index_put_((targets, targets), stayed.sum(0), accumulate=True)
        pair_gradient.index_put_((targets[:, 1:], targets[:, :-1]), moved.sum(0)[:, 1:], accumulate=True)
        return score_gradient, pair_gradient, None, None, None


class TargetGraph(NamedTuple):
    """`emitted` [T, B, L]: emissions of the places of the targets; `stay`, `move` [B, L]: what it scores to stay at a
    place, and to come to it from the one before."""

    emitted: Tensor
    stay: Tensor
    move: Tensor


def target_graph(scores: Tensor, pairs: Tensor, targets: Tensor) -> TargetGraph:
    """The graph of the paths that spell the `targets` [B, L]."""
    emitted = scores.gather(2, targets.expand(len(scores), -1, -1))
    move = torch.full_like(emitted[0], NEVER)
    move[:, 1:] = pairs[targets[:, 1:], targets[:, :-1]]
    return TargetGraph(emitted, pairs[targets, targets], move)
