"""Kills real training runs at random moments, starts them again, and compares what they end in with an unbroken run.

python -m benchmarks.resume --output resume.json
python -m benchmarks.resume --kinds tar --workers 2 --processes 2 --tasks pretrain/CPC --kills 20

The first line runs every case that `resume.json` does not hold yet with as many kills, the ones that miss most first,
so that the benchmark may itself be stopped and started again. Every run is a process of its own (two with gloo for
`--processes 2`), killed with SIGKILL: at the start, in the middle of a step, or while a checkpoint is written. In the
end the weights have to be equal bit for bit, and the rows of every step the same. Models and clips are tiny, and one
clip of the corpus cannot be read. `folder` has a metadata.jsonl, `manifest` a csv without durations, `mixed` are two
sources with weights, and `hub` is what a data set on the Hub is to the code: parquet streamed by `datasets`, here from
a folder.
"""

import argparse
import csv
import io
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

KINDS = ("folder", "manifest", "parquet", "tar", "hub", "mixed")
TASKS = ("pretrain/CPC", "pretrain/Wav2Vec2", "finetune/CPC", "finetune/Wav2Vec2")
ROOT = Path(__file__).parents[1]
NUM_CLIPS, CLIPS_PER_SHARD, RATE = 25, 4, 16_000
UNREADABLE = 7
CHECKPOINT_EVERY = 2
PATIENCE_SECONDS = 600
CONVOLUTIONS = {"conv_dim": [8] * 5, "conv_kernel": [10, 8, 4, 4, 4], "conv_stride": [5, 4, 2, 2, 2]}
TINY_MODELS = {
    "CPC": {**CONVOLUTIONS, "hidden_size": 16, "num_negatives": 5},
    "Wav2Vec2": {
        "conv_dim": [8] * 7,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
        "num_codevectors_per_group": 4,
        "codevector_dim": 8,
        "proj_codevector_dim": 8,
        "num_negatives": 5,
        "layerdrop": 0.3,
        "mask_feature_length": 4,
    },
}


@dataclass(frozen=True)
class Cell:
    """One case: where rows come from, how many workers and processes, and what is trained."""

    kind: str
    num_workers: int
    num_processes: int
    stage: str
    architecture: str


@dataclass
class Outcome:
    """What became of a case at a `commit`; `moments` counts where the kills fell, in `runs` from start to end."""

    cell: Cell
    commit: str
    num_steps: int
    kills: int
    moments: dict[str, int]
    runs: int
    same_weights: bool
    same_rows: bool
    rows_missing_or_twice: int
    seconds: float

    @property
    def good(self) -> bool:
        return self.same_weights and self.same_rows and not self.rows_missing_or_twice


