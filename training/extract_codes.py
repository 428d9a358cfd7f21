"""Speech to codes: shards of a column `codes` in parquet, how the codebooks are used, and the vocabulary.

python -m training.extract_codes runs/vq/model /my/corpus --split train --output codes
accelerate launch -m training.extract_codes runs/vq/model /my/corpus --split train --output codes

`codes/train` holds the shards of every process, each with its place in the stream; a run that was killed and is
started again goes on after the last whole shard. When all are there: `usage.json`, its picture `usage.png`, and
`vocabulary`, a `SpeechCodesTokenizer` of the words that occur.

| column | what |
|---|---|
| `id` | of the utterance |
| `codes` | [T, G] integers, a list of G for each frame |
| `duration` | seconds of audio |
| `text`, `speaker_id` | as the corpus has them, or none |
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_wav2vec_family import SpeechCodesTokenizer
from hf_wav2vec_family.code_words import words_of
from hf_wav2vec_family.frame_places import min_num_samples
from hf_wav2vec_family.quantizers import code_usage, codebook_perplexity

from .checkpoints import replace_file, replace_folder
from .collators import PretrainingCollator, pad_waveforms
from .curves import import_pyplot, save_figure
from .data import SpeechBatches
from .engine import refuse_processes_apart
from .probe import load_model
from .rows import Row
from .sources import Source

STATE = b"extraction"  # key of a shard's metadata
VOCABULARY = "vocabulary"


class RowCollator(PretrainingCollator):
    """Whole utterances, padded, with the `columns` of each that are kept."""

    def prepare(self, row: Row, waveform: np.ndarray) -> dict:
        speaker = row.extra.get("speaker_id")
        columns = {
            "id": row.id,
            "duration": len(waveform) / self.sampling_rate,
            "text": row.text,
            "speaker_id": None if speaker is None else str(speaker),
        }
        return super().prepare(row, waveform) | {"columns": columns}

    def collate(self, examples: list[dict]) -> dict:
        return {**pad_waveforms(self.feature_extractor, examples), "columns": [e["columns"] for e in examples]}


@dataclass(frozen=True)
class Shards:
    """The shards of one rank: each is whole or not there, and says where in the stream it ends.

    Args:
        folder: of the split.
        origin: what the codes are of, by name; a shard of something else is an error.
    """

    folder: Path
    rank: int
    num_groups: int
    origin: dict[str, str]

    def paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.rank:05d}-*.parquet"))

    def state(self) -> dict | None:
        """What the last shard was written with, or None if there is none."""
        if not self.paths():
            return None
        last = read_state(self.paths()[-1])
        if last["origin"] != self.origin:
            raise ValueError(f"{self.folder} holds codes of {last['origin']}, not of {self.origin}; choose another.")
        return last

    def write(self, rows: list[dict], *, position: dict, finished: bool):
        """Adds a shard of `rows`, whose `codes` are [T, G] arrays; `position` is where its rank goes on after it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / f"{self.rank:05d}-{len(self.paths()):05d}.parquet"
        state = {"origin": self.origin, "position": position, "finished": finished}
        table = self._table(rows).replace_schema_metadata({STATE: json.dumps(state)})

        def write_parquet(path: Path):
            with pq.ParquetWriter(path, table.schema) as file:
                if rows:  # `datasets` reads a shard of no row groups, but not one of no rows
                    file.write_table(table)

        replace_file(target, write_parquet)

    def _table(self, rows: list[dict]) -> pa.Table:
        codes = np.concatenate([np.zeros((0, self.num_groups)), *(row["codes"] for row in rows)]).astype(np.int32)
        ends = np.cumsum([0, *(len(row["codes"]) for row in rows)])
        frames = pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel()), self.num_groups)
        columns = {name: pa.array([row[name] for row in rows], pa.string()) for name in ("id", "text", "speaker_id")}
        columns["duration"] = pa.array([row["duration"] for row in rows], pa.float64())
        columns["codes"] = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), frames)
        return pa.table({name: columns[name] for name in ("id", "codes", "duration", "text", "speaker_id")})


def read_state(shard: Path) -> dict:
    """What `Shards.write` noted beside the rows."""
    metadata = pq.read_schema(shard).metadata or {}
    if STATE not in metadata:
        raise ValueError(f"{shard} was not written by training.extract_codes; choose another folder.")
    return json.loads(metadata[STATE])


