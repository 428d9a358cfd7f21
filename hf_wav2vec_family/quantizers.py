"""Quantizers: continuous frames in, entries of a learned codebook out.

The Gumbel product quantizer of vq-wav2vec (Baevski et al., 2019, arXiv:1910.05453, section 3.1), used again in
wav2vec 2.0 (Baevski et al., 2020, arXiv:2006.11477, section 2).
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .fused import choose_rows, eager_on_cpu


@dataclass
class QuantizerOutput:
    """What a quantizer answers.

    Args:
        quantized: [B, T, D] chosen codevectors, the groups concatenated.
        codes: [B, T, G] int64, the entry chosen in each group.
        perplexity: scalar, sum over groups of exp(entropy) of the mean soft distribution without noise: between G
            (every frame alike) and G * V (all entries used evenly). Differentiable; the diversity loss pulls on it.
        code_perplexity: scalar, the same of the hard choices without noise; what is used in fact.
    """

    quantized: Tensor
    codes: Tensor
    perplexity: Tensor
    code_perplexity: Tensor


def sample_gumbel(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Gumbel(0, 1) noise, -log(E) with E exponential, in the shape of `like`, float32."""
    exponential = torch.empty_like(like, dtype=torch.float32).exponential_(generator=generator)
    # an exponential draw of exactly 0 would be an infinite preference
    return -exponential.clamp(min=torch.finfo(torch.float32).tiny).log()


def codebook_perplexity(probabilities: Tensor) -> Tensor:
    """Mean distributions [G, V] -> sum over groups of exp(entropy), a scalar between G and G * V."""
    return torch.exp(-(probabilities * torch.log(probabilities + 1e-7)).sum(dim=-1)).sum()


def mean_distribution(probabilities: Tensor, valid: Tensor | None) -> Tensor:
    """[B, T, G, V] -> [G, V], the mean over the frames that `valid` [B, T] marks (all if None)."""
    if valid is None:
        return probabilities.mean(dim=(0, 1))
    weight = valid.to(probabilities.dtype)
    return torch.einsum("btgv,bt->gv", probabilities, weight) / weight.sum().clamp(min=1)


def code_counts(codes: Tensor, num_codevectors: int, valid: Tensor | None = None) -> Tensor:
    """How often each entry occurs in `codes` [B, T, G], where `valid` [B, T] is True or everywhere: [G, V] float32."""
    num_groups = codes.shape[-1]
    places = codes + num_codevectors * torch.arange(num_groups, device=codes.device)
    weight = torch.ones_like(codes, dtype=torch.float32)
    if valid is not None:
        weight = weight * valid.unsqueeze(-1)
    counts = torch.zeros(num_groups * num_codevectors, device=codes.device)
    return counts.index_add_(0, places.flatten(), weight.flatten()).unflatten(0, (num_groups, num_codevectors))


def code_perplexity(codes: Tensor, num_codevectors: int, valid: Tensor | None = None) -> Tensor:
    """`codebook_perplexity` of how often the entries occur in `codes` [B, T, G], where `valid` [B, T] is True."""
    counts = code_counts(codes, num_codevectors, valid)
    return codebook_perplexity(counts / counts.sum(dim=-1, keepdim=True).clamp(min=1))


@dataclass
class CodeUsage:
    """How a codebook is used.

    Args:
        counts: [G, V] int64, how often each entry was chosen.
        num_used_codes: entries chosen at least once, over all groups.
        num_used_tuples: different combinations of one entry per group, the vocabulary of a language model on codes.
        perplexity: sum over groups of exp(entropy) of the frequencies.
    """

    counts: Tensor
    num_used_codes: int
    num_used_tuples: int
    perplexity: float


def code_usage(codes: Tensor, num_codevectors: int, valid: Tensor | None = None) -> CodeUsage:
    """Statistics of `codes` [..., G] with entries below `num_codevectors`; `valid` [...] bool leaves padding out."""
    frames = codes.flatten(0, -2) if valid is None else codes[valid]
    if frames.numel() == 0 or frames.min() < 0 or frames.max() >= num_codevectors:
        raise ValueError(
            f"codes must be at least one frame of entries from 0 to num_codevectors - 1 = {num_codevectors - 1}, got"
            f" {tuple(frames.shape)}{f' with entries to {int(frames.max())}' if frames.numel() else ''}."
        )
    counts = torch.stack([torch.bincount(group, minlength=num_codevectors) for group in frames.unbind(dim=-1)])
    return CodeUsage(
        counts=counts,
        num_used_codes=int((counts > 0).sum()),
        num_used_tuples=len(frames.unique(dim=0)),
        perplexity=float(codebook_perplexity(counts / len(frames))),
    )


