"""How the processes of a run work together: what Accelerate is told, and what DeepSpeed needs beside it."""

import os

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, parse_flag_from_env
from transformers import PreTrainedConfig

from .recipe import Recipe


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Accelerate as all stages use it: batches come ready made, so it never touches the loader.

    Raises:
        ValueError: the launcher asks for DeepSpeed, and the recipe for what does not go with it; or it started
            processes that Accelerate did not join.
    """
    accelerator = Accelerator(
        mixed_precision=mixed_precision(recipe),
        dataloader_config=DataLoaderConfiguration(dispatch_batches=False),
        log_with=recipe.run.trackers or None,
        project_dir=recipe.run.output_dir,
        kwargs_handlers=[DistributedDataParallelKwargs()],
        step_scheduler_with_optimizer=False,
    )
    refuse_processes_apart(accelerator)
    if recipe.optimization.mixed_precision == "auto":
        accelerator.print(
            f"optimization.mixed_precision: auto is {accelerator.mixed_precision} on {accelerator.device}"
        )
    if keeps_gradients(accelerator):
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        refuse_with_deepspeed(recipe, config["zero_optimization"]["stage"], accelerator.mixed_precision)
        tell_deepspeed(
            config,
            max_grad_norm=recipe.optimization.max_grad_norm,
            num_processes=accelerator.num_processes,
        )
    if accelerator.distributed_type == DistributedType.FSDP:
        # autocast rounds as on one GPU; with this, waveforms, losses and sums of gradients would be rounded, too
        accelerator.state.fsdp_plugin.mixed_precision_policy = None
    return accelerator


def refuse_processes_apart(accelerator: Accelerator):
    """ValueError where a launcher started several processes and each would make the whole run, in one folder."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > accelerator.num_processes:
        raise ValueError(
            f"WORLD_SIZE: {launched} processes were launched, and Accelerate works with"
            f" {accelerator.num_processes}, so that each would write the same files; without a GPU,"
            " ACCELERATE_USE_CPU=true lets it join them."
        )


def mixed_precision(recipe: Recipe) -> str:
    """What the recipe asks for; `auto` is bf16 where the device has it in hardware, and no elsewhere.

    A processor without it makes every product of bfloat16 as several others: about fifty times as slow.
    """
    asked = recipe.optimization.mixed_precision
    if asked != "auto":
        return asked
    return "bf16" if multiplies_bfloat16() else "no"


def multiplies_bfloat16() -> bool:
    """Of the device that Accelerate will take, which cannot be asked: it joins the processes on its first question."""
    if torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # what torch.cpu.get_capabilities knows by name, in versions that have it; AMX never comes without
    return torch.cpu._is_avx512_bf16_supported()


def keeps_gradients(accelerator: Accelerator) -> bool:
    """Whether the engine keeps the gradients to itself, as DeepSpeed does, so that nobody can scale them.

    The loss has to be normalised before its backward pass then, for which the targets of all processes are counted:
    those of one batch are known by then, those of several that are accumulated are not.
    """
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def refuse_with_deepspeed(recipe: Recipe, stage: int, precision: str):
    """ValueError for settings that do not go with DeepSpeed's ZeRO of a `stage`, each with what does."""
    optimization = recipe.optimization
    if stage == 3:
        raise ValueError(
            "zero_stage: ZeRO 3 does not take layers that a step leaves out, as LayerDrop does, got 3; it is 1 or 2,"
            " and training/accelerate/fsdp2.yaml splits the weights too."
        )
    if optimization.gradient_accumulation_steps > 1:
        raise ValueError(
            "optimization.gradient_accumulation_steps: with DeepSpeed a batch is normalised before those after it are"
            f" counted, so that only 1 is exact, got {optimization.gradient_accumulation_steps}; raise"
            " data.batch_seconds, or accumulate with training/accelerate/fsdp2.yaml."
        )
    if precision != "no":
        raise ValueError(
            f"optimization.mixed_precision: {precision} with DeepSpeed keeps the weights of the model in half"
            " precision, which nothing here was tried with; it takes no, and"
            " training/accelerate/fsdp2.yaml takes bf16."
        )
    if optimization.compile:
        raise ValueError("optimization.compile: DeepSpeed compiles in its own way, which nothing here was tried with.")


def refuse_with_fsdp(recipe: Recipe, config: PreTrainedConfig):
    """ValueError for settings that do not go with split weights, which are whole only where a layer is called."""
    layerdrop = getattr(config, "layerdrop", 0)
    if layerdrop > 0:
        raise ValueError(
            f"model.layerdrop: FSDP takes no layers that a step leaves out, got {layerdrop}; it is 0, or"
            " training/accelerate/ddp.yaml takes any."
        )
    if recipe.optimization.codebook:
        raise ValueError(
            "optimization.codebook: FSDP leaves no codebook whole between steps; training/accelerate/ddp.yaml does."
        )


def tell_deepspeed(config: dict, *, max_grad_norm: float, num_processes: int):
    """Fills in what depends on the recipe; a batch counts as one row, since only their number would be checked."""
    config["train_micro_batch_size_per_gpu"] = 1
    config["train_batch_size"] = num_processes
    config["gradient_accumulation_steps"] = 1
    config["gradient_clipping"] = max_grad_norm
    config["zero_allow_untested_optimizer"] = True
