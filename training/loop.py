"""The training loop: the same for every architecture and every stage.

A stage hands over a model, its batches and one function that turns a batch into a loss; everything else that training
is made of happens here, once: seeds, schedules, accumulation, normalisation over all processes, clipping, logs,
evaluation, checkpoints, resume.
"""

import logging
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, reduce
from torch import nn

from .checkpoints import replace_folder, save_checkpoint
from .engine import refuse_with_fsdp
from .gradients import accumulate, apply_gradients
from .last_good import LastGood, refuse_broken_run
from .preemption import StopRequest
from .recipe import COMPILED_LENGTH_STEP_SECONDS, Recipe, identity, learning_rates, temperatures
from .resuming import resume
from .run_log import Progress, RunLog, is_due
from .stage import Stage
from .stalls import StallWatch, lost_processes_named
from .transfer import on_device

logger = logging.getLogger(__name__)


def seed_step(seed: int, step: int, rank: int):
    """Seeds everything a step draws (masks, distractors, noise, dropout) from the step itself, not from history."""
    words = np.random.SeedSequence([seed, step, rank]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))


def train(recipe: Recipe, stage: Stage, *, accelerator: Accelerator, model: nn.Module, batches) -> dict:
    """Trains `model` for `optimization.num_steps` steps and writes its best state to `run.output_dir`/model.

    Args:
        batches: an iterable with `state_dict` and `load_state_dicts` that never ends.

    Returns: the summary that is also written to summary.json.

    Raises:
        FloatingPointError: a loss or a gradient is no number; the state before it is saved.
        RuntimeError: another process of the run has ended.
        SystemExit: SIGTERM or SIGINT came, and a checkpoint was saved; the code is 128 and the number of the signal.
    """
    log = RunLog(recipe, accelerator)
    checkpoints = Path(recipe.run.output_dir) / "checkpoints"
    try:
        with lost_processes_named(accelerator.num_processes, checkpoints):
            return run_steps(recipe, stage, log, accelerator=accelerator, model=model, batches=batches)
    finally:
        log.close()


def compiled(model: nn.Module, recipe: Recipe) -> nn.Module:
    """`model` compiled for any length, of which its batches have few."""
    torch.backends.cudnn.benchmark = True  # each length is worth a trial
    longest = min(recipe.data.max_seconds, recipe.data.batch_seconds)
    num_lengths = math.ceil(longest / COMPILED_LENGTH_STEP_SECONDS) + 1
    # CPC's GRU is compiled for every length, in training and in evaluation; over the limit steps would go uncompiled
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * num_lengths)
    return torch.compile(model, dynamic=True)


