"""Convolutions under a norm over channels, the channels of a frame together in memory, against [B, C, T] all the way.

python -m benchmarks.convolutions --threads 1

The encoder of a wav2vec 2.0 with layer norms, 64 and 512 channels, loss and gradient, in float32 and with autocast.
"""

import json
from unittest import mock

import torch
from torch import Tensor, nn

from hf_wav2vec_family import Wav2Vec2Config, modeling_wav2vec2

from .comparing import begin, compare, differences, report


def plain(conv: nn.Conv1d, hidden_states: Tensor) -> Tensor:
    return conv(hidden_states.contiguous())


def main():
    options, cases = begin(__doc__), []
    for channels, batch_size, seconds in ((64, 4, 6), (512, 1, 3)):
        config = Wav2Vec2Config(conv_dim=[channels] * 7, feat_extract_norm="layer", conv_bias=True)
        encoder = modeling_wav2vec2.Wav2Vec2FeatureEncoder(config)
        waveforms = torch.randn(batch_size, seconds * 16_000)
        for autocast in (False, True):

            def ours(encoder=encoder, waveforms=waveforms, autocast=autocast) -> Tensor:
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    return encoder(waveforms).float().square().mean()

            def peer(ours=ours) -> Tensor:
                with mock.patch.object(modeling_wav2vec2, "convolve", plain):
                    return ours()

            # rounding to bfloat16 falls otherwise where sums are taken in another order
            equality = differences(peer, ours, list(encoder.parameters()), tolerance=5e-2 if autocast else 1e-4)
            name = f"{channels} channels, {'bfloat16' if autocast else 'float32'}"
            cases.append({"case": name, **compare(peer, ours, options.rounds), **equality})
            print(json.dumps(cases[-1]), flush=True)
    report(options, cases)


if __name__ == "__main__":
    main()
