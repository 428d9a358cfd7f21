"""Which rows stand in which batch: a function of (seed, epoch, position), made from metadata alone.

rows of the sources -> windows of rows -> plans of batches; no audio is read but the headers of files whose metadata
lacks a duration.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, count, islice
from random import Random

from hf_wav2vec_family.audio_reading import AudioError, audio_info

from .sources import Row, RowSource

# Lengths that differ by less than this share count as one, or else every epoch would have the same batches.
LENGTH_STEP = 0.05
NUM_ROWS_UNSHUFFLED = 256  # planned at a time when nothing is shuffled
NUM_ROWS_TO_JUDGE = 100  # before so many rows a share of bad ones means nothing
NUM_EXAMPLES = 5
SKIP_REASONS = ("bad", "too_short", "too_long", "bad_text", "too_many_labels")


@dataclass(frozen=True)
class Skip:
    """A row that is left out and counted under `reason`, one of `SKIP_REASONS`; the message names it."""

    reason: str
    message: str


class UnusableRow(Exception):
    """Raised by whoever finds that a row must be left out."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.skip = Skip(reason, message)


@dataclass
class Report:
    """What became of the rows of one rank, summed over epochs; the sum over all ranks counts every row once.

    `rows` were seen, `skipped` of them left out per reason, `examples` are the first messages per reason.
    """

    rows: int = 0
    skipped: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SKIP_REASONS, 0))
    examples: dict[str, list[str]] = field(default_factory=lambda: {reason: [] for reason in SKIP_REASONS})

    @property
    def used(self) -> int:
        return self.rows - sum(self.skipped.values())

    def count(self, num_rows: int, skips: list[Skip]) -> None:
        self.rows += num_rows
        for skip in skips:
            self.skipped[skip.reason] += 1
            if len(self.examples[skip.reason]) < NUM_EXAMPLES:
                self.examples[skip.reason].append(skip.message)

    def refuse_too_many_bad(self, max_bad_fraction: float) -> None:
        """ValueError if more than `max_bad_fraction` of at least `NUM_ROWS_TO_JUDGE` rows could not be decoded."""
        num_bad = self.skipped["bad"]
        if self.rows >= NUM_ROWS_TO_JUDGE and num_bad > max_bad_fraction * self.rows:
            raise ValueError(
                f"{num_bad} of {self.rows} rows ({num_bad / self.rows:.1%}) have no usable audio; max_bad_fraction is"
                f" {max_bad_fraction:.1%}. The first: {' | '.join(self.examples['bad'])}"
            )

    def refuse_nothing_used(self) -> None:
        """ValueError if all rows were left out."""
        if not self.used:
            counts = ", ".join(f"{number} {reason}" for reason, number in self.skipped.items() if number)
            examples = " | ".join(chain.from_iterable(self.examples.values()))
            raise ValueError(f"None of {self.rows} rows could be used ({counts or 'no source has any'}). {examples}")


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """How rows become batches.

    Args:
        batch_seconds: a batch holds at most so much audio, padding included: rows x the longest of them.
        seed: of the order and the crops.
        min_seconds: shorter rows are left out.
        max_seconds: longer rows are cropped or, without `crop`, left out; `batch_seconds` by default. With infinity
            nothing is too long, and what exceeds `batch_seconds` is a batch by itself.
        crop: cut all rows of a batch, at random places, to the shortest of them and at most `max_seconds`.
        shuffle_window: so many rows are shuffled, sorted by length and batched together; all of a window's metadata,
            and its audio if the source is parquet, tar or on the Hub, is in memory. 0 keeps the order of the source.
        rank, world_size: this process takes every `world_size`-th batch.
        num_epochs: None is without end.
        max_bad_fraction: more rows without usable audio than this share stop the iteration.
        on_bad_text: "skip" leaves out rows without text or with letters outside the vocabulary, "error" stops at one.
        budget_seconds, budget_seed: see `rows_in_budget`; None is all rows.
    """

    batch_seconds: float
    seed: int = 0
    min_seconds: float = 0.0
    max_seconds: float | None = None
    crop: bool = False
    shuffle_window: int = 2048
    rank: int = 0
    world_size: int = 1
    num_epochs: int | None = None
    max_bad_fraction: float = 0.01
    on_bad_text: str = "skip"
    budget_seconds: float | None = None
    budget_seed: int = 0

    def __post_init__(self):
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank: expected 0 to world_size - 1 = {self.world_size - 1}, got {self.rank}.")
        bound = self.batch_seconds if math.isfinite(self.longest_seconds) else math.inf
        if not 0 <= self.min_seconds <= self.longest_seconds <= bound:
            raise ValueError(
                "expected 0 <= min_seconds <= max_seconds <= batch_seconds, got"
                f" {self.min_seconds}, {self.max_seconds}, {self.batch_seconds}."
            )
        if self.shuffle_window < 0:
            raise ValueError(f"shuffle_window: expected a number of rows or 0, got {self.shuffle_window}.")
        if self.on_bad_text not in ("skip", "error"):
            raise ValueError(f"on_bad_text: expected 'skip' or 'error', got {self.on_bad_text!r}.")

    @property
    def longest_seconds(self) -> float:
        return self.batch_seconds if self.max_seconds is None else self.max_seconds

    def refuse_length(self, row_id: str, seconds: float) -> None:
        if seconds < self.min_seconds:
            raise UnusableRow("too_short", f"{row_id}: {seconds:.2f} s, min_seconds is {self.min_seconds}.")
        if seconds > self.longest_seconds and not self.crop:
            raise UnusableRow("too_long", f"{row_id}: {seconds:.2f} s, max_seconds is {self.longest_seconds}.")

    def generator(self, *key: int | str) -> Random:
        """Random numbers that depend on the seed and `key` alone."""
        return Random(repr((self.seed, *key)))


