"""Contrastive loss and quantizer of wav2vec 2.0 against Transformers' and fairseq's: loss, gradients, memory kept.

python -m benchmarks.wav2vec2_parts --seconds 5

Transformers gathers the vectors of all distractors of every frame and multiplies all codevectors by one-hot vectors;
its own functions are called. fairseq does the same with the masked frames alone; see `fairseq_forms.py`. All sides get
the same frames, masks, distractors and Gumbel noise.
"""

import json
from typing import NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2GumbelVectorQuantizer

from hf_wav2vec_family.contrastive import contrastive_scores, info_nce, sample_negatives
from hf_wav2vec_family.masking import masked_frames, max_masked_frames, sample_span_mask, take_frames
from hf_wav2vec_family.quantizers import GumbelVectorQuantizer

from . import fairseq_forms
from .comparing import Way, compare, differences, options_of, prepare, report
from .wav2vec2_sizes import SIZES, num_frames_of

MASK = {"mask_prob": 0.65, "mask_length": 10}
TEMPERATURE = 2.0


class Case(NamedTuple):
    """One part at one size: the ways to its loss by the names of their sides, and what they are differentiated by."""

    name: str
    peers: dict[str, Way]
    ours: Way
    inputs: list[Tensor]


def random_mask(batch_size: int, total: int) -> tuple[Tensor, Tensor, Tensor]:
    """Masked frames [B, T], equally many in each row, as fairseq wants; their places [B, M] and which are taken."""
    mask = sample_span_mask(torch.full((batch_size,), total), total, **MASK)
    mask = mask & (mask.cumsum(dim=1) <= mask.sum(dim=1).min())
    return mask, *masked_frames(mask, max_masked_frames(total, **MASK))


def contrastive_case(batch_size: int, total: int, width: int, num_negatives: int = 100) -> Case:
    mask, index, valid = random_mask(batch_size, total)
    predictions, targets = (torch.randn(batch_size, total, width) for _ in range(2))
    rows = torch.arange(batch_size)[:, None, None]
    # the first two masked frames of a row have one target, all others their own
    targets[rows[:, 0], index[:, 1:2]] = targets[rows[:, 0], index[:, :1]]
    codes = torch.arange(index.shape[1]).repeat(batch_size, 1)
    codes[:, 1] = codes[:, 0]
    for values in (predictions, targets):
        values.requires_grad_()
    places = sample_negatives(valid, num_negatives)
    negatives = torch.zeros(batch_size, total, num_negatives, dtype=torch.long)
    negatives[rows, index.unsqueeze(-1), torch.arange(num_negatives)] = index[rows, places] + rows * total
    scores_of = transformers.Wav2Vec2ForPreTraining.compute_contrastive_logits

    def stock() -> Tensor:  # what `forward` of its model does around `scores_of`
        gathered = targets.view(-1, width)[negatives.view(-1)].view(batch_size, total, -1, width).permute(2, 0, 1, 3)
        same = (targets == gathered).all(dim=-1)  # [N, B, T]
        logits = scores_of(targets[None], gathered, predictions, 0.1)
        if same.any():
            logits[1:][same] = -torch.inf
        logits = logits.transpose(0, 2).reshape(-1, logits.size(0))
        labels = ((1 - mask.long()) * -100).transpose(0, 1).flatten()
        return F.cross_entropy(logits.float(), labels, reduction="sum")

    def fairseq() -> Tensor:
        chosen = (values[mask].view(batch_size, -1, width) for values in (predictions, targets))
        return fairseq_forms.contrastive_loss(*chosen, places, 0.1)

    def ours() -> Tensor:
        chosen = (take_frames(values, index) for values in (predictions, targets))
        return info_nce(contrastive_scores(*chosen, places, codes, temperature=0.1), valid).loss * valid.sum()

    name = f"contrastive loss, {batch_size} x {total} frames of {width}"
    return Case(name, {"Transformers": stock, "fairseq": fairseq}, ours, [predictions, targets])


def quantizer_case(batch_size: int, total: int, codevector_dim: int) -> Case:
    config = transformers.Wav2Vec2Config(codevector_dim=codevector_dim)
    theirs = Wav2Vec2GumbelVectorQuantizer(config).train()
    theirs.temperature = TEMPERATURE
    groups, entries = config.num_codevector_groups, config.num_codevectors_per_group
    own = GumbelVectorQuantizer(512, num_groups=groups, num_codevectors=entries, codevector_dim=codevector_dim).train()
    torch.nn.init.normal_(theirs.weight_proj.weight, std=0.05)
    torch.nn.init.uniform_(theirs.codevectors)
    own.load_state_dict(theirs.state_dict())
    # the same tensors on both sides, so that gradients are taken with respect to the same
    own.codevectors, own.weight_proj = theirs.codevectors, theirs.weight_proj
    mask, index, valid = random_mask(batch_size, total)
    frames = torch.randn(batch_size, total, 512, requires_grad=True)
    noise = -torch.empty(batch_size, total, groups, entries).exponential_().log()
    direction = torch.randn(batch_size, total, codevector_dim)
    noise_of_places = take_frames(noise.flatten(2), index).unflatten(-1, (groups, entries))

    def add_noise(logits: Tensor, tau: float, hard: bool) -> Tensor:
        soft = torch.softmax((logits + noise.view_as(logits)) / tau, dim=-1)
        return F.one_hot(soft.argmax(dim=-1), entries).to(soft.dtype) - soft.detach() + soft

    def stock() -> Tensor:
        with mock.patch.object(F, "gumbel_softmax", add_noise):
            quantized, perplexity = theirs(frames, mask_time_indices=mask)
        return (quantized * direction * mask.unsqueeze(-1)).sum() + perplexity

    def fairseq() -> Tensor:
        chosen, noise_here = (values[mask].unflatten(0, (batch_size, -1)) for values in (frames, noise))
        found = fairseq_forms.gumbel_quantizer(own, chosen, noise_here, TEMPERATURE)
        return (found.quantized.flatten(0, 1) * direction[mask]).sum() + found.perplexity

    def ours() -> Tensor:
        with mock.patch("hf_wav2vec_family.quantizers.sample_gumbel", return_value=noise_of_places):
            found = own(take_frames(frames, index), TEMPERATURE, valid=valid)
        return (found.quantized * take_frames(direction, index) * valid.unsqueeze(-1)).sum() + found.perplexity

    name = f"quantizer, {batch_size} x {total} frames to {codevector_dim}"
    return Case(name, {"Transformers": stock, "fairseq": fairseq}, ours, [frames, *theirs.parameters()])


def main():
    parser = options_of(__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--batch-size", type=int, default=2)
    options = parser.parse_args()
    prepare(options)
    cases = []
    for size in ("base", "large"):
        width = SIZES[size].get("codevector_dim", 256)
        shape = (options.batch_size, num_frames_of(int(16_000 * options.seconds)), width)
        for make in (contrastive_case, quantizer_case):
            case = make(*shape)
            for side, peer in case.peers.items():
                equality = differences(peer, case.ours, case.inputs, tolerance=1e-4)
                name = f"{case.name}, against {side}"
                cases.append({"case": name, **compare(peer, case.ours, options.rounds), **equality})
                print(json.dumps(cases[-1]), flush=True)
    report(options, cases)


if __name__ == "__main__":
    main()
