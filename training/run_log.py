"""What a person watches while a run trains: a progress bar, trackers, `log.jsonl`, and warnings in words."""

import json
import logging
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from omegaconf import OmegaConf
from torch import Tensor
from tqdm.auto import tqdm

from .checkpoints import replace_file
from .data_symptoms import is_stall
from .doctor import Watch, facts_of
from .findings import NUM_LINES
from .recipe import Recipe
from .reference import RECIPE
from .stage import StepOutput
from .vitals import Vitals

logger = logging.getLogger(__name__)

SAMPLING_RATE = 16_000
CODES_PER_SECOND = 100


def keep_log_until(path: Path, step: int):
    """Drops what a run had logged beyond the step it resumes at, and a last line that was cut short."""
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError, TypeError):
            break
    rewritten = path.with_suffix(".tmp")
    rewritten.write_text("".join(kept))
    rewritten.replace(path)


def seconds_of(batch: dict) -> float:
    """Audio in a batch, padding included: of waveforms, or of ids that stand for a frame of vq-wav2vec each."""
    if "input_values" in batch:
        return batch["input_values"].numel() / SAMPLING_RATE
    return batch["input_ids"].numel() / CODES_PER_SECOND


@dataclass
class Progress:
    """How far a run is: steps done, the lowest value of the number it is judged by, and when that was."""

    step: int = 0
    best: float | None = None
    best_step: int = 0


def is_due(step: int, every: int) -> bool:
    """Whether `step` ends one of the stretches of `every` steps; 0 means never."""
    return every > 0 and step % every == 0


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
        self.durations: list[float] = []  # seconds between the last lines
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
        return is_due(step, self.recipe.run.log_every_steps) or step == self.recipe.optimization.num_steps

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
        if is_stall(elapsed, self.durations):
            metrics["stall_seconds"] = elapsed
        self.durations = [*self.durations[1 - NUM_LINES :], elapsed]
        if elapsed > 0:  # clocks of machines that are suspended or moved have been seen to stand still
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
            "mixed_precision": self.accelerator.mixed_precision,
            "data": getattr(batches, "summary", dict)(),
        }
        if self.accelerator.is_main_process:
            text = json.dumps(summary, indent=2) + "\n"
            replace_file(self.path.parent / "summary.json", lambda unfinished: unfinished.write_text(text))
        self.accelerator.end_training()
        return summary
