"""How well a small classifier tells phones or speakers from frozen frames: of models, random weights, MFCC, log-mel.

python -m training.probe /my/corpus --test-split dev --model cpc=runs/cpc/model wav2vec=runs/wav2vec/model \
    --layer c z --random --baseline mfcc log_mel --train-seconds 3600 --output runs/probe

The protocol of table 1 of van den Oord et al., 2018 (arXiv:1807.03748), which leaves the optimiser open: multinomial
logistic regression on single frames, or one hidden layer. All features are judged at the same points in time, every
10 ms, each by the frame whose centre is nearest; a speaker is told from the mean of the frames of an utterance, and
the test split must have the speakers of the training split. The frames of all layers of a model are made at once and
held in memory, 4 bytes per channel. A run that is started again keeps what it finds in `probe.json`, which goes by
name and folder: a model that was trained further needs another name.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_wav2vec_family.conv import valid_frames
from hf_wav2vec_family.metrics.purity import code_purity
from hf_wav2vec_family.quantizers import code_usage

from .alignments import labelled_batches
from .data import SpeechBatches
from .front_ends import BASELINES, FrontEnd, baseline_front_end, load_model, model_front_end
from .probe_report import Report, Settings
from .probe_tasks import TASKS, Task, nearest_frames, numbered
from .sources import Source
from .supervised import supervised_front_end

PROBES = {"linear": "", "hidden": ", one hidden layer"}
HIDDEN_SIZE = 1024
LEARNING_RATE = 1e-2
HIDDEN_LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-4
FRAMES_PER_STEP = 1024


@dataclass
class Entry:
    """Rows of the table that one front end gives.

    Args:
        names: layer -> what its rows are called. origin: the folder or baseline.
        make: seed -> front end. seed_matters: whether another seed gives another one.
    """

    names: dict[str, str]
    origin: str
    make: Callable[[int], FrontEnd]
    seed_matters: bool = False


@dataclass
class LabelledFrames:
    """Frames and where the labels are.

    Args:
        values: [F, D] float32 frames of all clips, one clip after another.
        nearest: [N] int64, the frame for each label. labels: [N] strings.
    """

    values: Tensor
    nearest: Tensor
    labels: np.ndarray


@dataclass
class Loading:
    """How clips are read and where frames are made; none of it changes a result."""

    device: str
    batch_seconds: float
    num_workers: int


@torch.no_grad()
def extract(front_end: FrontEnd, batches: Iterable[dict], task: Task, device: str) -> dict[str, LabelledFrames]:
    """Frames and labels of all clips for each layer; padding is left out."""
    values: dict[str, list[Tensor]] = {}
    nearest, labels, total = [], [], 0
    for batch in tqdm(batches, desc="frames", unit="batch", leave=False):
        for row, frames in enumerate(front_end.clips(batch, device)):
            num_frames = len(next(iter(frames.values())))
            clip = task.label(frames, front_end.seconds(num_frames), batch, row)
            for layer, vectors in clip.values.items():
                values.setdefault(layer, []).append(vectors)
            nearest.append(total + clip.nearest)
            labels.append(clip.labels)
            total += len(vectors)
    where, what = torch.cat(nearest), np.concatenate(labels)
    # one layer's pieces at a time, so that not all of them are there twice
    return {layer: LabelledFrames(torch.cat(values.pop(layer)), where, what) for layer in list(values)}


def standardize(train: LabelledFrames, test: LabelledFrames):
    """Gives each channel zero mean and unit variance over the training frames, in place; constant ones become 0."""
    std, mean = torch.std_mean(train.values, dim=0, correction=0)
    scale = torch.where(std > 0, 1 / std, 0.0)
    for frames in (train, test):
        frames.values.sub_(mean).mul_(scale)


def make_probe(kind: str, num_channels: int, num_classes: int) -> nn.Module:
    """A key of `PROBES`: one linear layer, or one hidden layer of rectified units in front of it."""
    if kind == "linear":
        return nn.Linear(num_channels, num_classes)
    return nn.Sequential(nn.Linear(num_channels, HIDDEN_SIZE), nn.ReLU(), nn.Linear(HIDDEN_SIZE, num_classes))


def fit(
    frames: LabelledFrames, targets: Tensor, num_classes: int, *, seed: int, num_epochs: int, kind: str = "linear"
) -> nn.Module:
    """A classifier of `targets` [N] on standardised frames, on the device of the frames.

    AdamW with a learning rate that falls to 0 in a straight line; the seed sets first weights and order.
    """
    transformers.set_seed(seed)
    device = frames.values.device
    probe = make_probe(kind, frames.values.shape[1], num_classes).to(device)
    learning_rate = LEARNING_RATE if kind == "linear" else HIDDEN_LEARNING_RATE
    optimizer = torch.optim.AdamW(probe.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY)
    steps_per_epoch = -(-len(targets) // FRAMES_PER_STEP)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=num_epochs * steps_per_epoch)
    for _ in tqdm(range(num_epochs), desc="probe", unit="epoch", leave=False):
        for chosen in torch.randperm(len(targets)).to(device).split(FRAMES_PER_STEP):
            loss = F.cross_entropy(probe(frames.values[frames.nearest[chosen]]), targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return probe


@torch.no_grad()
def accuracy_of(probe: nn.Module, frames: LabelledFrames, targets: Tensor) -> float:
    """Share of the labels that the probe gives its highest score."""
    right = 0
    for place, target in zip(frames.nearest.split(65_536), targets.split(65_536), strict=True):
        right += int((probe(frames.values[place]).argmax(dim=-1) == target).sum())
    return right / len(targets)


def probe_entry(
    entry: Entry, wanted: dict[int, list[tuple[str, str]]], settings: Settings, loading: Loading
) -> Iterator[dict]:
    """Yields the results that are `wanted`: seed -> (layer, kind of probe) of each.

    Frames of all layers are extracted once, or for each seed if they depend on it.
    """
    parts: list[dict[str, LabelledFrames]] = []
    for seed in sorted(wanted):
        if not parts or entry.seed_matters:
            front_end, parts = entry.make(seed), []
            for part in ("train", "test"):
                found = batches_of(settings, part, front_end.feature_extractor, loading)
                parts.append(extract(front_end, found, TASKS[settings.task], loading.device))
            for layer in parts[0]:
                standardize(parts[0][layer], parts[1][layer])
        for layer in dict.fromkeys(layer for layer, _ in wanted[seed]):
            train, test = (on_device(part[layer], loading.device) for part in parts)
            classes = sorted(set(train.labels.tolist()))
            targets, truth = (numbered(frames.labels, classes).to(loading.device) for frames in (train, test))
            if not (truth >= 0).any():
                raise ValueError(
                    f"test_split: {settings.test_split!r} has none of the {len(classes)} labels of"
                    f" {settings.train_split!r}; for the task {settings.task} both need the same."
                )
            for kind in (kind for of_layer, kind in wanted[seed] if of_layer == layer):
                probe = fit(train, targets, len(classes), seed=seed, num_epochs=settings.num_epochs, kind=kind)
                yield {
                    "features": entry.names[layer] + PROBES[kind],
                    "origin": entry.origin,
                    "seed": seed,
                    "accuracy": accuracy_of(probe, test, truth),
                    "train_accuracy": accuracy_of(probe, train, targets),
                    "chance": float((truth == Counter(targets.tolist()).most_common(1)[0][0]).float().mean()),
                    "num_classes": len(classes),
                    "num_channels": train.values.shape[1],
                    "num_train_labels": len(targets),
                    "num_test_labels": len(truth),
                }


def on_device(frames: LabelledFrames, device: str) -> LabelledFrames:
    return LabelledFrames(frames.values.to(device), frames.nearest.to(device), frames.labels)


def batches_of(settings: Settings, part: str, feature_extractor, loading: Loading, **order) -> SpeechBatches:
    """The batches of a part, "train" or "test", with the split and budget that the settings give it."""
    return labelled_batches(
        Source(settings.corpus, settings.name, getattr(settings, f"{part}_split")),
        TASKS[settings.task].collator(feature_extractor),
        budget_seconds=getattr(settings, f"{part}_seconds"),
        batch_seconds=loading.batch_seconds,
        num_workers=loading.num_workers,
        **order,
    )


def train_supervised(
    folder: str, layer: str, num_epochs: int, settings: Settings, loading: Loading, seed: int
) -> FrontEnd:
    """The front end of supervised.py, trained `num_epochs` times on what the probes are trained on."""
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder)
    task = TASKS[settings.task]
    once = batches_of(settings, "train", extractor, loading)
    classes = {str(label) for batch in once for row in range(len(batch["ids"])) for label in task.labels(batch, row)}
    order = {"num_epochs": num_epochs, "shuffle_window": 2048, "seed": seed}
    return supervised_front_end(
        folder,
        layer,
        task=task,
        batches=batches_of(settings, "train", extractor, loading, **order),
        classes=sorted(classes),
        device=loading.device,
        seed=seed,
    )


@torch.no_grad()
def use_of_codes(folder: str, settings: Settings, loading: Loading) -> dict | None:
    """How a model uses its codebook on the test split, and what its codes say about phones if those are the task;
    None if it has none of its own."""
    model = load_model(folder).to(loading.device)
    # a Discrete BERT has its codes from a vq-wav2vec, of which they can be asked
    if not hasattr(model, "quantize") or not hasattr(model.config, "num_codevectors_per_group"):
        return None
    feature_extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder)
    codes, codes_of_phones, phones = [], [], []
    for batch in tqdm(batches_of(settings, "test", feature_extractor, loading), desc="codes", leave=False):
        found = model.quantize(batch["input_values"].to(loading.device), batch["attention_mask"].to(loading.device))
        found, lengths = found.cpu(), model.num_frames(batch["attention_mask"].sum(dim=-1))
        codes.append(found[valid_frames(lengths, found.shape[1])])
        for row, alignment in enumerate(batch.get("alignments", [])):
            centers = model.base_model.frame_centers(int(lengths[row])) / feature_extractor.sampling_rate
            codes_of_phones.append(found[row, nearest_frames(centers, torch.from_numpy(alignment.times))])
            phones.append(alignment.phones)
    config = model.config
    use = asdict(code_usage(torch.cat(codes), config.num_codevectors_per_group))
    del use["counts"]
    use["num_codes"] = config.num_codevector_groups * config.num_codevectors_per_group
    if phones:
        use |= asdict(code_purity(torch.cat(codes_of_phones).numpy(), np.concatenate(phones)))
    return use


def make_entries(options: argparse.Namespace, settings: Settings, loading: Loading) -> list[Entry]:
    """The rows that a command line asks for."""
    if options.supervised_epochs and "q" in options.layer:
        raise ValueError(
            "--supervised-epochs trains c, z and hidden states, got q, made of codes that nothing learns through."
        )
    entries = []
    for name, folder in options.model:
        make = partial(model_front_end, folder, options.layer, loading.device)
        names = {layer: f"{name} {layer}" for layer in options.layer}
        entries.append(Entry(names, folder, lambda seed, make=make: make()))
        if options.random:
            random = {layer: f"{row}, random weights" for layer, row in names.items()}
            entries.append(Entry(random, folder, make, seed_matters=True))
        for layer, row in names.items() if options.supervised_epochs else ():
            trained = partial(train_supervised, folder, layer, options.supervised_epochs, settings, loading)
            origin = f"{folder}, {options.supervised_epochs} epochs"
            entries.append(Entry({layer: f"{row}, supervised"}, origin, trained, seed_matters=True))
    for name in options.baseline:
        entries.append(Entry({name: name}, name, lambda seed, name=name: baseline_front_end(name, loading.device)))
    names = [name for entry in entries for name in entry.names.values()]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"--model and --baseline must name at least one set of features and none twice, got {names}.")
    return entries


def lacking(entry: Entry, kinds: list[str], seeds: range, report: Report) -> dict[int, list[tuple[str, str]]]:
    """seed -> (layer, kind of probe) of each row of an entry that the report has no result of."""
    rows = [(layer, kind, name + PROBES[kind]) for layer, name in entry.names.items() for kind in kinds]
    done = {row: report.seeds_done(row, entry.origin) for _, _, row in rows}
    wanted = {seed: [(layer, kind) for layer, kind, row in rows if seed not in done[row]] for seed in seeds}
    return {seed: missing for seed, missing in wanted.items() if missing}


def named_model(argument: str) -> tuple[str, str]:
    name, _, folder = argument.partition("=")
    if not name or not folder:
        raise argparse.ArgumentTypeError(f"a model is written NAME=FOLDER, got {argument!r}.")
    return name, folder


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "corpus", help="folder, manifest, parquet, tar or Hub id with phones and phone_start_s, or speaker_id"
    )
    parser.add_argument("--name", help="configuration of a Hub data set")
    parser.add_argument("--train-split", default="train")
    parser.add_argument("--test-split", default="test")
    parser.add_argument("--train-seconds", type=float, help="train on so much of it; all if not given")
    parser.add_argument("--test-seconds", type=float)
    parser.add_argument("--model", nargs="+", default=[], type=named_model, metavar="NAME=FOLDER")
    parser.add_argument("--layer", nargs="+", default=["c"], help="c, z, q, or the number of a hidden state")
    parser.add_argument("--task", choices=TASKS, default="phones", help="speaker: of an utterance")
    parser.add_argument("--probe", nargs="+", choices=PROBES, default=["linear"], help="hidden: one hidden layer")
    parser.add_argument("--random", action="store_true", help="also each model with random weights, anew per seed")
    parser.add_argument(
        "--supervised-epochs", type=int, default=0, help="also each model from random weights trained end to end"
    )
    parser.add_argument("--baseline", nargs="+", default=[], choices=BASELINES)
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--num-epochs", type=int, default=10, help="of each probe")
    parser.add_argument("--batch-seconds", type=float, default=60.0)
    parser.add_argument("--num-workers", type=int, default=0, help="processes that decode")
    parser.add_argument("--output", type=Path, required=True, help="folder for probe.json")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> Report:
    options = parse_arguments(arguments)
    if options.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {options.seeds}.")
    settings = Settings(**{name: getattr(options, name) for name in Settings.__dataclass_fields__})
    loading = Loading(**{name: getattr(options, name) for name in Loading.__dataclass_fields__})
    entries = make_entries(options, settings, loading)
    path = options.output / "probe.json"
    report = Report.read(path, settings)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    for entry in (progress := tqdm(entries, unit="front ends")):
        progress.set_description(next(iter(entry.names.values())))
        wanted = lacking(entry, options.probe, seeds, report)
        for result in probe_entry(entry, wanted, settings, loading):
            report.results.append(result)
            report.write(path)
    for name, folder in options.model:
        if not report.has_codes(name, folder) and (use := use_of_codes(folder, settings, loading)) is not None:
            report.codes[name] = {"origin": folder, **use}
            report.write(path)
    print(report.table())
    return report


if __name__ == "__main__":
    main()
