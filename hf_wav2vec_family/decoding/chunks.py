"""Frames of a recording of any length, heard chunk by chunk.

Shapes: S samples of a waveform, T frames.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, SequenceFeatureExtractor

from ..audio_reading import Recording
from ..frame_places import FramePlaces
from ..norm_statistics import NormStatistics, check_norm_statistics, fixed_norms, measure_norms
from ..windows import NormalizedWaveform, windows_of


@dataclass(frozen=True)
class Frames:
    """What was heard.

    Args:
        values: [T, ...] on the CPU.
        first_seconds: the time of the first frame, the middle of what its convolutions see.
        hop_seconds: from one frame to the next.
    """

    values: Tensor
    first_seconds: float
    hop_seconds: float


@torch.no_grad()
def hear_in_chunks(
    hear: Callable[[Tensor], Tensor],
    model: PreTrainedModel,
    feature_extractor: SequenceFeatureExtractor,
    waveform: np.ndarray | Recording,
    *,
    chunk_seconds: float | None = 30.0,
    context_seconds: float = 5.0,
    norm_statistics: NormStatistics | None = None,
    watch: Callable[[float], None] | None = None,
) -> Frames:
    """What `hear` makes of the frames of `waveform` [S], a chunk [1, S'] -> [1, T', ...] at a time.

    Args:
        model: in eval mode; its convolutions say where frames are.
        chunk_seconds, context_seconds, norm_statistics, watch: as in `emissions_of`.

    Raises:
        ValueError: as `emissions_of` says.
    """
    sampling_rate = feature_extractor.sampling_rate
    places = FramePlaces.of(model)
    if places is None:
        raise ValueError(f"model: where the frames of a {type(model).__name__} are is not known.")
    if len(waveform) < places.needed:
        raise ValueError(
            f"waveform: expected at least {places.needed} samples, the fewest of a frame, got {len(waveform)}."
        )
    hop_seconds = places.hop / sampling_rate
    total = int(model._get_feat_extract_output_lengths(len(waveform)))
    context = 0 if chunk_seconds is None else round(context_seconds / hop_seconds)
    length = total if chunk_seconds is None else round(chunk_seconds / hop_seconds)
    if length <= 2 * context or context < 0:
        raise ValueError(
            f"chunk_seconds={chunk_seconds} leaves no frame between twice context_seconds={context_seconds}."
        )

    windows = windows_of(places, total, length=length, left=context, right=context)
    prepared = NormalizedWaveform(waveform, feature_extractor.do_normalize)
    choice, statistics = check_norm_statistics(norm_statistics, model), None
    if choice == "recording":
        statistics = measure_norms(hear, model, prepared, windows, places)

    table: Tensor | None = None
    done = 0
    for window in windows:
        chunk = torch.from_numpy(prepared[window.start : window.stop])
        with fixed_norms(model, statistics):
            frames = hear(chunk.to(model.device, model.dtype).unsqueeze(0))[0]
        if table is None:  # all of it at once, since to put parts together takes twice the memory
            table = torch.empty(total, *frames.shape[1:], dtype=frames.dtype)
        own = frames[window.begin : window.end]
        table[done : done + len(own)] = own
        done += len(own)
        if watch is not None:
            watch(done / total)
    return Frames(table, first_seconds=places.first / sampling_rate, hop_seconds=hop_seconds)
