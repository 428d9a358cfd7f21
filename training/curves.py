"""Learning curves of finished or running runs, from their log.jsonl.

python -m training.curves runs/mine/pretraining runs/mine/finetuning --output curves.png
python -m training.curves runs/cpc runs/wav2vec --together --panels accuracy --output accuracy.png
python -m training.curves runs/cpc runs/wav2vec --ahead --output ahead.png
python -m training.curves runs/mine --paper training/recipes/wav2vec2/base_ls960.yaml --output curves.png

With `--paper` the schedules of a recipe stand beside those of the runs, stretched over as many steps and, the learning
rate, to the same peak: whether a short run rises and falls as the paper's did.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from .recipe import OptimizationRecipe, learning_rates, load_recipe, temperatures

# drawn where a log has them, one panel each; training and evaluation share a panel
PANELS = (
    *("loss", "contrastive_loss", "accuracy", "codevector_perplexity", "wer", "cer", "per"),
    *("learning_rate", "gumbel_temperature"),
)
EVALUATION = "evaluation/"
# what every recipe asks for and schedules do not depend on
UNUSED = ("data.train=unused", "run.output_dir=unused")
# steps and values
Series = tuple[list[int], list[float]]


def read_lines(run: Path) -> list[dict]:
    """The lines of a run's log; a last one that is still being written is left out."""
    path = run / "log.jsonl"
    if not path.exists():
        raise ValueError(f"{run} holds no log.jsonl; give the output_dir of a run.")
    lines = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if not isinstance(record, dict) or "step" not in record:
            raise ValueError(f"{path}, line {len(lines) + 1}: expected an object with a step, got {line[:80]!r}.")
        lines.append(record)
    return lines


def as_series(lines: Iterable[dict]) -> dict[str, Series]:
    """Each number of some lines of a log -> the steps it was logged at and its values."""
    series: dict[str, Series] = {}
    for line in lines:
        for name, value in line.items():
            if name != "step":
                steps, values = series.setdefault(name, ([], []))
                steps.append(line["step"])
                values.append(value)
    return series


def read_log(run: Path) -> dict[str, Series]:
    """Each logged number of a run -> the steps it was logged at and its values."""
    return as_series(read_lines(run))


def names_of(runs: list[Path]) -> dict[str, Path]:
    """The runs by the last part of their path, or by the whole of it where that is not enough."""
    short = [run.name for run in runs]
    return dict(zip(short if len(set(short)) == len(runs) else map(str, runs), runs, strict=True))


