"""Waveforms of any shape and type as one channel of floats.

Shapes: S samples of a waveform.
"""

import numpy as np
import torch

# More than a handful of channels is an array whose axes mean something else.
MAX_NUM_CHANNELS = 8


def as_mono(waveform: np.ndarray | torch.Tensor, name: str) -> np.ndarray:
    """float32 [S] with a full scale of 1, of [S], [channels, S] or [S, channels] in floats or signed integers."""
    if isinstance(waveform, torch.Tensor):
        waveform = waveform.detach().cpu()
        waveform = (waveform.float() if waveform.is_floating_point() else waveform).numpy()
    waveform = np.asarray(waveform)
    if np.issubdtype(waveform.dtype, np.signedinteger):
        waveform = waveform / -float(np.iinfo(waveform.dtype).min)
    elif not np.issubdtype(waveform.dtype, np.floating):
        raise ValueError(f"{name} is of {waveform.dtype}; accepted are floats and signed integers.")
    num_channels = min(waveform.shape) if waveform.ndim == 2 and waveform.shape[0] != waveform.shape[1] else None
    if waveform.ndim != 1 and (num_channels is None or not 1 <= num_channels <= MAX_NUM_CHANNELS):
        raise ValueError(
            f"{name} is of shape {list(waveform.shape)}; accepted are [samples] and, in either order, channels and"
            f" samples with 1 to {MAX_NUM_CHANNELS} channels and more samples than channels."
        )
    waveform = waveform.astype(np.float32)
    return waveform if num_channels is None else waveform.mean(axis=waveform.shape.index(num_channels))
