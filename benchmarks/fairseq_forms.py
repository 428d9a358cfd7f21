"""How fairseq computes what wav2vec 2.0 and vq-wav2vec add to convolutions and Transformers, as a peer of benchmarks.

Written afresh from a description of it, in the shapes of the original code: one-hot vectors times all entries,
distances to all entries at once, the vectors of all distractors gathered. The weights are those of our modules, so
that both sides have the same.

Shapes: B clips, T frames, M masked frames of a clip, N distractors, G groups, V entries of each, d of D channels each.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_wav2vec_family.kmeans import KmeansVectorQuantizer
from hf_wav2vec_family.quantizers import GumbelVectorQuantizer


def contrastive_loss(predictions: Tensor, targets: Tensor, places: Tensor, temperature: float) -> Tensor:
    """Cross entropy of the right one of 1 + N candidates, summed: [B, M, D] each, distractors `places` [B, M, N]."""
    batch_size, num_places, width = targets.shape
    flat = (places + torch.arange(batch_size)[:, None, None] * num_places).flatten()
    distractors = targets.reshape(-1, width)[flat].view(batch_size, num_places, -1, width).permute(2, 0, 1, 3)
    same = (targets == distractors).all(dim=-1)  # [N, B, M]
    candidates = torch.cat([targets.unsqueeze(0), distractors])  # [1 + N, B, M, D]
    logits = torch.cosine_similarity(predictions.float(), candidates.float(), dim=-1) / temperature
    if same.any():
        logits[1:][same] = -torch.inf
    logits = logits.transpose(0, 2).reshape(-1, len(candidates))
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long), reduction="sum")


class Quantized(NamedTuple):
    """`quantized` [B, T, D]; `perplexity` of the soft choice and `code_perplexity` of the hard one, without noise."""

    quantized: Tensor
    perplexity: Tensor
    code_perplexity: Tensor


def gumbel_quantizer(
    own: GumbelVectorQuantizer, frames: Tensor, noise: Tensor | None, temperature: Tensor | float
) -> Quantized:
    """Frames [B, T, C] and noise [B, T, G, V], or None in evaluation, by the weights of `own`."""
    batch_size, total, _ = frames.shape
    groups, entries = own.num_groups, own.num_codevectors
    logits = own.weight_proj(frames.reshape(batch_size * total, -1)).view(batch_size * total * groups, entries)
    hard = one_hot(logits).view(batch_size * total, groups, entries)
    soft = torch.softmax(logits.view(batch_size * total, groups, entries).float(), dim=-1)
    chosen = hard
    if noise is not None:
        soft_choice = torch.softmax((logits.float() + noise.reshape(logits.shape)) / temperature, dim=-1)
        chosen = one_hot(soft_choice) - soft_choice.detach() + soft_choice
    vectors = own.codevectors.repeat(1, groups * entries // own.codevectors.shape[1], 1)  # [1, G * V, d]
    products = chosen.reshape(batch_size * total, -1).unsqueeze(-1) * vectors
    quantized = products.view(batch_size * total, groups, entries, -1).sum(dim=-2)
    return Quantized(quantized.view(batch_size, total, -1), perplexity(soft), perplexity(hard))


class Nearest(NamedTuple):
    """`quantized` [B, T, D], and the `loss` of codebook and commitment."""

    quantized: Tensor
    loss: Tensor


def kmeans_quantizer(own: KmeansVectorQuantizer, frames: Tensor) -> Nearest:
    """Frames [B, C, T] by the weights of `own`; the distances of all frames to all entries in one tensor."""
    batch_size, channels, total = frames.shape
    groups, entries = own.num_groups, own.num_codevectors
    norm = own.layer_norm
    projected = F.group_norm(own.projection(frames), groups, norm.weight, norm.bias, norm.eps)
    grouped = projected.view(batch_size, groups, -1, total).permute(0, 3, 1, 2)  # [B, T, G, d]
    books = own.codevectors.transpose(0, 1).expand(entries, groups, -1)  # [V, G, d]
    with torch.no_grad():
        distances = (grouped.unsqueeze(0) - books[:, None, None]).norm(dim=-1, p=2)  # [V, B, T, G]
        codes = distances.argmin(dim=0)
    chosen = torch.stack([books[codes[..., group], group] for group in range(groups)], dim=-2)
    chosen = chosen.view(batch_size, total, channels).transpose(1, 2)
    straight_through = chosen.detach() + projected - projected.detach()
    commitment = F.mse_loss(projected, chosen.detach())
    loss = F.mse_loss(chosen, projected.detach()) + own.commitment_weight * commitment
    return Nearest(straight_through.transpose(1, 2), loss)


def one_hot(scores: Tensor) -> Tensor:
    """1 where the last axis of `scores` is highest."""
    return torch.zeros_like(scores).scatter_(-1, scores.argmax(dim=-1, keepdim=True), 1.0)


def perplexity(choices: Tensor) -> Tensor:
    """[B * T, G, V] -> the sum over groups of exp(entropy) of the mean choice."""
    mean = choices.float().mean(dim=0)
    return torch.exp(-(mean * torch.log(mean + 1e-7)).sum(dim=-1)).sum()
