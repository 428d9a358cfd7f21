"""The k-means quantizer of vq-wav2vec (Baevski et al., 2019, arXiv:1910.05453, section 3.2)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .causal_conv import NORMS
from .conv import mean_over_valid, valid_frames
from .precision import without_autocast
from .quantizers import code_perplexity


@dataclass
class KmeansOutput:
    """
    Args:
        quantized: [B, T, D] nearest codevectors, the groups concatenated; their gradient goes to the frames.
        codes: [B, T, G] int64, the nearest entry in each group.
        projected: [B, T, D], what was compared with the codevectors.
        codebook_loss: scalar, mean of (sg(z) - e)^2, which moves the codevectors.
        commitment_loss: scalar, gamma times the mean of (z - sg(e))^2, which moves the frames.
        code_perplexity: scalar, sum over groups of exp(entropy) of the codes' frequencies.
    """

    quantized: Tensor
    codes: Tensor
    projected: Tensor
    codebook_loss: Tensor
    commitment_loss: Tensor
    code_perplexity: Tensor


class KmeansVectorQuantizer(nn.Module):
    """Product quantizer that takes the nearest codevector and lets the gradient pass straight through.

    Frames go through a 1x1 convolution and a norm of their own in each group before they are compared. Both losses are
    means over all elements, as in the original code (the paper sums over channels).

    Args:
        dim: D, channels of the frames and of the result.
        num_groups: G. num_codevectors: V, entries of each group.
        share_codevectors: one codebook for all groups.
        norm: "group" over a group's channels and all frames, as published, or "layer" over a group's channels.
        commitment_weight: gamma.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_groups: int,
        num_codevectors: int,
        share_codevectors: bool = False,
        norm: str = "group",
        commitment_weight: float = 0.25,
    ):
        super().__init__()
        if dim % num_groups:
            raise ValueError(f"dim must be a multiple of the number of codebook groups, got {dim} and {num_groups}.")
        self.num_groups, self.num_codevectors = num_groups, num_codevectors
        self.commitment_weight = commitment_weight
        self.projection = nn.Conv1d(dim, dim, kernel_size=1, groups=num_groups, bias=False)
        self.layer_norm = NORMS[norm](num_groups, dim)
        num_books = 1 if share_codevectors else num_groups
        self.codevectors = nn.Parameter(torch.empty(num_books, num_codevectors, dim // num_groups))

    def project(self, hidden_states: Tensor, lengths: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, G, D / G], what is compared with the codevectors."""
        projected = self.layer_norm(self.projection(hidden_states.transpose(1, 2)), lengths)
        return projected.transpose(1, 2).unflatten(-1, (self.num_groups, -1))

    @torch.no_grad()
    def nearest(self, projected: Tensor) -> Tensor:
        """Entries at the smallest Euclidean distance from [B, T, G, D / G] -> codes [B, T, G]."""
        # the square of the frame itself is the same for all entries
        with without_autocast(projected.device):
            pairs = zip(projected.float().unbind(dim=2), self._books().float(), strict=True)
            scores = [book.square().sum(dim=-1) - 2 * F.linear(frames, book) for frames, book in pairs]
            return torch.stack([score.argmin(dim=-1) for score in scores], dim=-1)

    def look_up(self, codes: Tensor) -> Tensor:
        """Codevectors of `codes` [B, T, G] -> [B, T, D]."""
        offsets = torch.arange(self.num_groups, device=codes.device) * self.num_codevectors
        return F.embedding(codes + offsets, self._books().flatten(0, 1)).flatten(-2)

    def encode(self, hidden_states: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Codes [B, T, G] of frames [B, T, D]."""
        return self.nearest(self.project(hidden_states, lengths))

    def forward(
        self, hidden_states: Tensor, lengths: Tensor | None = None, *, valid: Tensor | None = None
    ) -> KmeansOutput:
        """
        Args:
            hidden_states: [B, T, D].
            lengths: [B] valid frames of each row, which the norm keeps to; None for all of them.
            valid: [B, T] bool, the frames that the losses and the perplexity are taken over.
        """
        grouped = self.project(hidden_states, lengths)
        codes = self.nearest(grouped)
        projected, chosen = grouped.flatten(-2), self.look_up(codes).to(grouped.dtype)
        commitment = mean_over_valid((projected - chosen.detach()).float().square(), valid)
        return KmeansOutput(
            quantized=chosen.detach() + (projected - projected.detach()),
            codes=codes,
            projected=projected,
            codebook_loss=mean_over_valid((chosen - projected.detach()).float().square(), valid),
            commitment_loss=self.commitment_weight * commitment,
            code_perplexity=code_perplexity(codes, self.num_codevectors, valid),
        )

    @torch.no_grad()
    def initialize_codebook(
        self, hidden_states: Tensor, lengths: Tensor | None = None, generator: torch.Generator | None = None
    ):
        """Takes the codevectors from frames [B, T, D] by k-means++ (Arthur and Vassilvitskii, 2007).

        Each is drawn with a probability proportional to its squared distance from those drawn before. The original
        training starts all of them near 0 instead, where many are never chosen.
        """
        for book, points in zip(self.codevectors, self._points_of_each_book(hidden_states, lengths), strict=True):
            if len(points) < self.num_codevectors:
                raise ValueError(
                    f"the first batch must have at least {self.num_codevectors} vectors for the codebook, got"
                    f" {len(points)}."
                )
            nearest = torch.full((len(points),), torch.inf, device=points.device)
            for i, entry in enumerate(book):
                # at first, and where all frames equal a codevector by now, any frame will serve
                weights = nearest if i > 0 and nearest.sum() > 0 else torch.ones_like(nearest)
                chosen = points[torch.multinomial(weights, 1, generator=generator)[0]]
                entry.copy_(chosen)
                nearest = torch.minimum(nearest, (points - chosen).float().square().sum(dim=-1))

    @torch.no_grad()
    def restart_dead_codes(
        self,
        hidden_states: Tensor,
        counts: Tensor,
        lengths: Tensor | None = None,
        *,
        min_count: int = 1,
        generator: torch.Generator | None = None,
    ) -> int:
        """Puts entries that were chosen less than `min_count` times onto random frames [B, T, D].

        Args:
            counts: [G, V], how often each entry was chosen; see `code_usage`.

        Returns: how many entries were moved.
        """
        if counts.shape != (self.num_groups, self.num_codevectors):
            raise ValueError(
                f"counts must be [G, V] = {(self.num_groups, self.num_codevectors)}, got {tuple(counts.shape)}."
            )
        shared = len(self.codevectors) == 1
        counts = counts.sum(dim=0, keepdim=True) if shared else counts
        moved = 0
        books = zip(self.codevectors, counts, self._points_of_each_book(hidden_states, lengths), strict=True)
        for book, count, points in books:
            dead = (count < min_count).to(book.device).nonzero().flatten()
            chosen = torch.randint(len(points), (len(dead),), generator=generator, device=points.device)
            book[dead] = points[chosen].to(book.dtype)
            moved += len(dead)
        return moved

    def _books(self) -> Tensor:
        """[G, V, D / G], the one codebook repeated if it is shared."""
        return self.codevectors.expand(self.num_groups, -1, -1)

    def _points_of_each_book(self, hidden_states: Tensor, lengths: Tensor | None) -> list[Tensor]:
        """[points, D / G] for each codebook: the valid projected frames of its group, or of all if it is shared."""
        projected = self.project(hidden_states, lengths)
        frames = projected.flatten(0, 1) if lengths is None else projected[valid_frames(lengths, projected.shape[1])]
        return [frames.flatten(0, 1)] if len(self.codevectors) == 1 else list(frames.unbind(dim=1))