class UniformLinear(nn.Linear):
    """A linear layer that starts as PyTorch's do, uniform between -1/sqrt(in) and 1/sqrt(in).

    A type of its own, because Transformers initialises by type, and every other `nn.Linear` as N(0, 0.02).
    """


class GumbelVectorQuantizer(nn.Module):
    """Product quantizer with a straight-through Gumbel softmax.

    In training the choice is argmax(logits + noise), its gradient that of softmax((logits + noise) / temperature); in
    evaluation it is argmax(logits). The chosen codevectors are looked up, not multiplied out of one-hot vectors.

    Args:
        input_dim: channels of the frames.
        num_groups: G, codebooks whose entries are concatenated.
        num_codevectors: V, entries per codebook.
        codevector_dim: channels of the concatenated result; each entry has codevector_dim / G.
        depth: layers of the network that makes the logits; each but the last is Linear and `activation`.
        hidden_factor: width of those hidden layers in multiples of `input_dim`.
        share_codevectors: one codebook for all groups.
    """

    def __init__(
        self,
        input_dim: int,
        *,
        num_groups: int,
        num_codevectors: int,
        codevector_dim: int,
        depth: int = 1,
        hidden_factor: int = 3,
        activation: Callable[[], nn.Module] = nn.GELU,
        share_codevectors: bool = False,
    ):
        super().__init__()
        if codevector_dim % num_groups:
            raise ValueError(
                f"codevector_dim must be a multiple of the number of codebook groups, got {codevector_dim} for"
                f" {num_groups} groups."
            )
        self.num_groups = num_groups
        self.num_codevectors = num_codevectors
        num_books = 1 if share_codevectors else num_groups
        self.codevectors = nn.Parameter(torch.empty(1, num_books * num_codevectors, codevector_dim // num_groups))
        widths = [input_dim] + [input_dim * hidden_factor] * (depth - 1)
        hidden = [nn.Sequential(UniformLinear(a, b), activation()) for a, b in itertools.pairwise(widths)]
        logits_layer = UniformLinear if hidden else nn.Linear
        logits = logits_layer(widths[-1], num_groups * num_codevectors)
        self.weight_proj = nn.Sequential(*hidden, logits) if hidden else logits

    def forward(
        self,
        hidden_states: Tensor,
        temperature: Tensor | float,
        *,
        valid: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> QuantizerOutput:
        """`hidden_states` [B, T, input_dim]; `valid` [B, T] bool marks the frames that perplexities are taken over."""
        logits = self.weight_proj(hidden_states).float()
        logits = logits.unflatten(-1, (self.num_groups, self.num_codevectors))  # [B, T, G, V]
        soft_choice = None
        noisy_logits = logits
        if self.training:
            noisy_logits = logits + sample_gumbel(logits, generator)
            soft_choice = torch.softmax(noisy_logits / temperature, dim=-1)
        codes = noisy_logits.argmax(dim=-1)  # [B, T, G]
        without_noise = codes if soft_choice is None else logits.argmax(dim=-1)
        return QuantizerOutput(
            quantized=self.look_up(codes, soft_choice).to(hidden_states.dtype),
            codes=codes,
            perplexity=codebook_perplexity(mean_distribution(torch.softmax(logits, dim=-1), valid)),
            code_perplexity=code_perplexity(without_noise, self.num_codevectors, valid),
        )

    @torch.no_grad()
    def encode(self, hidden_states: Tensor) -> Tensor:
        """Codes [B, T, G] of frames [B, T, input_dim], without noise in either mode."""
        logits = self.weight_proj(hidden_states).float()
        return logits.unflatten(-1, (self.num_groups, self.num_codevectors)).argmax(dim=-1)

    def look_up(self, codes: Tensor, soft_choice: Tensor | None = None) -> Tensor:
        """Codevectors of `codes` [B, T, G] -> [B, T, D].

        With `soft_choice` [B, T, G, V] the value stays that of the codes and the gradient also flows into it, as if
        the codevectors had been multiplied by a one-hot vector with the gradient of `soft_choice`.
        """
        books = self.codevectors.view(-1, self.num_codevectors, self.codevectors.shape[-1])  # [G or 1, V, d]
        books = books.expand(self.num_groups, -1, -1)
        offsets = torch.arange(self.num_groups, device=codes.device) * self.num_codevectors
        rows = codes + offsets
        if soft_choice is not None and eager_on_cpu(codes):
            return choose_rows(books, soft_choice, rows).flatten(-2)
        chosen = torch.nn.functional.embedding(rows, books.flatten(0, 1))  # [B, T, G, d]
        if soft_choice is not None:
            straight_through = (soft_choice - soft_choice.detach()).to(books.dtype)
            chosen = chosen + torch.einsum("btgv,gvd->btgd", straight_through, books.detach())
        return chosen.flatten(-2)
