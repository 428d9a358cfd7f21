"""Which type numbers are computed in, with autocast and in spite of it."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)


def _in_autocast(device: str) -> bool:
    # some devices, as "meta", have none to ask for
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def dtype_of(weight: Tensor) -> torch.dtype:
    """What a product with `weight` is computed in: its own type, or that of autocast."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if _in_autocast(device) else weight.dtype


def without_autocast(device: torch.device) -> AbstractContextManager:
    """What is computed within stays in its own type. Without autocast it is nothing at all, in a graph neither."""
    return torch.autocast(device.type, enabled=False) if _in_autocast(device.type) else nullcontext()
