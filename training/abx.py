"""ABX errors of frozen frames, within and across speakers: of models, of random weights, of MFCC and log-mel.

python -m training.abx /my/corpus --split dev --model cpc=runs/cpc/model --layer c z --random --baseline mfcc log_mel \
    --output runs/abx

Takes are the phones of the columns that the probe reads, each with the two beside it, or the lines of an item file as
Libri-Light and ZeroSpeech publish them, whose files are the ids of the corpus' rows. `--context none` compares phones
whatever stands beside them. Which takes count where there are too many is drawn by `--seed`, for all features alike.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import transformers
from tqdm.auto import tqdm

from hf_wav2vec_family.metrics.abx import Item, Take, abx_errors, frames_of_item, read_items

from .alignments import AlignedCollator, labelled_batches
from .collators import PretrainingCollator, pad_waveforms
from .front_ends import BASELINES, FrontEnd, baseline_front_end, model_front_end
from .probe import named_model
from .rows import Row
from .sources import Source

# Neither phones nor the context of one
SILENCES = {"SIL", "sil", "SPN", "spn", ""}


class ClipCollator(PretrainingCollator):
    """Whole utterances, padded, without labels: an item file has them."""

    def collate(self, examples: list[dict]) -> dict:
        return pad_waveforms(self.feature_extractor, examples)


class ItemCollator(AlignedCollator):
    """Whole utterances, padded, with the phones of each as `items`, which are of no file."""

    def prepare(self, row: Row, waveform: np.ndarray) -> dict:
        example = super().prepare(row, waveform)
        if row.extra.get("speaker_id") is None:
            raise ValueError(f"{row.id}: ABX needs a column speaker_id, there are {', '.join(row.extra)}.")
        return {**example, "items": list(items_of(row, len(waveform) / self.sampling_rate))}

    def collate(self, examples: list[dict]) -> dict:
        return {**super().collate(examples), "items": [example["items"] for example in examples]}


def items_of(row: Row, num_seconds: float) -> Iterator[Item]:
    """Each phone of a row between two others, silences left out, both as phones and as neighbours."""
    phones, starts = row.extra["phones"], row.extra["phone_start_s"]
    ends = row.extra.get("phone_end_s") or [*starts[1:], num_seconds]
    for place in range(1, len(phones) - 1):
        before, phone, behind = phones[place - 1 : place + 2]
        if not SILENCES & {before, phone, behind}:
            context, speaker = f"{before}+{behind}", str(row.extra["speaker_id"])
            yield Item(row.id, starts[place], ends[place], phone, context, speaker)


def takes_of(
    front_end: FrontEnd, batches: Iterable[dict], items: dict[str, list[Item]] | None, device: str
) -> dict[str, list[Take]]:
    """layer -> the takes of all clips. `items` by file; those of the batches if there are none."""
    takes: dict[str, list[Take]] = defaultdict(list)
    for batch in tqdm(batches, desc="frames", unit="batch", leave=False):
        for row, layers in enumerate(front_end.clips(batch, device)):
            wanted = batch["items"][row] if items is None else items.get(batch["ids"][row], [])
            first, second = front_end.seconds(2).tolist()
            for layer, frames in layers.items():
                for item in wanted:
                    place = frames_of_item(item, len(frames), frame_rate=1 / (second - first), first_seconds=first)
                    # a copy, or the frames of the whole clip would stay
                    takes[layer].append(Take(frames[place].clone(), item.phone, item.context, item.speaker))
    return takes


def front_ends_of(options: argparse.Namespace) -> Iterator[tuple[dict[str, str], FrontEnd]]:
    """(layer -> name of its row, front end) of all that a command line asks for."""
    for name, folder in options.model:
        names = {layer: f"{name} {layer}" for layer in options.layer}
        yield names, model_front_end(folder, options.layer, options.device)
        if options.random:
            random = {layer: f"{row}, random weights" for layer, row in names.items()}
            yield random, model_front_end(folder, options.layer, options.device, random_seed=options.seed)
    for name in options.baseline:
        yield {name: name}, baseline_front_end(name, options.device)


def table(results: dict[str, dict]) -> str:
    """The errors in Markdown, in percent."""
    lines = ["| features | within speakers | across speakers |", "| --- | --- | --- |"]
    for name, result in results.items():
        cells = ["" if result[key] is None else f"{100 * result[key]:.2f}" for key in ("within", "across")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="folder, manifest, parquet, tar or Hub id")
    parser.add_argument("--name", help="configuration of a Hub data set")
    parser.add_argument("--split", default="test")
    parser.add_argument("--seconds", type=float, help="a budget; all if not given")
    parser.add_argument("--items", type=Path, help="item file, in place of the columns phones and phone_start_s")
    parser.add_argument("--context", choices=["neighbours", "none"], default="neighbours")
    parser.add_argument("--model", nargs="+", default=[], type=named_model, metavar="NAME=FOLDER")
    parser.add_argument("--layer", nargs="+", default=["c"], help="c, z, q, or the number of a hidden state")
    parser.add_argument("--random", action="store_true", help="also each model with random weights")
    parser.add_argument("--baseline", nargs="+", default=[], choices=BASELINES)
    parser.add_argument("--max-group-size", type=int, default=10, help="takes per speaker, phone and context")
    parser.add_argument("--max-other-speakers", type=int, default=5, help="speakers of x across speakers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-seconds", type=float, default=60.0)
    parser.add_argument("--num-workers", type=int, default=0, help="processes that decode")
    parser.add_argument("--output", type=Path, help="folder for abx.json")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, dict]:
    options = parse_arguments(arguments)
    if not options.model and not options.baseline:
        raise ValueError("--model or --baseline must name at least one set of features.")
    items = None
    if options.items is not None:
        items = defaultdict(list)
        for item in read_items(options.items):
            items[item.file].append(item)
    transformers.set_seed(options.seed)
    results = {}
    for names, front_end in front_ends_of(options):
        collator = (ItemCollator if items is None else ClipCollator)(front_end.feature_extractor)
        batches = labelled_batches(
            Source(options.corpus, options.name, options.split),
            collator,
            budget_seconds=options.seconds,
            batch_seconds=options.batch_seconds,
            num_workers=options.num_workers,
        )
        for layer, takes in takes_of(front_end, batches, items, options.device).items():
            if options.context == "none":
                takes = [Take(take.frames, take.phone, "", take.speaker) for take in takes]
            found = abx_errors(
                takes,
                max_group_size=options.max_group_size,
                max_other_speakers=options.max_other_speakers,
                seed=options.seed,
            )
            results[names[layer]] = {
                "within": found.within,
                "across": found.across,
                "num_takes": len(takes),
                "num_within_cells": len(found.within_cells),
                "num_across_cells": len(found.across_cells),
            }
    print(table(results))
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        settings = {name: str(value) for name, value in vars(options).items()}
        content = json.dumps({"settings": settings, "results": results}, indent=2) + "\n"
        (options.output / "abx.json").write_text(content)
    return results


if __name__ == "__main__":
    main()
