"""The objectives of CPC and wav2vec against their original formulations: time, memory kept for the backward pass.

python -m benchmarks.prediction_losses --threads 1 --rounds 5

The original formulations are written from the equations in the shapes of the original code: negatives copied for every
frame, a loop over the prediction steps with fresh products in each. Both sides get the same predictions, targets and
negatives; loss and gradients are compared before anything is timed; rounds alternate, and the ratio is the median of
the rounds' ratios.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_wav2vec_family.future_prediction import FuturePrediction
from hf_wav2vec_family.modeling_cpc import future_scores

from .comparing import begin, compare, differences, report


@dataclass
class Case:
    """One objective at one size: the two ways to its loss, and the tensors they are differentiated by."""

    name: str
    original: Callable[[], Tensor]
    ours: Callable[[], Tensor]
    inputs: list[Tensor]


def wav2vec_case(batch_size: int, total: int, channels: int) -> Case:
    """Binary NCE, 12 steps, 10 negatives (Schneider et al., 2019, equation 1), summed over all pairs."""
    num_steps, num_negatives, offset = 12, 10, 3
    objective = FuturePrediction(
        channels, channels, num_steps=num_steps, offset=offset, objective="binary_nce", num_negatives=num_negatives
    )
    for parameter in objective.parameters():
        torch.nn.init.uniform_(parameter, -0.01, 0.01)
    with torch.no_grad():
        weight = objective.predictor.weight.permute(2, 1, 0).unsqueeze(2).contiguous()  # [C, C, 1, K]
        bias = objective.predictor.bias[0].clone()
    weight.requires_grad_()
    bias.requires_grad_()
    # as convolutions leave them
    context = torch.randn(batch_size, channels, total, requires_grad=True)
    targets = torch.randn(batch_size, channels, total, requires_grad=True)
    rows = torch.arange(batch_size)[:, None, None] * total
    negatives = torch.randint(0, total, (batch_size, num_negatives, total)) + rows

    def original() -> Tensor:
        predictions = F.conv_transpose2d(context.unsqueeze(-1), weight, bias)  # [B, C, T, K]
        columns = targets.transpose(0, 1).flatten(1)  # [C, B * T]
        copies = columns[:, negatives.flatten()].view(channels, batch_size, num_negatives, total)
        candidates = torch.cat([targets[None], copies.permute(2, 1, 0, 3)])  # [1 + N, B, C, T]
        num_pairs = batch_size * sum(total - offset - k for k in range(num_steps))
        scores = context.new_empty((1 + num_negatives) * num_pairs)
        labels = torch.zeros_like(scores)
        begin = 0
        for k in range(num_steps):
            length = total - offset - k
            end = begin + (1 + num_negatives) * batch_size * length
            products = torch.einsum("bct,nbct->nbt", predictions[..., :length, k], candidates[..., offset + k :])
            scores[begin:end] = products.flatten()
            labels[begin : begin + batch_size * length] = 1.0
            begin = end
        return F.binary_cross_entropy_with_logits(scores, labels, reduction="sum")

    def ours() -> Tensor:
        found = objective(context.transpose(1, 2), targets.transpose(1, 2), sampled_negative_indices=negatives)
        return found.loss * found.num_targets

    return Case(f"wav2vec {batch_size} x {total} frames", original, ours, [context, targets])


def cpc_case(batch_size: int, total: int, channels: int) -> Case:
    """InfoNCE, 12 steps, 128 negatives (van den Oord et al., 2018, equation 4), summed over all pairs."""
    num_steps, num_negatives = 12, 128
    num_contexts = total - num_steps
    predictions = (torch.randn(batch_size, num_contexts, num_steps, channels) / channels).requires_grad_()
    frames = torch.randn(batch_size, total, channels, requires_grad=True)
    negatives = torch.randint(0, batch_size * total, (batch_size, num_negatives, num_contexts))

    def original() -> Tensor:
        flat = frames.flatten(0, 1)
        copies = flat[negatives.flatten()].view(batch_size, num_negatives, num_contexts, channels)
        total_loss = torch.zeros(())
        for k in range(num_steps):
            positives = frames[:, k + 1 : k + 1 + num_contexts].unsqueeze(1)
            candidates = torch.cat([positives, copies], dim=1)  # [B, 1 + N, W, D]
            scores = (predictions[:, :, k].unsqueeze(1) * candidates).sum(dim=3)
            labels = torch.zeros(batch_size * num_contexts, dtype=torch.long)
            total_loss = total_loss + F.cross_entropy(
                scores.permute(0, 2, 1).reshape(-1, 1 + num_negatives), labels, reduction="sum"
            )
        return total_loss

    def ours() -> Tensor:
        scores = future_scores(predictions, frames, negatives)
        return F.softplus(torch.logsumexp(scores.negative, dim=-1) - scores.positive).sum()

    return Case(f"cpc {batch_size} x {total} frames", original, ours, [predictions, frames])


def main():
    options, cases = begin(__doc__), []
    for case in (wav2vec_case(2, 937, 512), cpc_case(8, 128, 256)):
        equality = differences(case.original, case.ours, case.inputs, tolerance=1e-4)
        cases.append({"case": case.name, **compare(case.original, case.ours, options.rounds), **equality})
        print(json.dumps(cases[-1]), flush=True)
    report(options, cases)


if __name__ == "__main__":
    main()
