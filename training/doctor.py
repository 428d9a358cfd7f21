"""Says what is wrong with a run, finished or running, and draws its curves beside those of a healthy one.

python -m training.doctor runs/mine
python -m training.doctor runs/mine --reference runs/of-last-week --output report
python -m training.doctor runs/mine --pictures codebook.png phones.png

Writes doctor.png and doctor.html, a page that needs nothing else. Ends with 1 if something is wrong at the end of the
log. The same symptoms are looked for while a run trains. Without --reference the reference is the run of the same
architecture among those measured in training/results.
"""

import argparse
import base64
import html
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from omegaconf import OmegaConf

import hf_wav2vec_family

from .curves import EVALUATION, Series, as_series, import_pyplot, read_lines, save_figure
from .findings import NOTE, NUM_LINES, Facts, Finding, Window
from .recipe import Recipe, configuration, family_class
from .symptoms import examine

RECIPE = "recipe.yaml"
RESULTS = Path(__file__).with_name("results")
PANELS = (
    "loss",
    "contrastive_loss",
    "accuracy",
    "code_perplexity",
    "codevector_perplexity",
    "used_codes_share",
    "wer",
    "cer",
    "gradient_norm",
    "clipped_share",
    "update_ratio",
    "learning_rate",
    "mask_share",
    "input_rms",
    "input_offset",
    "silent_share",
    "bad_row_share",
    "data_wait_share",
    "audio_seconds_per_second",
)
# of the whole run, to each side: what a reference showed within is the range at a place
BAND = 0.1
STYLE = (
    "body{font:15px sans-serif;max-width:75em;margin:2em auto}td,th{text-align:left;vertical-align:top;padding:.4em}"
)
STYLE += "tr.stop{background:#f4c7c3}tr.warning{background:#fce8b2}svg{width:100%;height:auto}"


def facts_of(recipe: Recipe) -> Facts:
    """What the symptoms need to know of a recipe."""
    known = {
        "max_bad_fraction": recipe.data.max_bad_fraction,
        "num_steps": recipe.optimization.num_steps,
        "overflows": recipe.optimization.mixed_precision == "fp16",
    }
    if recipe.pretrained is None and recipe.encoder is None and recipe.architecture != "DiscreteBert":
        config = configuration(family_class(recipe, "Config"), recipe.model)
        negatives = getattr(config, "num_negatives", None)
        known |= {
            "num_groups": getattr(config, "num_codevector_groups", None),
            "num_candidates": negatives + 1 if negatives else None,
        }
    return Facts(**known)


def facts_in(run: Path) -> Facts:
    """The facts of the recipe that a run left in its folder; none where there is no recipe."""
    path = run / RECIPE
    if not path.exists():
        return Facts()
    return facts_of(OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Recipe), OmegaConf.load(path))))


@dataclass
class Watch:
    """Looks at a log line by line, and tells a finding when it comes up, not as long as it lasts."""

    facts: Facts
    training: list[dict] = field(default_factory=list)
    evaluation: list[dict] = field(default_factory=list)
    present: set[str] = field(default_factory=set)

    def look(self, line: dict) -> list[Finding]:
        """What came up with a `line` of the log, with its `step`."""
        if any(name.startswith(EVALUATION) for name in line):
            self.evaluation.append(line)
        else:
            self.training = [*self.training[1 - NUM_LINES :], line]
        found = examine(Window(self.training, self.evaluation, self.facts))
        new = [finding for finding in found if finding.name not in self.present]
        self.present = {finding.name for finding in found}
        return new


@dataclass
class Episode:
    """A finding and the steps of the log between which it was there; `lasts` until the end."""

    finding: Finding
    first_step: int
    last_step: int
    lasts: bool


def judge(lines: list[dict], facts: Facts) -> list[Episode]:
    """Every finding of a whole log, in the order in which they came up."""
    watch, episodes, open_ones = Watch(facts), [], {}
    for line in lines:
        for finding in watch.look(line):
            open_ones[finding.name] = Episode(finding, line["step"], line["step"], True)
            episodes.append(open_ones[finding.name])
        for name, episode in list(open_ones.items()):
            if name in watch.present:
                episode.last_step = line["step"]
            else:
                open_ones.pop(name).lasts = False
    return episodes


@dataclass
class Reference:
    """A healthy run to compare with: its `series`, and `num_steps` of it."""

    name: str
    series: dict[str, Series]
    num_steps: int

    def band(self, name: str, num_steps: int | None) -> tuple[list[float], list[float], list[float]]:
        """The range of a number: steps of a run of `num_steps`, lowest and highest values near the same part of it."""
        steps, values = self.series[name]
        scale = (num_steps or self.num_steps) / self.num_steps
        near = [
            [value for other, value in zip(steps, values, strict=True) if abs(other - step) <= BAND * self.num_steps]
            for step in steps
        ]
        return [step * scale for step in steps], [min(values) for values in near], [max(values) for values in near]


def reference_of(lines: list[dict], name: str, num_steps: int | None = None) -> Reference:
    return Reference(name, as_series(lines), num_steps or max(line["step"] for line in lines))


