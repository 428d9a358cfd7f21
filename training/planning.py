"""Which rows stand in which batch: a function of (seed, epoch, position), made from metadata alone.

windows of rows (ordering.py) -> plans of batches -> those of one rank (dealing.py); no audio is decoded, but the
headers of files are read whose metadata lacks a duration.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from queue import Full, Queue
from random import Random
from threading import Event, Thread

from .dealing import Position, RankState
from .durations import duration_seconds_of, rows_in_budget
from .ordering import NUM_ROWS_UNSHUFFLED, ROW_BITS, Cursor, Order, Part, Window, parts_of, row_numbers, windows
from .rows import Row
from .skips import NUM_ROWS_TO_JUDGE, Report, Skip, UnusableRow
from .sources import RowSource

# Lengths that differ by less than this share count as one, or else every epoch would have the same batches. What they
# differ by is padded or cut away: with 0.05 it was 2.3 to 3.5 % of the audio with the recipes' windows, now 1.3 to 2.
LENGTH_STEP = 0.02
NUM_PLANS_AHEAD = 32


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
        length_step_seconds: above 0, batches are few lengths long, the multiples of this: crops are cut down to one,
            or to `max_seconds`, and what is padded is filled up to one. Crops shorter than a step stay as they are.
        shuffle_window: so many rows are shuffled, sorted by length and batched together; the metadata of two windows,
            and their audio if the source is parquet, tar or on the Hub, are in memory. 0 keeps the order of the
            source.
        same_speaker: only rows of one `speaker_id` stand in a batch.
        rank, world_size: this process takes every `world_size`-th batch.
        num_streams: parts that the shards are dealt to, from which batches come in turn. Nothing means one, or one per
            process where reading the rows of others would cost as much as reading one's own.
        num_epochs: None is without end.
        max_bad_fraction: more rows without usable audio than this share stop the iteration, and so do more damaged
            shards; each process counts those that it has met.
        on_bad_text: "skip" leaves out rows without text or with letters outside the vocabulary, "error" stops at one.
        budget_seconds, budget_seed: see `rows_in_budget`; None is all rows.
    """

    batch_seconds: float
    seed: int = 0
    min_seconds: float = 0.0
    max_seconds: float | None = None
    crop: bool = False
    length_step_seconds: float = 0.0
    shuffle_window: int = 2048
    same_speaker: bool = False
    rank: int = 0
    world_size: int = 1
    num_streams: int | None = None
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
        if self.length_step_seconds < 0:
            raise ValueError(f"length_step_seconds: expected at least 0, got {self.length_step_seconds}.")
        if self.shuffle_window < 0:
            raise ValueError(f"shuffle_window: expected a number of rows or 0, got {self.shuffle_window}.")
        if self.same_speaker and not self.shuffle_window:
            raise ValueError("same_speaker needs a shuffle_window to find rows of one speaker in, got 0.")
        if (self.num_streams or 1) > 1 and self.num_epochs is not None:
            raise ValueError(f"num_streams: only 1 goes with num_epochs = {self.num_epochs}, got {self.num_streams}.")
        if self.num_streams is not None and self.num_streams < 1:
            raise ValueError(f"num_streams: expected at least 1, got {self.num_streams}.")
        if self.on_bad_text not in ("skip", "error"):
            raise ValueError(f"on_bad_text: expected 'skip' or 'error', got {self.on_bad_text!r}.")

    @property
    def longest_seconds(self) -> float:
        return self.batch_seconds if self.max_seconds is None else self.max_seconds

    def length_in_batch(self, seconds: float) -> float:
        """How long a batch is whose shortest (with `crop`) or longest row (padded) has `seconds`."""
        step = self.length_step_seconds
        if self.crop and seconds >= self.longest_seconds:
            return self.longest_seconds
        if not step or (self.crop and seconds < step):
            return seconds
        # a rounding error of seconds is no reason to take another multiple
        return (math.floor(seconds / step + 1e-6) if self.crop else math.ceil(seconds / step - 1e-6)) * step

    def refuse_length(self, row_id: str, seconds: float) -> None:
        if seconds < self.min_seconds:
            raise UnusableRow("too_short", f"{row_id}: {seconds:.2f} s, min_seconds is {self.min_seconds}.")
        if seconds > self.longest_seconds and not self.crop:
            raise UnusableRow("too_long", f"{row_id}: {seconds:.2f} s, max_seconds is {self.longest_seconds}.")

    def generator(self, *key: int | str) -> Random:
        """Random numbers that depend on the seed and `key` alone."""
        return Random(repr((self.seed, *key)))


@dataclass(frozen=True)
class PlannedRow:
    """`row`, its number among all rows of all sources, its epoch, and how long it will be in the batch."""

    number: int
    row: Row
    seconds: float
    epoch: int = 0


@dataclass(frozen=True)
class StreamPlan:
    """The rows of a batch of one stream, the rows left out since the one before, and the position after it."""

    rows: list[PlannedRow]
    skips: list[Skip]
    following: Position


@dataclass(frozen=True)
class BatchPlan:
    """A plan and its `index` among the batches of all streams."""

    index: int
    rows: list[PlannedRow]
    skips: list[Skip]
    following: Position

    @property
    def epoch(self) -> int:
        return self.rows[0].epoch


