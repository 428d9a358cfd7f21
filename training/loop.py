"""The training loop: the same for every architecture and every stage.

A stage hands over a model, its batches and one function that turns a batch into a loss; everything else that training
is made of happens here, once: seeds, schedules, accumulation, normalisation over all processes, clipping, logs,
evaluation, checkpoints, resume.
"""

import json
import logging
import math
import random
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from tqdm.auto import tqdm

from .checkpoints import checkpoint_to_resume, load_checkpoint, read_run_state, replace_folder, save_checkpoint
from .doctor import RECIPE, Watch, facts_of
from .last_good import LastGood, refuse_broken_run
from .preemption import StopRequest
from .recipe import Recipe, identity, learning_rates, temperatures
from .vitals import Vitals

logger = logging.getLogger(__name__)

SAMPLING_RATE = 16_000
CODES_PER_SECOND = 100


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


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Accelerate as all stages use it: batches come ready made, so it never touches the loader.

    Raises:
        ValueError: the launcher asks for DeepSpeed.
    """
    accelerator = Accelerator(
        mixed_precision=recipe.optimization.mixed_precision,
        dataloader_config=DataLoaderConfiguration(dispatch_batches=False),
        log_with=recipe.run.trackers or None,
        project_dir=recipe.run.output_dir,
        kwargs_handlers=[DistributedDataParallelKwargs()],
        step_scheduler_with_optimizer=False,
    )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ValueError(
            "DeepSpeed takes its step within the backward pass, before the targets of all processes are counted, which"
            " the loss is a mean over; training/accelerate/fsdp2.yaml splits the same things."
        )
    return accelerator


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
        SystemExit: SIGTERM or SIGINT came, and a checkpoint was saved; the code is 128 and the number of the signal.
    """
    log = RunLog(recipe, accelerator)
    try:
        return run_steps(recipe, stage, log, accelerator=accelerator, model=model, batches=batches)
    finally:
        log.close()