def measured_reference(run: Path, series: dict[str, Series]) -> Reference | None:
    """The run in training/results of the same architecture that logged most of the same numbers, if there is one."""
    if not (run / RECIPE).exists():
        return None
    architecture = OmegaConf.load(run / RECIPE).get("architecture", Recipe().architecture)
    model_type = getattr(hf_wav2vec_family, f"{architecture}Config").model_type.replace("-", "_")
    found = []
    for path in sorted(RESULTS.glob("*.json")):
        for name, measured in json.loads(path.read_text())["runs"].items():
            full_name = name if "/" in name else f"{path.stem}: {name}"
            if full_name.startswith((f"{model_type}/", f"{model_type}_")):
                found.append(reference_of(measured["series"], full_name, measured["summary"]["steps"]))
    return max(found, key=lambda reference: len(series.keys() & reference.series.keys()), default=None)


def behind(series: dict[str, Series], reference: Reference, num_steps: int | None) -> Finding | None:
    """An accuracy of less than half of what the reference had at the same part of its run."""
    if "accuracy" not in series or "accuracy" not in reference.series:
        return None
    steps, values = series["accuracy"]
    at, low, _ = reference.band("accuracy", num_steps)
    place = min(range(len(at)), key=lambda i: abs(at[i] - steps[-1]))
    now = median(values[-3:])
    if steps[-1] < at[0] or now >= 0.5 * low[place]:
        return None
    return Finding(
        "behind the reference",
        NOTE,
        f"an accuracy of {now:.1%} where {reference.name} had {low[place]:.1%} and more.",
        "other data, another model, other settings, or a run that goes wrong.",
        "compare both recipes; what another run had is no law.",
    )


def draw(run: Path, series: dict[str, Series], episodes: list[Episode], reference: Reference | None, facts: Facts):
    """A matplotlib figure: a panel for each number of `PANELS`, the reference's range behind it."""
    pyplot = import_pyplot()
    panels = [panel for panel in PANELS if {panel, EVALUATION + panel} & series.keys()]
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(3.6 * columns, 2.7 * rows), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    begins = [episode.first_step for episode in episodes if episode.finding.severity != NOTE]
    for axis, panel in zip(axes.flat, panels, strict=False):
        for name, style in ((panel, "C0-"), (EVALUATION + panel, "C0o--")):
            if reference is not None and name in reference.series:
                axis.fill_between(*reference.band(name, facts.num_steps), color="C2", alpha=0.25, linewidth=0)
            if name in series:
                axis.plot(*series[name], style, markersize=3, linewidth=1)
        for step in begins:
            axis.axvline(step, color="C3", linewidth=0.8, alpha=0.6)
        axis.set_title(panel, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    beside = f"; green: {reference.name}" if reference is not None else ""
    figure.suptitle(f"{run}{beside}; red: where something came up", fontsize=9)
    return figure


def page(run: Path, episodes: list[Episode], reference: Reference | None, picture: str, last_step: int) -> str:
    """One HTML page with everything in it; `picture` is a part of it, such as SVG."""
    columns = ("what", "steps", "seen", "likely cause", "lever")
    rows = []
    for episode in episodes:
        finding = episode.finding
        steps = f"{episode.first_step} to {'the end' if episode.lasts else episode.last_step}"
        cells = (finding.name, steps, finding.seen, finding.cause, finding.lever)
        rows.append(
            f'<tr class="{finding.severity}">' + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
        )
    head = "".join(f"<th>{column}</th>" for column in columns)
    table = f"<table><tr>{head}</tr>{''.join(rows)}</table>" if rows else "<p>Nothing is wrong that would show.</p>"
    title = html.escape(f"{run}, {last_step} steps")
    beside = f"<p>Green: the range of {html.escape(reference.name)}.</p>" if reference is not None else ""
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body><h1>{title}</h1>{table}{beside}{picture}</body></html>\n"
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


def examine_run(
    run: Path, output: Path, reference: Reference | None = None, pictures: Sequence[Path] = ()
) -> list[Episode]:
    """Judges the log in a run's folder and writes `output`/doctor.png and doctor.html, with `pictures` below its
    curves.

    Raises:
        ValueError: the folder holds no log, or an empty one.
    """
    lines, facts = read_lines(run), facts_in(run)
    if not lines:
        raise ValueError(f"{run}/log.jsonl has no whole line yet.")
    series = as_series(lines)
    reference = reference or measured_reference(run, series)
    episodes = judge(lines, facts)
    if reference is not None:
        finding = behind(series, reference, facts.num_steps)
        last = lines[-1]["step"]
        episodes += [Episode(finding, last, last, True)] if finding is not None else []
    figure = draw(run, series, episodes, reference, facts)
    text = page(run, episodes, reference, as_svg(figure) + as_figures(pictures), lines[-1]["step"])
    save_figure(figure, output / "doctor.png")
    (output / "doctor.html").write_text(text)
    return episodes


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the output_dir of a run")
    parser.add_argument("--reference", type=Path, help="the output_dir of a healthy run to compare with")
    parser.add_argument("--output", type=Path, help="folder for doctor.png and doctor.html; RUN by default")
    parser.add_argument("--pictures", nargs="+", type=Path, default=[], help="PNG files to put into doctor.html too")
    options = parser.parse_args(arguments)
    reference = None
    if options.reference is not None:
        num_steps = facts_in(options.reference).num_steps
        reference = reference_of(read_lines(options.reference), str(options.reference), num_steps)
    episodes = examine_run(options.run, options.output or options.run, reference, options.pictures)
    for episode in episodes:
        print(f"steps {episode.first_step} to {'the end' if episode.lasts else episode.last_step}: {episode.finding}")
    wrong = [episode for episode in episodes if episode.lasts and episode.finding.severity != NOTE]
    if not wrong:
        print("Nothing is wrong at the end of the log that would show.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
