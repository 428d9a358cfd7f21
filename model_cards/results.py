"""Measured numbers: of the repository's results for the cards in this folder, of a run's own JSON for its model."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, eval_result_entries_to_yaml

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "training" / "results"
MEASURED = Path(__file__).with_name("measured.yaml")
WAY = " → "
METRICS = {"wer": "WER", "cer": "CER", "per": "PER"}
SPEECH_RECOGNITION = "automatic-speech-recognition"


@dataclass(frozen=True)
class Row:
    """A line of a card: what was measured on which data; nothing in the other fields means that it was not."""

    what: str
    data: str | None = None
    value: str | None = None
    source: str | None = None


def percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def follow(content, way: Sequence[str]) -> float:
    """The number at the end of a way through the dictionaries and lists of a JSON.

    Raises:
        ValueError: the way leads nowhere.
    """
    for i, name in enumerate(way):
        step = re.fullmatch(r"step (\d+)", name)
        if isinstance(content, list) and step and i + 1 < len(way):
            found = [entry for entry in content if entry.get("step") == int(step[1]) and way[i + 1] in entry]
            content = found[0] if found else None
        else:
            content = content.get(name) if isinstance(content, dict) else None
        if content is None:
            raise ValueError(f"there is no {name!r} on the way {WAY.join(way)}.")
    return content


@dataclass(frozen=True)
class Measurements:
    """Of one model: the lines of its card and, if that is known, the machine and the data it was trained on."""

    rows: list[Row]
    hardware: str | None = None
    training_data: str | None = None


def of_recipe(recipe: str, wanted: Sequence[str]) -> Measurements:
    """What the repository has of a recipe's model; a line for each of `wanted`, measured or not."""
    measured = yaml.safe_load(MEASURED.read_text()).get(recipe)
    if measured is None:
        return Measurements([Row(what) for what in wanted])
    content = json.loads((RESULTS / measured["file"]).read_text())
    found = {
        what: Row(what, measured["data"], percent(follow(content, way)), f"`{measured['file']}`: {WAY.join(way)}")
        for what, way in measured["rows"].items()
    }
    rows = [*found.values(), *(Row(what) for what in wanted if what not in found)]
    return Measurements(rows, content["hardware"], measured["training_data"])


def results_of_run(run: Path) -> list[EvalResult]:
    """Every score that `training.evaluate --output` left beneath a run, which says on what data.

    A local corpus has the name of its folder, without the way to it. Letters have WER and CER, phones PER.

    Raises:
        ValueError: scores that do not say whether they are of greedy text or of a beam search.
    """
    results = []
    for path in sorted(run.glob("*/scores.json")):
        scores = json.loads(path.read_text())
        if "source" not in scores:
            continue  # of an evaluation during training, whose model need not be the one that was kept
        if "decoding" not in scores:
            raise ValueError(f"{path} does not say how the text was found; evaluate the model again.")
        source, decoding = scores["source"], scores["decoding"]
        name = source["path"] if source["kind"] == "hub" else Path(source["path"]).name
        for metric, title in METRICS.items():
            if metric not in scores:
                continue
            results.append(
                EvalResult(
                    task_type=SPEECH_RECOGNITION,
                    dataset_type=name,
                    dataset_name=name,
                    dataset_config=source["name"],
                    dataset_split=source["split"],
                    metric_type=metric,
                    metric_name=f"{title}, {decoding}",
                    metric_value=round(100 * scores[metric], 2),
                )
            )
    return results


def of_run(run: Path, wanted: Sequence[str]) -> Measurements:
    """The same for a run: a line for each score, or for each of `wanted` if there is none."""
    rows = [
        Row(
            result.metric_name,
            " ".join(filter(None, (result.dataset_name, result.dataset_config, result.dataset_split))),
            f"{result.metric_value:.2f} %",
            "model-index of this card",
        )
        for result in results_of_run(run)
    ]
    return Measurements(rows or [Row(what) for what in wanted])


def lacking(card: str, results: Sequence[EvalResult]) -> list[str]:
    """Which results of a run a card does not show, each as a sentence."""
    return [
        f"the card does not show {result.metric_name} {result.metric_value:.2f} % on {result.dataset_name}, which the"
        " run has: `python -m model_cards` makes it anew."
        for result in results
        if f"{result.metric_value:.2f} %" not in card
    ]


def with_results(card: str, repo_id: str, results: Sequence[EvalResult]) -> str:
    """A card for a repository, with results in its metadata (model-index)."""
    card = card.replace(f"OWNER/{repo_id.rpartition('/')[2]}", repo_id)
    if not results:
        return card
    parsed = ModelCard(card)
    parsed.data.model_name, parsed.data.eval_results = repo_id.rpartition("/")[2], list(results)
    return str(parsed)


def evaluation_files(results: Sequence[EvalResult]) -> dict[str, bytes]:
    """The Hub's own files of results, one for each data set of the Hub; others cannot be named in them."""
    files: dict[str, list[EvalResultEntry]] = {}
    for result in results:
        if "/" in result.dataset_type:
            parts = (result.dataset_config, result.dataset_split, result.metric_type)
            task = "_".join(part for part in parts if part)
            notes = f"{result.metric_name}, in percent"
            entry = EvalResultEntry(result.dataset_type, task, result.metric_value, notes=notes)
            files.setdefault(result.dataset_type.replace("/", "--"), []).append(entry)
    return {
        f".eval_results/{name}.yaml": yaml.safe_dump(eval_result_entries_to_yaml(entries)).encode()
        for name, entries in files.items()
    }
