"""Contrastive objectives: which candidates stand beside the right one, and what it costs not to tell them apart."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .masking import uniform
from .precision import without_autocast


class ContrastiveLoss(NamedTuple):
    """`loss`: mean over the targets; `accuracy`: share of them whose positive scores above every negative."""

    loss: Tensor
    accuracy: Tensor


def sample_negatives(
    valid: Tensor, num_negatives: int, *, across_batch: bool = False, generator: torch.Generator | None = None
) -> Tensor:
    """Draws negatives for each place uniformly from the other valid places, never the place itself.

    Args:
        valid: [B, M] bool, in any order.
        across_batch: from all rows instead of the row itself.

    Returns: [B, M, N] int64 indices into the places of the row, or into B * M flattened places if `across_batch`.
    A place that has nothing to be told from gets itself; `contrastive_scores` leaves such negatives out.
    """
    if across_batch:
        places = sample_negatives(valid.flatten()[None], num_negatives, generator=generator)
        return places.view(*valid.shape, num_negatives)
    valid_first = valid.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    own_rank = valid.cumsum(dim=1).unsqueeze(-1) - 1
    num_candidates = valid.sum(dim=1)[:, None, None]
    draws = uniform((*valid.shape, num_negatives), valid.device, generator)
    rank = torch.minimum((draws * (num_candidates - 1)).long(), (num_candidates - 2).clamp(min=0))
    rank = rank + (rank >= own_rank)
    rank = torch.minimum(rank, (num_candidates - 1).clamp(min=0))
    return valid_first.gather(1, rank.flatten(1)).view_as(rank)


def contrastive_scores(
    predictions: Tensor, targets: Tensor, negatives: Tensor, target_ids: Tensor, *, temperature: float
) -> Tensor:
    """Cosine similarity of each prediction with its own target and its negatives (wav2vec 2.0, equation 3).

    All pairs of a row come from one matrix product, of which the scalars that are asked for are picked: for 100
    negatives that is far cheaper than gathering 100 vectors for every place.

    Args:
        predictions: [B, M, D], what the context expects.
        targets: [B, M, D], what stood there.
        negatives: [B, M, N] places of the row whose targets are the distractors.
        target_ids: [B, M] int64, equal where targets are equal. A negative equal to the positive is no distractor.

    Returns: [B, M, 1 + N] float32 scores over `temperature`, the positive first, -inf for what is left out.
    """
    with without_autocast(predictions.device):
        similarity = torch.bmm(
            F.normalize(predictions.float(), dim=-1, eps=1e-8) / temperature,
            F.normalize(targets.float(), dim=-1, eps=1e-8).transpose(1, 2),
        )  # [B, M, M]
    own_place = torch.arange(targets.shape[1], device=negatives.device).expand(targets.shape[:2]).unsqueeze(-1)
    scores = similarity.gather(2, torch.cat([own_place, negatives], dim=-1))
    negative_ids = target_ids.unsqueeze(1).expand(-1, targets.shape[1], -1).gather(2, negatives)
    duplicate = F.pad(negative_ids == target_ids.unsqueeze(-1), (1, 0))
    return scores.masked_fill(duplicate, float("-inf"))


def info_nce(scores: Tensor, valid: Tensor) -> ContrastiveLoss:
    """InfoNCE, L = -log(exp(s_0) / sum_n exp(s_n)), mean over the places marked in `valid`.

    Args:
        scores: [B, M, 1 + N], the positive first.
        valid: [B, M] bool. Without a single valid place the loss is 0.
    """
    count = valid.sum().clamp(min=1)
    losses = torch.logsumexp(scores, dim=-1) - scores[..., 0]
    best_negative = scores[..., 1:].amax(dim=-1)
    # with every code alike nothing is left to be told apart: that is a collapse, not a win
    won = (scores[..., 0] > best_negative) & (best_negative > float("-inf"))
    return ContrastiveLoss(
        loss=torch.where(valid, losses, 0.0).sum() / count,
        accuracy=(won & valid).sum() / count,
    )
