"""What a model says about each frame of a recording of any length, and when each frame is.

Shapes: S samples of a waveform, T frames, V symbols.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, SequenceFeatureExtractor
from transformers.utils import ModelOutput

from ..audio_reading import Recording
from ..speech_recognition_pipeline import frame_centers_of, min_num_samples


@dataclass(frozen=True)
class Emissions:
    """Scores of the frames of a recording.

    Args:
        scores: [T, V] float32 on the CPU, log-probabilities for CTC and emissions for ASG.
        transitions: [V, V] of ASG (see asg.py), None for CTC.
        first_seconds: the time of the first frame, the middle of what its convolutions see.
        hop_seconds: from one frame to the next.
        num_seconds: what the recording lasts.
    """

    scores: Tensor
    transitions: Tensor | None
    first_seconds: float
    hop_seconds: float
    num_seconds: float

    def border(self, frame: int) -> float:
        """Where `frame` begins and the one before it ends: half way between their centres, in seconds."""
        seconds = self.first_seconds + (frame - 0.5) * self.hop_seconds
        return min(max(seconds, 0.0), self.num_seconds)


@torch.no_grad()
def emissions_of(
    model: PreTrainedModel,
    feature_extractor: SequenceFeatureExtractor,
    waveform: np.ndarray | Recording,
    *,
    chunk_seconds: float | None = 30.0,
    context_seconds: float = 5.0,
    watch: Callable[[float], None] | None = None,
) -> Emissions:
    """What a CTC or ASG model in eval mode says about `waveform` [S] at its sampling rate.

    Args:
        chunk_seconds: how much the model hears at once, so that memory doesn't grow with the recording; None for all
            of it. A chunk begins where a frame begins, so that its frames are those of the whole recording.
        context_seconds: how much of it on either side lends its frames to no one: they are its neighbour's.
        watch: is told after each chunk which share of the recording has been heard.

    Raises:
        ValueError: fewer samples than a frame needs, chunks with no frame between the contexts, or a model whose
            frames have no known place in the waveform.
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
        output = model(chunk.to(model.device, model.dtype).unsqueeze(0))
        scores = frame_scores(output)
        scores = scores.log_softmax(dim=-1) if transitions_of(model) is None else scores
        if table is None:  # all of it at once, since to put parts together takes twice the memory
            table = torch.empty(total, scores.shape[-1])
        table[begin:end] = scores[0, begin - heard : end - heard]
        if watch is not None:
            watch(end / total)
    return Emissions(
        scores=table,
        transitions=transitions_of(model),
        first_seconds=first / sampling_rate,
        hop_seconds=hop / sampling_rate,
        num_seconds=len(waveform) / sampling_rate,
    )


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


def frame_scores(outputs: ModelOutput) -> Tensor:
    """[B, T, V] that paths are scored with: of ASG its emissions, since its `logits` are those of the best path."""
    emissions = outputs.get("emissions")
    return outputs.logits if emissions is None else emissions


def transitions_of(model: PreTrainedModel) -> Tensor | None:
    """[V, V] of a model trained with ASG, on the CPU; None for CTC."""
    criterion = getattr(model, "criterion", None)
    return None if criterion is None else criterion.transitions.detach().float().cpu()
