"""How large a model may be: what a configuration is refused for before any memory is taken for it.

A configuration on the Hub is somebody's file, and one number in it can ask for more memory than there is.
"""

from collections.abc import Sequence
from typing import Any

MAX_LAYERS = 1000
MAX_CHANNELS = 2**16
MAX_LABELS = 2**16
MAX_WORDS = 2**24
# 16 GiB in float32, twice the largest speech model of this kind that was published
MAX_WEIGHTS = 2**32


def at_most(limit: int, **sizes: int | Sequence[int] | None):
    """Raises ValueError for a size above `limit`, or a list with one in it, and names it; None has no size."""
    for name, size in sizes.items():
        largest = max(size, default=0) if isinstance(size, list | tuple) else size
        if largest is not None and (not isinstance(largest, int) or largest > limit):
            raise ValueError(f"{name} must be a whole number of at most {limit}, got {largest!r}.")


def check_labels(fields: dict[str, Any]):
    """Raises ValueError for more classes than `MAX_LABELS`, before Transformers gives each of them a name."""
    at_most(MAX_LABELS, num_labels=fields.get("num_labels"))


def conv_weights(in_channels: int, dims: Sequence[int], kernel_sizes: Sequence[int]) -> int:
    """Weights of convolutions, one behind the other, without biases."""
    widths = [in_channels, *dims]
    return sum(a * b * kernel for a, b, kernel in zip(widths, dims, kernel_sizes, strict=False))


def transformer_weights(num_layers: int, hidden_size: int, intermediate_size: int) -> int:
    """Weights of Transformer blocks, without biases and norms."""
    return num_layers * (4 * hidden_size**2 + 2 * hidden_size * intermediate_size)
