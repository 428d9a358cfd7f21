"""A healthy run to lay beside another: which one, and what range its numbers had at each part of it."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from omegaconf import OmegaConf

import hf_wav2vec_family

from .curves import Series, as_series
from .findings import NOTE, Finding
from .recipe import Recipe

RECIPE = "recipe.yaml"
RESULTS = Path(__file__).with_name("results")
# To each side of a place in the reference: a share of the steps until there, at least so much of its whole run. What
# it showed within is the range at that place, which is narrow at the beginning, where every number moves fast.
NEAR, LEAST = 0.2, 0.02


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
            [
                value
                for other, value in zip(steps, values, strict=True)
                if abs(other - step) <= max(NEAR * step, LEAST * self.num_steps)
            ]
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
