"""The objective of wav2vec and vq-wav2vec: from the context of a frame, tell the frames that follow it from others.

Schneider et al., 2019 (arXiv:1904.05862), section 3.2. Every step k = 1..K has its own map h_k of the context c_t, and
the score of a candidate frame z is z . h_k(c_t). The candidates of a target frame, itself and N others, serve all
steps that predict it: they are gathered once and scored by one matrix product per frame.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .contrastive import sample_negatives
from .conv import valid_frames
from .fused import Dropout
from .precision import without_autocast


@dataclass
class FuturePredictionLoss:
    """
    Args:
        loss: scalar, mean over all pairs of a context and a step; times `num_targets` it is the original's sum.
        step_losses, step_accuracies: [K], loss and accuracy of each step.
        accuracy: scalar, share of the pairs whose positive scores at least as high as every negative, unless all tie.
        num_targets: scalar int64, the number of pairs.
        scores: [B, T', 1 + N, K] float32 for the target frames offset..T-1, the positive first.
        valid: [B, T', K] bool, False where a step would begin before the clip or a target is padding.
    """

    loss: Tensor
    step_losses: Tensor
    step_accuracies: Tensor
    accuracy: Tensor
    num_targets: Tensor
    scores: Tensor
    valid: Tensor


class StepPredictor(nn.Module):
    """h_k(c) = W_k c + b_k for K steps at once.

    The paper has one b_k per step; the original code, a transposed convolution, shares one b among them.
    """

    def __init__(self, input_dim: int, output_dim: int, num_steps: int, *, bias_per_step: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_steps, output_dim, input_dim))
        self.bias = nn.Parameter(torch.empty(num_steps if bias_per_step else 1, output_dim))

    @property
    def initial_bound(self) -> float:
        """Weight and bias start uniform between plus and minus this, as a transposed convolution's in PyTorch do."""
        num_steps, output_dim, _ = self.weight.shape
        return (num_steps * output_dim) ** -0.5

    def forward(self, context: Tensor) -> Tensor:
        """[B, T, H] -> [B, T, K, D]."""
        num_steps, output_dim, _ = self.weight.shape
        bias = self.bias.expand(num_steps, -1).flatten()
        return F.linear(context, self.weight.flatten(0, 1), bias).unflatten(-1, (num_steps, output_dim))


def align_with_targets(predictions: Tensor) -> Tensor:
    """Predictions [B, T, K, D] -> [B, T, K, D], step k moved on by k; what comes before the first means nothing."""
    batch_size, total, num_steps, _ = predictions.shape
    device = predictions.device
    steps = torch.arange(num_steps, device=device)
    context = (torch.arange(total, device=device)[:, None] - steps).clamp(min=0)
    context = context + torch.arange(batch_size, device=device)[:, None, None] * total  # [B, T, K]
    # one gather, because the gradient of K slices is K tensors of the size of all predictions
    moved = predictions.flatten(0, 2).index_select(0, (context * num_steps + steps).flatten())
    return moved.view(predictions.shape)


def binary_nce(scores: Tensor, negative_weight: float = 1.0) -> Tensor:
    """Binary noise contrastive estimation, equation (1) of Schneider et al., 2019:

        L = -log sigmoid(s_0) - w * sum_n log sigmoid(-s_n)

    With w = 1 the sum over N negatives is the paper's lambda = N times their expectation.

    Args:
        scores: [B, T, 1 + N, K], the positive first.

    Returns: [B, T, K].
    """
    return F.softplus(-scores[:, :, 0]) + negative_weight * F.softplus(scores[:, :, 1:]).sum(dim=2)


def info_nce(scores: Tensor) -> Tensor:
    """L = -log(exp(s_0) / sum_n exp(s_n)), the positive among the candidates; [B, T, 1 + N, K] -> [B, T, K]."""
    return torch.logsumexp(scores, dim=2) - scores[:, :, 0]


def reduce_over_targets(losses: Tensor, scores: Tensor, valid: Tensor) -> FuturePredictionLoss:
    """Losses [B, T, K] of scores [B, T, 1 + N, K], averaged over the pairs that `valid` [B, T, K] marks."""
    counts = valid.sum(dim=(0, 1))
    sums = torch.where(valid, losses, 0.0).sum(dim=(0, 1))
    positive, negatives = scores[:, :, 0], scores[:, :, 1:]
    won = (positive >= negatives.amax(dim=2)) & (positive > negatives.amin(dim=2))
    num_won = (won & valid).sum(dim=(0, 1))
    total = counts.sum()
    return FuturePredictionLoss(
        loss=sums.sum() / total.clamp(min=1),
        step_losses=sums / counts.clamp(min=1),
        step_accuracies=num_won / counts.clamp(min=1),
        accuracy=num_won.sum() / total.clamp(min=1),
        num_targets=total,
        scores=scores,
        valid=valid,
    )


class FuturePrediction(nn.Module):
    """Predictor and loss.

    Args:
        offset: frames between a context and the target of its first step: 1 in the paper; 3 in the published models,
            the first frame whose samples the context has not seen at all.
        objective: "binary_nce" or "info_nce".
        num_negatives: drawn from the other frames of the clip.
        num_cross_sample_negatives: drawn from the other frames of the batch.
        balanced_classes: "binary_nce" weighs a negative by 1 / `num_negatives`.
        bias_per_step: of `StepPredictor`.
        dropout: on the predictions.
    """

    def __init__(
        self,
        context_dim: int,
        target_dim: int,
        *,
        num_steps: int,
        offset: int,
        objective: str,
        num_negatives: int,
        num_cross_sample_negatives: int = 0,
        balanced_classes: bool = False,
        bias_per_step: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.predictor = StepPredictor(context_dim, target_dim, num_steps, bias_per_step=bias_per_step)
        self.dropout = Dropout(dropout)
        self.num_steps, self.offset, self.objective = num_steps, offset, objective
        self.num_negatives, self.num_cross_sample_negatives = num_negatives, num_cross_sample_negatives
        self.negative_weight = 1.0 / num_negatives if balanced_classes else 1.0

    def forward(
        self,
        context: Tensor,
        targets: Tensor,
        lengths: Tensor | None = None,
        *,
        sampled_negative_indices: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> FuturePredictionLoss:
        """
        Args:
            context: [B, T, H]. targets: [B, T, D], the frames to be told.
            lengths: [B] valid frames of each clip, None for all of them.
            sampled_negative_indices: [B, N, T], negatives of each target frame as indices into the B * T frames,
                those from other clips behind those of the clip; drawn if not given.
        """
        batch_size, total = targets.shape[:2]
        self._refuse_short_clips(total, lengths)
        if lengths is None:
            lengths = torch.full((batch_size,), total, device=targets.device)
        valid = valid_frames(lengths, total)  # [B, T]
        if sampled_negative_indices is None:
            sampled_negative_indices = self.sample(valid, generator)
        else:
            self._refuse_wrong_indices(sampled_negative_indices, batch_size, total)
        own = torch.arange(batch_size * total, device=targets.device).view(batch_size, 1, total)
        candidates = torch.cat([own, sampled_negative_indices], dim=1)[..., self.offset :].transpose(1, 2)

        predictions = self.dropout(self.predictor(context[:, : total - self.offset]))
        predictions = align_with_targets(predictions)  # [B, T', K, D]
        gathered = targets.flatten(0, 1).index_select(0, candidates.flatten()).view(*candidates.shape, -1)
        # a sum over hundreds of channels needs digits that bfloat16 does not have
        with without_autocast(context.device):
            # candidates first: a negative that is the positive scores the same to the bit, as the accuracy expects
            scores = gathered.float() @ predictions.float().transpose(-1, -2)  # [B, T', 1 + N, K]
        reached = torch.arange(total - self.offset, device=targets.device)[:, None] >= torch.arange(
            self.num_steps, device=targets.device
        )
        losses = info_nce(scores) if self.objective == "info_nce" else binary_nce(scores, self.negative_weight)
        return reduce_over_targets(losses, scores, valid[:, self.offset :, None] & reached)

    def sample(self, valid: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Negatives [B, N, T] for each of the `valid` [B, T] frames, never the frame itself."""
        batch_size, total = valid.shape
        first = torch.arange(batch_size, device=valid.device)[:, None, None] * total
        negatives = sample_negatives(valid, self.num_negatives, generator=generator) + first
        if self.num_cross_sample_negatives > 0:
            elsewhere = sample_negatives(
                valid, self.num_cross_sample_negatives, across_batch=True, generator=generator
            )
            negatives = torch.cat([negatives, elsewhere], dim=-1)
        return negatives.transpose(1, 2)

    @property
    def num_frames_needed(self) -> int:
        """The fewest frames of a clip with a target for every step and with enough others to be told from."""
        return max(self.offset + self.num_steps, self.num_negatives + 1)

    def _refuse_short_clips(self, total: int, lengths: Tensor | None):
        needed, shortest = self.num_frames_needed, total
        if lengths is not None and lengths.device.type == "cpu" and not torch.compiler.is_compiling():
            shortest = int(lengths.min())
        if shortest < needed:
            raise ValueError(
                f"each clip must have at least {needed} frames to predict num_prediction_steps = {self.num_steps}"
                f" frames, the first {self.offset} ahead, against num_negatives = {self.num_negatives} others, but"
                f" the shortest has {shortest}."
            )

    def _refuse_wrong_indices(self, indices: Tensor, batch_size: int, total: int):
        expected = (batch_size, self.num_negatives + self.num_cross_sample_negatives, total)
        if indices.shape != expected:
            raise ValueError(
                f"sampled_negative_indices must be [B, N, T] = {expected} for this input, got {tuple(indices.shape)}."
            )
        if indices.device.type != "cpu" or torch.compiler.is_compiling():
            return
        rows = indices[:, : self.num_negatives] // total
        if indices.min() < 0 or not (rows == torch.arange(batch_size)[:, None, None]).all():
            raise ValueError(
                "sampled_negative_indices point at frames of other clips; only the last num_cross_sample_negatives ="
                f" {self.num_cross_sample_negatives} of each frame may."
            )
