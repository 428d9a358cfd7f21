"""Batches on their way from the host to the device that computes with them."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor


def on_device(batches: Iterable[dict], device: torch.device) -> Iterator[dict]:
    """The same batches with their tensors on `device`; none is taken before it is asked for.

    To a GPU they are copied in a stream of their own, from the pinned memory that the loader puts them in: the host is
    steps ahead of the GPU, so that the copy of a batch is over before the step before it is.
    """
    beside = torch.cuda.Stream(device) if device.type == "cuda" else None
    for batch in batches:
        with torch.cuda.stream(beside) if beside is not None else nullcontext():
            moved = {
                name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
                for name, value in batch.items()
            }
        if beside is not None:
            computing = torch.cuda.current_stream(device)
            computing.wait_stream(beside)
            for value in moved.values():
                if isinstance(value, Tensor):
                    # or its memory could be given to the next batch while it is still read
                    value.record_stream(computing)
        yield moved
