"""How a run goes on where one stopped, and what makes it another run."""

import logging
from itertools import count
from pathlib import Path

import torch
from accelerate import Accelerator

from .checkpoints import checkpoint_to_resume, load_checkpoint, read_run_state
from .recipe import Recipe, identity
from .run_log import Progress

logger = logging.getLogger(__name__)
# of an optimizer, which a checkpoint has too
OPTIONS = ("betas", "eps", "weight_decay", "momentum")


def set_old_run_aside(folder: Path):
    """Moves checkpoints and model of a run that is started anew out of the way, and deletes nothing."""
    for name in ("checkpoints", "model"):
        if (folder / name).is_dir():
            number = next(n for n in count(1) if not (folder / f"{name}-before-{n}").exists())
            (folder / name).rename(folder / f"{name}-before-{number}")
            logger.warning("run.resume is false: %s is now %s-before-%d", folder / name, name, number)


def resume(
    recipe: Recipe, accelerator: Accelerator, optimizer: torch.optim.Optimizer, batches, *, best_metric: str | None
) -> Progress:
    """Restores what was prepared and the place in the data from the checkpoint that `run.resume` means, if any."""
    folder = Path(recipe.run.output_dir)
    if recipe.run.resume is False:
        if accelerator.is_main_process:
            set_old_run_aside(folder)
        accelerator.wait_for_everyone()
    checkpoint = checkpoint_to_resume(folder / "checkpoints", recipe.run.resume, accelerator)
    if checkpoint is None:
        return Progress()
    # before its weights are loaded, whose shapes another model does not share
    refuse_another_run(read_run_state(checkpoint)["identity"], identity(recipe), checkpoint.parent.parent)
    as_asked = [{name: group[name] for name in OPTIONS if name in group} for group in optimizer.param_groups]
    restored = load_checkpoint(checkpoint, accelerator)
    for group, options in zip(optimizer.param_groups, as_asked, strict=True):
        group.update(options)  # those of the recipe, which may say others than it did
    del restored.run["identity"]
    if restored.run.pop("best_metric", best_metric) != best_metric:
        logger.warning("run.best_metric is another than before, so that the best model is sought anew")
        restored.run["best"] = None
    if restored.run["step"] > recipe.optimization.num_steps:
        logger.warning(
            "the run has done %d steps and optimization.num_steps is %d: nothing is left to do",
            restored.run["step"],
            recipe.optimization.num_steps,
        )
    batches.load_state_dicts([rank["batches"] for rank in restored.ranks])
    return Progress(**restored.run)


def refuse_another_run(before: dict, now: dict, folder: Path):
    """ValueError if a folder holds checkpoints of a run about something else."""
    differing = [f"{name} ({before[name]} -> {now[name]})" for name in now if now[name] != before.get(name, now[name])]
    if differing:
        raise ValueError(
            f"{folder} holds a run with another {', '.join(differing)}; choose another run.output_dir, or start it"
            " anew with run.resume=false."
        )
