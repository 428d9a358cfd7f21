"""Training steps and CTC inference of wav2vec 2.0 on one GPU against Transformers', in every way that either is run.

python -m benchmarks.gpu --output gpu.json

In one process and in turns, each side eagerly, compiled, and compiled with CUDA graphs, ours to one graph; the same
weights, bfloat16 by autocast, sdpa, dropout on, fused AdamW. Transformers is given masks and distractors that are
ready; ours draws them in the step. Loss, every gradient and logits of the two sides are compared first, in float32
without dropout. The share of the matrix rate is that of a product of 8192-cubes in the same run.

`--output` is written after every group of rows. Compiling takes a minute or more for each way and shape, so that all
of it takes about an hour; `--sizes`, `--seconds`, `--batches` and `--ways` take parts of it.
"""

import gc
import json
import statistics

import torch
from torch import nn

from .comparing import Action, circumstances, options_of, peak_bytes, prepare, seconds_of
from .ctc_inference import check
from .pretraining_step import equality_of_steps, make_step
from .wav2vec2_sizes import SIZES, noise, peer_and_ours, pretraining_batch, training_flop

FORMS = ("", ", compiled", ", CUDA graphs")
WAYS = tuple(side + form for side in ("transformers", "ours") for form in FORMS)


def matrix_rate(device: str) -> float:
    """Operations per second of a product of two bf16 matrices of random numbers."""
    size = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = lambda: a @ b  # noqa: E731
    return 2 * size**3 / statistics.median([seconds_of(product, device) for _ in range(10)][3:])


def compiled(model: nn.Module, way: str) -> nn.Module:
    """The model as `way` runs it; ours has to be one graph."""
    if "," not in way:
        return model
    own = way.startswith("ours")
    # of ours the model itself: what it stands behind gives its loss another form
    inner = model.model if own else model
    inner.compile(fullgraph=own, dynamic=False, mode="reduce-overhead" if "graphs" in way else None)
    return model


def model_of(way: str, size: str, task: str, device: str) -> nn.Module:
    """One of the two sides, with the same weights, as `way` runs it."""
    return compiled(peer_and_ours(size, task, device)[way.startswith("ours")], way)


def check_equality(size: str, device: str):
    """ValueError where loss, a gradient or logits of the two sides differ, in float32 on two clips."""
    equality_of_steps(*peer_and_ours(size, "pretraining", device), pretraining_batch(2, 2.0, device))
    sides = dict(zip(("peer", "ours"), peer_and_ours(size, "ctc", device), strict=True))
    for model in sides.values():
        model.eval()
    check(sides, f"CTC, {size}", {"input_values": noise(1, 2.0, device)})


def in_turns(actions: dict[str, Action], rounds: int, device: str) -> dict[str, float]:
    """Median seconds of each, all of them once per round, the order turned by one each time."""
    names = list(actions)
    for action in actions.values():
        for _ in range(3):
            action()
    measured = {name: [] for name in names}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            measured[name].append(seconds_of(actions[name], device))
    return {name: statistics.median(seconds) for name, seconds in measured.items()}


def training_rows(options, size: str, seconds: float, batch_size: int, rate: float) -> list[dict]:
    torch.compiler.reset()  # or what other shapes compiled counts towards the limit of this one's
    batch = pretraining_batch(batch_size, seconds, options.device)
    drawn = {"input_values": batch["input_values"]}
    steps, peaks = {}, {}
    for way in options.ways:
        # the other ways' weights are no part of what this one needs
        of_others = torch.cuda.memory_allocated() if options.device == "cuda" else 0
        model = model_of(way, size, "pretraining", options.device).train()
        gc.collect()  # the side that only lent its weights
        steps[way] = make_step(model, drawn if way.startswith("ours") else batch, options)
        steps[way]()
        peaks[way] = peak_bytes(steps[way], options.device) - of_others
    medians = in_turns(steps, options.rounds, options.device)
    flop = training_flop(size, batch_size, seconds)
    first = next(iter(medians.values()))
    return [
        {
            "case": f"training, {size}, {batch_size} x {seconds:g} s, {way}",
            "seconds": measured,
            "times_faster_than_first": first / measured,
            "audio_seconds_per_second": batch_size * seconds / measured,
            "share_of_matrix_rate": flop / measured / rate,
            "step_memory_mib": peaks[way] / 2**20,
        }
        for way, measured in medians.items()
    ]


def inference_rows(options, size: str, batch_size: int, seconds: float) -> list[dict]:
    torch.compiler.reset()
    waveforms = noise(batch_size, seconds, options.device)
    actions = {}
    for way in options.ways:
        model = model_of(way, size, "ctc", options.device).eval()

        def infer(model=model):
            with torch.inference_mode(), torch.autocast(options.device, torch.bfloat16):
                model(waveforms)

        actions[way] = infer
    medians = in_turns(actions, options.rounds, options.device)
    first = next(iter(medians.values()))
    return [
        {
            "case": f"CTC, {size}, {batch_size} x {seconds:g} s, {way}",
            "seconds": measured,
            "times_faster_than_first": first / measured,
            "real_time_factor": measured / (batch_size * seconds),
        }
        for way, measured in medians.items()
    ]


def main():
    parser = options_of(__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=["base", "large"])
    parser.add_argument("--seconds", nargs="*", type=float, default=[10.0, 15.6], help="of the crops")
    parser.add_argument("--audio-seconds", type=float, default=160.0, help="of a training batch, halved for large")
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 64], help="of inference, in clips of 10 s")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    options.dtype = "bfloat16"
    prepare(options)
    torch.backends.cudnn.benchmark = True  # all lengths are one: for both sides the fastest of its convolutions
    rate = matrix_rate(options.device)
    print(json.dumps({"bf16 products, TFLOP/s": rate / 1e12}), flush=True)
    rows = []

    def add(measured: list[dict]):
        rows.extend(measured)
        print(*map(json.dumps, measured), sep="\n", flush=True)
        if options.output:
            found = {**circumstances(options), "matrix_rate": rate, "rows": rows}
            options.output.write_text(json.dumps(found, indent=1) + "\n")

    for size in options.sizes:
        check_equality(size, options.device)
        for seconds in options.seconds:
            audio = options.audio_seconds / (2 if size == "large" else 1)
            add(training_rows(options, size, seconds, max(int(audio / seconds), 1), rate))
        for batch_size in options.batches:
            add(inference_rows(options, size, batch_size, 10.0 if options.device == "cuda" else 1.0))
    print("\n| case | s | times the first | share of the matrix rate | MiB |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        share, memory = row.get("share_of_matrix_rate"), row.get("step_memory_mib")
        cells = ["" if share is None else f"{share:.0%}", "" if memory is None else f"{memory:,.0f}"]
        print(f"| {row['case']} | {row['seconds']:.4g} | {row['times_faster_than_first']:.2f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
