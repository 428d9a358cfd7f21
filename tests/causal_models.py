"""Tiny wav2vec and vq-wav2vec models for the tests: what they are built of, and batches of noise for them."""

import torch
from torch import nn

import hf_wav2vec_family as family

FIELD, HOP = 465, 160
GROUPS, ENTRIES, WIDTH = 2, 6, 12
TINY = {
    "conv_dim": (WIDTH,) * 5,
    "context_dim": (WIDTH,) * 3,
    "context_kernel": (2, 3, 4),
    "num_prediction_steps": 4,
    "num_negatives": 5,
    "vocab_size": 7,
    "classifier_proj_size": 6,
}
TINY_VQ = {
    **TINY,
    "conv_dim": (WIDTH,) * 6,
    "conv_kernel": (10, 8, 4, 4, 4, 1),
    "conv_stride": (5, 4, 2, 2, 2, 1),
    "num_codevectors_per_group": ENTRIES,
}
GRU = {"context_type": "gru", "context_dim": (9,), "context_kernel": ()}
WAV2VEC = {
    "base": {},
    "large": {
        "conv_dim": (12,) * 7,
        "conv_kernel": (10, 8, 4, 4, 4, 1, 1),
        "conv_stride": (5, 4, 2, 2, 2, 1, 1),
        "context_skip_connections": True,
        "log_compression": True,
        "prediction_offset": "auto",
    },
    "options": {
        "context_dim": (12, 16, 12),
        "context_skip_connections": True,
        "feat_skip_connections": True,
        "context_bias": False,
        "context_padding": "zero",
        "conv_norm_affine": False,
        "project_features": "new",
        "prediction_bias": "per_step",
        "objective": "info_nce",
        "num_cross_sample_negatives": 3,
    },
    "causal": {"conv_norm": "layer", "context_skip_connections": True, "project_features": "same"},
    "recurrent": {**GRU, "conv_norm": "layer", "balanced_classes": True},
}
VQ_WAV2VEC = {
    "gumbel": {"diversity_loss_weight": 0.1},
    "gumbel-separate": {"share_codevectors": False, "codevector_dim": 8, "quantizer_depth": 1},
    "kmeans": {"quantizer_type": "kmeans"},
    "kmeans-separate": {"quantizer_type": "kmeans", "share_codevectors": False, "quantizer_loss_weight": 0.5},
    "gumbel-causal": {"conv_norm": "layer", "project_features": "new"},
    "kmeans-causal": {"quantizer_type": "kmeans", "conv_norm": "layer", "project_features": "same"},
}
VARIANTS = [*WAV2VEC, *VQ_WAV2VEC]
# what is compiled layer by layer need not be deep
SHALLOW = {
    "conv_dim": (12, 12),
    "conv_kernel": (40, 8),
    "conv_stride": (20, 8),
    "context_dim": (12,),
    "context_kernel": (3,),
}


def samples(num_frames: int) -> int:
    return FIELD + HOP * (num_frames - 1)


def config(variant: str, **fields) -> family.Wav2VecConfig | family.VQWav2VecConfig:
    if variant in WAV2VEC:
        return family.Wav2VecConfig(**{**TINY, **WAV2VEC[variant], **fields})
    return family.VQWav2VecConfig(**{**TINY_VQ, **VQ_WAV2VEC[variant], **fields})


def pretraining_model(variant: str, **fields) -> family.Wav2VecForPreTraining | family.VQWav2VecForPreTraining:
    torch.manual_seed(0)
    made = config(variant, **fields)
    architecture = family.Wav2VecForPreTraining if variant in WAV2VEC else family.VQWav2VecForPreTraining
    model = architecture(made)
    for name, parameter in model.named_parameters():
        if "layer_norm" in name:  # a bias of 0 would hide what padding does
            nn.init.normal_(parameter, mean=1.0 if name.endswith("weight") else 0.2, std=0.1)
        if "codevectors" in name:  # near 0 as at the start, all frames would choose the same
            nn.init.normal_(parameter)
    return model


def ragged_batch(*lengths: int, total: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise of different lengths, padded with zeros to the longest or to `total`, and the mask."""
    generator = torch.Generator().manual_seed(7)
    waveforms = torch.zeros(len(lengths), total or max(lengths))
    for row, length in enumerate(lengths):
        waveforms[row, :length] = torch.randn(length, generator=generator) * 0.3
    mask = (torch.arange(waveforms.shape[1]) < torch.tensor(lengths)[:, None]).long()
    return waveforms, mask


def close(found, expected, tolerance: float = 1e-5):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def negatives_of(model, frames: list[int], total: int) -> torch.Tensor:
    """[B, N, T], negatives of each clip's own valid frames."""
    valid = torch.arange(total) < torch.tensor(frames)[:, None]
    return model.prediction.sample(valid, torch.Generator().manual_seed(3))
