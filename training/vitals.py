"""What a run shows of its health beside its loss: gathered on the device in every step, read when a line is logged.

`training.symptoms` judges these numbers. Nothing here waits for the device before a line is due.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn

# of a clip as it was recorded: 80 dB below full scale, quieter than any recording of speech
SILENT_RMS = 1e-4


class Vitals:
    """Numbers of the steps since the last line of the log, on all processes.

    Args:
        max_norm: gradients above it are scaled down; 0 means that they never are.
    """

    def __init__(self, accelerator: Accelerator, max_norm: float):
        self.accelerator, self.max_norm = accelerator, max_norm
        self._forget()

    def _forget(self):
        self.steps = 0
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.update_ratio: Tensor | None = None

    def _add(self, name: str, value: Tensor):
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def add_batch(self, batch: dict):
        """Which share of it is padding; level and offset of the clips as recorded, where the loader measured them."""
        if "attention_mask" in batch:
            mask = batch["attention_mask"]
            self._add("places", torch.tensor(float(mask.numel())))
            self._add("padding_share", (mask == 0).sum())
        if "recorded_rms" not in batch:
            return
        rms, mean = batch["recorded_rms"], batch["recorded_mean"]
        self._add("clips", torch.ones_like(rms).sum())
        self._add("input_rms", rms.sum())
        self._add("silent_share", (rms < SILENT_RMS).float().sum())
        # as a share of the level, which says nothing about a silent clip
        self._add("input_offset", torch.where(rms < SILENT_RMS, 0.0, mean.abs() / rms.clamp(min=SILENT_RMS)).sum())

    def add_counts(self, counts: dict[str, Tensor]):
        """How often each entry was chosen in a batch, [G, V] by the name of what chose it."""
        for name, values in counts.items():
            self.counts[name] = self.counts[name] + values if name in self.counts else values

    def add_gradient(self, norm: Tensor):
        """The norm of a step's gradient before it was scaled down."""
        self.steps += 1
        if self.max_norm > 0:
            self._add("clipped_share", (norm > self.max_norm).float())

    @contextmanager
    def measured_update(self, model: nn.Module, due: bool) -> Iterator[None]:
        """Where a line is due, compares the weights after the step taken in here with those before it."""
        if not due:
            yield
            return
        parameters = [p for p in model.parameters() if p.requires_grad]
        before = [p.detach().clone() for p in parameters]
        yield
        weights = total_norm(before)
        torch._foreach_sub_(before, [p.detach() for p in parameters])
        self.update_ratio = total_norm(before) / weights.clamp(min=1e-12)

    def read(self) -> dict[str, float]:
        """The numbers to log, means over clips or steps; begins anew. A collective of all processes."""
        reduce = self.accelerator.reduce
        metrics = {}
        if self.sums:
            names = sorted(self.sums)
            stacked = torch.stack([self.sums[name].float().to(self.accelerator.device) for name in names])
            totals = dict(zip(names, reduce(stacked, reduction="sum").tolist(), strict=True))
            if "clipped_share" in totals:  # the norm is the same everywhere
                metrics["clipped_share"] = totals.pop("clipped_share") / self.accelerator.num_processes / self.steps
            if "places" in totals:
                metrics["padding_share"] = totals.pop("padding_share") / totals.pop("places")
            clips = max(totals.pop("clips", 1.0), 1.0)
            metrics |= {name: total / clips for name, total in totals.items()}
        for name, counts in self.counts.items():
            used = reduce(counts, reduction="sum") > 0
            metrics[f"used_{name}"] = int(used.sum())
            metrics[f"used_{name}_share"] = float(used.float().mean())
        if self.update_ratio is not None:
            metrics["update_ratio"] = float(self.update_ratio)
        self._forget()
        return metrics


def total_norm(tensors: list[Tensor]) -> Tensor:
    """The 2-norm of all numbers of all tensors together, of sharded ones on all processes."""
    norm = nn.utils.get_total_norm(tensors)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
