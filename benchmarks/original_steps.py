"""Whole training steps of CPC, wav2vec and vq-wav2vec against their original formulations.

python -m benchmarks.original_steps --steps cpc wav2vec

The original side is written from the equations in the shapes of the original code: PyTorch's convolutions, norms as
separate operations, negatives copied for every frame, a loop over the prediction steps; quantizers as in
`fairseq_forms.py`. Both sides have the same weights, waveforms and negatives, and Gumbel noise from one seed; loss and
every gradient are compared, in float64, before anything is timed. A step is forward and backward pass, clipping and
Adam.
"""

import json
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_wav2vec_family import (
    CPCConfig,
    CPCForPreTraining,
    VQWav2VecConfig,
    VQWav2VecForPreTraining,
    Wav2VecConfig,
    Wav2VecForPreTraining,
)
from hf_wav2vec_family.causal_conv import ConvEncoder
from hf_wav2vec_family.future_prediction import FuturePrediction
from hf_wav2vec_family.quantizers import sample_gumbel

from . import fairseq_forms
from .comparing import alternate, differences, options_of, prepare, report, saved_bytes


def original_cpc(model: CPCForPreTraining) -> Callable[[Tensor, Tensor], Tensor]:
    """CPC_audio's step with the weights of `model`: channel norms by mean and variance, a criterion step by step."""
    encoder, context = model.cpc.encoder, model.cpc.context_network
    num_steps = model.config.num_prediction_steps

    def encode(waveforms: Tensor) -> Tensor:
        hidden = waveforms[:, None]
        for layer in encoder.layers:
            conv, norm = layer.conv, layer.norm
            hidden = F.conv1d(hidden, conv.weight, conv.bias, conv.stride, conv.padding)
            mean, variance = hidden.mean(dim=1, keepdim=True), hidden.var(dim=1, keepdim=True)
            hidden = (hidden - mean) * torch.rsqrt(variance + norm.eps)
            hidden = F.relu(hidden * norm.weight[None, :, None] + norm.bias[None, :, None])
        return hidden.transpose(1, 2)

    def loss(waveforms: Tensor, negatives: Tensor) -> Tensor:
        frames = encode(waveforms)
        states, _ = context(frames)
        batch_size, num_negatives, num_contexts = negatives.shape
        copies = frames.flatten(0, 1)[negatives.flatten()].view(batch_size, num_negatives, num_contexts, -1)
        weights = model.predictors.weight.unflatten(0, (num_steps, -1))
        total = torch.zeros(())
        for k in range(num_steps):
            candidates = torch.cat([frames[:, k + 1 : k + 1 + num_contexts].unsqueeze(1), copies], dim=1)
            predictions = F.linear(states[:, :num_contexts], weights[k])
            scores = (predictions.unsqueeze(1) * candidates).mean(dim=3)
            labels = torch.zeros(batch_size * num_contexts, dtype=torch.long)
            total = total + F.cross_entropy(scores.permute(0, 2, 1).reshape(-1, 1 + num_negatives), labels)
        return total / num_steps

    return loss