def import_pyplot():
    """Matplotlib's pyplot, for files: no window, and nothing imported before a picture is asked for."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_figure(figure, output: Path):
    figure.tight_layout()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)
    import_pyplot().close(figure)


def num_steps_of(run: Path) -> int:
    """The steps a run has when it is finished, or has made, where its recipe is not beside its log."""
    recipe = run / "recipe.yaml"
    if recipe.exists():
        return load_recipe(recipe, UNUSED).optimization.num_steps
    return read_lines(run)[-1]["step"]


def schedules_of(paper: OptimizationRecipe, log: dict[str, Series], last: int) -> dict[str, Series]:
    """What schedules of the shape of the paper's are over `last` steps, the learning rate up to the log's highest."""
    steps = [round(i * last / 200) for i in range(201)]
    stretched = {}
    for panel, schedule in (("learning_rate", learning_rates(paper)), ("gumbel_temperature", temperatures(paper))):
        if schedule is not None and panel in log:
            scale = max(log[panel][1]) / paper.learning_rate if panel == "learning_rate" else 1.0
            stretched[panel] = steps, [scale * schedule(round(s * paper.num_steps / last)) for s in steps]
    return stretched


def draw_run(axis, panel: str, log: dict[str, Series], *, name: str, color: str):
    """One number of one run: a line for training, points for evaluations."""
    if panel in log:
        axis.plot(*log[panel], color=color, linewidth=1, label=f"{name}, training")
    if EVALUATION + panel in log:
        axis.plot(*log[EVALUATION + panel], f"{color}o--", markersize=3, label=f"{name}, evaluation")


def draw_curves(
    runs: dict[str, list[Path]],
    output: Path,
    panels: Sequence[str] = PANELS,
    *,
    paper: OptimizationRecipe | None = None,
):
    """One row of panels per entry of `runs`; the runs of a row are drawn over each other. Writes a PNG.

    Args:
        paper: whose schedules are drawn beside those of the runs.

    Raises ValueError where the logs of a row have none of `panels`.
    """
    pyplot = import_pyplot()
    logs = {title: {name: read_log(run) for name, run in names_of(folders).items()} for title, folders in runs.items()}
    found = {
        title: [p for p in panels if any({p, EVALUATION + p} & set(log) for log in by_run.values())]
        for title, by_run in logs.items()
    }
    for title, names in found.items():
        if not names:
            logged = sorted({name for log in logs[title].values() for name in log})
            raise ValueError(f"{title} has no {', '.join(panels)}; logged are {', '.join(logged)}.")
    asked = {
        title: {
            name: {} if paper is None else schedules_of(paper, logs[title][name], num_steps_of(run))
            for name, run in names_of(folders).items()
        }
        for title, folders in runs.items()
    }
    width = max(len(names) for names in found.values())
    figure, axes = pyplot.subplots(len(logs), width, figsize=(3.6 * width, 3.0 * len(logs)), squeeze=False)
    for row, (title, by_run) in zip(axes, logs.items(), strict=True):
        for axis in row[len(found[title]) :]:
            axis.set_axis_off()
        for axis, panel in zip(row, found[title], strict=False):
            for i, (run, log) in enumerate(by_run.items()):
                draw_run(axis, panel, log, name=run, color=f"C{i}")
                if panel in asked[title][run]:
                    axis.plot(*asked[title][run][panel], color=f"C{i}", linestyle=":", label="the paper's")
                    axis.legend(fontsize=7)
            axis.set_title(f"{title}: {panel}", fontsize=9)
            axis.set_xlabel("step", fontsize=8)
            axis.tick_params(labelsize=7)
            axis.grid(alpha=0.3)
        row[0].legend(fontsize=7)
    save_figure(figure, output)


def draw_accuracy_ahead(runs: list[Path], output: Path):
    """Accuracy of predicting the frame 1, 2, ... K steps ahead, of each run at its last evaluation.

    Figure 3 of van den Oord et al., 2018 (arXiv:1807.03748). Writes a PNG.
    """
    pyplot = import_pyplot()
    figure, axis = pyplot.subplots(figsize=(5, 3.6))
    prefix = EVALUATION + "step_accuracies/"
    for name, run in names_of(runs).items():
        last = {
            int(key.removeprefix(prefix)): values[-1]
            for key, (_, values) in read_log(run).items()
            if key.startswith(prefix)
        }
        if not last:
            raise ValueError(f"{run} has no {prefix}1 in its log: its model does not predict step by step.")
        axis.plot(sorted(last), [last[ahead] for ahead in sorted(last)], marker=".", label=name)
    axis.set(xlabel="steps ahead", ylabel="accuracy, last evaluation", ylim=(0, None))
    axis.legend(fontsize=7)
    save_figure(figure, output)


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=Path("curves.png"))
    parser.add_argument("--together", action="store_true", help="all runs over each other instead of a row for each")
    parser.add_argument("--panels", nargs="+", default=PANELS, help="which of the logged numbers to draw")
    parser.add_argument("--ahead", action="store_true", help="accuracy against the step predicted, instead of curves")
    parser.add_argument("--paper", type=Path, help="a recipe, whose schedules are drawn beside those of the runs")
    options = parser.parse_args(arguments)
    if options.ahead:
        return draw_accuracy_ahead(options.runs, options.output)
    rows = {name: [run] for name, run in names_of(options.runs).items()}
    paper = None if options.paper is None else load_recipe(options.paper, UNUSED).optimization
    draw_curves({"runs": options.runs} if options.together else rows, options.output, options.panels, paper=paper)


if __name__ == "__main__":
    main()
