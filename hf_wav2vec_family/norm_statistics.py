"""Norms over time in a recording that is heard window by window: their statistics are those of the whole.

A group norm over time makes of 30 seconds something else alone than amid an hour. Here the mean and the variance of
all of its frames are measured first, and stand for those of each window then.

Shapes: S samples of a window, T frames, C channels, N groups of all norms together.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from .conv import MaskedGroupNorm
from .frame_places import FramePlaces
from .windows import NormalizedWaveform, Window

NormStatistics = Literal["recording", "chunk"]


class NormPlace(NamedTuple):
    """A norm and how many of its frames there are to one that the model gives."""

    norm: MaskedGroupNorm
    rate: int


def norms_over_time(model: nn.Module) -> list[MaskedGroupNorm]:
    """Those that take statistics from outside, whatever their class: code of a model's folder has one of its own."""
    return [module for module in model.modules() if isinstance(module, nn.GroupNorm) and hasattr(module, "statistics")]


def check_norm_statistics(choice: NormStatistics | None, model: nn.Module) -> NormStatistics:
    """What was chosen, or for None "recording" where the model has one norm over time and "chunk" where it has more,
    since each takes a pass of its own, or has PyTorch's own, as models of Transformers do.

    Raises:
        ValueError: something else, or "recording" for such a model.
    """
    if choice not in (None, "recording", "chunk"):
        raise ValueError(f'norm_statistics must be "recording", "chunk" or None, got {choice!r}.')
    if choice == "recording" and any(type(module) in (nn.GroupNorm, nn.InstanceNorm1d) for module in model.modules()):
        raise ValueError(
            f'norm_statistics="recording" came with a {type(model).__name__} whose norms are PyTorch\'s own and take'
            ' none from outside; accepted is "chunk".'
        )
    return choice or ("recording" if len(norms_over_time(model)) == 1 else "chunk")


@torch.no_grad()
def measure_norms(
    hear: Callable[[Tensor], object],
    model: nn.Module,
    waveform: NormalizedWaveform,
    windows: Sequence[Window],
    places: FramePlaces,
) -> Tensor:
    """[1, N, 2]: mean and reciprocal deviation of each group of each norm over time of `model`, over a recording.

    Zeros if that is one window, whose norms hear all of it.

    A norm hears what those before it make of it, so that each is measured by a pass of its own, which ends there.

    Args:
        hear: runs the model in eval mode on a waveform [1, S].
        windows: of the recording; every frame is one of theirs.
    """
    norms = norms_over_time(model)
    first = next(model.parameters())
    # what leaves all as it is; a norm of which no pass hears keeps it
    found = torch.tensor([0.0, 1.0], device=first.device).repeat(1, sum(norm.num_groups for norm in norms), 1)
    if len(windows) == 1:
        return torch.zeros_like(found)
    parts = dict(zip(norms, _parts(found, norms), strict=True))
    samples = torch.zeros(1, places.needed + places.hop, device=first.device, dtype=first.dtype)
    for norm, rate in _in_order(hear, model, samples, found, places.hop):
        moments = _Moments()
        for window in windows:
            # a frame more, or a norm may lack the end of the last one of a window without right context
            stop = None if window.stop is None else window.stop + places.hop
            chunk = torch.from_numpy(waveform[window.start : stop]).to(first.device, first.dtype)
            with fixed_norms(model, found):
                frames = _heard_by(norm, hear, chunk.unsqueeze(0))
            end = None if window.stop is None else window.end * rate
            moments.add(frames[0, :, window.begin * rate : end].float().reshape(norm.num_groups, -1))
        parts[norm].copy_(moments.statistics(norm.eps))
    return found


@contextmanager
def fixed_norms(model: nn.Module, statistics: Tensor | None) -> Iterator[None]:
    """`statistics` [1, N, 2] of `measure_norms` stand for those that norms over time would take of their frames.

    With None or zeros they take them of their frames. The norms themselves are changed, so that no other thread may
    use the model.
    """
    norms = norms_over_time(model) if statistics is not None and statistics.any() else []
    try:
        for norm, part in zip(norms, _parts(statistics, norms) if norms else [], strict=True):
            norm.statistics = part
        yield
    finally:
        for norm in norms:
            norm.statistics = None


def _parts(statistics: Tensor, norms: Sequence[MaskedGroupNorm]) -> tuple[Tensor, ...]:
    return statistics.split([norm.num_groups for norm in norms], dim=1)


def _in_order(
    hear: Callable[[Tensor], object], model: nn.Module, samples: Tensor, neutral: Tensor, hop: int
) -> list[NormPlace]:
    """The norms in the order that they hear in; a hop more of `samples` tells how many frames of theirs it holds."""
    lengths: dict[MaskedGroupNorm, list[int]] = {}

    def note(norm: MaskedGroupNorm, inputs: tuple[Tensor, ...]):
        lengths.setdefault(norm, []).append(inputs[0].shape[-1])

    handles = [norm.register_forward_pre_hook(note) for norm in norms_over_time(model)]
    try:
        with fixed_norms(model, neutral):
            hear(samples[:, :-hop])
            hear(samples)
    finally:
        for handle in handles:
            handle.remove()
    return [NormPlace(norm, longer - shorter) for norm, (shorter, longer) in lengths.items()]


class _Reached(Exception):
    """What a norm is given, [1, C, T]; nothing behind it is wanted."""

    def __init__(self, hidden_states: Tensor):
        super().__init__()
        self.hidden_states = hidden_states


def _heard_by(norm: MaskedGroupNorm, hear: Callable[[Tensor], object], chunk: Tensor) -> Tensor:
    """[1, C, T], what `norm` is given of a chunk [1, S]."""

    def stop(_, inputs: tuple[Tensor, ...]):
        raise _Reached(inputs[0])

    handle = norm.register_forward_pre_hook(stop)
    try:
        hear(chunk)
    except _Reached as reached:
        return reached.hidden_states
    finally:
        handle.remove()
    raise AssertionError("a norm that heard silence did not hear the recording")


class _Moments:
    """Mean and variance of parts that come one after another (Chan, Golub and LeVeque, 1979)."""

    def __init__(self):
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def add(self, values: Tensor):
        """Those of `values` [N, L]."""
        # not every device has float64
        variance, mean = (part.cpu().double() for part in torch.var_mean(values, dim=-1, correction=0))
        count = values.shape[-1]
        total, apart = self.count + count, mean - self.mean
        self.squares = self.squares + variance * count + apart.square() * (self.count * count / total)
        self.mean = self.mean + apart * (count / total)
        self.count = total

    def statistics(self, eps: float) -> Tensor:
        """[N, 2], mean and reciprocal deviation."""
        return torch.stack([self.mean, torch.rsqrt(self.squares / self.count + eps)], dim=-1)
