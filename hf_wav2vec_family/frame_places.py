"""Where the frames of a model are in its waveform, asked of the model.

It travels with the speech recognition pipeline, which takes models of Transformers too.

Shapes: B clips, T frames.
"""

import bisect
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .conv import frame_centers


@dataclass(frozen=True)
class FramePlaces:
    """
    Args:
        first: the sample in the middle of what the first frame sees.
        hop: samples from there to the middle of the next.
        needed: the fewest samples that make a frame.
    """

    first: float
    hop: int
    needed: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> "FramePlaces | None":
        """None where the model doesn't tell."""
        centers = frame_centers_of(model, 2)
        if centers is None:
            return None
        first, second = centers.tolist()
        return cls(first, round(second - first), min_num_samples(model))


def min_num_samples(model: PreTrainedModel) -> int:
    """The fewest samples that give the model a frame; 1 where the model doesn't tell."""
    num_frames = getattr(model, "_get_feat_extract_output_lengths", None)
    if num_frames is None or model.main_input_name != "input_values":
        return 1
    candidates = range(1, 1_000_000)
    # More samples never give fewer frames, so bisection finds the first number of them that gives one.
    return candidates[bisect.bisect_left(candidates, 1, key=lambda n: int(num_frames(torch.tensor([n]))))]


def frame_centers_of(model: PreTrainedModel, total: int) -> Tensor | None:
    """[total] float64, the sample in the middle of what each frame sees, of models of this package and of others on
    strided convolutions; None where the model doesn't tell."""
    if hasattr(model, "frame_centers"):
        return model.frame_centers(total)
    kernel, stride = (getattr(model.config, name, None) for name in ("conv_kernel", "conv_stride"))
    if kernel is None or getattr(model.config, "add_adapter", False):
        return None
    return frame_centers(total, kernel, stride)


def blank_padding(tokens: Tensor, attention_mask: Tensor, model: PreTrainedModel, blank: int) -> Tensor:
    """Best symbols [B, T] with the blank at every frame of padding, which the model never learned to be silent at."""
    if not hasattr(model, "_get_feat_extract_output_lengths"):
        return tokens
    lengths = model._get_feat_extract_output_lengths((attention_mask != 0).sum(dim=-1))
    padding = torch.arange(tokens.shape[1], device=tokens.device) >= lengths.to(tokens.device)[:, None]
    return tokens.masked_fill(padding, blank)
