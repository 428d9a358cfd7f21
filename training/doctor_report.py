"""What the doctor leaves: the curves of a run beside what is healthy, as a picture and as a page that needs no other.

Numbers of what is learned have the range of a healthy run behind them; those that symptoms.py judges by a fixed limit
have the side of it that is healthy.
"""

import base64
import html
import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from .curves import EVALUATION, Series, import_pyplot
from .findings import HEALTHY, NOTE, Episode
from .reference import Reference

COLUMNS = 4
RUN, SEEN, WELL, WRONG = "#1f5fa8", "#e07b00", "#3a9d57", "#c0392b"
# A subject a row: what is drawn where a log has it, in what unit.
GROUPS = {
    "What it learns": {
        "loss": "loss",
        "contrastive_loss": "contrastive loss",
        "accuracy": "accuracy, %",
        "wer": "word error rate, %",
        "cer": "letter error rate, %",
        "per": "phone error rate, %",
    },
    "Codebook": {
        "code_perplexity": "perplexity of the codes chosen",
        "codevector_perplexity": "perplexity of their probabilities",
        "used_codes_share": "entries in use, %",
    },
    "Steps": {
        "gradient_norm": "norm of the gradient",
        "clipped_share": "gradients scaled down, %",
        "update_ratio": "update, % of the weights",
        "learning_rate": "learning rate",
    },
    "Data and machine": {
        "input_rms": "level of the clips",
        "input_offset": "offset, % of the level",
        "silent_share": "silent clips, %",
        "bad_row_share": "broken rows, %",
        "mask_share": "masked frames, %",
        "data_wait_share": "time waiting for data, %",
        "audio_seconds_per_second": "audio per second, s",
    },
}
LOGARITHMIC = ("gradient_norm", "update_ratio", "input_rms")
STYLE = """
body{font:15px/1.45 system-ui,sans-serif;color:#222;max-width:76em;margin:2em auto;padding:0 1em}
h1{font-size:1.35em;margin-bottom:.2em}p{margin:.3em 0}table{border-collapse:collapse;margin:1em 0}
td,th{text-align:left;vertical-align:top;padding:.45em .7em;border-bottom:1px solid #ddd}
th{font-weight:600}td:first-child{font-weight:600;white-space:nowrap}
tr.stop td:first-child{border-left:5px solid #c0392b}tr.warning td:first-child{border-left:5px solid #e6a700}
tr.note td:first-child{border-left:5px solid #9aa5b1}.well{color:#2b7a43}svg{width:100%;height:auto}
"""


@dataclass
class Report:
    """All that is shown of a `run`: `num_steps` of `planned` (None where no recipe says) were done."""

    run: Path
    series: dict[str, Series]
    episodes: list[Episode]
    reference: Reference | None
    num_steps: int
    planned: int | None

    @property
    def title(self) -> str:
        return f"{self.run}: {self.num_steps:,}" + (f" of {self.planned:,} steps" if self.planned else " steps")

    @property
    def is_well(self) -> bool:
        return not self._lasting

    @property
    def _lasting(self) -> list[str]:
        return [e.finding.name for e in self.episodes if e.lasts and e.finding.severity != NOTE]

    @property
    def verdict(self) -> str:
        if self._lasting:
            return f"Wrong at the end of the log: {', '.join(self._lasting)}."
        return "Nothing is wrong at the end of the log that would show."

    @property
    def numbered(self) -> list[tuple[int, Episode]]:
        """The episodes that are marked in the curves, counted from 1."""
        return list(enumerate((e for e in self.episodes if e.finding.severity != NOTE), start=1))

    def marks(self) -> list[tuple[int, str]]:
        """Steps at which something came up, and its numbers; what is too close to be told apart is one mark."""
        marks: list[tuple[int, str]] = []
        for number, episode in self.numbered:
            if marks and episode.first_step - marks[-1][0] < 0.03 * self.num_steps:
                marks[-1] = (marks[-1][0], f"{marks[-1][1]}, {number}")
            else:
                marks.append((episode.first_step, str(number)))
        return marks


def draw(report: Report):
    """A matplotlib figure: a row of panels for each subject, what is healthy behind the curves."""
    pyplot = import_pyplot()
    known = {name.removeprefix(EVALUATION) for name in report.series}
    rows = []
    for subject, names in GROUPS.items():
        found = [name for name in names if name in known]
        rows += [(subject if i == 0 else "", found[i : i + COLUMNS]) for i in range(0, len(found), COLUMNS)]
    figure = pyplot.figure(figsize=(3.7 * COLUMNS, 1.2 + 2.55 * len(rows)), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08, w_pad=0.06)
    axes = figure.subplots(len(rows), COLUMNS, squeeze=False)
    for line, (subject, names) in zip(axes, rows, strict=True):
        if subject:
            line[0].annotate(subject, (0, 1.22), xycoords="axes fraction", fontsize=12, fontweight="bold")
        for axis in line[len(names) :]:
            axis.set_axis_off()
        for axis, name in zip(line, names, strict=False):
            draw_panel(axis, name, report)
    _head(figure, report)
    return figure


