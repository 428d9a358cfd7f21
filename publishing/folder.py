"""What a model folder may hold to go up to the Hub, and everything that is wrong with one."""

import json
import re
from pathlib import Path

import yaml
from huggingface_hub import ModelCard
from safetensors import SafetensorError, safe_open

from model_cards.template import SECTIONS, TO_FILL_IN

TEXT = (".json", ".md", ".py", ".txt", ".yaml", ".yml", ".lst", ".arpa")
REFUSED = {
    "a pickle, which runs code when it is read; save with safetensors": (
        [".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".msgpack"]
    ),
    "audio, which belongs in a data set": [".flac", ".wav", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".aiff"],
}
TRAINING_STATE = re.compile(
    r"optimizer|scheduler|scaler|random_states|rng_state|trainer_state|training_args|checkpoint|events\.out",
    re.IGNORECASE,
)
# "/home/me", "~/me", "C:\me", "file:///home/me", but neither an address nor "3.4/8.0"
ABSOLUTE_PATH = re.compile(
    r"(?:(?<![\w.:/~<)-])|(?<=\bfile://))(?:/[\w.@+-]+/[\w.@+-]|~/[\w.]|[A-Za-z]:\\\\?\w)[\w./\\@+-]*"
)
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}")
METADATA = ("license", "library_name", "pipeline_tag", "tags")
PROCESSOR, FEATURE_EXTRACTOR = "processor_config.json", "preprocessor_config.json"


def model_folder(run_or_model: Path) -> Path:
    """The folder of a model, or of the one that a run has in `model/`.

    Raises:
        ValueError: there is no config.json in either.
    """
    for folder in (run_or_model, run_or_model / "model"):
        if (folder / "config.json").is_file():
            return folder
    raise ValueError(f"{run_or_model} is neither a model folder nor a run with one in model/: no config.json.")


def files_of(folder: Path) -> dict[str, Path]:
    """Every file of a folder by its path in the repository."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if not path.is_dir()}


def faults_of_files(folder: Path) -> list[str]:
    """What is wrong with the files of a folder, each as a sentence; nothing if all of them may go up."""
    files = files_of(folder)
    faults = [f"{name}: {fault}" for name, path in files.items() if (fault := _fault_of_file(name, path))]
    if not any(name.endswith(".safetensors") for name in files):
        faults.append("there are no weights: model.safetensors is missing.")
    return faults


def _fault_of_file(name: str, path: Path) -> str | None:
    suffix = path.suffix.lower()
    if path.is_symlink():
        return "a link, whose target may be anything."
    if TRAINING_STATE.search(name):
        return "the state of a training run, which nobody needs to use the model."
    for reason, suffixes in REFUSED.items():
        if suffix in suffixes:
            return f"{reason}."
    if suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                return _fault_of_words(json.dumps(file.metadata() or {}))
        except (SafetensorError, OSError) as error:
            return f"not safetensors ({error})."
    if suffix not in TEXT and name not in ("LICENSE", ".gitattributes"):
        return f"of no kind that a model consists of ({', '.join(TEXT)}, .safetensors)."
    return _fault_of_text(name, path)


def _fault_of_text(name: str, path: Path) -> str | None:
    try:
        text = path.read_text(encoding="utf-8")
        if name.endswith(".json"):
            json.loads(text)
    except ValueError as error:
        return f"not what its name says ({error})."
    return _fault_of_words(text, may_have_paths=name.endswith((".py", ".arpa")))


def _fault_of_words(text: str, *, may_have_paths: bool = False) -> str | None:
    if TOKEN.search(text):  # and never the token itself, which would be printed with the fault
        return "holds a token of the Hub; revoke it, somebody may have seen it."
    found = None if may_have_paths else ABSOLUTE_PATH.search(text)
    return found and f"names {found[0]!r}, a path on the machine it was made on."


def faults_of_card(card: str) -> list[str]:
    """What a model card lacks, each as a sentence."""
    try:
        metadata = ModelCard(card).data.to_dict()
    except (ValueError, yaml.YAMLError) as error:
        return [f"the metadata of the card cannot be read: {error}"]
    faults = [f"the card's metadata lacks {name}." for name in METADATA if not metadata.get(name)]
    if metadata.get("license") == "other" and not metadata.get("license_name"):
        faults.append("the card's metadata says `license: other` and lacks license_name.")
    headings = re.findall(r"^## (.+?)\s*$", card, flags=re.MULTILINE)
    faults += [f"the card lacks the section `## {name}`." for name in SECTIONS if name not in headings]
    if TO_FILL_IN in card:
        faults.append(f"the card still says {TO_FILL_IN!r} {card.count(TO_FILL_IN)} times.")
    fault = _fault_of_words(card)
    return [*faults, f"the card {fault}"] if fault else faults


def older_layout(folder: Path) -> dict[str, bytes]:
    """The feature extractor in a file of its own, where the folder has it only within the processor's.

    Transformers 5 writes the second, and readers before it look for the first.
    """
    processor = folder / PROCESSOR
    if not processor.exists() or (folder / FEATURE_EXTRACTOR).exists():
        return {}
    content = json.loads(processor.read_text())
    extractor = {**content["feature_extractor"], "processor_class": content["processor_class"]}
    return {FEATURE_EXTRACTOR: json.dumps(extractor, indent=2).encode() + b"\n"}
