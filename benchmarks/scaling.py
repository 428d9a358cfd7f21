"""A training step of our wav2vec 2.0 against size, batch, crop and processes, each varied alone around one middle.

python -m benchmarks.scaling --output scaling.json

A step is forward and backward pass, clipping and AdamW, dropout on, masks and distractors drawn in it. Every row has
processes of its own and is timed by the clock, also on one thread, since a process that waits for others takes no
processor time: it wants a quiet machine. Several processes are DDP's (gloo, on GPUs nccl), each with a batch of its
own and the threads of the middle; beside them stand one process of DDP, which sends nothing, and on a CPU one process
with the threads of all. TFLOP/s are of the operations that benchmarks/flop.py counts, of all processes.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from .comparing import circumstances, options_of, prepare
from .gpu import compiled
from .pretraining_step import make_step
from .wav2vec2_sizes import SIZES, noise, one_side, training_flop


@dataclass(frozen=True)
class Point:
    """What is timed: `batch_size` clips of `seconds` for each of `processes`; `ddp`: as its processes."""

    size: str
    batch_size: int
    seconds: float
    processes: int = 1
    threads: int = 1
    ddp: bool = False


def points_of(options: argparse.Namespace) -> dict[str, list[Point]]:
    """By what is varied; the middle itself is the first alone."""
    middle = Point(options.size, options.batch_size, options.seconds, threads=options.threads)
    points = {
        "middle": [middle],
        "size": [replace(middle, size=size) for size in options.sizes],
        "batch": [replace(middle, batch_size=batch_size) for batch_size in options.batches],
        "crop": [replace(middle, seconds=seconds) for seconds in options.crops],
        "processes": [],
    }
    for processes in options.processes:
        points["processes"].append(replace(middle, processes=processes, ddp=True))
        if options.device == "cpu":
            points["processes"].append(replace(middle, threads=processes * options.threads))
    return {name: [p for p in varied if name == "middle" or p != middle] for name, varied in points.items()}


def time_steps(rank: int, point: Point, options: argparse.Namespace, folder: str):
    """One process of a point; the first writes its seconds to the folder."""
    torch.set_num_threads(point.threads)
    torch.manual_seed(rank)
    device = options.device
    if device == "cuda":
        torch.cuda.set_device(rank)
        torch.backends.cudnn.benchmark = True  # all lengths are one
    model = one_side("ours", point.size, "pretraining", device).train()
    if options.compile:
        model = compiled(model, "ours, compiled")
    if point.ddp:
        backend = "nccl" if device == "cuda" else "gloo"
        # not by the network's name of this host, which not every host can look up
        store = distributed.FileStore(f"{folder}/store", point.processes)
        distributed.init_process_group(backend, store=store, rank=rank, world_size=point.processes)
        model = DistributedDataParallel(model, device_ids=[rank] if device == "cuda" else None)
    step = make_step(model, {"input_values": noise(point.batch_size, point.seconds, device)}, options)
    measured = [clock_of(step, point, device) for _ in range(options.warmup + options.rounds)]
    if point.ddp:
        distributed.destroy_process_group()
    if rank == 0:
        Path(folder, "seconds.json").write_text(json.dumps(measured[options.warmup :]))


def clock_of(step, point: Point, device: str) -> float:
    """Seconds from when all processes are ready to when this one has taken its step, which waits for all others."""
    if point.ddp:
        distributed.barrier()
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(point: Point, options: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(time_steps, (point, options, folder), nprocs=point.processes)
        seconds = json.loads(Path(folder, "seconds.json").read_text())
    median = statistics.median(seconds)
    flop = point.processes * training_flop(point.size, point.batch_size, point.seconds)
    return {
        **asdict(point),
        "step_seconds": median,
        "fastest_seconds": min(seconds),
        "slowest_seconds": max(seconds),
        "audio_seconds_per_second": point.processes * point.batch_size * point.seconds / median,
        "teraflops": flop / median / 1e12,
    }


def table(rows: list[dict]) -> str:
    lines = ["| varied | size | batch | processes x threads | s | fastest, slowest | audio s per s | TFLOP/s |"]
    lines.append("|" + " --- |" * 8)
    for row in rows:
        where = f"{row['processes']} x {row['threads']}" + (", DDP" if row["ddp"] else "")
        cells = [row["varied"], row["size"], f"{row['batch_size']} x {row['seconds']:g} s", where]
        cells.append(f"{row['step_seconds']:.3g}")
        cells.append(f"{row['fastest_seconds']:.3g}, {row['slowest_seconds']:.3g}")
        cells += [f"{row['audio_seconds_per_second']:.3g}", f"{row['teraflops']:.3g}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = options_of(__doc__)
    parser.add_argument("--size", choices=SIZES, default="base", help="of the middle")
    parser.add_argument("--batch-size", type=int, default=2, help="of the middle")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a crop of the middle")
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=list(SIZES))
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 4])
    parser.add_argument("--crops", nargs="*", type=float, default=[1.0, 4.0, 8.0], help="in seconds")
    parser.add_argument("--processes", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16 by autocast")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action="store_true", help="to one graph")
    parser.add_argument("--warmup", type=int, default=1, help="steps before those that are timed")
    parser.set_defaults(rounds=3)
    options = parser.parse_args()
    if options.device == "cuda" and max(options.processes, default=1) > torch.cuda.device_count():
        print(f"{torch.cuda.device_count()} GPUs: more processes than that are left out", flush=True)
        options.processes = [n for n in options.processes if n <= torch.cuda.device_count()]
    prepare(options)
    rows = []
    for varied, points in points_of(options).items():
        for point in points:
            rows.append({"varied": varied, **measure(point, options)})
            print(json.dumps(rows[-1]), flush=True)
            if options.output:
                found = {**circumstances(options), "dtype": options.dtype, "compile": options.compile, "rows": rows}
                options.output.write_text(json.dumps(found, indent=1) + "\n")
    print("\n" + table(rows))


if __name__ == "__main__":
    main()