def write_corpus(folder: Path):
    """The same clips as a folder, as parquet and as tar shards beneath `folder`."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import soundfile

    generator = np.random.default_rng(0)
    rows = []
    for number in range(NUM_CLIPS):
        clip = 0.1 * generator.standard_normal(int(RATE * generator.uniform(0.4, 0.8)))
        buffer = io.BytesIO()
        soundfile.write(buffer, clip, RATE, format="FLAC")
        audio = buffer.getvalue() if number != UNREADABLE else b"fLaC, but not really"
        text = "".join(generator.choice(list("ABC"), size=3))
        rows.append({"id": f"{number:03d}", "audio": audio, "text": text, "duration": len(clip) / RATE})
    for kind in ("folder", "parquet", "tar"):
        (folder / kind / "train").mkdir(parents=True)
    with (folder / "folder" / "train" / "metadata.jsonl").open("w") as metadata:
        for row in rows:
            (folder / "folder" / "train" / f"{row['id']}.flac").write_bytes(row["audio"])
            fields = {name: value for name, value in row.items() if name != "audio"}
            metadata.write(json.dumps({"file_name": f"{row['id']}.flac", **fields}) + "\n")
    with (folder / "manifest.csv").open("w", newline="") as manifest:
        writer = csv.writer(manifest)
        writer.writerow(["path", "sentence", "id"])
        writer.writerows([f"folder/train/{row['id']}.flac", row["text"], row["id"]] for row in rows)
    for begin in range(0, NUM_CLIPS, CLIPS_PER_SHARD):
        shard = rows[begin : begin + CLIPS_PER_SHARD]
        table = pa.Table.from_pylist([{**row, "audio": {"bytes": row["audio"], "path": None}} for row in shard])
        pq.write_table(table, folder / "parquet" / "train" / f"train-{begin:03d}.parquet")
        with tarfile.open(folder / "tar" / "train" / f"train-{begin:03d}.tar", "w") as tar:
            for row in shard:
                fields = {name: value for name, value in row.items() if name != "audio"}
                for suffix, content in (("flac", row["audio"]), ("json", json.dumps(fields).encode())):
                    member = tarfile.TarInfo(f"{row['id']}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def recipe_of(cell: Cell, corpus: Path, output: Path, num_steps: int):
    """The recipe of a case: dropout, masks, LayerDrop, accumulation and evaluation are on."""
    from training.recipe import DataRecipe, OptimizationRecipe, Recipe, RunRecipe

    has_quantizer = (cell.stage, cell.architecture) == ("pretrain", "Wav2Vec2")
    train = str(corpus / cell.kind)
    if cell.kind == "hub":
        train = {"path": "owner/corpus"}
    elif cell.kind == "manifest":
        train = str(corpus / "manifest.csv")
    elif cell.kind == "mixed":
        train = [{"path": str(corpus / "folder"), "weight": 3}, {"path": str(corpus / "tar"), "weight": 1}]
    return Recipe(
        architecture=cell.architecture,
        vocabulary="letters",
        model=TINY_MODELS[cell.architecture],
        data=DataRecipe(
            train=train,
            evaluation={"path": str(corpus / "folder"), "split": "train"},
            batch_seconds=1.6,
            max_seconds=1.0,
            shuffle_window=8,
            num_workers=cell.num_workers,
            max_bad_fraction=0.5,
        ),
        optimization=OptimizationRecipe(
            learning_rate=1e-3,
            num_steps=num_steps,
            schedule={"kind": "constant"},
            gumbel_temperature={"kind": "linear"} if has_quantizer else None,
            gradient_accumulation_steps=2,
            max_grad_norm=1.0,
        ),
        run=RunRecipe(
            output_dir=str(output),
            log_every_steps=1,
            evaluation_every_steps=20,
            checkpoint_every_steps=CHECKPOINT_EVERY,
            trackers=[],
        ),
    )


def train_in_this_process(cell: Cell, recipe, corpus: Path, rank: int, port: int):
    """The body of a process that trains: a stage's `main`, with a note of the rows of every batch."""
    os.environ.update(ACCELERATE_USE_CPU="true", RANK=str(rank), LOCAL_RANK=str(rank), MASTER_PORT=str(port))
    os.environ.update(WORLD_SIZE=str(cell.num_processes), LOCAL_WORLD_SIZE=str(cell.num_processes))
    os.environ.update(MASTER_ADDR="127.0.0.1")
    output = Path(recipe.run.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    log = (output / f"process-{rank}.txt").open("a")
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)

    import datasets
    import torch

    import training.loop
    import training.sources

    torch.set_num_threads(1)
    # workers start as in a run of its own, and end with it
    multiprocessing.set_start_method("fork", force=True)
    stage = getattr(__import__(f"training.{cell.stage}"), cell.stage)
    files = [str(path) for path in sorted((corpus / "parquet" / "train").iterdir())]
    training.sources._open_hub = lambda source: datasets.load_dataset(
        "parquet", data_files=files, split="train", streaming=True
    )
    step, rows = [0], (output / f"rows-{rank}.jsonl").open("a", buffering=1)
    compute, seed_step = stage.compute, training.loop.seed_step

    def seed_and_remember(seed: int, number: int, of_rank: int):
        step[0] = number
        seed_step(seed, number, of_rank)

    def compute_and_note(model, batch):
        if model.training:
            line = {"step": step[0], "index": batch["index"], "epoch": batch["epoch"], "ids": batch["ids"]}
            rows.write(json.dumps(line) + "\n")
        return compute(model, batch)

    training.loop.seed_step, stage.compute = seed_and_remember, compute_and_note
    stage.main(recipe)


