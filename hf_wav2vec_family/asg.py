"""The Auto Segmentation Criterion: CTC without a blank, with a learned score for each pair of neighbours.

Collobert, Puhrsch, Synnaeve, 2016 (arXiv:1609.03193), section 2.3. A path gives each frame one symbol; its score is
the sum of its emissions and of the transitions between neighbouring frames. With G the paths that spell the target
when runs of one symbol are merged, and F all paths,

    loss = logsumexp of the scores in F - logsumexp of the scores in G

A target can't hold the same symbol twice in a row, for the merging would eat it: replabels.py writes `ann` as `an1`.

Shapes: B utterances, T frames, V symbols, L symbols of the longest target.
`transitions[to, from]` is the score of going from one symbol to another, the layout of wav2letter and flashlight-text.
"""

import torch
from torch import Tensor, nn

from .path_scores import NEVER, AlignedScore, full_score


class AutoSegmentationCriterion(nn.Module):
    """`asg_loss` with its own transitions.

    Args:
        num_symbols: V.
        initial_diagonal: what staying with a symbol scores before training, wav2letter's `transdiag`; all else is 0.
        reduction, zero_infinity: as in `asg_loss`.
    """

    def __init__(
        self, num_symbols: int, *, initial_diagonal: float = 0.0, reduction: str = "mean", zero_infinity: bool = False
    ):
        super().__init__()
        self.transitions = nn.Parameter(initial_diagonal * torch.eye(num_symbols))
        self.reduction, self.zero_infinity = reduction, zero_infinity

    def forward(
        self,
        emissions: Tensor,
        targets: Tensor,
        input_lengths: Tensor,
        target_lengths: Tensor,
        *,
        linear_segmentation: bool = False,
    ) -> Tensor:
        """Arguments and errors are those of `asg_loss`."""
        return asg_loss(
            emissions,
            self.transitions,
            targets,
            input_lengths,
            target_lengths,
            reduction=self.reduction,
            zero_infinity=self.zero_infinity,
            linear_segmentation=linear_segmentation,
        )


def asg_loss(
    emissions: Tensor,
    transitions: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    *,
    reduction: str = "mean",
    zero_infinity: bool = False,
    linear_segmentation: bool = False,
) -> Tensor:
    """The loss at the head of this file, in float32; its recursions run in float64.

    Args:
        emissions: [B, T, V] scores of the symbols, not normalised.
        transitions: [V, V], `transitions[to, from]`; -inf forbids a pair.
        targets: [B, L] symbols; what stands behind `target_lengths` doesn't matter.
        input_lengths, target_lengths: [B], how many frames and symbols count.
        reduction: "none" [B], "sum", or "mean" of each utterance's loss over its number of symbols, as for CTC.
        zero_infinity: an utterance whose target has no path (longer than the frames, empty, or through forbidden
            transitions) costs 0; otherwise the first two are an error and the last costs infinity. Neither has a
            gradient.
        linear_segmentation: G holds a single path, the target stretched evenly over the frames. wav2letter's first
            updates are these (`linseg`), since random emissions say nothing about where a symbol stands.

    Raises:
        ValueError: shapes that don't fit; rows of `targets` that are too long, empty, outside the alphabet, or have
            equal neighbours. An accelerator is never waited for: there such rows cost infinity instead.
    """
    if reduction not in ("none", "sum", "mean"):
        raise ValueError(f"reduction: expected 'none', 'sum' or 'mean', got {reduction!r}.")
    if targets.dim() == 2 and not targets.shape[1]:  # a batch of empty texts
        targets = nn.functional.pad(targets, (0, 1), value=-1)
    check_shapes(emissions, transitions, targets, input_lengths, target_lengths)
    _, num_frames, num_symbols = emissions.shape
    refuse_bad_targets(
        targets,
        input_lengths,
        target_lengths,
        num_frames=num_frames,
        num_symbols=num_symbols,
        allow_unreachable=zero_infinity,
    )
    given = (targets, input_lengths, target_lengths)
    targets, input_lengths, target_lengths = (tensor.to(emissions.device) for tensor in given)
    malformed = (_outside(targets, target_lengths, num_symbols) | _equal_neighbours(targets, target_lengths)).any(1)
    unreachable = (target_lengths > input_lengths) | (target_lengths == 0)

    # what stands in padded frames may be anything, and 0 times NaN is no 0
    padded = torch.arange(num_frames, device=emissions.device)[:, None] >= input_lengths  # [T, B]
    scores = emissions.transpose(0, 1).double().clamp(min=NEVER).masked_fill(padded.unsqueeze(-1), 0.0)  # [T, B, V]
    pairs = transitions.double().clamp(min=NEVER)
    if linear_segmentation:
        aligned = _path_score(scores, pairs, linear_path(targets, input_lengths, target_lengths, num_frames))
    else:
        aligned = AlignedScore.apply(scores, pairs, targets.clamp(0, num_symbols - 1), input_lengths, target_lengths)
    losses = full_score(scores, pairs, input_lengths) - aligned
    unreachable = unreachable | (aligned < NEVER / 2)
    losses = losses.masked_fill(unreachable, 0.0 if zero_infinity else torch.inf).masked_fill(malformed, torch.inf)
    if reduction == "mean":
        losses = losses / target_lengths.clamp(min=1)
    losses = losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()
    return losses.to(torch.promote_types(emissions.dtype, torch.float32))


