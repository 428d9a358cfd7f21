"""Fast forms of dropout, of attention with it and of a hard choice, and a cache of what was made of weights.

On a CPU PyTorch draws dropout one number at a time and keeps more for the backward pass than it needs. A GPU's kernels
and compiled graphs do well what is done here by hand, and are left alone.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .precision import dtype_of, without_autocast

NUM_LANES = 2**16
MAX_SCORES = 2**25  # 64 MiB in bfloat16


def eager(values: Tensor) -> bool:
    """Whether `values` are computed with step by step on a CPU or a GPU: not compiled, traced, exported or vmapped."""
    if values.device.type not in ("cpu", "cuda") or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return not torch._C._are_functorch_transforms_active()


def eager_on_cpu(values: Tensor) -> bool:
    return values.device.type == "cpu" and eager(values)


def draw_kept(values: Tensor, prob: float) -> tuple[Tensor, float]:
    """Which of `values` stay, 1 or 0, each dropped with `prob` to the nearest 1/65536, and what they grow by.

    Four places share one draw of 64 bits, 16 bits for each. A product with bytes takes a quarter of the time of one
    with booleans in bfloat16, and two thirds in float32; they lie in memory as the values do.
    """
    kept, count = torch.empty_like(values, dtype=torch.uint8), values.numel()
    num_dropped = min(round(prob * NUM_LANES), NUM_LANES - 1)
    draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    lanes = draws.view(torch.int16)[:count]
    torch.ge(lanes, num_dropped - NUM_LANES // 2, out=kept.as_strided((count,), (1,)))
    return kept, NUM_LANES / (NUM_LANES - num_dropped)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, prob: float) -> Tensor:
        kept, ctx.scale = draw_kept(values, prob)
        ctx.save_for_backward(kept)
        return (values * ctx.scale).mul_(kept)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (gradient * ctx.scale).mul_(kept), None


class Dropout(nn.Dropout):
    """`nn.Dropout`; on a CPU a draw costs a quarter, and a byte is kept for each value rather than four."""

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or not 0.0 < self.p < 1.0 or self.inplace or not eager_on_cpu(values):
            return super().forward(values)
        return _Dropout.apply(values, self.p)


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """softmax(q k^T * scaling + mask): [B, heads, T, d] each -> [B, heads, T, T]; `mask` as in `sdpa`."""
    scores = (query * scaling) @ key.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else scores.add_(mask)
    return torch.softmax(scores, dim=-1)


class _AttentionWithDropout(torch.autograd.Function):
    """Keeps the weights before dropout and which of them stay; PyTorch keeps those after it, too."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, prob: float, scaling: float):
        with without_autocast(query.device):
            weights = attention_weights(query, key, mask, scaling)
            kept, scale = draw_kept(weights, prob)
            ctx.save_for_backward(query, key, value, weights, kept)
            ctx.scale, ctx.scaling = scale, scaling
            return ((weights * kept) @ value).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        query, key, value, weights, kept = ctx.saved_tensors
        gradient = gradient * ctx.scale
        value_gradient = (weights * kept).transpose(-2, -1) @ gradient
        weight_gradient = (gradient @ value.transpose(-2, -1)).mul_(kept)
        score_gradient = torch._softmax_backward_data(weight_gradient, weights, -1, weights.dtype)
        query_gradient = (score_gradient @ key).mul_(ctx.scaling)
        key_gradient = (score_gradient.transpose(-2, -1) @ query).mul_(ctx.scaling)
        return query_gradient, key_gradient, value_gradient, None, None, None


def attention_with_dropout(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, prob: float, scaling: float
) -> Tensor:
    """dropout(softmax(q k^T * scaling + mask)) v on a CPU: [B, heads, T, d] each -> [B, heads, T, d].

    Args:
        mask: broadcasts to [B, heads, T, T]; True where attended to, or what is added to the scores. A row without a
            single True comes back as NaN.
        prob: of dropping a weight, above 0.
    """
    return _AttentionWithDropout.apply(query, key, value, mask, prob, scaling)


def sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Transformers' attention "sdpa", but on a CPU with dropout, which PyTorch has no kernel for, the one of here.

    In bfloat16 two products and a softmax, whose scores are rounded as the rest is, take half the time of PyTorch's
    kernel, which computes in float32, where a processor has such products; many scores are left to it for its memory's
    sake.

    [B, heads, T, d] each -> [B, T, heads, d] and no weights.
    """
    # Transformers has no mask for what it takes for causal
    if eager_on_cpu(query) and (attention_mask is not None or not getattr(module, "is_causal", True)):
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        if dropout > 0.0:
            attended = attention_with_dropout(query, key, value, attention_mask, prob=dropout, scaling=scale)
            return attended.transpose(1, 2), None
        num_scores = query.shape[:-1].numel() * key.shape[-2]
        if query.dtype == torch.bfloat16 and num_scores <= MAX_SCORES:
            with without_autocast(query.device):
                return (attention_weights(query, key, attention_mask, scale) @ value).transpose(1, 2), None
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    return attend(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)


class _ChooseRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, books: Tensor, soft_choice: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(books, rows)
        ctx.dtype, ctx.soft_dtype = dtype_of(books), soft_choice.dtype
        return F.embedding(rows, books.flatten(0, 1))

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        books, rows = ctx.saved_tensors
        soft_gradient = torch.einsum("btgd,gvd->btgv", gradient.to(ctx.dtype), books.to(ctx.dtype))
        book_gradient = None
        if ctx.needs_input_grad[0]:
            counted = torch.zeros_like(books).flatten(0, 1)
            book_gradient = counted.index_add_(0, rows.flatten(), gradient.flatten(0, 2)).view_as(books)
        return book_gradient, soft_gradient.to(ctx.soft_dtype), None


def choose_rows(books: Tensor, soft_choice: Tensor, rows: Tensor) -> Tensor:
    """What stands in `rows` [B, T, G] of all `books` [G, V, d] -> [B, T, G, d].

    The gradient flows into `soft_choice` [B, T, G, V] as if one-hot vectors with its gradient had been multiplied by
    the books; the product is not made.
    """
    return _ChooseRows.apply(books, soft_choice, rows)


class WeightCache:
    """What was last made of some weights. It is made anew once a single bit of them differs.

    Weights are compared by value: a version number misses what is written through `.data`. The cache is no part of
    the module that owns it: it is neither saved, pickled nor copied.
    """

    def __init__(self):
        self._entry: tuple[list[Tensor], Tensor] | None = None

    def get(self, weights: Sequence[Tensor], make: Callable[[], Tensor]) -> Tensor:
        entry = self._entry
        if entry is None or not all(_same(a, b) for a, b in zip(entry[0], weights, strict=True)):
            entry = self._entry = ([weight.detach().clone() for weight in weights], make().detach())
        return entry[1]

    def __deepcopy__(self, memo) -> "WeightCache":
        return WeightCache()

    def __reduce__(self):
        return WeightCache, ()


def _same(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.device != b.device:
        return False
    # bits are compared in a fraction of the time of numbers
    bits = {2: torch.int16, 4: torch.int32}.get(a.itemsize, a.dtype)
    return torch.equal(a.view(bits), b.view(bits))