class Run:
    """The processes of one attempt to train."""

    def __init__(self, context, cell: Cell, recipe, corpus: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        arguments = [(cell, recipe, corpus, rank, port) for rank in range(cell.num_processes)]
        self.output = Path(recipe.run.output_dir)
        self.processes = [context.Process(target=train_in_this_process, args=a) for a in arguments]
        for process in self.processes:
            process.start()

    def is_over(self) -> bool:
        return all(process.exitcode is not None for process in self.processes)

    def finish(self):
        """Waits for the end; RuntimeError if it is no good one."""
        for process in self.processes:
            process.join(PATIENCE_SECONDS)
        codes = [process.exitcode for process in self.processes]
        if any(code != 0 for code in codes):
            self.kill()
            raise RuntimeError(f"a run ended with exit codes {codes}; the end of its output:\n{self.last_words()}")

    def last_words(self) -> str:
        return "\n".join(path.read_text()[-2000:] for path in sorted(self.output.glob("process-*.txt")))

    def kill(self):
        for process in self.processes:
            if process.exitcode is None:
                os.kill(process.pid, signal.SIGKILL)
        for process in self.processes:
            process.join()

    def wait_until(self, happened: Callable[[], bool]):
        """Until then, or the end of the run."""
        until = time.monotonic() + PATIENCE_SECONDS
        while not happened() and not self.is_over() and time.monotonic() < until:
            time.sleep(0.0005)


def kill_at_random(run: Run, output: Path, generator: random.Random) -> str:
    """Kills a run and says in which moment, or "over" if it was quicker."""
    kind, began = generator.choice(["start", "step", "step", "checkpoint", "checkpoint"]), time.time()
    if kind == "start":
        time.sleep(generator.uniform(0, 0.6))
    elif kind == "step":
        before, more = num_lines(output / "rows-0.jsonl"), generator.randint(1, 6 * CHECKPOINT_EVERY)
        run.wait_until(lambda: num_lines(output / "rows-0.jsonl") >= before + more)
        time.sleep(generator.uniform(0, 0.03))
    else:
        for _ in range(generator.randint(1, 3)):  # the first one, or one of the next
            run.wait_until(lambda: not is_saving(output, began))
            run.wait_until(lambda: is_saving(output, began))
        time.sleep(generator.uniform(0, 0.03))
    if run.is_over():
        return "over"
    run.kill()
    return "checkpoint" if is_saving(output, began) else kind.replace("checkpoint", "after checkpoint")


def is_saving(output: Path, since: float) -> bool:
    """Whether a checkpoint or the best model is half written, other than by a run killed before `since`."""
    folders = [*output.glob("checkpoints/unfinished-*"), *output.glob("unfinished-*")]
    return any(modified_at(folder) >= since for folder in folders)


def modified_at(folder: Path) -> float:
    """0 for a folder that is no more."""
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def rows_of_steps(output: Path, num_processes: int, per_step: int) -> dict:
    """The batches of each step and rank that counted in the end: the last ones, since a repeated step stands later."""
    steps: dict = {}
    for rank in range(num_processes):
        for line in (output / f"rows-{rank}.jsonl").read_text().splitlines():
            try:
                batch = json.loads(line)
            except json.JSONDecodeError:  # cut short by a kill, and the next line with it; the step comes again
                continue
            steps.setdefault((batch.pop("step"), rank), []).append(batch)
    return {place: batches[-per_step:] for place, batches in steps.items()}


def missing_or_twice(steps: dict) -> int:
    """Rows that did not come exactly once in an epoch; only epochs count that every rank has left behind."""
    epochs: dict[int, Counter] = {}
    latest: dict[int, int] = {}
    for (_, rank), batches in steps.items():
        for batch in batches:
            epochs.setdefault(batch["epoch"], Counter()).update(batch["ids"])
            latest[rank] = max(latest.get(rank, 0), batch["epoch"])
    expected = {f"{number:03d}" for number in range(NUM_CLIPS) if number != UNREADABLE}
    whole = [epochs[epoch] for epoch in epochs if epoch < min(latest.values())]
    return sum(len(expected - set(rows)) + sum(number - 1 for number in rows.values()) for rows in whole)


def weights(output: Path, num_steps: int) -> list:
    """Sums over the bytes of the last checkpoint's weights and optimizer, and the bytes of the best model."""
    files = json.loads((output / "checkpoints" / f"step-{num_steps:08d}" / "run.json").read_text())["files"]
    model = (output / "model" / "model.safetensors").read_bytes()
    return [files["model.safetensors"], files["optimizer.bin"], model]


def judge(context, cell: Cell, corpus: Path, folder: Path, *, num_steps: int, kills: int, seed: int) -> Outcome:
    """Trains a case once unbroken and again with `kills` kills; a run that is over too soon begins anew."""
    began, generator, moments = time.monotonic(), random.Random(seed), Counter()
    whole, killed = folder / "whole", folder / "killed"
    Run(context, cell, recipe_of(cell, corpus, whole, num_steps), corpus).finish()
    expected_weights, expected_rows = weights(whole, num_steps), rows_of_steps(whole, cell.num_processes, 2)
    recipe = recipe_of(cell, corpus, killed, num_steps)
    same_weights, same_rows, num_wrong, num_runs = True, True, 0, 0
    while moments.total() < kills or killed.exists() or not num_runs:
        run = Run(context, cell, recipe, corpus)
        if moments.total() < kills:
            moment = kill_at_random(run, killed, generator)
            if moment != "over":
                moments[moment] += 1
                continue
        run.finish()
        found = rows_of_steps(killed, cell.num_processes, 2)
        same_weights &= weights(killed, num_steps) == expected_weights
        same_rows &= found == expected_rows
        num_wrong += 0 if cell.kind == "mixed" else missing_or_twice(found)
        num_runs += 1
        shutil.rmtree(killed)
    return Outcome(
        cell=cell,
        commit=commit(),
        num_steps=num_steps,
        kills=kills,
        moments=dict(moments),
        runs=num_runs,
        same_weights=same_weights,
        same_rows=same_rows,
        rows_missing_or_twice=num_wrong,
        seconds=round(time.monotonic() - began, 1),
    )


def warm_context():
    """Processes that start with everything imported: forked from one that has done nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["datasets", "training.pretrain", "training.finetune"])
    return context


def commit() -> str:
    """What is checked out, or "unknown" outside of a checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def read_outcomes(path: Path | None) -> dict[Cell, dict]:
    """What was found before, by case."""
    if path is None or not path.exists():
        return {}
    return {Cell(**outcome["cell"]): outcome for outcome in json.loads(path.read_text())}


def write_outcome(path: Path, outcome: dict):
    """Puts `outcome` in the place of that of the same case; other cases may have been added meanwhile."""
    outcomes = read_outcomes(path) | {Cell(**outcome["cell"]): outcome}
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps([outcomes[cell] for cell in sorted(outcomes, key=str)], indent=1) + "\n")
    unfinished.replace(path)


