"""Batches of any size and length in few shapes, so that a graph compiled for each serves all of them.

Shapes: B clips, S samples of a waveform, T frames, V symbols.
"""

import bisect
import itertools
from collections.abc import Callable, Sequence
from types import FunctionType

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .conv import sample_lengths
from .frame_places import min_num_samples

SECOND = 16_000


def geometric_lengths(shortest: int = SECOND, longest: int = 30 * SECOND, *, ratio: float = 1.5) -> tuple[int, ...]:
    """Lengths from `shortest` to `longest` samples, none more than `ratio` times the one before.

    Raises:
        ValueError: lengths that don't grow from 1 on, or a ratio of 1 or less.
    """
    if not 0 < shortest <= longest or ratio <= 1:
        raise ValueError(
            f"shortest={shortest}, longest={longest}, ratio={ratio}; accepted is 0 < shortest <= longest, and a ratio"
            " above 1."
        )
    lengths = itertools.takewhile(
        lambda length: length < longest, (int(shortest * ratio**i) for i in itertools.count())
    )
    return tuple(sorted({*lengths, longest}))


class LengthBuckets:
    """A CTC model compiled for a few shapes: each batch is padded to the next of them, its logits are cut again.

    Padding changes no answer, but it is computed: the default lengths grow by half, the default sizes double. The
    first batch of a shape waits for its graph, on a GPU a CUDA graph, which pays where the host takes longer to ask
    for the kernels than the GPU to run them: for a clip or a few at a time.

    A graph that can't be made is an error, as is a batch larger than every bucket: nothing falls back to eager steps.
    A graph reads the weights, which may change; for another type of autocast another graph is made.

    Args:
        model: of this package with a CTC head, in eval mode. Its padding must not count (`padding_invariant`).
        lengths: numbers of samples to pad to. batch_sizes: numbers of clips to pad to.
        backend, mode: as in `torch.compile`. None is "reduce-overhead", which makes CUDA graphs, for a model on a GPU
            with the backend "inductor", and no mode otherwise.

    Raises:
        ValueError: no CTC head, a model whose answers padding changes, lengths or sizes below 1 or none at all.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        lengths: Sequence[int] = geometric_lengths(),
        batch_sizes: Sequence[int] = (1, 2, 4, 8),
        backend: str | Callable = "inductor",
        mode: str | None = None,
    ):
        if not hasattr(model, "lm_head") or getattr(model, "criterion", None) is not None:
            raise ValueError(f"model: a {type(model).__name__} came; accepted is one with a CTC head.")
        if not getattr(model.config, "padding_invariant", True):
            raise ValueError("model: padding changes its answers, accepted is padding_invariant=True.")
        for name, values in (("lengths", lengths), ("batch_sizes", batch_sizes)):
            if not values or min(values) < 1:
                raise ValueError(f"{name}={list(values)}; accepted are whole numbers from 1 on, at least one.")
        self.model = model
        self.lengths, self.batch_sizes = sorted(lengths), sorted(batch_sizes)
        self.needed = min_num_samples(model)
        if mode is None and backend == "inductor" and model.device.type == "cuda":
            mode = "reduce-overhead"
        self.options = {"backend": backend, "mode": mode, "fullgraph": True, "dynamic": False}
        self._graphs: dict[tuple[int, int], Callable[[Tensor, Tensor], Tensor]] = {}

    @torch.no_grad()
    def __call__(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits [B, T, V] of waveforms [B, S] and their mask [B, S], as the model gives them; no gradients.

        Raises:
            ValueError: a model in training mode, more clips or samples than the largest bucket has (a long recording
                is heard in chunks), and what the model refuses.
        """
        if self.model.training:
            raise ValueError("model is in training mode; accepted is one after eval().")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_values, dtype=torch.long)
        sample_lengths(input_values, attention_mask, self.needed)
        batch_size, total = input_values.shape
        bucket = _next("clips", batch_size, self.batch_sizes), _next("samples", total, self.lengths)
        waveforms = input_values.new_zeros(bucket)
        waveforms[:batch_size, :total] = input_values
        # a clip of nothing but padding would be nothing to attend to
        mask = torch.ones(bucket, dtype=torch.long, device=input_values.device)
        mask[:batch_size, :total] = attention_mask
        mask[:batch_size, total:] = 0
        if bucket not in self._graphs:
            self._graphs[bucket] = self._compile()
        num_frames = int(self.model._get_feat_extract_output_lengths(total))
        # the next run of a CUDA graph writes over what this one gave
        return self._graphs[bucket](waveforms, mask)[:batch_size, :num_frames].clone()

    def _compile(self) -> Callable[[Tensor, Tensor], Tensor]:
        model = self.model

        def logits(input_values: Tensor, attention_mask: Tensor) -> Tensor:
            return model(input_values, attention_mask=attention_mask).logits

        # code of its own, since `torch.compile` makes only a few graphs of one piece of code
        own = FunctionType(logits.__code__.replace(), logits.__globals__, closure=logits.__closure__)
        return torch.compile(own, **self.options)


def _next(what: str, number: int, sizes: list[int]) -> int:
    """The smallest of sorted `sizes` that holds `number`."""
    if number > sizes[-1]:
        raise ValueError(f"input_values has {number} {what}; the largest bucket has {sizes[-1]}.")
    return sizes[bisect.bisect_left(sizes, number)]
