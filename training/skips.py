"""Rows that are left out: why, how many, and when there are too many of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

NUM_ROWS_TO_JUDGE = 100  # before so many rows a share of bad ones means nothing
NUM_EXAMPLES = 5
SKIP_REASONS = ("bad", "too_short", "too_long", "bad_text", "too_many_labels", "damaged", "alone")


@dataclass(frozen=True)
class Skip:
    """A row that is left out and counted under `reason`, one of `SKIP_REASONS`; the message names it.

    One that is "damaged" stands for all that is lost of the shard of that number; one that is "alone" has too few
    others in its batch.
    """

    reason: str
    message: str
    shard: int | None = None


class UnusableRow(Exception):
    """Raised by whoever finds that a row must be left out."""

    def __init__(self, reason: str, message: str, shard: int | None = None):
        super().__init__(message)
        self.skip = Skip(reason, message, shard)


@dataclass
class Report:
    """What became of the rows of one rank, summed over epochs; the sum over all ranks counts every row once.

    `rows` were seen, `skipped` of them left out per reason, `examples` are the first messages per reason, and
    `damaged_shards` the numbers of those, each once.
    """

    rows: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    damaged_shards: list[int] = field(default_factory=list)

    def __post_init__(self):
        # of a state that was saved before there were as many reasons
        self.skipped = dict.fromkeys(SKIP_REASONS, 0) | self.skipped
        self.examples = {reason: [] for reason in SKIP_REASONS} | self.examples

    @property
    def used(self) -> int:
        return self.rows - sum(self.skipped.values())

    def count(self, num_rows: int, skips: list[Skip]) -> None:
        self.rows += num_rows
        for skip in skips:
            self.skipped[skip.reason] += 1
            if len(self.examples[skip.reason]) < NUM_EXAMPLES:
                self.examples[skip.reason].append(skip.message)
            if skip.shard is not None and skip.shard not in self.damaged_shards:
                self.damaged_shards.append(skip.shard)

    @classmethod
    def sum_of(cls, reports: "Sequence[Report]") -> "Report":
        """One report of what several ranks have seen."""
        skipped = {reason: sum(report.skipped[reason] for report in reports) for reason in SKIP_REASONS}
        examples = {r: [e for report in reports for e in report.examples[r]][:NUM_EXAMPLES] for r in SKIP_REASONS}
        damaged = sorted({shard for report in reports for shard in report.damaged_shards})
        return cls(sum(report.rows for report in reports), skipped, examples, damaged)

    def refuse_too_many_bad(self, max_bad_fraction: float) -> None:
        """ValueError if more than `max_bad_fraction` of at least `NUM_ROWS_TO_JUDGE` rows could not be decoded."""
        num_bad = self.skipped["bad"]
        if self.rows >= NUM_ROWS_TO_JUDGE and num_bad > max_bad_fraction * self.rows:
            raise ValueError(
                f"{num_bad} of {self.rows} rows ({num_bad / self.rows:.1%}) have no usable audio; max_bad_fraction is"
                f" {max_bad_fraction:.1%}. The first: {' | '.join(self.examples['bad'])}"
            )

    def refuse_too_many_damaged(self, max_bad_fraction: float, num_shards: int) -> None:
        """ValueError if more than `max_bad_fraction` of all shards are damaged; how many rows that is nobody knows."""
        num_damaged = len(self.damaged_shards)
        if num_damaged > max_bad_fraction * num_shards:
            raise ValueError(
                f"{num_damaged} of {num_shards} shards ({num_damaged / num_shards:.1%}) are damaged; max_bad_fraction"
                f" is {max_bad_fraction:.1%}. The first: {' | '.join(self.examples['damaged'])}"
            )

    def refuse_nothing_used(self) -> None:
        """ValueError if all rows were left out."""
        if not self.used:
            counts = ", ".join(f"{number} {reason}" for reason, number in self.skipped.items() if number)
            examples = " | ".join(chain.from_iterable(self.examples.values()))
            raise ValueError(f"None of {self.rows} rows could be used ({counts or 'no source has any'}). {examples}")