def read_codes(shard: Path) -> Tensor:
    """The codes of all rows of a shard, one after another, [T, G] int64."""
    column = pq.read_table(shard, columns=["codes"])["codes"]
    num_groups = column.type.value_type.list_size
    codes = column.combine_chunks().flatten().flatten().to_numpy()
    return torch.from_numpy(codes.astype(np.int64)).view(-1, num_groups)


def load_quantizing_model(folder: str) -> nn.Module:
    """A model of this package that gives codes of one codebook size."""
    model = load_model(folder)
    if not hasattr(model, "quantize") or not hasattr(model.config, "num_codevectors_per_group"):
        raise ValueError(f"{folder} holds a {type(model).__name__}, which has no codes; a vq-wav2vec is needed.")
    return model


@torch.no_grad()
def encode(model: nn.Module, batch: dict) -> list[dict]:
    """The rows of a batch with their codes, [T, G] arrays without the frames of padding."""
    device = next(model.parameters()).device
    codes = model.quantize(batch["input_values"].to(device), batch["attention_mask"].to(device)).cpu().numpy()
    lengths = model.num_frames(batch["attention_mask"].sum(dim=-1)).tolist()
    rows = zip(batch["columns"], codes, lengths, strict=True)
    return [{**columns, "codes": found[:length]} for columns, found, length in rows]


def extract(model: nn.Module, batches: SpeechBatches, shards: Shards, *, rows_per_shard: int):
    """Writes what is missing of a rank's shards, of `rows_per_shard` rows or a few more, whole batches each."""
    before = shards.state()
    if before is not None:
        # first, so that a finished rank too finds out that it was started otherwise
        batches.load_state_dict(before["position"])
        if before["finished"]:
            return
    rows, position = [], batches.state_dict()
    for batch in tqdm(batches, desc=f"codes, process {shards.rank}", unit="batch"):
        if len(rows) >= rows_per_shard:
            shards.write(rows, position=position, finished=False)
            rows = []
        rows += encode(model, batch)
        position = batches.state_dict()
    # once more for the report: rows may have been left out behind the last batch
    position["report"] = batches.summary()
    shards.write(rows, position=position, finished=True)


@dataclass
class Usage:
    """How the codebooks are used by all shards of a split.

    Args:
        counts: [G, V] int64, how often each entry was chosen.
        words: how often each combination was.
        skipped: rows left out per reason.
    """

    counts: Tensor
    words: Counter[str]
    num_rows: int
    num_frames: int
    seconds: float
    skipped: dict[str, int]

    def summary(self) -> dict:
        """The numbers of `usage.json`; perplexities lie between 1 and V for a group, G and G * V for all."""
        shares = self.counts / self.num_frames
        groups = [
            {"num_used_codes": int((counts > 0).sum()), "perplexity": float(codebook_perplexity(share[None]))}
            for counts, share in zip(self.counts, shares, strict=True)
        ]
        return {
            "num_rows": self.num_rows,
            "num_frames": self.num_frames,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "num_codevectors_per_group": self.counts.shape[1],
            "num_used_codes": sum(group["num_used_codes"] for group in groups),
            "num_used_tuples": len(self.words),
            "perplexity": sum(group["perplexity"] for group in groups),
            "groups": groups,
            "counts": self.counts.tolist(),
        }


def usage_of(paths: Iterable[Path], num_codevectors: int) -> Usage:
    """Reads shards one at a time; ValueError if a rank among them is not finished, or there is not a frame."""
    counts, words, skipped = torch.zeros(1, num_codevectors, dtype=torch.long), Counter(), Counter()
    last_states, num_rows, seconds = {}, 0, 0.0
    for path in sorted(paths):
        last_states[path.stem.split("-")[0]] = read_state(path)
        codes = read_codes(path)
        durations = pq.read_table(path, columns=["duration"])["duration"].to_numpy()
        num_rows, seconds = num_rows + len(durations), seconds + float(durations.sum())
        if len(codes):
            counts = counts + code_usage(codes, num_codevectors).counts
            frames, found = torch.unique(codes, dim=0, return_counts=True)
            words.update(dict(zip(words_of(frames), found.tolist(), strict=True)))
    unfinished = [rank for rank, state in last_states.items() if not state["finished"]]
    if unfinished or not words:
        raise ValueError(f"the shards of the processes {', '.join(unfinished)} end early, or all of them are empty.")
    for state in last_states.values():
        skipped.update(state["position"]["report"]["skipped"])
    return Usage(counts, words, num_rows, int(counts[0].sum()), seconds, {k: n for k, n in skipped.items() if n})


