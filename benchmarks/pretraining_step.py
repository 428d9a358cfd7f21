"""A whole training step of wav2vec 2.0 against Transformers': forward, backward, clipping, AdamW, dropout on.

python -m benchmarks.pretraining_step --size base --dtype float32 --threads 2

Both sides have the same weights, waveforms, masks and distractors; without dropout their loss and every gradient are
compared in float32 before anything is timed. `--draw` lets each side draw masks and distractors in the step, as it
does in training. `--memory` measures the peak of a step of each side in a process of its own instead, with glibc's
default allocator: of the second one, when the optimizer has its moments.
"""

import argparse
import json
import os
import subprocess
import sys
from contextlib import nullcontext

import torch
from torch import nn

from .comparing import (
    TUNED_ALLOCATOR,
    Action,
    alternate,
    circumstances,
    differences,
    options_of,
    peak_bytes,
    prepare,
    report,
    with_gradients,
)
from .wav2vec2_sizes import (
    CLIP_NORM,
    SIZES,
    one_side,
    peer_and_ours,
    pretraining_batch,
    training_flop,
    without_dropout,
)


def make_step(model: nn.Module, batch: dict, options: argparse.Namespace) -> Action:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.01, fused=True)
    half = options.dtype == "bfloat16"

    def step():
        with torch.autocast(options.device, torch.bfloat16) if half else nullcontext():
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def equality_of_steps(peer: nn.Module, ours: nn.Module, batch: dict) -> dict[str, float]:
    """How much loss and gradients differ in float32 without dropout; ValueError if it is too much."""
    own, theirs = dict(ours.model.named_parameters()), with_gradients(peer.named_parameters())
    with without_dropout(peer, ours):
        return differences(
            lambda: peer(**batch).loss,
            lambda: ours(**batch).loss,
            list(theirs.values()),
            tolerance=1e-4,
            found_inputs=[own[name] for name in theirs],
        )


def step_of(side: str, model: nn.Module, batch: dict, options: argparse.Namespace) -> Action:
    """A step of `model` as the options want it, in training mode."""
    given = {"input_values": batch["input_values"]} if options.draw and side == "ours" else batch
    model.train()
    return make_step(torch.compile(model, dynamic=False) if options.compile else model, given, options)


def batch_of(options: argparse.Namespace) -> dict:
    return pretraining_batch(options.batch_size, options.seconds, options.device)


def time_steps(options: argparse.Namespace) -> dict:
    peer, ours = peer_and_ours(options.size, "pretraining", options.device)
    batch = batch_of(options)
    equality = {} if options.unchecked else equality_of_steps(peer, ours, batch)
    steps = [step_of(name, model, batch, options) for name, model in (("peer", peer), ("ours", ours))]
    measured = alternate(*steps, options.rounds, options.device)
    flop = training_flop(options.size, options.batch_size, options.seconds)
    return {
        "case": name_of(options),
        **measured,
        **equality,
        "our_audio_seconds_per_second": options.batch_size * options.seconds / measured["our_seconds"],
        "our_teraflops": flop / measured["our_seconds"] / 1e12,
    }


def name_of(options: argparse.Namespace) -> str:
    return f"step, {options.size}, {options.batch_size} x {options.seconds:g} s, {options.dtype}"


def peak_of(side: str, options: argparse.Namespace) -> float:
    """MiB at the peak of the second step of one side, in a fresh process, weights and optimizer included."""
    command = [sys.executable, "-m", "benchmarks.pretraining_step", "--peak-of", side, "--allocator", "default"]
    for name in ("size", "dtype", "batch_size", "seconds", "device", "threads"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    command += [f"--{name}" for name in ("compile", "draw") if getattr(options, name)]
    environment = {name: value for name, value in os.environ.items() if name not in TUNED_ALLOCATOR}
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return json.loads(answer.splitlines()[-1])["peak_mib"]


def main():
    parser = options_of(__doc__)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16 by autocast")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action="store_true", help="both sides, with torch.compile")
    parser.add_argument("--draw", action="store_true", help="masks and distractors by ours in the step")
    parser.add_argument("--unchecked", action="store_true", help="without the comparison of loss and gradients")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--peak-of", choices=["peer", "ours"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    prepare(options)
    if options.peak_of:
        model = one_side(options.peak_of, options.size, "pretraining", options.device)
        step = step_of(options.peak_of, model, batch_of(options), options)
        step()
        print(json.dumps({"peak_mib": peak_bytes(step, options.device) / 2**20}))
    elif options.memory:
        peaks = {f"{side}_peak_mib": peak_of(name, options) for side, name in (("peer", "peer"), ("our", "ours"))}
        case = {"case": f"peak, {name_of(options)}", **peaks, "share": peaks["our_peak_mib"] / peaks["peer_peak_mib"]}
        print(json.dumps(case))
        if options.output:
            options.output.write_text(json.dumps({**circumstances(options), **case}, indent=1) + "\n")
    else:
        case = time_steps(options)
        print(json.dumps(case))
        report(options, [case])


if __name__ == "__main__":
    main()