class StreamPlanner:
    """The plans of one stream from `start` on, made of metadata, and of file headers where they lack durations."""

    def __init__(self, parts: list[Part], order: Order, settings: BatchSettings, stream: int, start: Position):
        self.parts, self.order, self.settings, self.stream = parts, order, settings, stream
        self.start = start if start.cursors else Position(tuple(Cursor() for _ in parts))
        self.skips: list[Skip] = []  # left out since the last plan
        self.scanned = Report()  # all rows planned
        self.turn = self.start.turn  # of the plan that comes next
        self._plans = iter(self)

    def plan(self, turn: int) -> StreamPlan | None:
        """The plan of `turn`, passing over those before it; None if the stream ends."""
        while (plan := next(self._plans, None)) is not None:
            self.turn += 1
            if self.turn > turn:
                return plan
        return None

    def __iter__(self) -> Iterator[StreamPlan]:
        start = self.start
        turn, number = start.turn - start.batch, start.window
        # only of a whole epoch can it be said that nothing in it is of use
        judged, in_epoch = start == Position(tuple(Cursor() for _ in self.parts)), 0
        for window in windows(self.parts, self.order, self.stream, start.cursors, start.window):
            if self.settings.num_epochs is not None and window.begin[0].epoch >= self.settings.num_epochs:
                return
            for place, batch in enumerate(self._plan_window(window), start=1):
                # those before `start` in its window are planned again, to be passed over
                skips, self.skips = self.skips, []
                turn, in_epoch = turn + 1, in_epoch + 1
                if turn > start.turn:
                    yield StreamPlan(batch, skips, Position(window.begin, number, place, turn))
            number += 1
            if window.ends_epoch:
                if judged and not in_epoch and (self.order.num_streams == 1 or self.scanned.rows >= NUM_ROWS_TO_JUDGE):
                    self.scanned.refuse_nothing_used()
                judged, in_epoch = True, 0

    def _plan_window(self, window: Window) -> list[list[PlannedRow]]:
        settings, planned, skips = self.settings, [], []
        for ordered in window.rows:
            row = ordered.row
            try:
                if ordered.damage:
                    raise UnusableRow("damaged", ordered.damage, shard=ordered.number >> ROW_BITS)
                seconds = duration_seconds_of(row)
                settings.refuse_length(row.id, seconds)
                planned.append(PlannedRow(ordered.number, row, settings.length_in_batch(seconds), ordered.epoch))
            except UnusableRow as error:
                skips.append(error.skip)
        self.skips += skips
        self.scanned.count(len(window.rows), skips)
        self.scanned.refuse_too_many_bad(settings.max_bad_fraction)
        if not settings.shuffle_window:
            return cut_into_batches(planned, settings.batch_seconds)
        places = [(cursor.epoch, cursor.shard, cursor.row) for cursor in window.begin]
        generator = settings.generator("order", self.stream, *places)
        generator.shuffle(planned)
        planned.sort(key=lambda row: math.log(max(row.seconds, 0.01)) // LENGTH_STEP)
        batches = []
        for group in by_speaker(planned) if settings.same_speaker else [planned]:
            batches += cut_into_batches(group, settings.batch_seconds)
        generator.shuffle(batches)
        return batches


class Planner:
    """The plans of one rank from `state` on."""

    def __init__(self, sources: list[RowSource], settings: BatchSettings, state: RankState):
        self.sources, self.settings, self.state = sources, settings, state
        self.skips: list[Skip] = []  # left out at the very end, if they are this rank's to count

    def __iter__(self) -> Iterator[BatchPlan]:
        settings, state = self.settings, self.state
        parts = parts_of(self.sources)
        if settings.num_epochs is not None and len(parts) > 1:
            raise ValueError(
                "source.weight: sources with weights have no common epoch, so that num_epochs must be None."
            )
        order = self._order()
        streams: dict[int, StreamPlanner] = {}
        for index in state.deal.indices(settings.rank, state.following):
            stream, turn = index % state.num_streams, index // state.num_streams
            if stream not in streams:
                streams[stream] = StreamPlanner(parts, order, settings, stream, state.position(stream))
            plan = streams[stream].plan(turn)
            if plan is None:
                # there is one stream then, and its last rows are counted by the rank of the batch that never came
                if streams[stream].turn == turn:
                    self.skips = streams[stream].skips
                return
            yield BatchPlan(index, plan.rows, plan.skips, plan.following)

    def _order(self) -> Order:
        settings, kept = self.settings, None
        if settings.budget_seconds is not None:
            rows = chain.from_iterable(source.readable_rows() for source in self.sources)
            places = rows_in_budget(rows, settings.budget_seconds, settings.budget_seed)
            kept = {number for place, number in enumerate(row_numbers(self.sources)) if place in places}
        shuffled = settings.shuffle_window > 0
        window_size = settings.shuffle_window or NUM_ROWS_UNSHUFFLED
        return Order(settings.seed, window_size, shuffled, self.state.num_streams, kept)


def ahead(items: Iterator, num: int) -> Iterator:
    """`items`, up to `num` of them made before they are asked for, in a thread that ends when nobody asks any more."""
    made, stop = Queue(maxsize=num), Event()

    def put(item) -> bool:
        while not stop.is_set():
            try:
                made.put(item, timeout=0.1)
                return True
            except Full:
                continue
        return False

    def make():
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((None, StopIteration()))
        except BaseException as error:  # whatever it is, it belongs to the one who waits
            put((None, error))

    Thread(target=make, daemon=True, name="planner").start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stop.set()


def by_speaker(rows: list[PlannedRow]) -> list[list[PlannedRow]]:
    """`rows` of each `speaker_id`, in the order in which they came; ValueError for a row without."""
    nobody = next((row.row.id for row in rows if row.row.extra.get("speaker_id") is None), None)
    if nobody is not None:
        raise ValueError(f"same_speaker needs a column speaker_id, which {nobody} has not.")
    groups: dict = {}
    for row in rows:
        groups.setdefault(str(row.row.extra["speaker_id"]), []).append(row)
    return list(groups.values())


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
