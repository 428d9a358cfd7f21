"""How long rows are, of metadata or of the headers of their files, and budgets of labels counted in it."""

from collections.abc import Iterator
from random import Random

from hf_wav2vec_family.audio_reading import AudioError, audio_info

from .rows import Row
from .skips import UnusableRow


def duration_seconds_of(row: Row) -> float:
    if row.duration_seconds is not None:
        return row.duration_seconds
    try:
        return audio_info(row.audio).duration_seconds
    except AudioError as error:
        raise UnusableRow("bad", f"{row.id}: {error}") from error


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
            seconds.append(duration_seconds_of(row))
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