def original_prediction(prediction: FuturePrediction, context: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """Binary NCE per pair of context and step: context and targets [B, C, T], `negatives` [B, N, T]."""
    num_steps, offset = prediction.num_steps, prediction.offset
    batch_size, channels, total = targets.shape
    weight = prediction.predictor.weight.permute(2, 1, 0).unsqueeze(2)
    predictions = F.conv_transpose2d(context.unsqueeze(-1), weight, prediction.predictor.bias[0])  # [B, C, T, K]
    columns = targets.transpose(0, 1).flatten(1)
    copies = columns[:, negatives.flatten()].view(channels, batch_size, -1, total)
    candidates = torch.cat([targets[None], copies.permute(2, 1, 0, 3)])  # [1 + N, B, C, T]
    scores, labels = [], []
    for k in range(num_steps):
        length = total - offset - k
        products = torch.einsum("bct,nbct->nbt", predictions[..., :length, k], candidates[..., offset + k :])
        scores.append(products.flatten())
        label = torch.zeros_like(products)
        label[0] = 1.0
        labels.append(label.flatten())
    num_pairs = sum(len(x) for x in scores) // len(candidates)
    return F.binary_cross_entropy_with_logits(torch.cat(scores), torch.cat(labels), reduction="sum") / num_pairs


def original_latents(encoder: ConvEncoder, waveforms: Tensor) -> Tensor:
    """z [B, C, T] of an encoder without skip connections, by PyTorch's own convolutions."""
    hidden = waveforms[:, None]
    for layer in encoder.conv_layers:
        hidden = layer.activation(layer.layer_norm(layer.conv(hidden)))
    return torch.log1p(hidden.abs()) if encoder.log_compression else hidden


def original_wav2vec(model: Wav2VecForPreTraining) -> Callable[[Tensor, Tensor], Tensor]:
    """The step of wav2vec with the weights of `model`."""

    def loss(waveforms: Tensor, negatives: Tensor) -> Tensor:
        targets = original_latents(model.wav2vec.feature_extractor, waveforms)
        context = model.wav2vec.context_network(targets)[-1]
        return original_prediction(model.prediction, context, targets, negatives)

    return loss


def original_vq_wav2vec(model: VQWav2VecForPreTraining) -> Callable[[Tensor, Tensor], Tensor]:
    """The step of vq-wav2vec with the weights of `model`, whose quantizer and objective are fairseq's."""
    own = model.vq_wav2vec.quantizer

    def loss(waveforms: Tensor, negatives: Tensor) -> Tensor:
        latents = original_latents(model.vq_wav2vec.feature_extractor, waveforms).transpose(1, 2)
        if model.config.quantizer_type == "kmeans":
            found = fairseq_forms.kmeans_quantizer(own, latents.transpose(1, 2))
            added = found.loss
        else:
            noise = sample_gumbel(latents.new_empty(*latents.shape[:2], own.num_groups, own.num_codevectors))
            found = fairseq_forms.gumbel_quantizer(own, latents, noise, model.vq_wav2vec.gumbel_temperature)
            added = model.config.diversity_loss_weight * (own.num_groups * own.num_codevectors - found.perplexity)
        targets = found.quantized.transpose(1, 2)
        context = model.vq_wav2vec.context_network(targets)[-1]
        return original_prediction(model.prediction, context, targets, negatives) + added

    return loss


def cpc_models() -> tuple[nn.Module, Callable, Tensor, Tensor]:
    config = CPCConfig(conv_dim=(256,) * 5, feat_extract_norm="channel", context_network="lstm", score="mean")
    model = CPCForPreTraining(config)
    batch_size, samples = 8, 20_480
    total = model.num_frames(samples)
    contexts = total - config.num_prediction_steps
    negatives = torch.randint(0, batch_size * total, (batch_size, config.num_negatives, contexts))
    return model, original_cpc(model), torch.randn(batch_size, samples), negatives


def wav2vec_models() -> tuple[nn.Module, Callable, Tensor, Tensor]:
    model = Wav2VecForPreTraining(Wav2VecConfig())
    return model, original_wav2vec(model), *clips_and_negatives(model, 2, 75_000)


def vq_wav2vec_models(quantizer_type: str) -> tuple[nn.Module, Callable, Tensor, Tensor]:
    model = VQWav2VecForPreTraining(VQWav2VecConfig.published(quantizer_type))
    waveforms, negatives = clips_and_negatives(model, 2, 20_000)
    if quantizer_type == "kmeans":  # or all frames are as near to all entries
        model.vq_wav2vec.initialize_codebook(torch.randn(4, 40_000))
    return model, original_vq_wav2vec(model), waveforms, negatives


def clips_and_negatives(model: nn.Module, batch_size: int, samples: int) -> tuple[Tensor, Tensor]:
    """Noise [B, S], and negatives [B, N, T] of the clip itself."""
    total = model.num_frames(samples)
    rows = torch.arange(batch_size)[:, None, None] * total
    negatives = torch.randint(0, total, (batch_size, model.config.num_negatives, total)) + rows
    return torch.randn(batch_size, samples), negatives


STEPS = {
    "cpc": ("CPC step", cpc_models),
    "wav2vec": ("wav2vec step", wav2vec_models),
    "vq-gumbel": ("vq-wav2vec step, Gumbel", partial(vq_wav2vec_models, "gumbel")),
    "vq-kmeans": ("vq-wav2vec step, k-means", partial(vq_wav2vec_models, "kmeans")),
}


def compare_steps(name: str, model: nn.Module, original: Callable, waveforms: Tensor, negatives: Tensor, rounds: int):
    def ours(waveforms: Tensor = waveforms) -> Tensor:
        return model(waveforms, sampled_negative_indices=negatives).loss

    def peer(waveforms: Tensor = waveforms) -> Tensor:
        return original(waveforms, negatives)

    def seeded(way: Callable[[Tensor], Tensor]) -> Tensor:
        torch.manual_seed(0)  # of the Gumbel noise, without which no gradient would reach the encoder
        return way(waveforms.double())

    # in float64: gradients of wav2vec's first filters by PyTorch's convolutions in float32 are a thousandth from those
    model.train().double()
    equality = differences(partial(seeded, peer), partial(seeded, ours), list(model.parameters()), tolerance=1e-4)
    model.float()
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-6)

    def step(way: Callable[[], Tensor]):
        way().backward()
        nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        optimizer.zero_grad()

    measured = alternate(lambda: step(peer), lambda: step(ours), rounds)
    memory = {f"{side}_saved_mib": saved_bytes(way) / 2**20 for side, way in (("peer", peer), ("our", ours))}
    return {"case": f"{name}, {len(waveforms)} x {waveforms.shape[1] / 16_000:g} s", **measured, **memory, **equality}


def main():
    parser = options_of(__doc__)
    parser.add_argument("--steps", nargs="*", choices=STEPS, default=list(STEPS))
    options = parser.parse_args()
    prepare(options)
    cases = []
    for name, make in (STEPS[step] for step in options.steps):
        cases.append(compare_steps(name, *make(), options.rounds))
        print(json.dumps(cases[-1]), flush=True)
    report(options, cases)


if __name__ == "__main__":
    main()
