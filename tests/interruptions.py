"""Runs of stages within the tests' own process, whole or ended in the middle."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from accelerate.state import AcceleratorState


class Killed(Exception):
    """Stands for the end of a process in the middle of a run."""


def forget_accelerator():
    """Makes the next run a process of its own as far as Accelerate can see."""
    AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def killed_in_batch(number: int, stage, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A training run of the module `stage` in here ends when it computes its batch `number`, counted from 1."""
    compute, calls = stage.compute, []

    def compute_until_killed(model, batch):
        if model.training:
            calls.append(batch["index"])
            if len(calls) == number:
                raise Killed
        return compute(model, batch)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "compute", compute_until_killed)
        with pytest.raises(Killed):
            yield
