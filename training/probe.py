"""How well a linear classifier tells the phones from frozen frames: of models, of random weights, of MFCC and log-mel.

python -m training.probe /my/corpus --test-split dev --model cpc=runs/cpc/model wav2vec=runs/wav2vec/model \
    --layer c z --random --baseline mfcc log_mel --train-seconds 3600 --output runs/probe

The protocol of table 1 of van den Oord et al., 2018 (arXiv:1807.03748), which leaves the optimiser open: multinomial
logistic regression on single frames. All features are judged at the same points in time, every 10 ms, each by the
frame whose centre is nearest. A run that is started again keeps what it finds in `probe.json`, which goes by name and
folder: a model that was trained further needs another name.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from tqdm.auto import tqdm

import hf_wav2vec_family
from hf_wav2vec_family.conv import frame_centers, valid_frames
from hf_wav2vec_family.log_mel import MFCC, LogMel
from hf_wav2vec_family.quantizers import code_usage

from .alignments import aligned_batches
from .checkpoints import replace_file
from .sources import Source

BASELINES = {"mfcc": MFCC, "log_mel": LogMel}
LAYERS = {"c": "last_hidden_state", "z": "extract_features", "q": "quantized_features"}
LEARNING_RATE = 1e-2
WEIGHT_DECAY = 1e-4
FRAMES_PER_STEP = 1024


@dataclass
class FrontEnd:
    """What turns clips into frames.

    Args:
        encode: (`input_values` [B, S], `attention_mask` [B, S]) -> [B, T, D].
        num_frames: valid samples [B] -> valid frames [B].
        centers: T -> the sample [T] that each frame is centred at.
        feature_extractor: of the clips.
    """

    encode: Callable[[Tensor, Tensor], Tensor]
    num_frames: Callable[[Tensor], Tensor]
    centers: Callable[[int], Tensor]
    feature_extractor: transformers.Wav2Vec2FeatureExtractor


@dataclass
class Entry:
    """A row of the table: its name, the folder or baseline it is of, and how to make it from a seed."""

    name: str
    origin: str
    make: Callable[[int], FrontEnd]
    seed_matters: bool = False


@dataclass
class LabelledFrames:
    """Frames and where the labels are.

    Args:
        values: [F, D] float32 frames of all clips, one clip after another.
        nearest: [N] int64, the frame for each label. phones: [N] the labels.
    """

    values: Tensor
    nearest: Tensor
    phones: np.ndarray


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
        differing = {name: found["settings"].get(name) for name, value in asdict(settings).items()}
        differing = {name: value for name, value in differing.items() if value != getattr(settings, name)}
        if differing:
            raise ValueError(f"{path} is of other settings: {differing}; choose another --output or delete it.")
        return cls(settings, found["results"], found["codes"])

    def write(self, path: Path):
        """A run killed here leaves the old file or the new one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**asdict(self), "summary": self.summary()}, indent=2) + "\n"
        replace_file(path, lambda unfinished: unfinished.write_text(text))

    def seeds_done(self, entry: Entry) -> set[int]:
        """Seeds of an entry with a result; ValueError if its name belongs to another model."""
        of_name = [result for result in self.results if result["features"] == entry.name]
        for result in of_name:
            refuse_another_origin(entry.name, result["origin"], entry.origin)
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
            f"| the most frequent phone | | {100 * first['chance']:.2f} | |",
            "",
            f"{first['num_classes']} phones, {first['num_train_labels']} labels to train and"
            f" {first['num_test_labels']} to test.",
        ]
        if self.codes:
            lines += ["", "| model | codes used | tuples used | perplexity |", "| --- | --- | --- | --- |"]
        for name, use in self.codes.items():
            used = f"{use['num_used_codes']} of {use['num_codes']}"
            lines.append(f"| {name} | {used} | {use['num_used_tuples']} | {use['perplexity']:.1f} |")
        return "\n".join(lines)


def refuse_another_origin(name: str, before: str, now: str):
    if before != now:
        raise ValueError(f"{name} stands for {before} in the report that is there, and now for {now}; rename one.")


def model_class(folder: str) -> type[transformers.PreTrainedModel]:
    """The class of this package that a folder or repository names as its architecture."""
    name = (transformers.AutoConfig.from_pretrained(folder).architectures or ["no architecture"])[0]
    found = getattr(hf_wav2vec_family, name, None)
    if found is None:
        raise ValueError(f"{folder} holds {name}; accepted are {', '.join(hf_wav2vec_family.__all__)}.")
    return found


def load_model(folder: str, random_seed: int | None = None) -> transformers.PreTrainedModel:
    """The model of a folder with its heads; with a `random_seed`, one like it with weights as training begins."""
    found = model_class(folder)
    if random_seed is None:
        return found.from_pretrained(folder).eval()
    transformers.set_seed(random_seed)
    return found(found.config_class.from_pretrained(folder)).eval()