@dataclass(frozen=True)
class Position:
    """The next batch is number `batch` of `window` in `epoch`; over all ranks and epochs, `index` came before it."""

    epoch: int = 0
    window: int = 0
    batch: int = 0
    index: int = 0


@dataclass(frozen=True)
class PlannedRow:
    """`row`, the `number`-th of all sources together, and how long it will be in the batch."""

    number: int
    row: Row
    seconds: float


@dataclass(frozen=True)
class BatchPlan:
    """The rows of batch `index`, the rows left out on the way to it, and the position after it."""

    index: int
    epoch: int
    rows: list[PlannedRow]
    skips: list[Skip]
    following: Position


class Planner:
    """The plans of one rank from `start` on; iterating reads metadata, and file headers where they lack durations."""

    def __init__(self, sources: list[RowSource], settings: BatchSettings, start: Position):
        self.sources, self.settings, self.start = sources, settings, start
        self.skips: list[Skip] = []  # left out since the last plan of this rank
        self.scanned = Report()  # all rows planned, whatever their rank

    def __iter__(self) -> Iterator[BatchPlan]:
        settings, start = self.settings, self.start
        kept = None
        if settings.budget_seconds is not None:
            kept = rows_in_budget(self._rows(), settings.budget_seconds, settings.budget_seed)
        # The window of `start` is planned again, and the batches before `start` are passed over.
        index = start.index - start.batch
        for epoch in count(start.epoch):
            if settings.num_epochs is not None and epoch >= settings.num_epochs:
                return
            first_window = start.window if epoch == start.epoch else 0
            index_before = index
            for window, rows in self._windows(first_window, kept):
                for number, batch in enumerate(self._plan_window(epoch, window, rows), start=1):
                    if index % settings.world_size == settings.rank:
                        skips, self.skips = self.skips, []
                        if index >= start.index:
                            yield BatchPlan(index, epoch, batch, skips, Position(epoch, window, number, index + 1))
                    index += 1
            if index == index_before and first_window == 0:
                self.scanned.refuse_nothing_used()

    def _rows(self) -> Iterator[Row]:
        return chain.from_iterable(source.rows() for source in self.sources)

    def _windows(self, first: int, kept: set[int] | None) -> Iterator[tuple[int, list[tuple[int, Row]]]]:
        size = self.settings.shuffle_window or NUM_ROWS_UNSHUFFLED
        numbered = (item for item in enumerate(self._rows()) if kept is None or item[0] in kept)
        numbered = islice(numbered, first * size, None)
        for window in count(first):
            rows = list(islice(numbered, size))
            if not rows:
                return
            yield window, rows

    def _plan_window(self, epoch: int, window: int, rows: list[tuple[int, Row]]) -> list[list[PlannedRow]]:
        settings, planned, skips = self.settings, [], []
        for number, row in rows:
            try:
                seconds = _duration_seconds(row)
                settings.refuse_length(row.id, seconds)
                planned.append(PlannedRow(number, row, min(seconds, settings.longest_seconds)))
            except UnusableRow as error:
                skips.append(error.skip)
                if number % settings.world_size == settings.rank:
                    self.skips.append(error.skip)
        self.scanned.count(len(rows), skips)
        self.scanned.refuse_too_many_bad(settings.max_bad_fraction)
        if not settings.shuffle_window:
            return cut_into_batches(planned, settings.batch_seconds)
        generator = settings.generator("order", epoch, window)
        generator.shuffle(planned)
        planned.sort(key=lambda row: math.log(max(row.seconds, 0.01)) // LENGTH_STEP)
        batches = cut_into_batches(planned, settings.batch_seconds)
        generator.shuffle(batches)
        return batches


def _duration_seconds(row: Row) -> float:
    if row.duration_seconds is not None:
        return row.duration_seconds
    try:
        return audio_info(row.audio).duration_seconds
    except AudioError as error:
        raise UnusableRow("bad", f"{row.id}: {error}") from error


def cut_into_batches(rows: list[PlannedRow], batch_seconds: float) -> list[list[PlannedRow]]:
    """`rows` in their order, cut wherever one more would make number of rows x longest exceed `batch_seconds`."""
    batches, longest = [], 0.0
    for row in rows:
        longest = max(longest, row.seconds)
        if not batches or (len(batches[-1]) + 1) * longest > batch_seconds:
            batches.append([])
            longest = row.seconds
        batches[-1].append(row)
    return batches


def rows_in_budget(rows: Iterator[Row], budget_seconds: float, budget_seed: int) -> set[int]:
    """Numbers of the rows that a label budget, such as 10 min or 1 h, keeps.

    The rows are taken in their order shuffled by `random.Random(budget_seed)` until they last `budget_seconds` or
    more; so the last one may exceed the budget, by less than its own length. Rows whose length can't be read cost
    nothing, and are counted as bad later.

    Raises:
        ValueError: all rows together don't reach the budget.
    """
    seconds = []
    for row in rows:
        try:
            seconds.append(_duration_seconds(row))
        except UnusableRow:
            seconds.append(0.0)
    order = list(range(len(seconds)))
    Random(budget_seed).shuffle(order)
    kept, total = set(), 0.0
    for number in order:
        if total >= budget_seconds:
            break
        kept.add(number)
        total += seconds[number]
    if total < budget_seconds:
        raise ValueError(f"budget_seconds: {budget_seconds} asked for, but all rows together last {total:.1f} s.")
    return kept
