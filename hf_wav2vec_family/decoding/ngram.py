"""Training of n-gram language models: text to ARPA with modified Kneser-Ney smoothing, interpolated.

Chen and Goodman, 1998 (TR-10-98, section 4.1.6 for the smoothing, eq. 26 for the discounts). For a context c of n - 1
words and a word w,

    p(w | c) = (a(cw) - D(a(cw))) / sum_v a(cv) + gamma(c) p(w | c without its first word)

`a` is the count at the highest order, and for n-grams that begin a sentence; for all others the number of different
words seen before them. D has three values per order, for counts of 1, 2, and 3 or more; gamma(c) is the mass taken
away. Below single words stands the uniform distribution over the vocabulary, `<unk>` and `</s>` included, which all
that `<unk>` has comes from. An n-gram that is pruned gives its whole mass to gamma; discounts are those of all counts.

Memory is what `memory_mib` says for each sort (sorted_rows.py), of which there is one per order at a time, and beside
it the vocabulary and all words that follow one context, a few hundred bytes per word; everything else is on disk.
"""

import argparse
import logging
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from .sorted_rows import Sorter, Spool, as_ids, as_keys, look_up, row_type, whole_groups
from .text_lines import UNITS_HELP, read_lines, units_of

logger = logging.getLogger(__name__)

MAX_ORDER = 5
# No word: what stands before the beginning of a sentence.
PAD, UNKNOWN, BEGIN, END = range(4)
SPECIAL_WORDS = ("", "<unk>", "<s>", "</s>")
WORDS_PER_BLOCK = 1 << 18


@dataclass(frozen=True)
class NgramSettings:
    """
    Args:
        order: words of the longest n-gram, 1 to 5.
        prune: for each order the count up to which n-grams are left out; the last one holds for all further orders.
            Single words stay: the first must be 0. None may be below the one before it.
        discount_fallback: discounts 0.5, 1, 1.5 for an order whose counts give none: too little text, or few and
            frequent units such as letters. Without it such an order is an error.
        memory_mib: of each sort, in MiB.
    """

    order: int = 4
    prune: Sequence[int] = (0,)
    discount_fallback: bool = False
    memory_mib: int = 512

    def __post_init__(self):
        if not 1 <= self.order <= MAX_ORDER:
            raise ValueError(f"order must be from 1 to {MAX_ORDER}, got {self.order}.")
        prune = list(self.prune)
        if not prune or len(prune) > self.order or prune[0] != 0 or prune != sorted(prune):
            raise ValueError(
                f"prune must be 0 and up to {self.order - 1} numbers more, none below the one before; got {prune}."
            )
        if self.memory_mib < 1:
            raise ValueError(f"memory_mib must be at least 1, got {self.memory_mib}.")

    def prune_of(self, order: int) -> int:
        return self.prune[min(order, len(self.prune)) - 1]


def train_ngram(lines: Iterable[Sequence[str]], output: str | Path, settings: NgramSettings) -> list[int]:
    """Estimate an n-gram model of sentences, each a sequence of units, and write it to `output` in the ARPA format.

    Returns: the number of n-grams of each order.

    Raises:
        ValueError: no sentence; one that holds `<unk>`, `<s>` or `</s>`; counts that give no discounts.
    """
    output = Path(output)
    with tempfile.TemporaryDirectory(prefix="ngram-", dir=output.parent) as folder:
        estimate = _Estimate(Path(folder), settings)
        estimate.count(lines)
        estimate.discount()
        estimate.interpolate()
        partial = Path(folder) / "arpa"
        with partial.open("w", encoding="utf-8") as file:
            estimate.write(file)
        partial.replace(output)
    return estimate.num_ngrams


