"""Codes of a recording of any length, and the picture of a stretch of it."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..audio_reading import Recording
from ..decoding.chunks import Frames, hear_in_chunks
from ..export.opening import feature_extractor_of, model_class
from .drawing import draw_codes

SAMPLING_RATE = 16_000
STRETCH_SECONDS = 20.0


class Coded(NamedTuple):
    """The `clip`, its codes as `frames` [T, G], entries of a codebook as `num_codevectors`, and how long it is."""

    clip: str
    frames: Frames
    num_codevectors: int
    num_seconds: float


@lru_cache(maxsize=2)
def quantizing_model(source: str):
    """The encoder of a vq-wav2vec, or of a Discrete BERT, which has one, and its feature extractor.

    Raises:
        ValueError: it has no codes.
    """
    model = model_class(source).from_pretrained(source).eval().base_model
    if not hasattr(model, "quantize"):
        raise ValueError(f"{source} holds a {type(model).__name__}, which has no codes; a vq-wav2vec is needed.")
    return model, feature_extractor_of(source)


def codes_of(source: str, clip: str | Path, watch: Callable[[float], None] | None = None) -> Coded:
    """The codes of a file, those of a long one chunk by chunk; `watch` is told which share has been heard."""
    model, extractor = quantizing_model(source)
    recording = Recording(clip, SAMPLING_RATE)
    frames = hear_in_chunks(model.quantize, model, extractor, recording, watch=watch)
    config = getattr(model.config, "vq_wav2vec_config", model.config)
    return Coded(str(clip), frames, config.num_codevectors_per_group, len(recording) / SAMPLING_RATE)


def as_words(coded: Coded) -> str:
    return " ".join("-".join(map(str, frame)) for frame in coded.frames.values.tolist())


def draw_stretch(coded: Coded, begin: float = 0.0):
    """The figure of `STRETCH_SECONDS` from `begin`, in seconds, or of all of a shorter clip."""
    begin = min(max(begin, 0.0), max(coded.num_seconds - STRETCH_SECONDS, 0.0))
    end = min(begin + STRETCH_SECONDS, coded.num_seconds)
    waveform = Recording(coded.clip, SAMPLING_RATE)[round(begin * SAMPLING_RATE) : round(end * SAMPLING_RATE)]
    codes = coded.frames.values.numpy()
    centers = coded.frames.first_seconds + coded.frames.hop_seconds * np.arange(len(codes))
    kept = (centers >= begin) & (centers <= end)
    return draw_codes(waveform, codes[kept], centers[kept], coded.num_codevectors, begin=begin)
