"""Two ways to one loss: equal first, then timed in turn, so that whatever else the machine does falls on both."""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Way = Callable[[], Tensor]


def begin(description: str) -> argparse.Namespace:
    """Options of every benchmark, its threads and seed set, its first line printed."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(json.dumps({"torch": torch.__version__, "machine": platform.machine(), "threads": options.threads}))
    return options


def seconds_of(way: Way) -> float:
    began = time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()
    way().backward()
    return (time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()) - began


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


def differences(expected: Way, found: Way, inputs: Sequence[Tensor], tolerance: float) -> dict[str, float]:
    """Relative differences of loss and gradients; ValueError where they are above `tolerance`."""
    gradients = [torch.autograd.grad(way(), inputs) for way in (expected, found)]
    gradient = max(float((a - b).norm() / a.norm()) for a, b in zip(*gradients, strict=True))
    loss = abs(found().item() / expected().item() - 1)
    if loss > tolerance or gradient > tolerance:
        raise ValueError(f"loss differs by {loss:.1e}, gradients by {gradient:.1e}; accepted is {tolerance:.0e}.")
    return {"loss_difference": loss, "gradient_difference": gradient}


def compare(peer: Way, ours: Way, rounds: int) -> dict[str, float]:
    """Medians of loss and gradient over alternating rounds, and what each keeps for the backward pass."""
    pairs = []
    for i in range(rounds):
        order = (peer, ours) if i % 2 == 0 else (ours, peer)
        measured = {way: seconds_of(way) for way in order}
        pairs.append((measured[peer], measured[ours]))
    return {
        "peer_seconds": statistics.median(a for a, _ in pairs),
        "our_seconds": statistics.median(b for _, b in pairs),
        "times_faster": statistics.median(a / b for a, b in pairs),
        "peer_saved_mib": saved_bytes(peer) / 2**20,
        "our_saved_mib": saved_bytes(ours) / 2**20,
    }