def discounts_of(counts_of_counts: Sequence[int], order: int, *, fallback: bool = False) -> np.ndarray:
    """[4], what is taken off a count of 0, 1, 2, and 3 or more: eq. 26 of Chen and Goodman, 1998.

    Args:
        counts_of_counts: how many n-grams have an (adjusted) count of 1, 2, 3 and 4.
    """
    one, two, three, four = counts_of_counts
    if min(one, two, three):
        y = one / (one + 2 * two)
        discounts = np.array([0.0, 1 - 2 * y * two / one, 2 - 3 * y * three / two, 3 - 4 * y * four / three])
        if (discounts >= 0).all():
            return discounts
    if not fallback:
        raise ValueError(
            f"the counts of order {order} give no discounts: {one}, {two}, {three} and {four} n-grams come 1, 2, 3"
            " and 4 times. More text helps; discount_fallback takes 0.5, 1 and 1.5 instead."
        )
    logger.warning("Order %d has the discounts 0.5, 1 and 1.5: its counts give none.", order)
    return np.array([0.0, 0.5, 1.0, 1.5])


class _Estimate:
    """The stages of one training, and what lies on disk between them. Keys of n-grams read forward, first word first,
    in context order, and backward in suffix order."""

    def __init__(self, folder: Path, settings: NgramSettings):
        self.folder, self.settings = folder, settings
        self.orders = range(1, settings.order + 1)
        self.memory_bytes = settings.memory_mib << 20
        self.words = list(SPECIAL_WORDS)
        self.num_ngrams = [0] * settings.order
        self.counts_of_counts = np.zeros((settings.order + 1, 5), dtype=np.int64)
        counted = {"count": "i8", "seen": "i8"}  # adjusted, and as often as it is in the text
        self.counted = {n: self._sorter(f"counted{n}", n, **counted) for n in self.orders}
        self.discounted = {n: self._sorter(f"discounted{n}", n, share="f8", gamma="f8") for n in self.orders}
        self.estimated = {n: self._sorter(f"estimated{n}", n, value="f8") for n in self.orders}
        self.gammas = {n: self._spool(f"gammas{n}", n - 1, value="f8") for n in self.orders[1:]}

    def _sorter(self, name: str, num_words: int, *, sum_counts: bool = False, **fields: str) -> Sorter:
        dtype = row_type(num_words, **fields)
        return Sorter(self.folder / name, dtype, self.memory_bytes, sum_counts=sum_counts)

    def _spool(self, name: str, num_words: int, **fields: str) -> Spool:
        dtype = row_type(num_words, **fields)
        return Spool(self.folder / name, dtype, self.memory_bytes // (4 * dtype.itemsize))

    def count(self, lines: Iterable[Sequence[str]]) -> None:
        """Count the n-grams of all orders, adjusted."""
        order = self.settings.order
        windows = self._sorter("windows", order, sum_counts=True, count="i8")
        for ids in _windows(lines, self.words, order):
            rows = np.zeros(len(ids), windows.dtype)
            rows["key"], rows["count"] = as_keys(ids), 1
            windows.append(rows)
        if len(self.words) == len(SPECIAL_WORDS):
            raise ValueError("lines: expected text, got no word at all.")
        for n, ids, counts, seen in _adjusted(windows.blocks(), order):
            self.counts_of_counts[n] += np.bincount(np.minimum(counts, 5), minlength=6)[:5]
            rows = np.zeros(len(ids), self.counted[n].dtype)
            rows["key"], rows["count"], rows["seen"] = as_keys(ids[:, ::-1]), counts, seen
            self.counted[n].append(rows)

    def discount(self) -> None:
        """Share of each n-gram in its context after discounting, and gamma of the context."""
        for n in self.orders:
            fallback = self.settings.discount_fallback
            discounts = discounts_of(self.counts_of_counts[n][1:], n, fallback=fallback)
            for rows, starts in whole_groups(self.counted[n].blocks(), n - 1):
                taken = discounts[np.minimum(rows["count"], 3)]
                kept = rows["seen"] > self.settings.prune_of(n)
                total = np.add.reduceat(rows["count"], starts)
                gamma = np.add.reduceat(np.where(kept, taken, rows["count"]), starts) / total
                lengths = np.diff(starts, append=len(rows))
                shares = np.zeros(len(rows), self.discounted[n].dtype)
                shares["key"] = as_keys(as_ids(rows["key"])[:, ::-1])
                shares["share"] = (rows["count"] - taken) / np.repeat(total, lengths)
                shares["gamma"] = np.repeat(gamma, lengths)
                self.discounted[n].append(shares[kept])
                self.num_ngrams[n - 1] += int(kept.sum())
                if n == 1:
                    unknown = np.array([(as_keys(np.array([[UNKNOWN]]))[0], 0.0, gamma[0])], shares.dtype)
                    self.discounted[n].append(unknown)
                else:
                    contexts = np.zeros(len(starts), self.gammas[n].dtype)
                    contexts["key"], contexts["value"] = as_keys(as_ids(rows["key"][starts])[:, :-1]), gamma
                    self.gammas[n].append(contexts)

    def interpolate(self) -> None:
        """Probability of each n-gram, from the lowest order up."""
        num_words = self.num_ngrams[0] + 1  # of which <unk> is one and <s> is none
        lower: Iterable[np.ndarray] = []
        for n in self.orders:
            probabilities = self._spool(f"probabilities{n}", n, value="f8")
            blocks = self.discounted[n].blocks()
            if n == 1:
                looked_up = ((rows, np.full(len(rows), 1 / num_words)) for rows in blocks)
            else:
                looked_up = look_up(blocks, _without_first_word, lower, missing=math.nan)
            for rows, below in looked_up:
                result = np.zeros(len(rows), probabilities.dtype)
                result["key"], result["value"] = rows["key"], rows["share"] + rows["gamma"] * below
                probabilities.append(result)
                forward = result.copy()
                forward["key"] = as_keys(as_ids(result["key"])[:, ::-1])
                self.estimated[n].append(forward)
            lower = probabilities.blocks()
        begin = np.zeros(1, self.estimated[1].dtype)
        begin["key"], begin["value"] = as_keys(np.array([[BEGIN]])), 1e-99  # never asked for
        self.estimated[1].append(begin)
        self.num_ngrams[0] += 2

    def write(self, file: TextIO) -> None:
        """The ARPA file: base-10 logarithms of probabilities and of gamma, the back-off weight of an n-gram."""
        file.write("\\data\\\n" + "".join(f"ngram {n}={self.num_ngrams[n - 1]}\n" for n in self.orders))
        for n in self.orders:
            file.write(f"\n\\{n}-grams:\n")
            table = self.gammas[n + 1].blocks() if n + 1 in self.orders else ()
            for rows, gammas in look_up(self.estimated[n].blocks(), _key, table, missing=1.0):
                numbers = zip(np.log10(rows["value"]).tolist(), np.log10(gammas).tolist(), strict=True)
                for ids, (probability, backoff) in zip(as_ids(rows["key"]).tolist(), numbers, strict=True):
                    end = f"\t{backoff:.8g}" if n < self.settings.order else ""
                    file.write(f"{probability:.8g}\t{' '.join(self.words[i] for i in ids)}{end}\n")
        file.write("\n\\end\\\n")


def _key(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows["key"])


def _without_first_word(rows: np.ndarray) -> np.ndarray:
    """Keys in suffix order, whose first word comes last."""
    return as_keys(as_ids(rows["key"])[:, :-1])


def _windows(lines: Iterable[Sequence[str]], words: list[str], order: int) -> Iterator[np.ndarray]:
    """[M, order] ids for every word and end of a sentence: itself, then those before it backwards, then padding.

    New words are added to `words`."""
    numbers = {word: i for i, word in enumerate(words)}
    ids: list[int] = []
    positions: list[int] = []

    def block() -> np.ndarray:
        flat, position = np.array(ids, dtype=np.int64), np.array(positions)
        columns = [np.where(position >= k, np.roll(flat, k), PAD) for k in range(order)]
        return np.stack(columns, axis=1)[position > 0]

    for number, line in enumerate(lines, start=1):
        if reserved := set(SPECIAL_WORDS[1:]) & set(line):
            raise ValueError(f"lines: line {number} holds {', '.join(sorted(reserved))}, which no text may have.")
        ids.append(BEGIN)
        for word in line:
            known = numbers.setdefault(word, len(numbers))
            if known == len(words):
                words.append(word)
            ids.append(known)
        ids.append(END)
        positions.extend(range(len(line) + 2))
        if len(ids) >= WORDS_PER_BLOCK:
            yield block()
            ids, positions = [], []
    if ids:
        yield block()


def _adjusted(blocks: Iterable[np.ndarray], order: int) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """(n, ids [M, n] backwards, adjusted counts [M], counts in the text [M]) of windows in suffix order.

    In that order all windows that end in one n-gram are neighbours, and among them all that have the same word before
    it, so that a new word is where the window differs from the one above it."""
    above = np.full((1, order), -1)
    open_groups: dict[int, tuple[np.ndarray, int, int]] = {}
    for rows in blocks:
        ids = as_ids(rows["key"]).astype(np.int64)
        is_new = np.logical_or.accumulate(ids != np.concatenate([above, ids[:-1]]), axis=1)
        above = ids[-1:]
        for n in range(1, order + 1):
            counts = rows["count"]
            if n < order:
                counts = np.where(ids[:, n - 1] == BEGIN, counts, is_new[:, n])
            starts = np.flatnonzero(is_new[:, n - 1])
            first = starts[0] if len(starts) else len(ids)
            # What stands above the first group that is new belongs to the last one of the block before.
            if n in open_groups:
                key, count, seen = open_groups[n]
                open_groups[n] = (key, count + counts[:first].sum(), seen + rows["count"][:first].sum())
            if not len(starts):
                continue
            keys = ids[starts, :n]
            counts, seen = np.add.reduceat(counts, starts), np.add.reduceat(rows["count"], starts)
            closed = (keys[:-1], counts[:-1], seen[:-1])
            if n in open_groups:
                closed = tuple(np.concatenate([np.array([a]), b]) for a, b in zip(open_groups[n], closed, strict=True))
            open_groups[n] = (keys[-1], counts[-1], seen[-1])
            yield _without_padding(n, *closed)
    for n, group in open_groups.items():
        yield _without_padding(n, *(np.array([part]) for part in group))


def _without_padding(n: int, ids: np.ndarray, counts: np.ndarray, seen: np.ndarray):
    words = ids[:, n - 1] != PAD
    return n, ids[words], counts[words], seen[words]


def add_command(subcommands: "argparse._SubParsersAction"):
    """The subcommand `ngram`."""
    parser = subcommands.add_parser("ngram", help="train an n-gram language model: text to ARPA")
    parser.add_argument("texts", metavar="TEXT", nargs="+", type=Path, help="one sentence per line; .gz, .jsonl too")
    parser.add_argument("--output", metavar="ARPA", type=Path, required=True)
    parser.add_argument("--order", type=int, default=NgramSettings.order, help="1 to 5; 4 unless told")
    parser.add_argument(
        "--prune", type=int, nargs="+", default=[0], help="count up to which n-grams are left out, per order: 0 0 1"
    )
    parser.add_argument("--tokenizer", metavar="FOLDER", help=UNITS_HELP)
    parser.add_argument(
        "--discount-fallback", action="store_true", help="0.5, 1, 1.5 where the counts give no discounts"
    )
    parser.add_argument("--memory-mib", type=int, default=NgramSettings.memory_mib, help="of each sort")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> dict:
    settings = NgramSettings(
        order=options.order,
        prune=options.prune,
        discount_fallback=options.discount_fallback,
        memory_mib=options.memory_mib,
    )
    lines = units_of(read_lines(options.texts), options.tokenizer)
    num_ngrams = train_ngram(lines, options.output, settings)
    return {"output": str(options.output), "num_ngrams": num_ngrams}
