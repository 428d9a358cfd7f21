"""The last good state of a run whose gradient is suddenly no number.

Such a step is not taken, and none after it, until the run looks: so the weights in memory are those before it, can be
saved, and the device never waits to be asked. Only what changes without the optimizer, running statistics of a batch
norm and codes that were restarted, may be younger by the steps between two lines of the log.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from .checkpoints import newest_checkpoint, read_run_state
from .findings import Window
from .symptoms import not_a_number
from .vitals import total_norm


class LastGood:
    """Stands between the gradient and the optimizer.

    It speaks to the optimizer as a gradient scaler does, by `found_inf`, which only fused optimizers on whole
    parameters understand; fp16 has a scaler of its own, which leaves steps out as a matter of course. In other cases
    the weights may be lost, and then the last checkpoint on the disk is the last good state.
    """

    def __init__(self, accelerator: Accelerator, optimizer: torch.optim.Optimizer):
        self.optimizer = getattr(optimizer, "optimizer", optimizer)
        sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        self.scaled = accelerator.scaler is not None
        fused = all(group.get("fused") for group in self.optimizer.param_groups)
        self.guards = fused and not sharded and not self.scaled
        self.keeps = self.guards or self.scaled
        self.broken = torch.zeros((), device=accelerator.device)
        self.num_missed = torch.zeros((), device=accelerator.device)
        self.states: dict[int, dict] = {}

    def before_step(self, norm: Tensor):
        """Called with the norm of the gradient right before the optimizer's step."""
        if self.scaled:
            return
        self.broken = torch.maximum(self.broken, (~torch.isfinite(norm)).to(self.broken.dtype))
        self.num_missed = self.num_missed + self.broken
        if self.guards:
            self.optimizer.found_inf = self.broken

    def remember(self, step: int, rank_state: dict):
        """What a checkpoint after `step` would hold of this process beside the weights."""
        self.states[step] = rank_state

    def missed_steps(self, step: int) -> int:
        """How many of the steps until `step` were not taken. Waits for the device."""
        missed = int(self.num_missed)
        if not missed:
            self.states = {step: self.states[step]}
        return missed


def refuse_broken_run(
    model: nn.Module,
    last_good: LastGood,
    *,
    step: int,
    loss: float,
    checkpoints: Path,
    save: Callable[[int, dict], object],
):
    """FloatingPointError if a loss or a gradient since the last look was no number; saves the last good state first.

    Args:
        step: steps done. loss: of the last line of the log.
        checkpoints: the folder of the run's checkpoints.
        save: (step, state of this process), writes a checkpoint of the weights as they are.
    """
    missed = last_good.missed_steps(step)
    if not missed and math.isfinite(loss):
        return
    good = step - missed
    weights = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    whole = bool(torch.isfinite(total_norm(weights)))
    newest = newest_checkpoint(checkpoints)
    if whole and last_good.keeps and good in last_good.states and step_of(newest) != good:
        save(good, last_good.states[good])
    what = ("the gradient" if missed else "the loss") + ("" if whole else ", and so is a weight,")
    at = good + 1 if missed else step
    finding = not_a_number(Window([{"step": at, "loss": math.nan}]))
    raise FloatingPointError(
        f"{what} is no number at step {at}; the last good checkpoint is {newest_checkpoint(checkpoints)}."
        f" Likely cause: {finding.cause} Lever: {finding.lever}"
    )


def step_of(checkpoint: Path | None) -> int | None:
    return None if checkpoint is None else read_run_state(checkpoint)["step"]