def draw_panel(axis, name: str, report: Report):
    title = next(names[name] for names in GROUPS.values() if name in names)
    scale = 100.0 if ", %" in title else 1.0
    lowest, highest = _healthy(axis, name, report, scale)
    for key, style in ((name, {"color": RUN}), (EVALUATION + name, {"color": SEEN, "marker": "o", "markersize": 4})):
        if key not in report.series:
            continue
        steps, values = report.series[key]
        values = [value * scale for value in values]
        if key == name and len(values) > 30:
            axis.plot(steps, values, color=RUN, linewidth=0.6, alpha=0.35)
            values = smoothed(values)
        axis.plot(steps, values, linewidth=1.5, **style)
        finite = [value for value in values if math.isfinite(value)]
        lowest, highest = min([lowest, *finite]), max([highest, *finite])
    if name in LOGARITHMIC and 0 < lowest < math.inf:
        axis.set_yscale("log")
        axis.set_ylim(0.7 * lowest, 1.4 * highest)
        for formatted in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            formatted(lambda value, _: f"{value:g}")
    elif scale == 100.0 and 0 <= lowest < math.inf:
        axis.set_ylim(0, max(1.05 * highest, 1.0))
    for step, numbers in report.marks():
        axis.axvline(step, color=WRONG, linewidth=1, linestyle=":")
        axis.annotate(numbers, (step, 1.0), xycoords=("data", "axes fraction"), color=WRONG, fontsize=8)
    axis.set_title(title, fontsize=9.5, loc="left", pad=11)
    axis.set_xlim(0, max(report.num_steps, 1))
    axis.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    axis.xaxis.set_major_locator(import_pyplot().MaxNLocator(5, integer=True))
    axis.tick_params(which="both", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)


def _healthy(axis, name: str, report: Report, scale: float) -> tuple[float, float]:
    """Draws the range of the reference, or the side of a fixed limit, and returns what of it has to be seen."""
    reference = report.reference
    if name in HEALTHY:
        low, high = (scale * limit for limit in HEALTHY[name])
        axis.axhspan(low, high, color=WELL, alpha=0.13, linewidth=0)
        return (low, high) if name not in LOGARITHMIC else (math.inf, -math.inf)
    found = [key for key in (name, EVALUATION + name) if reference is not None and key in reference.series]
    if not found:
        return math.inf, -math.inf
    steps, low, high = reference.band(found[0], report.planned)
    seen = [i for i, step in enumerate(steps) if step <= 1.05 * report.num_steps] or [0]
    low, high = [scale * low[i] for i in seen], [scale * high[i] for i in seen]
    axis.fill_between([steps[i] for i in seen], low, high, color=WELL, alpha=0.22, linewidth=0)
    return min(low), max(high)


def smoothed(values: list[float]) -> list[float]:
    """The median of the values around each, an eightieth of all to each side."""
    reach = max(len(values) // 80, 2)
    return [median(values[max(i - reach, 0) : i + reach + 1]) for i in range(len(values))]


def _head(figure, report: Report):
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    beside = f", or of {report.reference.name}" if report.reference is not None else ""
    marks = [f"{number}: {episode.finding.name}, steps {episode.steps}" for number, episode in report.numbered]
    lines = [f"{report.title}. {report.verdict}", *textwrap.wrap("   ".join(marks), 170)]
    figure.suptitle("\n".join(lines), fontsize=11, color="black" if report.is_well else WRONG, x=0.01, ha="left")
    handles = [
        Line2D([], [], color=RUN, linewidth=1.5, label="training (median of neighbours)"),
        Line2D([], [], color=SEEN, marker="o", markersize=4, label="evaluation"),
        Patch(color=WELL, alpha=0.22, label=f"healthy: within the limits of the symptoms{beside}"),
    ]
    if marks:
        handles.append(Line2D([], [], color=WRONG, linestyle=":", label="something came up"))
    figure.legend(handles=handles, loc="outside lower left", ncols=4, fontsize=9, frameon=False)


def page(report: Report, picture: str) -> str:
    """One HTML page with everything in it; `picture` is a part of it, such as SVG."""
    numbers = {id(episode): f"{number}: " for number, episode in report.numbered}
    rows = []
    for episode in report.episodes:
        finding = episode.finding
        name = numbers.get(id(episode), "") + finding.name
        cells = (name, episode.steps, finding.seen, finding.cause, finding.lever)
        rows.append(
            f'<tr class="{finding.severity}">' + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
        )
    head = "".join(f"<th>{column}</th>" for column in ("what", "steps", "seen", "likely cause", "lever"))
    table = f"<table><tr>{head}</tr>{''.join(rows)}</table>" if rows else ""
    title = html.escape(report.title)
    well = ' class="well"' if report.is_well else ""
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body><h1>{title}</h1><p{well}>{html.escape(report.verdict)}</p>{table}{picture}</body></html>\n"
    )


def as_svg(figure) -> str:
    """The figure as an element of a page, without the head of a file of its own."""
    text = io.StringIO()
    figure.savefig(text, format="svg")
    return text.getvalue()[text.getvalue().index("<svg") :]


def as_figures(pictures: Sequence[Path]) -> str:
    """PNG files as elements of a page, their bytes within it."""
    figures = []
    for path in pictures:
        data, name = base64.b64encode(path.read_bytes()).decode(), html.escape(path.name)
        figures.append(f'<figure><img alt="{name}" src="data:image/png;base64,{data}"></figure>')
    return "".join(figures)
