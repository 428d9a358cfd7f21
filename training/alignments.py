"""Which phone is spoken when: labels every 10 ms from columns of a corpus.

| column | what |
|---|---|
| `phones` | list of symbols |
| `phone_start_s` | list of as many seconds, where each begins; it lasts until the next, the last until the end |
| `phone_end_s` | where each ends, if that is not where the next begins; may be absent |
| `alignment_ok` | rows in which it is false are left out; may be absent |
"""

import math
from dataclasses import dataclass

import numpy as np

from .collators import PretrainingCollator, pad_waveforms
from .data import SpeechBatches
from .rows import Row
from .skips import UnusableRow

STEP_SECONDS = 0.01
# a frame of every architecture, and the same rows for all of them
MIN_SECONDS = 0.1


@dataclass
class Alignment:
    """The middle of each labelled 10 ms of a clip in seconds, [N] float64, and the phone there, [N] strings."""

    times: np.ndarray
    phones: np.ndarray


def alignment_of(row: Row, num_seconds: float) -> Alignment:
    """The labels of a clip that lasts `num_seconds`: at 5, 15, 25 ... ms, wherever a phone is.

    Raises:
        ValueError: a column is missing, or the columns do not fit together.
    """
    missing = [name for name in ("phones", "phone_start_s") if not isinstance(row.extra.get(name), list)]
    if missing:
        raise ValueError(
            f"{row.id}: expected lists in the columns phones and phone_start_s, but {' and '.join(missing)} is none;"
            f" there are {', '.join(row.extra) or 'no other columns'}."
        )
    phones, starts = np.array(row.extra["phones"], dtype=str), np.array(row.extra["phone_start_s"], dtype=float)
    ends = np.array(row.extra.get("phone_end_s") or [math.inf] * len(starts), dtype=float)
    if not len(phones) == len(starts) == len(ends) > 0:
        raise ValueError(
            f"{row.id}: phones, phone_start_s and phone_end_s describe the same phones, but have {len(phones)},"
            f" {len(starts)} and {len(ends)} entries."
        )
    if (np.diff(starts) < 0).any():
        raise ValueError(f"{row.id}: phone_start_s must not fall, got {starts.tolist()}.")
    times = (np.arange(math.floor(num_seconds / STEP_SECONDS + 1e-6)) + 0.5) * STEP_SECONDS
    current = np.searchsorted(starts, times, side="right") - 1
    labelled = (current >= 0) & (times < ends[current])
    return Alignment(times[labelled], phones[current[labelled]])


class AlignedCollator(PretrainingCollator):
    """Whole utterances, padded, with the `Alignment` of each."""

    def prepare(self, row: Row, waveform: np.ndarray) -> dict:
        if not row.extra.get("alignment_ok", True):
            raise UnusableRow("bad_text", f"{row.id}: alignment_ok is false.")
        alignment = alignment_of(row, len(waveform) / self.sampling_rate)
        return super().prepare(row, waveform) | {"alignment": alignment}

    def collate(self, examples: list[dict]) -> dict:
        padded = pad_waveforms(self.feature_extractor, examples)
        return {**padded, "alignments": [example["alignment"] for example in examples]}


def aligned_batches(sources, feature_extractor, **settings) -> SpeechBatches:
    """All utterances with an alignment; `settings` are those of `labelled_batches`.

    A batch has `input_values` [B, S], `attention_mask` [B, S], `alignments` and `ids`.
    """
    return labelled_batches(sources, AlignedCollator(feature_extractor), **settings)


def labelled_batches(
    sources, collator, *, batch_seconds: float, budget_seconds: float | None = None, num_workers: int = 0, **order
) -> SpeechBatches:
    """Whole utterances, or those of a budget (see `rows_in_budget`), once and in their order unless `order`, which are
    further fields of `BatchSettings`, says otherwise."""
    return SpeechBatches(
        sources=sources,
        collator=collator,
        num_workers=num_workers,
        batch_seconds=batch_seconds,
        budget_seconds=budget_seconds,
        min_seconds=MIN_SECONDS,
        max_seconds=math.inf,
        **{"shuffle_window": 0, "num_epochs": 1, **order},
    )
