"""Rows of numpy arrays sorted by a key with a bounded number of them in memory: sorted runs on disk, merged in blocks.

A row is a record with a field `key`: N word ids, most significant byte first, so that bytes sort as the ids do.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

# Sorting holds a block, its order and the sorted copy, and the caller some columns of it.
COPIES_IN_MEMORY = 4
MIN_BLOCK_ROWS = 1024


def row_type(num_words: int, **fields: str) -> np.dtype:
    """A record of a key of `num_words` ids and further fields, `count="i8"`."""
    return np.dtype([("key", f"S{4 * num_words}"), *fields.items()])


def as_keys(ids: np.ndarray) -> np.ndarray:
    """[M, N] ids -> [M] keys."""
    return np.ascontiguousarray(ids, dtype=">u4").view(f"S{4 * ids.shape[1]}")[:, 0]


def as_ids(keys: np.ndarray) -> np.ndarray:
    """[M] keys -> [M, N] ids."""
    return np.ascontiguousarray(keys).view(">u4").reshape(len(keys), keys.dtype.itemsize // 4)


class Spool:
    """Rows in a file, in the order in which they were appended."""

    def __init__(self, path: Path, dtype: np.dtype, block_rows: int):
        self.path, self.dtype, self.block_rows = path, dtype, max(block_rows, MIN_BLOCK_ROWS)
        self.path.write_bytes(b"")

    def append(self, rows: np.ndarray) -> None:
        with self.path.open("ab") as file:
            rows.tofile(file)

    def blocks(self, block_rows: int | None = None) -> Iterator[np.ndarray]:
        with self.path.open("rb") as file:
            while len(rows := np.fromfile(file, self.dtype, count=block_rows or self.block_rows)):
                yield rows


class Sorter:
    """
    Takes rows in any order and gives them back by ascending key.

    Args:
        folder: where runs are kept; unsorted rows fill `memory_bytes`, then become one sorted run there.
        sum_counts: rows of one key become one, whose field `count` is their sum. Without it every key must be there
            once.
    """

    def __init__(self, folder: Path, dtype: np.dtype, memory_bytes: int, *, sum_counts: bool = False):
        self.folder, self.dtype, self.sum_counts = folder, dtype, sum_counts
        self.max_rows = max(memory_bytes // (COPIES_IN_MEMORY * dtype.itemsize), MIN_BLOCK_ROWS)
        self.waiting: list[np.ndarray] = []
        self.runs: list[Spool] = []
        folder.mkdir(parents=True)

    def append(self, rows: np.ndarray) -> None:
        self.waiting.append(rows)
        if sum(map(len, self.waiting)) >= self.max_rows:
            run = Spool(self.folder / str(len(self.runs)), self.dtype, self.max_rows)
            run.append(self._sorted(self.waiting))
            self.runs.append(run)
            self.waiting = []

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows in ascending order; what is in memory is one run more."""
        last = [self._sorted(self.waiting)] if self.waiting else []
        self.waiting = []
        if not self.runs:
            yield from last
            return
        block_rows = max(self.max_rows // (len(self.runs) + 1), MIN_BLOCK_ROWS)
        in_memory = (last[0][i : i + block_rows] for i in range(0, len(last[0]), block_rows)) if last else iter(())
        runs = [run.blocks(block_rows) for run in self.runs] + [in_memory]
        heads = {i: head for i, run in enumerate(runs) if (head := next(run, None)) is not None}
        while heads:
            # No run can still bring anything below the smallest of the last keys in sight.
            bound = min(head["key"][-1] for head in heads.values())
            ready = []
            for i, head in list(heads.items()):
                end = np.searchsorted(head["key"], bound, side="right")
                ready.append(head[:end])
                rest = head[end:] if end < len(head) else next(runs[i], None)
                if rest is None:
                    del heads[i]
                else:
                    heads[i] = rest
            yield self._sorted(ready)

    def _sorted(self, blocks: list[np.ndarray]) -> np.ndarray:
        rows = np.concatenate(blocks)
        rows = rows[np.argsort(rows["key"], kind="stable")]
        if not self.sum_counts:
            return rows
        first = np.flatnonzero(np.append(True, rows["key"][1:] != rows["key"][:-1]))
        summed = rows[first]
        summed["count"] = np.add.reduceat(rows["count"], first)
        return summed


def look_up(
    blocks: Iterable[np.ndarray],
    key_of: Callable[[np.ndarray], np.ndarray],
    table: Iterable[np.ndarray],
    *,
    missing: float,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each block of rows with the `value` that `table` has under their keys; both ascend and are read once."""
    table = iter(table)
    current = next(table, None)
    for rows in blocks:
        keys, values, done = key_of(rows), np.full(len(rows), missing), 0
        while current is not None:
            end = int(np.searchsorted(keys, current["key"][-1], side="right"))
            asked = keys[done:end]
            places = np.searchsorted(current["key"], asked)
            values[done:end] = np.where(current["key"][places] == asked, current["value"][places], missing)
            done = end
            if done == len(keys):
                break
            current = next(table, None)
        yield rows, values


def whole_groups(blocks: Iterable[np.ndarray], num_words: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows, and the places where their first `num_words` ids change; no such group is split over two blocks."""
    rest = None
    for rows in itertools.chain(blocks, [None]):
        if rows is not None and rest is not None:
            rows = np.concatenate([rest, rows])
        whole = rest if rows is None else rows
        if whole is None:
            return
        ids = as_ids(whole["key"])[:, :num_words]
        starts = np.flatnonzero(np.append(True, (ids[1:] != ids[:-1]).any(axis=1)))
        if rows is None:
            yield whole, starts
        else:
            rest = rows[starts[-1] :]
            if len(starts) > 1:
                yield rows[: starts[-1]], starts[:-1]
