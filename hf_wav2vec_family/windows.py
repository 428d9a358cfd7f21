"""A recording of any length as windows that a model can hear one at a time, and that give all of its frames.

Shapes: S samples of a waveform, T frames.
"""

from dataclasses import dataclass

import numpy as np
import torch

from .audio_reading import Recording
from .frame_places import FramePlaces


@dataclass(frozen=True)
class Window:
    """Samples that are heard at once, from `start` up to `stop`, and which of their frames no other window gives.

    Args:
        start: where a frame of the recording begins.
        stop: None for the recording's end.
        num_frames: that the samples make.
        begin, end: of these the first that is its own, and the one behind the last.
    """

    start: int
    stop: int | None
    num_frames: int
    begin: int
    end: int


def windows_of(places: FramePlaces, total: int, *, length: int, left: int, right: int) -> list[Window]:
    """Windows of at most `length` frames that give all `total` frames of a recording.

    Args:
        left, right: frames of each window that are its neighbours', together less than `length`.
    """
    windows, done = [], 0
    while done < total:
        start = max(done - left, 0)
        num_frames = min(length, total - start)
        is_last = start + num_frames == total
        # the last one hears the end, whatever is left of a frame there
        stop = None if is_last else (start + num_frames - 1) * places.hop + places.needed
        end = num_frames if is_last else num_frames - right
        windows.append(Window(start * places.hop, stop, num_frames, done - start, end))
        done = start + end
    return windows


class NormalizedWaveform:
    """A waveform [S] whose slices are as a feature extractor with `do_normalize` makes of the whole: no copy of it."""

    def __init__(self, waveform: np.ndarray | Recording, do_normalize: bool):
        self.waveform, self.do_normalize = waveform, do_normalize
        if do_normalize and isinstance(waveform, Recording):
            self.mean, variance = waveform.mean, waveform.variance
        elif do_normalize:
            variance, self.mean = (value.item() for value in torch.var_mean(torch.from_numpy(waveform), correction=0))
        self.scale = (variance + 1e-7) ** -0.5 if do_normalize else 1.0

    def __len__(self) -> int:
        return len(self.waveform)

    def __getitem__(self, place: slice) -> np.ndarray:
        piece = self.waveform[place]
        return (piece - np.float32(self.mean)) * np.float32(self.scale) if self.do_normalize else piece
