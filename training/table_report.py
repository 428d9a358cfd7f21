"""What was measured of a table beside the paper: as Markdown, as a picture, and whether the order is the paper's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from .curves import import_pyplot, save_figure
from .paper_tables import Claim, Scale, Table

HOLDS, UNDECIDED, MISSES, NOT_MEASURED = "holds", "undecided", "does not hold", "not measured"


@dataclass(frozen=True)
class Spread:
    """Mean of the seeds, and the deviation of a sample; None for one seed."""

    mean: float
    deviation: float | None = None
    num_seeds: int = 1

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(float(np.mean(values)), deviation, len(values))

    @classmethod
    def of_paper(cls, number: float | Sequence[float]) -> "Spread":
        """A number of the paper, alone or with its deviation."""
        return cls(*number) if isinstance(number, list) else cls(number)

    def text(self, digits: int | None = None) -> str:
        def number(value: float) -> str:
            return f"{value:g}" if digits is None else f"{value:.{digits}f}"

        return number(self.mean) + ("" if self.deviation is None else f" ± {number(self.deviation)}")


# column -> cell -> what was found
Found = dict[str, dict[str, Spread]]


@dataclass(frozen=True)
class Verdict:
    """Of a claim in a column: one of the words above, and the numbers that it rests on."""

    claim: str
    column: str
    result: str
    numbers: str


def difference(better: Spread, worse: Spread, direction: str) -> tuple[float, float]:
    """How far `better` is ahead, and the deviation of that between runs; 0 where each has one seed only."""
    ahead = (better.mean - worse.mean) * (1 if direction == "higher" else -1)
    return ahead, math.hypot(better.deviation or 0.0, worse.deviation or 0.0)


def judge_order(cells: Sequence[str], found: dict[str, Spread], direction: str) -> str:
    """Whether each cell is ahead of the next.

    It does not hold if a neighbour is the wrong way round by more than the deviation of the difference of two runs; it
    is undecided if one is nearer than that, whichever way.
    """
    gaps = [difference(found[a], found[b], direction) for a, b in pairwise(cells)]
    if any(ahead <= 0 and -ahead >= noise for ahead, noise in gaps):
        return MISSES
    return HOLDS if all(ahead > noise for ahead, noise in gaps) else UNDECIDED


def judge_narrower(pairs: Sequence[Sequence[str]], found: dict[str, Spread]) -> str:
    """Whether the second pair lies nearer together than the first, by the same rule."""
    (wide, wide_noise), (narrow, narrow_noise) = (difference(found[a], found[b], "higher") for a, b in pairs)
    ahead, noise = abs(wide) - abs(narrow), math.hypot(wide_noise, narrow_noise)
    if ahead <= 0 and -ahead >= noise:
        return MISSES
    return HOLDS if ahead > noise else UNDECIDED


def judge(claim: Claim, column: str, found: dict[str, Spread], direction: str, titles: dict[str, str]) -> Verdict:
    """The verdict on a claim in a column of which `found` has the cells that were measured."""
    cells = claim.order or [cell for pair in claim.narrower for cell in pair]
    numbers = ", ".join(f"{titles[cell]} {found[cell].text(1)}" for cell in cells if cell in found)
    missing = [titles[cell] for cell in cells if cell not in found]
    if missing:
        return Verdict(claim.text, column, NOT_MEASURED, f"without {', '.join(missing)}")
    narrower = bool(claim.narrower)
    result = judge_narrower(claim.narrower, found) if narrower else judge_order(cells, found, direction)
    return Verdict(claim.text, column, result, numbers)


def verdicts(table: Table, scale: Scale, found: Found) -> list[Verdict]:
    """On every claim, in each column that stands for one that the paper says it of."""
    titles = {key: cell.title for key, cell in table.cells.items()}
    judged = []
    for claim in table.claims:
        for key, column in scale.columns.items():
            if claim.columns is None or column.paper in claim.columns:
                judged.append(judge(claim, column.title, found.get(key, {}), column.better, titles))
    return judged


def markdown(table: Table, scale: Scale, found: Found) -> str:
    """The table, each number with that of the paper beside it, and the verdicts."""
    papers = list(dict.fromkeys(c.paper for c in scale.columns.values() if c.paper))
    head = ["", *(column.title for column in scale.columns.values())]
    head += [f"paper: {table.numbers[key]}" for key in papers]
    rows = [head, ["---"] * len(head)]
    for key, cell in table.cells.items():
        ours = [found.get(column, {}).get(key) for column in scale.columns]
        theirs = [cell.paper.get(number) for number in papers]
        row = [cell.title, *("" if spread is None else spread.text(2) for spread in ours)]
        rows.append([*row, *("" if number is None else Spread.of_paper(number).text() for number in theirs)])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    seeds = sorted({spread.num_seeds for column in found.values() for spread in column.values()})
    made = "One seed." if seeds == [1] else f"Mean ± deviation of {' or '.join(map(str, seeds)) or 'no'} seeds."
    lines += ["", f"{made} {scale.note}".strip(), ""]
    for verdict in verdicts(table, scale, found):
        lines.append(f"- {verdict.claim} ({verdict.column}): **{verdict.result}**; {verdict.numbers}.")
    return "\n".join(lines) + "\n"


def draw(table: Table, scale: Scale, found: Found, path: Path):
    """Ours above, the paper's below, a panel per column: a curve over `x` where all cells have one, else bars."""
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(2, len(scale.columns), figsize=(4.2 * len(scale.columns), 6), squeeze=False)
    for (key, column), axis, below in zip(scale.columns.items(), *axes, strict=True):
        draw_panel(axis, table, found.get(key, {}), f"here: {column.title}")
        numbers = {name: cell.paper[column.paper] for name, cell in table.cells.items() if column.paper in cell.paper}
        if numbers:
            spreads = {name: Spread.of_paper(number) for name, number in numbers.items()}
            draw_panel(below, table, spreads, f"paper: {table.numbers[column.paper]}")
        else:
            below.set_axis_off()
    save_figure(figure, path)


def draw_panel(axis, table: Table, spreads: dict[str, Spread], title: str):
    cells = [(cell, spreads[name]) for name, cell in table.cells.items() if name in spreads]
    means, deviations = [spread.mean for _, spread in cells], [spread.deviation or 0.0 for _, spread in cells]
    if all(cell.x is not None for cell in table.cells.values()):
        axis.errorbar([cell.x for cell, _ in cells], means, deviations, marker="o", capsize=3)
        axis.set_xlabel(table.x_title, fontsize=8)
    else:
        axis.barh([cell.title for cell, _ in cells], means, xerr=deviations, capsize=3)
        axis.invert_yaxis()
    axis.set_title(title, fontsize=9)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)