def frames_of(encoder: nn.Module, layer: str, input_values: Tensor, attention_mask: Tensor) -> Tensor:
    """[B, T, D] of one layer: "c", "z", "q", or the number of a hidden state."""
    if layer in LAYERS:
        frames = getattr(encoder(input_values, attention_mask=attention_mask), LAYERS[layer], None)
        if frames is None:
            raise ValueError(f"layer: {type(encoder).__name__} has no {layer} ({LAYERS[layer]}).")
        return frames
    states = encoder(input_values, attention_mask=attention_mask, output_hidden_states=True).hidden_states
    if not layer.isdecimal() or int(layer) >= len(states):
        raise ValueError(
            f"layer must be c, z, q or a hidden state from 0 to {len(states) - 1} for {type(encoder).__name__}, got"
            f" {layer!r}."
        )
    return states[int(layer)]


def model_front_end(folder: str, layer: str, device: str, random_seed: int | None = None) -> FrontEnd:
    """The encoder of a model, whatever head it was saved with."""
    encoder = load_model(folder, random_seed).base_model.to(device)
    config = encoder.config
    # of the four, CPC alone pads its convolutions
    geometry = (config.conv_kernel, config.conv_stride, getattr(config, "conv_padding", None))
    return FrontEnd(
        encode=partial(frames_of, encoder, layer),
        num_frames=encoder.num_frames,
        centers=lambda total: frame_centers(total, *geometry),
        feature_extractor=transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder),
    )


def baseline_front_end(name: str, device: str) -> FrontEnd:
    module = BASELINES[name]().to(device)
    log_mel = getattr(module, "log_mel", module)
    return FrontEnd(
        encode=module,
        num_frames=module.num_frames,
        centers=lambda total: frame_centers(total, [log_mel.window_samples], [log_mel.hop_samples]),
        feature_extractor=transformers.Wav2Vec2FeatureExtractor(do_normalize=False),
    )


def nearest_frames(centers: Tensor, times: Tensor) -> Tensor:
    """Which of the frames with `centers` [T] is nearest to each of `times` [N], in the same unit; [N] int64."""
    return torch.searchsorted((centers[1:] + centers[:-1]) / 2, times)


@torch.no_grad()
def extract(front_end: FrontEnd, batches: Iterable[dict], device: str) -> LabelledFrames:
    """Frames and labels of all clips; padding is left out."""
    values, nearest, phones, total = [], [], [], 0
    for batch in tqdm(batches, desc="frames", unit="batch", leave=False):
        mask = batch["attention_mask"].to(device)
        frames = front_end.encode(batch["input_values"].to(device), mask).float().cpu()
        expected = int(front_end.num_frames(mask.shape[-1]))
        if frames.shape[1] != expected:
            raise ValueError(
                f"the layer has {frames.shape[1]} frames where the convolutions make {expected}; without a centre for"
                " each frame, as behind an adapter, it cannot be probed."
            )
        lengths = front_end.num_frames(batch["attention_mask"].sum(dim=-1)).tolist()
        for row, length, alignment in zip(frames, lengths, batch["alignments"], strict=True):
            seconds = front_end.centers(length) / front_end.feature_extractor.sampling_rate
            values.append(row[:length])
            nearest.append(total + nearest_frames(seconds, torch.from_numpy(alignment.times)))
            phones.append(alignment.phones)
            total += length
    return LabelledFrames(torch.cat(values), torch.cat(nearest), np.concatenate(phones))


def standardize(train: LabelledFrames, test: LabelledFrames):
    """Gives each channel zero mean and unit variance over the training frames, in place; constant ones become 0."""
    std, mean = torch.std_mean(train.values, dim=0, correction=0)
    scale = torch.where(std > 0, 1 / std, 0.0)
    for frames in (train, test):
        frames.values.sub_(mean).mul_(scale)


def fit(frames: LabelledFrames, targets: Tensor, num_classes: int, *, seed: int, num_epochs: int) -> nn.Linear:
    """Multinomial logistic regression of `targets` [N] on standardised frames, on the device of the frames.

    AdamW with a learning rate that falls to 0 in a straight line; the seed sets first weights and order.
    """
    transformers.set_seed(seed)
    device = frames.values.device
    probe = nn.Linear(frames.values.shape[1], num_classes).to(device)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
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
def accuracy_of(probe: nn.Linear, frames: LabelledFrames, targets: Tensor) -> float:
    """Share of the labels that the probe gives its highest score."""
    right = 0
    for place, target in zip(frames.nearest.split(65_536), targets.split(65_536), strict=True):
        right += int((probe(frames.values[place]).argmax(dim=-1) == target).sum())
    return right / len(targets)


def numbered(phones: np.ndarray, classes: list[str]) -> Tensor:
    """[N] int64 numbers of the phones; -1, which no probe answers, for those that are not among the classes."""
    number = {phone: i for i, phone in enumerate(classes)}
    different, which = np.unique(phones, return_inverse=True)
    return torch.tensor([number.get(str(phone), -1) for phone in different])[torch.from_numpy(which)]