def cases_left(options: argparse.Namespace) -> list[Cell]:
    """The cases asked for that were not found good with as many kills, in an order drawn by the seed."""
    named = itertools.product(options.tasks, options.kinds, options.workers, options.processes)
    cells = [Cell(kind, workers, processes, *task.split("/")) for task, kind, workers, processes in named]
    random.Random(options.seed).shuffle(cells)
    before = read_outcomes(options.output)
    kills = {cell: before[cell]["kills"] if cell in before and before[cell]["good"] else 0 for cell in cells}
    left = [cell for cell in cells if kills[cell] < options.kills]
    return sorted(left, key=kills.get)[: options.sample]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 2])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--sample", type=int, help="run so many of the cases left only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a JSON file of cases, to add to")
    return parser.parse_args()


def main() -> int:
    """Prints a line per case and returns how many were no good."""
    options, context, num_bad = parse_arguments(), warm_context(), 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as name:
        corpus = Path(name) / "corpus"
        write_corpus(corpus)
        for number, cell in enumerate(cases_left(options)):
            folder = Path(name) / f"case-{number}"
            sizes = {"num_steps": options.steps, "kills": options.kills, "seed": options.seed + number}
            outcome = judge(context, cell, corpus, folder, **sizes)
            num_bad += not outcome.good
            found = {"good": outcome.good, **asdict(outcome)}
            print(json.dumps(found), flush=True)
            if options.output is not None:
                write_outcome(options.output, found)
            shutil.rmtree(folder)
    return num_bad


if __name__ == "__main__":
    sys.exit(main())
