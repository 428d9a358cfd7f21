"""In which order the rows of sources come: a function of (seed, epoch) and of nothing that happened before.

In every epoch the shards of all sources are permuted and dealt to `num_streams` streams; each stream reads its shards
one after another and cuts its rows into windows, within which planning.py shuffles further. Sources with weights have
epochs of their own, and every window is mixed of them by weight. A place in all this is one `Cursor` per part that is
read in epochs of its own, so that going on from the middle reads one shard from its middle, and nothing before it.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain, count
from random import Random

from .rows import DamagedShard, Row, Shard
from .sources import RowSource

NUM_ROWS_UNSHUFFLED = 256  # in a window when nothing is shuffled
ROW_BITS = 32
NUM_EMPTY_EPOCHS = 100  # of one stream among several, before a part counts as empty


@dataclass(frozen=True)
class Cursor:
    """Before row `row` of the stream's `shard`-th shard in the order of `epoch`."""

    epoch: int = 0
    shard: int = 0
    row: int = 0


@dataclass(frozen=True)
class OrderedRow:
    """A row, its number among all rows of all sources, and the epoch that its part is in.

    With `damage`, which says what is wrong, the row only stands for what is lost of a damaged shard.
    """

    number: int
    row: Row
    epoch: int
    damage: str | None = None


@dataclass(frozen=True)
class Window:
    """Rows that are planned together, and the cursors before them; `ends_epoch` may also be without rows."""

    begin: tuple[Cursor, ...]
    rows: list[OrderedRow]
    ends_epoch: bool = False


@dataclass(frozen=True)
class Part:
    """Shards that share their epochs, numbered among all shards, and the share of rows that comes from them."""

    shards: list[tuple[int, Shard]]
    share: float


def parts_of(sources: list[RowSource]) -> list[Part]:
    """All sources as one part or, if they have weights, each as its own.

    Raises:
        ValueError: some have a weight and some have none.
    """
    weights = [source.source.weight for source in sources]
    without = [source.source.path for source in sources if source.source.weight is None]
    if without and len(without) < len(sources):
        raise ValueError(f"source.weight: either all sources have one or none, but {', '.join(without)} has none.")
    numbers = count()
    numbered = [[(next(numbers), shard) for shard in source.shards] for source in sources]
    if without:
        return [Part(list(chain.from_iterable(numbered)), 1.0)]
    return [Part(shards, weight / sum(weights)) for shards, weight in zip(numbered, weights, strict=True)]


@dataclass(frozen=True)
class Order:
    """How rows are ordered: in windows of `window_size` rows, shuffled or not, in `num_streams` streams.

    `kept` are the numbers of the rows of a label budget, or None for all.
    """

    seed: int
    window_size: int
    shuffled: bool
    num_streams: int = 1
    kept: Collection[int] | None = None

    def shards(self, part: Part, epoch: int, stream: int) -> list[tuple[int, Shard]]:
        """The shards of `part` that `stream` reads in `epoch`, in their order."""
        shards = list(part.shards)
        if self.shuffled:
            Random(repr((self.seed, "shards", epoch))).shuffle(shards)
        return shards[stream :: self.num_streams]


def row_numbers(sources: list[RowSource]) -> Iterator[int]:
    """The numbers that rows have in every order, for all rows in the order of the sources."""
    for part in parts_of(sources):
        for number, shard in part.shards:
            yield from (number << ROW_BITS | place for place, _ in enumerate(shard.readable_rows()))


class Reader:
    """The endless rows of a part in one stream from `cursor` on, which moves along."""

    def __init__(self, part: Part, order: Order, stream: int, cursor: Cursor):
        self.part, self.order, self.stream, self.cursor = part, order, stream, cursor
        self._rows = self._read(cursor)

    def _read(self, start: Cursor) -> Iterator[OrderedRow | None]:
        """Rows, and None at the end of each epoch."""
        kept = self.order.kept
        for epoch in count(start.epoch):
            shards = self.order.shards(self.part, epoch, self.stream)
            for place in range(start.shard, len(shards)):
                number, shard = shards[place]
                row_number = start.row if place == start.shard else 0
                try:
                    for row in shard.rows(row_number):
                        unique, row_number = number << ROW_BITS | row_number, row_number + 1
                        self.cursor = Cursor(epoch, place, row_number)
                        if kept is None or unique in kept:
                            yield OrderedRow(unique, row, epoch)
                except DamagedShard as error:
                    # on to the next shard: this one would be found damaged again at every resume
                    self.cursor = Cursor(epoch, place + 1)
                    yield OrderedRow(number << ROW_BITS | row_number, Row(f"shard {number}", b""), epoch, str(error))
            start = self.cursor = Cursor(epoch + 1)
            yield None

    def take_from_epoch(self, num: int) -> tuple[list[OrderedRow], bool]:
        """At most `num` rows of one epoch, and whether it ended before there were as many."""
        rows = []
        while len(rows) < num:
            row = next(self._rows)
            if row is None:
                return rows, True
            rows.append(row)
        return rows, False

    def take(self, num: int) -> list[OrderedRow]:
        """`num` rows, of as many epochs as that needs."""
        rows, num_empty = [], 0
        while len(rows) < num:
            more, _ = self.take_from_epoch(num - len(rows))
            rows += more
            num_empty = num_empty + 1 if all(row.damage for row in more) else 0
            if num_empty > NUM_EMPTY_EPOCHS:
                raise ValueError("source.weight: a source with a weight has no rows that can be read.")
        return rows


def windows(
    parts: list[Part], order: Order, stream: int, begin: tuple[Cursor, ...], num_before: int
) -> Iterator[Window]:
    """The windows of a stream from number `num_before` on, which begins at the cursors `begin`, without end."""
    readers = [Reader(part, order, stream, cursor) for part, cursor in zip(parts, begin, strict=True)]
    for number in count(num_before):
        begin = tuple(reader.cursor for reader in readers)
        if len(readers) == 1 and parts[0].share == 1.0:
            rows, ends_epoch = readers[0].take_from_epoch(order.window_size)
            yield Window(begin, rows, ends_epoch)
        else:
            yield Window(begin, list(chain.from_iterable(map(Reader.take, readers, _quotas(parts, order, number)))))


def _quotas(parts: list[Part], order: Order, number: int) -> list[int]:
    """How many rows of each part stand in window `number`: by weight, exactly so over all windows together."""

    def rows_until(window: int, part: Part) -> int:
        return math.floor(window * order.window_size * part.share)

    return [rows_until(number + 1, part) - rows_until(number, part) for part in parts]