def probe_entry(entry: Entry, seeds: Iterable[int], settings: Settings, *, device: str, **loading):
    """Yields the result of each seed. Frames are extracted once, or for each seed if they depend on it."""
    train = test = None
    for seed in seeds:
        if train is None or entry.seed_matters:
            front_end = entry.make(seed)
            train, test = (
                extract(front_end, _batches(settings, part, front_end.feature_extractor, **loading), device)
                for part in ("train", "test")
            )
            standardize(train, test)
            classes = sorted({str(phone) for phone in np.unique(train.phones)})
            targets, truth = (numbered(frames.phones, classes).to(device) for frames in (train, test))
            for frames in (train, test):
                frames.values, frames.nearest = frames.values.to(device), frames.nearest.to(device)
        probe = fit(train, targets, len(classes), seed=seed, num_epochs=settings.num_epochs)
        most_frequent = Counter(targets.tolist()).most_common(1)[0][0]
        yield {
            "features": entry.name,
            "origin": entry.origin,
            "seed": seed,
            "accuracy": accuracy_of(probe, test, truth),
            "train_accuracy": accuracy_of(probe, train, targets),
            "chance": float((truth == most_frequent).float().mean()),
            "num_classes": len(classes),
            "num_channels": train.values.shape[1],
            "num_train_labels": len(targets),
            "num_test_labels": len(truth),
        }


def _batches(settings: Settings, part: str, feature_extractor, **loading):
    """The batches of a part, "train" or "test", with the split and budget that the settings give it."""
    return aligned_batches(
        Source(settings.corpus, settings.name, getattr(settings, f"{part}_split")),
        feature_extractor,
        budget_seconds=getattr(settings, f"{part}_seconds"),
        **loading,
    )


@torch.no_grad()
def use_of_codes(folder: str, settings: Settings, *, device: str, **loading) -> dict | None:
    """How a model uses its codebook on the test split; None if it has none."""
    model = load_model(folder).to(device)
    if not hasattr(model, "quantize"):
        return None
    feature_extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder)
    codes = []
    batches = _batches(settings, "test", feature_extractor, **loading)
    for batch in tqdm(batches, desc="codes", unit="batch", leave=False):
        found = model.quantize(batch["input_values"].to(device), batch["attention_mask"].to(device)).cpu()
        lengths = model.num_frames(batch["attention_mask"].sum(dim=-1))
        codes.append(found[valid_frames(lengths, found.shape[1])])
    config = model.config
    use = asdict(code_usage(torch.cat(codes), config.num_codevectors_per_group))
    del use["counts"]
    return {**use, "num_codes": config.num_codevector_groups * config.num_codevectors_per_group}


def make_entries(options: argparse.Namespace) -> list[Entry]:
    """The rows that a command line asks for."""
    entries = []
    for name, folder in options.model:
        for layer in options.layer:
            make = partial(model_front_end, folder, layer, options.device)
            entries.append(Entry(f"{name} {layer}", folder, lambda seed, make=make: make()))
            if options.random:
                entries.append(Entry(f"{name} {layer}, random weights", folder, make, seed_matters=True))
    for name in options.baseline:
        entries.append(Entry(name, name, lambda seed, name=name: baseline_front_end(name, options.device)))
    names = [entry.name for entry in entries]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"--model and --baseline must name at least one set of features and none twice, got {names}.")
    return entries


def named_model(argument: str) -> tuple[str, str]:
    name, _, folder = argument.partition("=")
    if not name or not folder:
        raise argparse.ArgumentTypeError(f"a model is written NAME=FOLDER, got {argument!r}.")
    return name, folder


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="folder, manifest, parquet, tar or Hub id with phones and phone_start_s")
    parser.add_argument("--name", help="configuration of a Hub data set")
    parser.add_argument("--train-split", default="train")
    parser.add_argument("--test-split", default="test")
    parser.add_argument("--train-seconds", type=float, help="train on so much of it; all if not given")
    parser.add_argument("--test-seconds", type=float)
    parser.add_argument("--model", nargs="+", default=[], type=named_model, metavar="NAME=FOLDER")
    parser.add_argument("--layer", nargs="+", default=["c"], help="c, z, q, or the number of a hidden state")
    parser.add_argument("--random", action="store_true", help="also each model with random weights, anew per seed")
    parser.add_argument("--baseline", nargs="+", default=[], choices=BASELINES)
    parser.add_argument("--seeds", type=int, default=3, help="how many")
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
    entries = make_entries(options)
    settings = Settings(**{name: getattr(options, name) for name in Settings.__dataclass_fields__})
    path = options.output / "probe.json"
    report = Report.read(path, settings)
    how = {name: getattr(options, name) for name in ("device", "batch_seconds", "num_workers")}
    for entry in (progress := tqdm(entries, unit="features")):
        progress.set_description(entry.name)
        seeds = sorted(set(range(options.seeds)) - report.seeds_done(entry))
        for result in probe_entry(entry, seeds, settings, **how):
            report.results.append(result)
            report.write(path)
    for name, folder in options.model:
        if not report.has_codes(name, folder) and (use := use_of_codes(folder, settings, **how)) is not None:
            report.codes[name] = {"origin": folder, **use}
            report.write(path)
    print(report.table())
    return report


if __name__ == "__main__":
    main()