def run_steps(
    recipe: Recipe, stage: Stage, log: "RunLog", *, accelerator: Accelerator, model: nn.Module, batches
) -> dict:
    """What `train` does between the opening and the closing of the log."""
    folder = Path(recipe.run.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    optimization = recipe.optimization
    if optimization.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = make_optimizer(model, recipe, accelerator.device)
    model, optimizer = accelerator.prepare(model, optimizer)
    forward_model = torch.compile(model, dynamic=True) if optimization.compile else model

    progress = resume(recipe, accelerator, batches)
    log.start(progress.step)
    last_good = LastGood(accelerator, optimizer)

    def save(step: int, rank_state: dict) -> Path:
        return save_checkpoint(
            folder / "checkpoints",
            step=step,
            accelerator=accelerator,
            rank_state=rank_state,
            keep=recipe.run.keep_checkpoints,
            run_state={"identity": identity(recipe), "best": progress.best, "best_step": progress.best_step},
        )

    learning_rate, temperature = learning_rates(optimization), temperatures(optimization)
    source = iter(batches)
    model.train()
    with StopRequest(accelerator.num_processes) as stop:
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
            evaluation_due = last or (not asked and _due(progress.step, recipe.run.evaluation_every_steps))
            checkpoint_due = last or bool(asked) or _due(progress.step, recipe.run.checkpoint_every_steps)
            log.end_step(progress.step, batches)
            if evaluation_due or checkpoint_due or log.is_due(progress.step):
                refuse_broken_run(
                    model, last_good, step=progress.step, loss=log.loss, checkpoints=folder / "checkpoints", save=save
                )
            if evaluation_due:
                evaluate_and_keep_best(stage, model, accelerator, progress, log, folder / "model")
            if checkpoint_due:
                saved = save(progress.step, rank_state)
                if asked and not last:
                    log.stop(asked, saved)
    return log.finish(progress, batches)


def resume(recipe: Recipe, accelerator: Accelerator, batches) -> "Progress":
    """Restores what was prepared and the place in the data from the checkpoint that `run.resume` means, if any."""
    folder = Path(recipe.run.output_dir)
    checkpoint = checkpoint_to_resume(folder / "checkpoints", recipe.run.resume, accelerator)
    if checkpoint is None:
        return Progress()
    # before its weights are loaded, whose shapes another model does not share
    refuse_another_run(read_run_state(checkpoint)["identity"], identity(recipe), checkpoint.parent.parent)
    restored = load_checkpoint(checkpoint, accelerator)
    del restored.run["identity"]
    batches.load_state_dicts([rank["batches"] for rank in restored.ranks])
    return Progress(**restored.run)


@dataclass
class Progress:
    """How far a run is: steps done, the lowest value of the number it is judged by, and when that was."""

    step: int = 0
    best: float | None = None
    best_step: int = 0


def refuse_another_run(before: dict, now: dict, folder: Path):
    """ValueError if a folder holds checkpoints of a run about something else."""
    differing = [f"{name} ({before.get(name)} -> {now[name]})" for name in now if now[name] != before.get(name)]
    if differing:
        raise ValueError(
            f"{folder} holds a run with another {', '.join(differing)}; choose another run.output_dir, or start it"
            " anew with run.resume=false."
        )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


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


def accumulate(
    accelerator: Accelerator, model: nn.Module, source, stage: Stage, log: "RunLog", num: int, *, step: int = 0
) -> Tensor:
    """Gradients of the summed loss of `num` batches; returns the number of targets on all processes."""
    total = torch.zeros((), device=accelerator.device)
    for i in range(num):
        batch = log.wait_for(source)
        batch = {
            k: v.to(accelerator.device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()
        }
        if i == 0 and stage.before_batch is not None:
            stage.before_batch(accelerator.unwrap_model(model), batch, step)
        with accelerator.no_sync(model) if i < num - 1 else nullcontext():
            with accelerator.autocast():
                output = stage.compute(model, batch)
            accelerator.backward(output.loss * output.num_targets)
        total = total + output.num_targets
        log.add_batch(output, batch)
    return accelerator.reduce(total, reduction="sum")


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
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    # a process of FSDP scales its own part
    gradients = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    # DDP has divided by the number of processes
    torch._foreach_mul_(gradients, accelerator.num_processes / num_targets.clamp(min=1))
    # this also undoes the scaling of fp16, which may happen only once a step
    norm = accelerator.clip_grad_norm_(model.parameters(), max_norm if max_norm > 0 else math.inf)
    if last_good is not None:
        last_good.before_step(norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def evaluate_and_keep_best(
    stage: Stage, model: nn.Module, accelerator: Accelerator, progress: Progress, log: "RunLog", folder: Path
):
    """Evaluates and, where the number it is judged by is the lowest so far (or there is none), saves the model."""
    value = None
    if stage.evaluate is not None:
        model.eval()
        with torch.no_grad():
            metrics = stage.evaluate(accelerator.unwrap_model(model))
        model.train()
        log.write({f"evaluation/{name}": number for name, number in metrics.items()}, progress.step)
        if stage.best not in metrics:
            raise ValueError(f"run.best_metric must be one of {', '.join(metrics)}, got {stage.best!r}.")
        value = metrics[stage.best]
    if value is None or progress.best is None or value < progress.best:
        progress.best, progress.best_step = value, progress.step
        # of split weights every process has to give its part
        weights = accelerator.get_state_dict(model) if accelerator.distributed_type == DistributedType.FSDP else None
        if accelerator.is_main_process:
            replace_folder(folder, lambda unfinished: stage.save(accelerator.unwrap_model(model), unfinished, weights))
    accelerator.wait_for_everyone()


def keep_log_until(path: Path, step: int):
    """Drops what a run had logged beyond the step it resumes at, and a last line that was cut short."""
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:
            break
    rewritten = path.with_suffix(".tmp")
    rewritten.write_text("".join(kept))
    rewritten.replace(path)


def seconds_of(batch: dict) -> float:
    """Audio in a batch, padding included: of waveforms, or of ids that stand for a frame of vq-wav2vec each."""
    if "input_values" in batch:
        return batch["input_values"].numel() / SAMPLING_RATE
    return batch["input_ids"].numel() / CODES_PER_SECOND


class RunLog:
    """What a person watches: a progress bar, trackers, and `log.jsonl` with one line per logged step."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator):
        self.recipe, self.accelerator = recipe, accelerator
        self.path = Path(recipe.run.output_dir) / "log.jsonl"
        self.began = time.perf_counter()
        self.bar = None
        self.vitals = Vitals(accelerator, recipe.optimization.max_grad_norm)
        self.watch = Watch(facts_of(recipe))
        self.loss = 0.0  # of the last line
        self._forget()

    def _forget(self):
        self.sums: dict[str, Tensor | float] = {}
        self.targets: Tensor | float = 0.0
        self.values: dict[str, Tensor | float] = {}
        self.seconds_of_audio = 0.0
        self.waited = 0.0
        self.since = time.perf_counter()

    def start(self, step: int):
        if self.recipe.run.trackers:
            self.accelerator.init_trackers(self.path.parent.name)
        if self.accelerator.is_main_process:
            OmegaConf.save(OmegaConf.structured(self.recipe), self.path.with_name(RECIPE))
            if self.path.exists():
                keep_log_until(self.path, step)
        self.bar = tqdm(
            total=self.recipe.optimization.num_steps,
            initial=step,
            desc=Path(self.recipe.run.output_dir).name,
            unit="step",
            disable=not self.accelerator.is_main_process,
        )
        self.since = time.perf_counter()

    def is_due(self, step: int) -> bool:
        """Whether a line is logged after `step`."""
        return _due(step, self.recipe.run.log_every_steps) or step == self.recipe.optimization.num_steps

    def wait_for(self, source) -> dict:
        """The next batch; the time it took counts as waiting for data."""
        began = time.perf_counter()
        batch = next(source)
        self.waited += time.perf_counter() - began
        return batch

    def add_batch(self, output: StepOutput, batch: dict):
        weight = output.num_targets
        for name, value in {"loss": output.loss, **output.metrics}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().float() * weight
        self.targets = self.targets + weight
        self.seconds_of_audio += seconds_of(batch)
        self.vitals.add_batch(batch)
        self.vitals.add_counts(output.counts)

    def add_gradient(self, norm: Tensor):
        self.add_value("gradient_norm", norm)
        self.vitals.add_gradient(norm)

    def add_value(self, name: str, value: Tensor | float):
        self.values[name] = value

    def end_step(self, step: int, batches):
        """Counts a step and, where it is due, logs a line and tells what is wrong."""
        self.bar.update()
        if not self.is_due(step):
            return
        names = sorted(self.sums)
        stacked = torch.stack([torch.as_tensor(self.sums[n], device=self.accelerator.device) for n in names])
        targets = torch.as_tensor(self.targets, device=self.accelerator.device, dtype=torch.float32)
        reduced = self.accelerator.reduce(torch.cat([stacked, targets[None]]), reduction="sum").tolist()
        elapsed = time.perf_counter() - self.since
        metrics = {name: total / max(reduced[-1], 1.0) for name, total in zip(names, reduced, strict=False)}
        metrics |= {name: float(value) for name, value in self.values.items()}
        metrics["audio_seconds_per_second"] = self.seconds_of_audio * self.accelerator.num_processes / elapsed
        metrics["data_wait_share"] = self.waited / elapsed
        metrics |= self.vitals.read()
        data = getattr(batches, "summary", dict)()
        if data.get("rows"):
            metrics["bad_row_share"] = data["skipped"]["bad"] / data["rows"]
        self.bar.set_postfix({name: f"{metrics[name]:.3g}" for name in ("loss", "accuracy") if name in metrics})
        self.write(metrics, step)
        self.loss = metrics["loss"]
        self._forget()

    def write(self, metrics: dict[str, float], step: int):
        self.accelerator.log(metrics, step=step)
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **metrics}) + "\n")
        for finding in self.watch.look({"step": step, **metrics}):
            if self.accelerator.is_main_process:
                logger.warning("%s", finding)

    def close(self):
        """Ends the progress bar, which would otherwise be printed behind the cause of an error."""
        if self.bar is not None:
            self.bar.close()

    def stop(self, signal_number: int, saved: Path):
        """Leaves the process with the code of one that a signal ended."""
        self.close()
        self.accelerator.end_training()
        logger.warning("%s: saved %s, from which the same command goes on", signal.Signals(signal_number).name, saved)
        raise SystemExit(128 + signal_number)

    def finish(self, progress: Progress, batches) -> dict:
        self.close()
        summary = {
            "steps": progress.step,
            "best": progress.best,
            "best_step": progress.best_step,
            "seconds": round(time.perf_counter() - self.began, 1),
            "processes": self.accelerator.num_processes,
            "device": str(self.accelerator.device),
            "data": getattr(batches, "summary", dict)(),
        }
        if self.accelerator.is_main_process:
            (self.path.parent / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        self.accelerator.end_training()
        return summary
