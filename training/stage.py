"""What a stage is to the loop: a way from a batch to a loss, an evaluation, a way to save."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn


@dataclass
class StepOutput:
    """What a batch costs: `loss` is a mean over `num_targets`; `metrics` are means over the same targets.

    `counts` [G, V] are how often each entry of a codebook was chosen, and are logged as how many ever were.
    """

    loss: Tensor
    num_targets: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Stage:
    """What a stage adds to the loop.

    Args:
        compute: (model, batch) -> StepOutput.
        evaluate: model -> numbers to log, or None for no evaluation.
        best: name of the number whose lowest value marks the best model.
        save: (model, folder, weights) -> None writes what a user loads: model, processor. `weights` are those of the
            model where no process has all of them, else None.
        before_step: (model, step) -> None, called with the bare model.
        before_batch: (model, batch, step) -> None, called with the bare model and the first batch of a step.
    """

    compute: Callable[[nn.Module, dict], StepOutput]
    save: Callable[[nn.Module, Path, dict | None], None]
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None
    best: str | None = None
    before_step: Callable[[nn.Module, int], None] | None = None
    before_batch: Callable[[nn.Module, dict, int], None] | None = None
