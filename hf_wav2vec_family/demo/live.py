"""Live speech through a model that streams: what it knows of the last seconds, and text where it has a head for it."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import soxr
import torch
from torch import nn

from ..export.opening import model_class, tokenizer_of

SAMPLING_RATE = 16_000
WINDOW_FRAMES = 300


@lru_cache(maxsize=2)
def streaming_model(source: str) -> tuple[nn.Module, Any]:
    """A model that streams, in eval mode, and its tokenizer or None.

    Raises:
        ValueError: it cannot stream.
    """
    model = model_class(source).from_pretrained(source).eval()
    if not hasattr(model.base_model, "stream"):
        raise ValueError(f"{source}: live speech needs a CPC, or a wav2vec or vq-wav2vec with conv_norm=layer.")
    model.base_model.stream(torch.zeros(1, 800))  # refuses what has to hear the whole clip
    return model, tokenizer_of(source) if hasattr(model, "lm_head") else None


@dataclass
class Live:
    """One speaker's stream, from the microphone's samples to the last `WINDOW_FRAMES` frames."""

    source: str
    rate: int
    past: Any = None
    waiting: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    frames: np.ndarray | None = None
    codes: np.ndarray | None = None
    symbols: list[int] = field(default_factory=list)

    def __post_init__(self):
        self.resampler = soxr.ResampleStream(self.rate, SAMPLING_RATE, 1, dtype="float32")

    @torch.no_grad()
    def hear(self, samples: np.ndarray):
        """The next samples [S] or [S, channels] of the microphone, in floats or integers."""
        if np.issubdtype(samples.dtype, np.integer):
            samples = samples / -float(np.iinfo(samples.dtype).min)
        samples = samples.astype(np.float32)
        samples = samples.mean(axis=1) if samples.ndim == 2 else samples
        model, _ = streaming_model(self.source)
        chunk = torch.from_numpy(self.resampler.resample_chunk(samples))[None]
        answer = model.base_model.stream(chunk, self.past)
        self.past = answer.state if hasattr(answer, "state") else answer
        context = answer.last_hidden_state
        if context.shape[1] == 0:
            return
        self.frames = self.kept(self.frames, context[0])
        if getattr(answer, "codes", None) is not None:
            self.codes = self.kept(self.codes, answer.codes[0])
        if hasattr(model, "lm_head"):
            self.symbols += model.lm_head(context)[0].argmax(dim=-1).tolist()

    def text(self) -> str:
        _, tokenizer = streaming_model(self.source)
        return "" if tokenizer is None else tokenizer.decode(self.symbols)

    @staticmethod
    def kept(before: np.ndarray | None, new: torch.Tensor) -> np.ndarray:
        joined = new.numpy() if before is None else np.concatenate([before, new.numpy()])
        return joined[-WINDOW_FRAMES:]
