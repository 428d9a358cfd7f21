"""Says what is wrong with a run, finished or running, and draws its curves beside those of a healthy one.

python -m training.doctor runs/mine
python -m training.doctor runs/mine --reference runs/of-last-week --output report
python -m training.doctor runs/mine --pictures codebook.png phones.png

Writes doctor.png and doctor.html, a page that needs nothing else. Ends with 1 if something is wrong at the end of the
log. The same symptoms are looked for while a run trains. Without --reference the reference is the run of the same
architecture among those measured in training/results.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .curves import EVALUATION, as_series, import_pyplot, read_lines
from .doctor_report import Report, as_figures, as_svg, draw, page
from .findings import NUM_LINES, Episode, Facts, Finding, Window
from .recipe import Recipe, configuration, family_class
from .reference import RECIPE, Reference, behind, measured_reference, reference_of
from .symptoms import examine


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


def examine_run(run: Path, output: Path, reference: Reference | None = None, pictures: Sequence[Path] = ()) -> Report:
    """Judges the log in a run's folder and writes `output`/doctor.png and doctor.html, with `pictures` below its
    curves.

    Raises:
        ValueError: the folder holds no log, or an empty one.
    """
    lines, facts = read_lines(run), facts_in(run)
    if not lines:
        raise ValueError(f"{run}/log.jsonl has no whole line yet.")
    series, last = as_series(lines), lines[-1]["step"]
    reference = reference or measured_reference(run, series)
    episodes = judge(lines, facts)
    if reference is not None:
        finding = behind(series, reference, facts.num_steps)
        episodes += [Episode(finding, last, last, True)] if finding is not None else []
    report = Report(run, series, episodes, reference, last, facts.num_steps)
    figure = draw(report)
    output.mkdir(parents=True, exist_ok=True)
    (output / "doctor.html").write_text(page(report, as_svg(figure) + as_figures(pictures)))
    figure.savefig(output / "doctor.png", dpi=120)
    import_pyplot().close(figure)
    return report


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the output_dir of a run")
    parser.add_argument("--reference", type=Path, help="the output_dir of a healthy run to compare with")
    parser.add_argument("--output", type=Path, help="folder for doctor.png and doctor.html; RUN by default")
    parser.add_argument("--pictures", nargs="+", type=Path, default=[], help="PNG files to put into doctor.html too")
    options = parser.parse_args(arguments)
    reference = None
    try:
        if options.reference is not None:
            num_steps = facts_in(options.reference).num_steps
            reference = reference_of(read_lines(options.reference), str(options.reference), num_steps)
        report = examine_run(options.run, options.output or options.run, reference, options.pictures)
    except (ValueError, OmegaConfBaseException) as error:
        parser.error(str(error))  # with 2: 1 is said of a run
    for episode in report.episodes:
        print(f"steps {episode.steps}: {episode.finding}")
    print(report.verdict)
    return 0 if report.is_well else 1


if __name__ == "__main__":
    sys.exit(main())
