"""Two ways to one result: equal first, then timed in turn, so that whatever else the machine does falls on both."""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from training.machine import commit_hash, processor_name

Way = Callable[[], Tensor]
Action = Callable[[], object]

# glibc gives big blocks back to the system and asks for them again, page by page; this keeps them
TUNED_ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**26),
}


def options_of(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has; a script adds its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="one is timed in processor time, more by the clock")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--allocator", choices=["tuned", "default"], default="tuned", help="of glibc, for both sides")
    parser.add_argument("--output", type=Path, help="JSON of all that was measured")
    return parser


def begin(description: str) -> argparse.Namespace:
    """The options of a benchmark without any of its own, and what `prepare` does."""
    options = options_of(description).parse_args()
    prepare(options)
    return options


def prepare(options: argparse.Namespace):
    """Starts again with the allocator asked for, sets threads and seed, prints the first line."""
    tuned = os.environ.get("MALLOC_MMAP_MAX_") == "0"
    if tuned != (options.allocator == "tuned"):
        others = {name: value for name, value in os.environ.items() if name not in TUNED_ALLOCATOR}
        chosen = TUNED_ALLOCATOR if options.allocator == "tuned" else {}
        os.execve(sys.executable, sys.orig_argv, {**others, **chosen})
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False  # or float32 is not what it is called
    print(json.dumps(circumstances(options)), flush=True)


def circumstances(options: argparse.Namespace) -> dict:
    """What a ratio has to be read beside."""
    return {
        "torch": torch.__version__,
        "processor": processor_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": options.threads,
        "allocator": options.allocator,
        "commit": commit_hash(),
        "load": os.getloadavg()[0],
    }


def report(options: argparse.Namespace, cases: Sequence[dict]):
    """One Markdown row per case; everything as JSON if `--output` says where."""
    print("\n| case | peer, s | ours, s | times faster | memory, peer to ours, MiB |\n| --- | --- | --- | --- | --- |")
    for case in cases:
        memory = [case.get(f"{side}_{kind}_mib") for kind in ("peak", "saved") for side in ("peer", "our")]
        pair = next((f"{a:,.0f} to {b:,.0f}" for a, b in (memory[:2], memory[2:]) if a is not None), "")
        seconds = f"{case['peer_seconds']:.4g} | {case['our_seconds']:.4g} | {case['times_faster']:.2f}"
        print(f"| {case['case']} | {seconds} | {pair} |")
    if options.output:
        options.output.write_text(json.dumps({**circumstances(options), "cases": cases}, indent=1) + "\n")


def now(device: str = "cpu") -> float:
    """Seconds: processor time of one thread, which other jobs do not lengthen, or else the clock's."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


def seconds_of(action: Action, device: str = "cpu") -> float:
    began = now(device)
    action()
    return now(device) - began


def alternate(peer: Action, ours: Action, rounds: int, device: str = "cpu") -> dict[str, float]:
    """Medians over rounds in which each side goes first in turn; the ratio is the median of the rounds' ratios."""
    pairs = []
    for i in range(rounds + 1):
        order = (peer, ours) if i % 2 == 0 else (ours, peer)
        measured = {action: seconds_of(action, device) for action in order}
        pairs.append((measured[peer], measured[ours]))
    pairs = pairs[1:]  # the first round makes what later ones find made
    ratios = sorted(a / b for a, b in pairs)
    return {
        "peer_seconds": statistics.median(a for a, _ in pairs),
        "our_seconds": statistics.median(b for _, b in pairs),
        "times_faster": statistics.median(ratios),
        "lowest_ratio": ratios[0],
        "highest_ratio": ratios[-1],
    }


def saved_bytes(way: Way) -> int:
    """Distinct storage that the forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = way()
    del loss
    return sum(kept.values())


def with_gradients(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Those of `named` parameters that learn, but for the biases of keys.

    Such a bias moves all scores of a query alike: its gradient is zero, and what either side finds is rounding.
    """
    keys = ("k_proj.bias", "key.bias")
    return {name: value for name, value in named if value.requires_grad and not name.endswith(keys)}


def differences(
    expected: Way,
    found: Way,
    inputs: Sequence[Tensor],
    tolerance: float,
    *,
    found_inputs: Sequence[Tensor] | None = None,
) -> dict[str, float]:
    """Relative differences of loss and of gradients with respect to `inputs` (of `found_inputs` on the found side).

    Raises:
        ValueError: one is above `tolerance`.
    """
    losses, gradients = [], []
    for way, differentiated in ((expected, inputs), (found, found_inputs or inputs)):
        loss = way()
        losses.append(loss.item())
        found_here = torch.autograd.grad(loss, differentiated, allow_unused=True)
        gradients.append([torch.zeros(()) if x is None else x for x in found_here])
    # one without a gradient on either side is not divided by nothing
    least = 1e-6 * max(float(a.norm()) for a in gradients[0])
    gradient = max(float((a - b).norm() / a.norm().clamp(min=least)) for a, b in zip(*gradients, strict=True))
    loss = abs(losses[1] / losses[0] - 1)
    if not (loss <= tolerance and gradient <= tolerance):
        raise ValueError(f"loss differs by {loss:.1e}, gradients by {gradient:.1e}; accepted is {tolerance:.0e}.")
    return {"loss_difference": loss, "gradient_difference": gradient}


def compare(peer: Way, ours: Way, rounds: int, device: str = "cpu") -> dict[str, float]:
    """Loss and gradient in alternating rounds, and what each side keeps for the backward pass."""
    return {
        **alternate(lambda: peer().backward(), lambda: ours().backward(), rounds, device),
        "peer_saved_mib": saved_bytes(peer) / 2**20,
        "our_saved_mib": saved_bytes(ours) / 2**20,
    }


def resident_bytes(field: str) -> int:
    """`VmRSS`, what a process has in memory now, or `VmHWM`, the most it had since `peak_bytes` began to watch."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def peak_bytes(action: Action, device: str) -> int:
    """The most memory while `action` ran: of the process, so call it in a fresh one, or of PyTorch on the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        action()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    action()
    return resident_bytes("VmHWM")