def run_steps(
    recipe: Recipe, stage: Stage, log: RunLog, *, accelerator: Accelerator, model: nn.Module, batches
) -> dict:
    """What `train` does between the opening and the closing of the log."""
    folder = Path(recipe.run.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    optimization = recipe.optimization
    if accelerator.distributed_type == DistributedType.FSDP:
        refuse_with_fsdp(recipe, model.config)
    if optimization.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = make_optimizer(model, recipe, accelerator.device)
    model, optimizer = accelerator.prepare(model, optimizer)
    forward_model = compiled(model, recipe) if optimization.compile else model
    progress = resume(recipe, accelerator, optimizer, batches, best_metric=stage.best)
    log.start(progress.step)
    last_good = LastGood(accelerator, optimizer)

    def save(step: int, rank_state: dict) -> Path:
        return save_checkpoint(
            folder / "checkpoints",
            step=step,
            accelerator=accelerator,
            rank_state=rank_state,
            keep=recipe.run.keep_checkpoints,
            run_state={
                "identity": identity(recipe),
                "best_metric": stage.best,
                "best": progress.best,
                "best_step": progress.best_step,
            },
        )

    learning_rate, temperature = learning_rates(optimization), temperatures(optimization)
    source = on_device(batches, accelerator.device)
    model.train()
    with StopRequest(accelerator.num_processes) as stop, StallWatch() as watch:
        for step in range(progress.step, optimization.num_steps):
            seed_step(recipe.run.seed, step, accelerator.process_index)
            bare = accelerator.unwrap_model(model)
            if temperature is not None:
                bare.set_gumbel_temperature(temperature(step))
                log.add_value("gumbel_temperature", temperature(step))
            if hasattr(bare, "set_layerdrop_seed"):  # the same layers on every rank and in every accumulated batch
                bare.set_layerdrop_seed(int(np.random.SeedSequence([recipe.run.seed, step]).generate_state(1)[0]))
            if stage.before_step is not None:
                stage.before_step(bare, step)
            set_learning_rate(optimizer, learning_rate(step))
            log.add_value("learning_rate", learning_rate(step))

            total = accumulate(
                accelerator, forward_model, source, stage, log, optimization.gradient_accumulation_steps, step=step
            )
            with log.vitals.measured_update(model, due=log.is_due(step + 1)):
                norm = apply_gradients(accelerator, model, optimizer, total, optimization.max_grad_norm, last_good)
            log.add_gradient(norm)
            progress.step = step + 1
            rank_state = {"batches": batches.state_dict()}
            last_good.remember(progress.step, rank_state)

            asked = stop.agreed()
            last = progress.step == optimization.num_steps
            evaluation_due = last or (not asked and is_due(progress.step, recipe.run.evaluation_every_steps))
            checkpoint_due = last or bool(asked) or is_due(progress.step, recipe.run.checkpoint_every_steps)
            log.end_step(progress.step, batches)
            if evaluation_due or checkpoint_due or log.is_due(progress.step):
                refuse_broken_run(
                    model, last_good, step=progress.step, loss=log.loss, checkpoints=folder / "checkpoints", save=save
                )
            if evaluation_due:
                with saved_if_it_fails(accelerator, partial(save, progress.step, rank_state)):
                    evaluate_and_keep_best(stage, model, accelerator, progress, log, folder / "model")
            if checkpoint_due:
                saved = save(progress.step, rank_state)
                if asked and not last:
                    log.stop(asked, saved)
            watch.ended(progress.step)
    return log.finish(progress, batches)


@contextmanager
def saved_if_it_fails(accelerator: Accelerator, save: Callable[[], Path]) -> Iterator[None]:
    """Saves where the body raises in every process at once, as it does where the data cannot be evaluated on.

    Saving takes all processes, so that one that fails alone must not wait for the others in it. All wait
    for each other at the end of the body.
    """
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    failed = reduce(torch.tensor(float(failure is not None), device=accelerator.device), "sum")
    if failed == accelerator.num_processes:
        try:
            logger.warning("the evaluation failed; saved %s, from which the same command goes on", save())
        except OSError as error:
            logger.warning("the evaluation failed, and what was done since the last checkpoint with it: %s", error)
    if failure is not None:
        raise failure
    if failed:
        raise RuntimeError("the evaluation failed in another process.")


def make_optimizer(model: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """The recipe's optimizer with weight decay on every parameter, as the original training has it."""
    optimization = recipe.optimization
    learning = [p for p in model.parameters() if p.requires_grad]
    if optimization.optimizer == "sgd":
        return torch.optim.SGD(
            learning,
            lr=optimization.learning_rate,
            momentum=optimization.momentum,
            weight_decay=optimization.weight_decay,
            fused=device.type in ("cuda", "cpu"),
        )
    return torch.optim.AdamW(
        learning,
        lr=optimization.learning_rate,
        betas=tuple(optimization.betas),
        eps=optimization.eps,
        weight_decay=optimization.weight_decay,
        fused=device.type in ("cuda", "cpu"),
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float):
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def evaluate_and_keep_best(
    stage: Stage, model: nn.Module, accelerator: Accelerator, progress: Progress, log: RunLog, folder: Path
):
    """Evaluates and, where the number it is judged by is the lowest so far (or there is none), saves the model."""
    value = None
    if stage.evaluate is not None:
        model.eval()
        # which Accelerate has put into the forward pass of every model but a split one
        with torch.no_grad(), accelerator.autocast():
            metrics = stage.evaluate(accelerator.unwrap_model(model))
        model.train()
        log.write({f"evaluation/{name}": number for name, number in metrics.items()}, progress.step)
        if stage.best not in metrics:
            raise ValueError(f"run.best_metric must be one of {', '.join(metrics)}, got {stage.best!r}.")
        value = metrics[stage.best]
        if not math.isfinite(value):
            logger.warning("evaluation: %s is %s, which is no better than any number", stage.best, value)
            value = None if progress.best is None else math.inf
    if value is None or progress.best is None or value < progress.best:
        progress.best, progress.best_step = value, progress.step
        # of split weights every process has to give its part
        split = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        weights = accelerator.get_state_dict(model) if split else None
        if accelerator.is_main_process:
            replace_folder(folder, lambda unfinished: stage.save(accelerator.unwrap_model(model), unfinished, weights))
