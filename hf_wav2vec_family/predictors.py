"""Networks that say from the context which frames will come: one network per step, all K of them computed at once.

Linear maps are those of van den Oord et al., 2018 (arXiv:1807.03748, equation 3), the others those of Rivière et al.,
2020 (arXiv:2002.02848), as in their public code. Parameters of the K networks lie stacked in one tensor each. Every
module maps contexts [B, W, H] to predictions [B, W, K, D] and sees no context later than the one it predicts from.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LinearPredictors(nn.Linear):
    """W_k c for K steps; `weight` is [K * D, H]."""

    def __init__(self, num_steps: int, input_dim: int, output_dim: int):
        super().__init__(input_dim, num_steps * output_dim, bias=False)
        self.num_steps = num_steps

    def forward(self, context: Tensor) -> Tensor:
        return super().forward(context).unflatten(-1, (self.num_steps, -1))


class FeedForwardPredictors(nn.Module):
    """Two layers with a ReLU between them.

    The weights stay near variance 1 and each layer's output, bias included, is scaled by sqrt(2 / fan_in) instead
    ("equalized" learning rate).
    """

    def __init__(self, num_steps: int, input_dim: int, output_dim: int):
        super().__init__()
        self.input_weight = nn.Parameter(torch.empty(num_steps, output_dim, input_dim))
        self.input_bias = nn.Parameter(torch.empty(num_steps, output_dim))
        self.output_weight = nn.Parameter(torch.empty(num_steps, output_dim, output_dim))
        self.output_bias = nn.Parameter(torch.empty(num_steps, output_dim))
        self.reset_parameters()

    def reset_parameters(self):
        for weight, bias in ((self.input_weight, self.input_bias), (self.output_weight, self.output_bias)):
            nn.init.normal_(weight)
            nn.init.zeros_(bias)

    def forward(self, context: Tensor) -> Tensor:
        hidden = _per_step_linear(context, self.input_weight) + self.input_bias
        hidden = F.relu(hidden * math.sqrt(2 / self.input_weight.shape[-1]))  # [B, W, K, D]
        output = torch.einsum("bwki,koi->bwko", hidden, self.output_weight) + self.output_bias
        return output * math.sqrt(2 / self.output_weight.shape[-1])


class ConvPredictors(nn.Module):
    """A convolution over the last `kernel_size` contexts, "equalized" as in `FeedForwardPredictors`."""

    def __init__(self, num_steps: int, input_dim: int, output_dim: int, kernel_size: int):
        super().__init__()
        self.num_steps, self.kernel_size = num_steps, kernel_size
        self.weight = nn.Parameter(torch.empty(num_steps * output_dim, input_dim, kernel_size))
        self.bias = nn.Parameter(torch.empty(num_steps * output_dim))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, context: Tensor) -> Tensor:
        padded = F.pad(context.transpose(1, 2), (self.kernel_size - 1, 0))
        output = F.conv1d(padded, self.weight, self.bias).transpose(1, 2)
        return output.unflatten(-1, (self.num_steps, -1)) * math.sqrt(2 / (padded.shape[1] * self.kernel_size))


class TransformerPredictors(nn.Module):
    """One causal Transformer layer per step, its norms after the blocks, with learned relative positions.

    Before softmax and scaling, query i and key j score q_i . k_j + q_i . r_(i-j).

    Args:
        num_heads: attention heads of each layer.
        intermediate_size: width of the feed-forward blocks.
        dropout: on attention weights and on hidden units of the feed-forward blocks.
        max_positions: distances that have a vector of their own, and so the most contexts in a clip.
    """

    def __init__(
        self,
        num_steps: int,
        width: int,
        *,
        num_heads: int,
        intermediate_size: int,
        dropout: float,
        max_positions: int,
    ):
        super().__init__()
        self.num_heads, self.head_dim, self.max_positions = num_heads, width // num_heads, max_positions
        for name in ("query", "key", "value", "attention_output"):
            self.register_parameter(name, nn.Parameter(torch.empty(num_steps, width, width)))
        # of distance max_positions - 1 down to 0
        self.relative_positions = nn.Parameter(torch.empty(num_steps, self.head_dim, max_positions))
        self.intermediate_weight = nn.Parameter(torch.empty(num_steps, intermediate_size, width))
        self.intermediate_bias = nn.Parameter(torch.empty(num_steps, intermediate_size))
        self.output_weight = nn.Parameter(torch.empty(num_steps, width, intermediate_size))
        self.output_bias = nn.Parameter(torch.empty(num_steps, width))
        for name in ("attention_norm", "final_norm"):
            self.register_parameter(f"{name}_weight", nn.Parameter(torch.empty(num_steps, width)))
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.empty(num_steps, width)))
        self.dropout = dropout
        self.reset_parameters()

    def reset_parameters(self):
        """As `nn.Linear` and `nn.LayerNorm` start."""
        width, intermediate_size = self.query.shape[-1], self.output_weight.shape[-1]
        bounds = {"relative_positions": self.head_dim, "output_weight": intermediate_size}
        bounds |= {"output_bias": intermediate_size}
        for name, parameter in self.named_parameters():
            if "_norm_" in name:
                nn.init.constant_(parameter, float(name.endswith("weight")))
            else:
                bound = 1 / math.sqrt(bounds.get(name, width))
                nn.init.uniform_(parameter, -bound, bound)

    def forward(self, context: Tensor) -> Tensor:
        if context.shape[1] > self.max_positions:
            raise ValueError(
                f"the relative positions reach {self.max_positions} contexts, but the clips have {context.shape[1]};"
                " crop them or raise predictor_max_positions."
            )
        hidden = context[:, None] + self.attend(context)  # [B, K, W, D]
        hidden = _per_step_norm(hidden, self.attention_norm_weight, self.attention_norm_bias)
        inner = F.relu(hidden @ self.intermediate_weight.transpose(1, 2) + self.intermediate_bias[:, None])
        inner = F.dropout(inner, self.dropout, self.training)
        hidden = hidden + inner @ self.output_weight.transpose(1, 2) + self.output_bias[:, None]
        return _per_step_norm(hidden, self.final_norm_weight, self.final_norm_bias).transpose(1, 2)

    def attend(self, context: Tensor) -> Tensor:
        """Contexts [B, W, D] -> what each of the K attentions makes of them, [B, K, W, D]."""
        query, key, value = (
            _per_step_linear(context, weight).unflatten(-1, (self.num_heads, -1)).permute(0, 2, 3, 1, 4)
            for weight in (self.query, self.key, self.value)
        )  # [B, K, heads, W, d]
        attended = F.scaled_dot_product_attention(
            query.flatten(1, 2),
            key.flatten(1, 2),
            value.flatten(1, 2),
            attn_mask=self.position_scores(query).flatten(1, 2),
            dropout_p=self.dropout if self.training else 0.0,
        )
        attended = attended.unflatten(1, (-1, self.num_heads)).transpose(2, 3).flatten(-2)  # [B, K, W, D]
        return attended @ self.attention_output.transpose(1, 2)

    def position_scores(self, query: Tensor) -> Tensor:
        """[B, K, heads, W, d] -> [B, K, heads, W, W], scores of the distances, -inf for keys to come."""
        total = query.shape[-2]
        by_distance = query @ self.relative_positions[:, None, :, -total:]  # [..., W, distance W - 1 to 0]
        # row i moves left by W - 1 - i: one column more, and the rows read from one entry later each
        scores = F.pad(by_distance, (1, 0)).reshape(*by_distance.shape[:-2], total + 1, total)[..., 1:, :]
        future = torch.ones(total, total, dtype=torch.bool, device=query.device).triu(diagonal=1)
        return (scores * self.head_dim**-0.5).masked_fill(future, float("-inf"))


def _per_step_linear(context: Tensor, weight: Tensor) -> Tensor:
    """[B, W, H] times K matrices [K, D, H] -> [B, W, K, D], as one product."""
    return F.linear(context, weight.flatten(0, 1)).unflatten(-1, weight.shape[:2])


def _per_step_norm(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layer norm of [B, K, W, D] with the scale and shift [K, D] of each step."""
    return F.layer_norm(hidden, hidden.shape[-1:]) * weight[:, None] + bias[:, None]
