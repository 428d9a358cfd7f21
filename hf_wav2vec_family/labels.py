"""Labels of a batch, [B, L]: ids, and whatever is below 0 as padding, wherever it stands."""

from torch import Tensor


def in_front(labels: Tensor) -> Tensor:
    """[B, L] -> [B, L], the ids of each row in their order, and its padding behind them."""
    return labels.gather(-1, (labels < 0).long().argsort(dim=-1, stable=True))


def merge_runs(labels: Tensor) -> Tensor:
    """[B, L] -> [B, L], one symbol of each run in front; the places left over return as -100. Padding is behind."""
    first = labels >= 0
    first[:, 1:] &= labels[:, 1:] != labels[:, :-1]
    return in_front(labels.masked_fill(~first, -100))
