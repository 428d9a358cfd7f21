"""Encoders whose convolutions are products of rows in training, against PyTorch's own, [B, C, T] all the way.

python -m benchmarks.convolutions --threads 2

Loss and gradient of the encoders of wav2vec and of CPC without norms, in float32, and of wav2vec 2.0 with layer norms,
of 64 and 512 channels, in float32 and with autocast.
"""

import json
from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn

from hf_wav2vec_family import (
    CPCConfig,
    CPCModel,
    Wav2Vec2Config,
    Wav2VecConfig,
    Wav2VecModel,
    causal_conv,
    modeling_cpc,
    modeling_wav2vec2,
)

from .comparing import begin, compare, differences, report
from .wav2vec2_sizes import noise


class Case(NamedTuple):
    """An `encoder` of a `module` that convolves, on `waveforms` [B, S]."""

    name: str
    encoder: nn.Module
    module: object
    waveforms: Tensor
    autocast: bool = False
    tolerance: float = 1e-4


def encoder_cases() -> Iterator[Case]:
    encoder = Wav2VecModel(Wav2VecConfig()).feature_extractor
    # gradients of its first filters by PyTorch's convolutions in float32 are a thousandth from those in float64
    yield Case("wav2vec", encoder, causal_conv, noise(2, 4.6875), tolerance=2e-3)
    yield Case("CPC without norms", CPCModel(CPCConfig()).encoder, modeling_cpc, noise(8, 1.28))
    for channels, batch_size, seconds in ((64, 4, 6.0), (512, 1, 3.0)):
        config = Wav2Vec2Config(conv_dim=[channels] * 7, feat_extract_norm="layer", conv_bias=True)
        encoder = modeling_wav2vec2.Wav2Vec2FeatureEncoder(config)
        for autocast in (False, True):
            name = f"wav2vec 2.0, layer norms, {channels} channels"
            # rounding to bfloat16 falls otherwise where sums are taken in another order
            tolerance = 5e-2 if autocast else 1e-4
            yield Case(name, encoder, modeling_wav2vec2, noise(batch_size, seconds), autocast, tolerance)


def plain(conv: nn.Conv1d, hidden_states: Tensor, *, norm_over: str | None) -> Tensor:
    return conv(hidden_states.contiguous())


def measure(case: Case, rounds: int) -> dict:
    def ours() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
            return case.encoder(case.waveforms).float().square().mean()

    def peer() -> Tensor:
        with mock.patch.object(case.module, "convolve", plain):
            return ours()

    equality = differences(peer, ours, list(case.encoder.parameters()), tolerance=case.tolerance)
    name = f"{case.name}, {'bfloat16' if case.autocast else 'float32'}"
    return {"case": name, **compare(peer, ours, rounds), **equality}


def main():
    options, cases = begin(__doc__), []
    for case in encoder_cases():
        cases.append(measure(case, options.rounds))
        print(json.dumps(cases[-1]), flush=True)
    report(options, cases)


if __name__ == "__main__":
    main()