def linear_path(targets: Tensor, input_lengths: Tensor, target_lengths: Tensor, num_frames: int) -> Tensor:
    """Each target stretched evenly over its frames: frame t of n has symbol floor(t * length / n).

    Returns: [B, num_frames], -1 behind the last frame.
    """
    frames = torch.arange(num_frames, device=targets.device)
    places = frames * target_lengths[:, None] // input_lengths[:, None].clamp(min=1)
    symbols = targets.gather(1, places.clamp(max=max(targets.shape[1] - 1, 0)))
    return symbols.masked_fill(frames >= input_lengths[:, None], -1)


def _path_score(scores: Tensor, pairs: Tensor, path: Tensor) -> Tensor:
    """[B], the score of one path [B, T] each, -1 where it has ended; `scores` are [T, B, V]."""
    path = path.t()
    inside, symbols = path >= 0, path.clamp(0, scores.shape[-1] - 1)
    emitted = scores.gather(2, symbols.unsqueeze(-1)).squeeze(-1).masked_fill(~inside, 0.0).sum(0)
    return emitted + pairs[symbols[1:], symbols[:-1]].masked_fill(~inside[1:], 0.0).sum(0)


def check_shapes(
    emissions: Tensor, transitions: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor
):
    """ValueError for shapes that don't belong together."""
    batch_size, _, num_symbols = emissions.shape if emissions.dim() == 3 and emissions.numel() else (None, None, None)
    if batch_size is None:
        raise ValueError(f"emissions: expected [B, T, V] of at least one frame, got {list(emissions.shape)}.")
    if transitions.shape != (num_symbols, num_symbols):
        raise ValueError(f"transitions: expected {[num_symbols, num_symbols]}, got {list(transitions.shape)}.")
    if targets.dim() != 2 or len(targets) != batch_size or not targets.shape[1]:
        raise ValueError(f"targets: expected [{batch_size}, L] with L >= 1, got {list(targets.shape)}.")
    for name, lengths in (("input_lengths", input_lengths), ("target_lengths", target_lengths)):
        if lengths.shape != (batch_size,):
            raise ValueError(f"{name}: expected [{batch_size}], got {list(lengths.shape)}.")


def refuse_bad_targets(
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    *,
    num_frames: int,
    num_symbols: int,
    allow_unreachable: bool,
):
    """ValueError that names the rows that no path can spell, of what is on the CPU and can be read without waiting."""
    if any(x.device.type != "cpu" for x in (targets, input_lengths, target_lengths)):
        return
    faults = [
        ((input_lengths < 0) | (target_lengths < 0), "input_lengths or target_lengths are below 0"),
        (input_lengths > num_frames, f"input_lengths are above the {num_frames} frames of emissions"),
        (target_lengths > targets.shape[1], f"target_lengths are above the {targets.shape[1]} columns of targets"),
        (_outside(targets, target_lengths, num_symbols), f"a symbol is not within 0 and {num_symbols - 1}"),
        (
            _equal_neighbours(targets, target_lengths),
            "a symbol follows itself, which ASG can't tell from one that lasts; encode_target of replabels.py helps",
        ),
    ]
    if not allow_unreachable:
        faults += [
            (target_lengths == 0, "there is no symbol, though every frame needs one; a surround token helps"),
            (target_lengths > input_lengths, "there are more symbols than frames; zero_infinity leaves such rows out"),
        ]
    for fault, message in faults:
        if fault.any():
            rows = fault.flatten(1).any(1) if fault.dim() == 2 else fault
            raise ValueError(f"targets, rows {rows.nonzero().flatten().tolist()} of the batch: {message}.")


def _outside(targets: Tensor, target_lengths: Tensor, num_symbols: int) -> Tensor:
    inside = torch.arange(targets.shape[1], device=targets.device) < target_lengths[:, None]
    return inside & ((targets < 0) | (targets >= num_symbols))


def _equal_neighbours(targets: Tensor, target_lengths: Tensor) -> Tensor:
    inside = torch.arange(1, targets.shape[1], device=targets.device) < target_lengths[:, None]
    return nn.functional.pad(inside & (targets[:, 1:] == targets[:, :-1]), (1, 0))