def draw_usage(usage: Usage, path: Path):
    """A histogram per group: the share of frames of every entry, the most frequent first. Writes a PNG."""
    pyplot = import_pyplot()
    groups = usage.summary()["groups"]
    figure, axes = pyplot.subplots(1, len(groups), figsize=(4.5 * len(groups), 3.2), squeeze=False, sharey=True)
    for number, (axis, counts, group) in enumerate(zip(axes[0], usage.counts, groups, strict=True)):
        shares = (counts / usage.num_frames).sort(descending=True).values
        axis.bar(range(len(shares)), shares.numpy(), width=1.0)
        axis.axhline(1 / len(shares), color="black", linewidth=0.8, linestyle=":")
        axis.set_yscale("log")
        axis.set_title(
            f"group {number}: {group['num_used_codes']} of {len(shares)} used, perplexity {group['perplexity']:.1f}",
            fontsize=9,
        )
        axis.set_xlabel("entries, the most frequent first", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[0, 0].set_ylabel("share of frames; dotted: all alike", fontsize=8)
    save_figure(figure, path)


def summarize(folder: Path, num_codevectors: int, *, min_count: int) -> dict:
    """Writes `usage.json`, `usage.png` and `vocabulary` of all shards in `folder`; returns the first of them."""
    usage = usage_of(folder.glob("*.parquet"), num_codevectors)
    tokenizer = SpeechCodesTokenizer.from_counts(usage.words, num_codevectors, min_count=min_count)
    replace_folder(folder / VOCABULARY, tokenizer.save_pretrained)
    draw_usage(usage, folder / "usage.png")
    (folder / "usage.json").write_text(json.dumps(usage.summary()) + "\n")
    return usage.summary()


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub id of a vq-wav2vec")
    parser.add_argument("corpus", help="folder, manifest, parquet, tar or Hub id")
    parser.add_argument("--name", help="configuration of a Hub data set")
    parser.add_argument("--split", default="train")
    parser.add_argument("--output", type=Path, required=True, help="folder for a folder of the split's name")
    parser.add_argument("--batch-seconds", type=float, default=60.0)
    parser.add_argument("--rows-per-shard", type=int, default=1000)
    parser.add_argument("--min-count", type=int, default=1, help="words seen less often are not in the vocabulary")
    parser.add_argument("--num-workers", type=int, default=1, help="processes that decode, for each that encodes")
    options = parser.parse_args(arguments)
    for name in ("rows_per_shard", "min_count"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    return options


def main(arguments: list[str] | None = None) -> dict | None:
    """Runs the command; returns the content of `usage.json` in the main process."""
    options = parse_arguments(arguments)
    accelerator = Accelerator()
    refuse_processes_apart(accelerator)
    rank, world_size = accelerator.process_index, accelerator.num_processes
    source = Source(options.corpus, options.name, options.split)
    folder = options.output / options.split
    others = [path.name for path in sorted(folder.glob("*.parquet")) if path.name[:5] >= f"{world_size:05d}"]
    if others:
        raise ValueError(f"{folder} holds {others[0]}, of a run of more than {world_size} processes; choose another.")
    model = load_quantizing_model(options.model).to(accelerator.device)
    config = model.config
    feature_extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(options.model)
    batches = SpeechBatches(
        sources=[source],
        collator=RowCollator(feature_extractor),
        num_workers=options.num_workers,
        batch_seconds=options.batch_seconds,
        min_seconds=min_num_samples(model) / feature_extractor.sampling_rate,
        max_seconds=math.inf,
        shuffle_window=0,
        num_epochs=1,
        rank=rank,
        world_size=world_size,
    )
    origin = {"model": options.model, **{name: str(value) for name, value in asdict(source).items()}}
    shards = Shards(folder, rank, config.num_codevector_groups, origin)
    extract(model, batches, shards, rows_per_shard=options.rows_per_shard)
    accelerator.wait_for_everyone()
    usage = None
    if accelerator.is_main_process:
        usage = summarize(folder, config.num_codevectors_per_group, min_count=options.min_count)
        print(json.dumps({name: value for name, value in usage.items() if name != "counts"}, indent=2))
    accelerator.end_training()
    return usage


if __name__ == "__main__":
    main()
