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
from ..speech_recognition_pipeline import frame_centers_of, min_num_samples


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
    watch: Callable[[float], None] | None = None,
) -> Frames:
    """What `hear` makes of the frames of `waveform` [S], a chunk [1, S'] -> [1, T', ...] at a time.

    Args:
        model: in eval mode; its convolutions say where frames are.
        chunk_seconds, context_seconds, watch: as in `emissions_of`.

    Raises:
        ValueError: as `emissions_of` says.
    """
    sampling_rate = feature_extractor.sampling_rate
    needed = min_num_samples(model)
    if len(waveform) < needed:
        raise ValueError(f"waveform: expected at least {needed} samples, the fewest of a frame, got {len(waveform)}.")
    centers = frame_centers_of(model, 2)
    if centers is None:
        raise ValueError(f"model: where the frames of a {type(model).__name__} are is not known.")
    first, second = centers.tolist()
    hop = round(second - first)
    total = int(model._get_feat_extract_output_lengths(len(waveform)))
    context = 0 if chunk_seconds is None else round(context_seconds * sampling_rate / hop)
    step = total if chunk_seconds is None else round(chunk_seconds * sampling_rate / hop) - 2 * context
    if step < 1 or context < 0:
        raise ValueError(
            f"chunk_seconds={chunk_seconds} leaves no frame between twice context_seconds={context_seconds}."
        )

    mean, scale = _normalization(waveform, feature_extractor)
    table: Tensor | None = None
    for begin in range(0, total, step):
        end = min(begin + step, total)
        heard = max(begin - context, 0)
        # the last chunk hears the end, whatever is left of a frame there
        until = None if end + context >= total else (end + context - 1) * hop + needed
        chunk = (torch.from_numpy(waveform[heard * hop : until]) - mean) * scale
        frames = hear(chunk.to(model.device, model.dtype).unsqueeze(0))[0]
        if table is None:  # all of it at once, since to put parts together takes twice the memory
            table = torch.empty(total, *frames.shape[1:], dtype=frames.dtype)
        table[begin:end] = frames[begin - heard : end - heard]
        if watch is not None:
            watch(end / total)
    return Frames(table, first_seconds=first / sampling_rate, hop_seconds=hop / sampling_rate)


def _normalization(
    waveform: np.ndarray | Recording, feature_extractor: SequenceFeatureExtractor
) -> tuple[float, float]:
    """Mean and factor that make of a waveform [S] what its feature extractor would, without a copy of all of it."""
    if not feature_extractor.do_normalize:
        return 0.0, 1.0
    if isinstance(waveform, Recording):
        mean, variance = waveform.mean, waveform.variance
    else:
        variance, mean = (value.item() for value in torch.var_mean(torch.from_numpy(waveform), correction=0))
    return mean, (variance + 1e-7) ** -0.5
