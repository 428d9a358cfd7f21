"""What a model says about each frame of a recording of any length, and when each frame is.

Shapes: S samples of a waveform, T frames, V symbols.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel, SequenceFeatureExtractor
from transformers.utils import ModelOutput

from ..audio_reading import Recording
from ..norm_statistics import NormStatistics
from .chunks import hear_in_chunks


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


def emissions_of(
    model: PreTrainedModel,
    feature_extractor: SequenceFeatureExtractor,
    waveform: np.ndarray | Recording,
    *,
    chunk_seconds: float | None = 30.0,
    context_seconds: float = 5.0,
    norm_statistics: NormStatistics | None = None,
    watch: Callable[[float], None] | None = None,
) -> Emissions:
    """What a CTC or ASG model in eval mode says about `waveform` [S] at its sampling rate.

    Args:
        chunk_seconds: how much the model hears at once, so that memory doesn't grow with the recording; None for all
            of it. A chunk begins where a frame begins, so that its frames are those of the whole recording.
        context_seconds: how much of it on either side lends its frames to no one: they are its neighbour's.
        norm_statistics: what norms over time take their mean and variance of. "recording": all of it, so that chunks
            are heard as the whole is; measured first, by one more pass for each of these norms, which ends at it.
            "chunk": each by itself. None: "recording" for models with one such norm, as wav2vec 2.0 BASE, whose first
            layer takes little time; "chunk" for wav2vec and vq-wav2vec, which have one after each convolution.
        watch: is told after each chunk which share of the recording has been heard.

    Raises:
        ValueError: fewer samples than a frame needs, chunks with no frame between the contexts, another
            `norm_statistics`, or a model whose frames have no known place in the waveform.
    """
    transitions = transitions_of(model)

    def scores_of(chunk: Tensor) -> Tensor:
        scores = frame_scores(model(chunk))
        return (scores if transitions is not None else scores.log_softmax(dim=-1)).float()

    heard = hear_in_chunks(
        scores_of,
        model,
        feature_extractor,
        waveform,
        chunk_seconds=chunk_seconds,
        context_seconds=context_seconds,
        norm_statistics=norm_statistics,
        watch=watch,
    )
    return Emissions(
        scores=heard.values,
        transitions=transitions,
        first_seconds=heard.first_seconds,
        hop_seconds=heard.hop_seconds,
        num_seconds=len(waveform) / feature_extractor.sampling_rate,
    )


def frame_scores(outputs: ModelOutput) -> Tensor:
    """[B, T, V] that paths are scored with: of ASG its emissions, since its `logits` are those of the best path."""
    emissions = outputs.get("emissions")
    return outputs.logits if emissions is None else emissions


def transitions_of(model: PreTrainedModel) -> Tensor | None:
    """[V, V] of a model trained with ASG, on the CPU; None for CTC."""
    criterion = getattr(model, "criterion", None)
    return None if criterion is None else criterion.transitions.detach().float().cpu()
