"""What probes found, as JSON and as a table; a report that is there is gone on with if it is of the same settings."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from .checkpoints import replace_file


@dataclass
class Settings:
    """What has to agree for results to be compared."""

    corpus: str
    name: str | None
    train_split: str
    test_split: str
    train_seconds: float | None
    test_seconds: float | None
    num_epochs: int
    task: str = "phones"


@dataclass
class Report:
    """`probe.json`: one result per features and seed, and the use of codes per model."""

    settings: Settings
    results: list[dict] = field(default_factory=list)
    codes: dict[str, dict] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, settings: Settings) -> "Report":
        """The report at `path`, if there is one of the same settings; a new one if there is none."""
        if not path.exists():
            return cls(settings)
        found = json.loads(path.read_text())
        # a report from before there were other tasks is of phones
        before = {"task": "phones", **found["settings"]}
        differing = {name: before.get(name) for name in asdict(settings)}
        differing = {name: value for name, value in differing.items() if value != getattr(settings, name)}
        if differing:
            raise ValueError(f"{path} is of other settings: {differing}; choose another --output or delete it.")
        return cls(settings, found["results"], found["codes"])

    def write(self, path: Path):
        """A run killed here leaves the old file or the new one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**asdict(self), "summary": self.summary()}, indent=2) + "\n"
        replace_file(path, lambda unfinished: unfinished.write_text(text))

    def seeds_done(self, name: str, origin: str) -> set[int]:
        """Seeds of a row with a result; ValueError if its name belongs to another model."""
        of_name = [result for result in self.results if result["features"] == name]
        for result in of_name:
            refuse_another_origin(name, result["origin"], origin)
        return {result["seed"] for result in of_name}

    def has_codes(self, name: str, origin: str) -> bool:
        """Whether the use of codes of a model is known; ValueError if its name belongs to another model."""
        if name in self.codes:
            refuse_another_origin(name, self.codes[name]["origin"], origin)
        return name in self.codes

    def summary(self) -> dict[str, dict]:
        """Features -> accuracy over their seeds; the deviation is that of a sample, none of a single seed."""
        summary = {}
        for name in dict.fromkeys(result["features"] for result in self.results):
            of_name = sorted((r for r in self.results if r["features"] == name), key=lambda r: r["seed"])
            accuracies = [result["accuracy"] for result in of_name]
            summary[name] = {
                "accuracies": accuracies,
                "mean": float(np.mean(accuracies)),
                "std": float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None,
                "num_channels": of_name[0]["num_channels"],
                "chance": of_name[0]["chance"],
            }
        return summary

    def table(self) -> str:
        """The summary in Markdown, numbers in percent."""
        lines = ["| features | channels | accuracy | seeds |", "| --- | --- | --- | --- |"]
        for name, row in self.summary().items():
            spread = "" if row["std"] is None else f" ± {100 * row['std']:.2f}"
            accuracy = f"{100 * row['mean']:.2f}{spread}"
            lines.append(f"| {name} | {row['num_channels']} | {accuracy} | {len(row['accuracies'])} |")
        first = self.results[0]
        lines += [
            f"| the most frequent label | | {100 * first['chance']:.2f} | |",
            "",
            f"{first['num_classes']} classes, {first['num_train_labels']} labels to train and"
            f" {first['num_test_labels']} to test.",
        ]
        if self.codes:
            titles = ["model", "codes used", "tuples used", "perplexity", "phone purity", "cluster purity", "PNMI"]
            lines += ["", f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]
        for name, use in self.codes.items():
            used = f"{use['num_used_codes']} of {use['num_codes']}"
            cells = [name, used, str(use["num_used_tuples"]), f"{use['perplexity']:.1f}"]
            cells += [f"{use[key]:.3f}" if key in use else "" for key in ("phone_purity", "cluster_purity", "pnmi")]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


def refuse_another_origin(name: str, before: str, now: str):
    if before != now:
        raise ValueError(f"{name} stands for {before} in the report that is there, and now for {now}; rename one.")
