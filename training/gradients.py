"""The gradient of a step, summed over batches and processes and normalised by the targets of all of them."""

import math
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .engine import keeps_gradients
from .last_good import LastGood
from .run_log import RunLog
from .stage import Stage


def accumulate(
    accelerator: Accelerator, model: nn.Module, source, stage: Stage, log: RunLog, num: int, *, step: int = 0
) -> Tensor:
    """Gradients of the summed loss of `num` batches of `source`; returns the number of targets on all processes."""
    total = torch.zeros((), device=accelerator.device)
    for i in range(num):
        batch = log.wait_for(source)
        if i == 0 and stage.before_batch is not None:
            stage.before_batch(accelerator.unwrap_model(model), batch, step)
        with accelerator.no_sync(model) if i < num - 1 else nullcontext():
            with accelerator.autocast():
                output = stage.compute(model, batch)
            total = total + output.num_targets
            if keeps_gradients(accelerator):
                total = accelerator.reduce(total, reduction="sum")
                mean = output.loss * output.num_targets * accelerator.num_processes / total.clamp(min=1)
                model.backward(mean)  # which divides by the number of processes
            else:
                accelerator.backward(output.loss * output.num_targets)
        log.add_batch(output, batch)
    return total if keeps_gradients(accelerator) else accelerator.reduce(total, reduction="sum")


def apply_gradients(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    num_targets: Tensor,
    max_norm: float,
    last_good: LastGood | None = None,
) -> Tensor:
    """Turns summed gradients into the mean over all targets of all processes, clips and steps; returns their norm.

    With `last_good`, a step whose gradient is no number is not taken.
    """
    if keeps_gradients(accelerator):
        model.step()
        norm = torch.as_tensor(model.get_global_grad_norm(), device=accelerator.device)
        if last_good is not None:
            last_good.before_step(norm)
        return norm
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    # a process of FSDP scales its own part
    gradients = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    # DDP has divided by the number of processes
    torch._foreach_mul_(gradients, accelerator.num_processes / num_targets.clamp(min=1))
    # this also undoes the scaling of fp16, which may happen only once a step
    norm = accelerator.clip_grad_norm_(model.parameters(), max_norm if max_norm > 0 else math.inf)
    # that of split weights is split too until all processes have put it together
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    if last_good is not None:
        last_good.before_step(norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
