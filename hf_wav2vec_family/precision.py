"""Which type numbers are computed in, with autocast and in spite of it."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def dtype_of(weight: Tensor) -> torch.dtype:
    """What a product with `weight` is computed in: its own type, or that of autocast."""
    device = weight.device.type
    in_half = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if in_half else weight.dtype


def without_autocast(device: torch.device) -> AbstractContextManager:
    """What is computed within stays in its own type. Without autocast it is nothing at all, in a graph neither."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
