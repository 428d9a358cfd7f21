"""Spans of masked frames or channels, drawn on the device without waiting for it (wav2vec 2.0, section 3.1)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .conv import num_valid
from .fused import eager_on_cpu


def uniform(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Uniform draws in [0, 1); written so that a compiled graph with symbolic sizes takes it too."""
    return torch.empty(shape, device=device).uniform_(generator=generator)


def sample_span_mask(
    lengths: Tensor,
    total: int,
    *,
    mask_prob: float,
    mask_length: int,
    min_spans: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws span starts without replacement and masks `mask_length` places from each; spans may overlap.

    With p the share of places that are starts (the paper's p = 0.065), `mask_prob` = p * `mask_length`, as the
    original code and Transformers count it; a row of n places gets p * n starts, rounded up or down at random. A span
    never crosses the end of its row, and a row shorter than one span stays whole.

    Args:
        lengths: [B] places of each row that may be masked; the mask comes back on its device.
        total: places of the longest row, the width of the mask.
        min_spans: at least so many spans in a row, where they fit.

    Returns: [B, total] bool, True where masked.
    """
    if mask_length < 1 or not 0.0 <= mask_prob <= mask_length:
        raise ValueError(
            "mask_length must be at least 1 and mask_prob between 0 and mask_length, got"
            f" {mask_length} and {mask_prob}."
        )
    shape, device = (lengths.shape[0], total), lengths.device
    rounding = uniform(shape[:1], device, generator)
    num_spans = (mask_prob * lengths / mask_length + rounding).long().clamp(min=min_spans)
    num_starts = (lengths - mask_length + 1).clamp(min=0)
    num_spans = torch.minimum(num_spans, num_starts)

    scores = uniform(shape, device, generator)
    scores = scores.masked_fill(torch.arange(total, device=device) >= num_starts[:, None], 2.0)
    rank = scores.argsort(dim=1).argsort(dim=1)
    starts_so_far = (rank < num_spans[:, None]).cumsum(dim=1)
    starts_before_span = torch.nn.functional.pad(starts_so_far, (mask_length, 0))[:, :total]
    return starts_so_far > starts_before_span


def max_masked_frames(total: int, *, mask_prob: float, mask_length: int, min_spans: int = 0) -> int:
    """The most places that `sample_span_mask` can mask in a row, known from the shape alone."""
    num_spans = max(math.floor(mask_prob * total / mask_length + 1), min_spans)
    return min(num_spans * mask_length, total)


class MaskedFrames(NamedTuple):
    """Where the masked frames of each row stand: `index` [B, M] frames, `valid` [B, M] whether the place is taken."""

    index: Tensor
    valid: Tensor


def masked_frames(mask: Tensor, num_places: int) -> MaskedFrames:
    """The masked frames of each row of `mask` [B, T], in order, in `num_places` = M places.

    Rows with fewer masked frames leave places over; those point at frames that are not masked and are not valid.
    Where the mask is known on the host there are no more places than the fullest row needs.
    """
    if eager_on_cpu(mask):
        num_places = min(num_places, max(int(num_valid(mask).max()), 1))
    index = torch.argsort(mask.to(torch.uint8), dim=1, descending=True, stable=True)[:, :num_places]
    return MaskedFrames(index, mask.gather(1, index))


def take_frames(values: Tensor, index: Tensor) -> Tensor:
    """`values` [B, T, D] at the frames `index` [B, M] -> [B, M, D]."""
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
