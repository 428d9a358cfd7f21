"""How far an error rate would move on other clips of the same kind: bootstrap confidence intervals.

Bisani and Ney, 2004, "Bootstrap estimates for confidence intervals in ASR performance evaluation" (ICASSP): clips are
drawn with replacement, since errors within a clip depend on each other, and each draw has a rate of its own.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# How many numbers a block of draws may have: 8 MiB
BLOCK = 2**20


class Interval(NamedTuple):
    """From `low` to `high`, in the unit of the rate."""

    low: float
    high: float


def confidence_interval(
    clip_errors: Sequence[int],
    clip_lengths: Sequence[int],
    *,
    level: float = 0.95,
    num_draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """The interval that the share `level` of the draws' rates (errors over lengths) lies in, as much above as below.

    Args:
        clip_errors, clip_lengths: of each clip, as the metrics of this package return them with `per_clip=True`.

    Raises:
        ValueError: no clips, lists that differ in length, no length above 0, or a level not within 0 and 1.
    """
    errors, lengths = np.asarray(clip_errors, dtype=float), np.asarray(clip_lengths, dtype=float)
    if not len(errors) == len(lengths) > 0 or not lengths.sum() > 0:
        raise ValueError(
            f"clip_errors and clip_lengths: expected as many of both and lengths above 0, got {len(errors)} and"
            f" {len(lengths)} with a sum of {lengths.sum():g}."
        )
    if not 0 < level < 1:
        raise ValueError(f"level: expected a share between 0 and 1, got {level}.")
    generator = np.random.default_rng(seed)
    rates = []
    for begin in range(0, num_draws, per_block := max(1, BLOCK // len(errors))):
        drawn = generator.integers(len(errors), size=(min(per_block, num_draws - begin), len(errors)))
        # a draw of clips without speech alone has no rate of its own; with one unit it is the number of insertions
        rates.append(errors[drawn].sum(axis=1) / np.maximum(lengths[drawn].sum(axis=1), 1))
    low, high = np.quantile(np.concatenate(rates), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
