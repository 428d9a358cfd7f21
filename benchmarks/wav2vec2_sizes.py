"""Models of both sides with the same weights, and what they are timed on, for every benchmark of wav2vec 2.0."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices, _sample_negative_indices

from .candidate import factory
from .flop import wav2vec2_flop

LAYER_NORM = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
WIDE_TARGETS = {"codevector_dim": 768, "proj_codevector_dim": 768}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
SMALL = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
SIZES = {
    "base": {},
    "large": {**LARGE, **LAYER_NORM, **WIDE_TARGETS},
    # all convolutions and the whole quantizer beside a small Transformer
    "small": SMALL,
    "small-layer-norm": {**SMALL, **LAYER_NORM, **WIDE_TARGETS},
}
TRANSFORMERS = {
    "pretraining": transformers.Wav2Vec2ForPreTraining,
    "ctc": transformers.Wav2Vec2ForCTC,
}
CLIP_NORM = 10.0


def fields_of(size: str) -> dict:
    """Of a `Wav2Vec2Config`. Neither side skips layers, which would be a draw of how much there is to do."""
    return {**SIZES[size], "layerdrop": 0.0, "vocab_size": 32, "attn_implementation": "sdpa"}


def peer_and_ours(size: str, task: str, device: str = "cpu") -> tuple[nn.Module, nn.Module]:
    """Transformers' model and ours with its weights."""
    peer, ours = one_side("peer", size, task, device), one_side("ours", size, task, device)
    ours.load_hf_state_dict(peer.state_dict())
    return peer, ours


def one_side(side: str, size: str, task: str, device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    if side == "ours":
        return factory(task, fields_of(size)).to(device)
    return TRANSFORMERS[task](transformers.Wav2Vec2Config(**fields_of(size))).to(device)


def noise(batch_size: int, seconds: float, device: str = "cpu") -> Tensor:
    return torch.randn(batch_size, int(16_000 * seconds)).to(device)


def pretraining_batch(batch_size: int, seconds: float, device: str = "cpu") -> dict[str, Tensor]:
    """Noise, and masks and distractors as Transformers draws them on the host."""
    waveforms = noise(batch_size, seconds)
    batch = {"input_values": waveforms, **masks_and_distractors(batch_size, waveforms.shape[1], seed=0)}
    return {name: values.to(device) for name, values in batch.items()}


def masks_and_distractors(batch_size: int, num_samples: int, seed: int) -> dict[str, Tensor]:
    shape = (batch_size, num_frames_of(num_samples))
    np.random.seed(seed)
    mask = _compute_mask_indices(shape, 0.65, 10, min_masks=2)
    negatives = _sample_negative_indices(shape, 100, mask)
    return {
        "mask_time_indices": torch.from_numpy(mask),
        "sampled_negative_indices": torch.from_numpy(negatives).long(),
    }


def num_frames_of(num_samples: int) -> int:
    for kernel_size, stride in ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)):
        num_samples = (num_samples - kernel_size) // stride + 1
    return num_samples


@contextmanager
def without_dropout(*models: nn.Module) -> Iterator[None]:
    """What is random in training is switched off, so that two sides can be compared."""
    for model in models:
        model.eval()
    yield
    for model in models:
        model.train()


def training_flop(size: str, batch_size: int, seconds: float) -> float:
    """Of forward and backward pass."""
    return wav2vec2_flop(transformers.Wav2Vec2Config(**SIZES[size]), seconds, num_clips=batch_size).training
