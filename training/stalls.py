"""Runs that stand still: a step that does not end, a process that is gone."""

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from .checkpoints import newest_checkpoint

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 300.0
PATIENCE_STEPS = 20  # of the longest so far


class StallWatch:
    """A context that says, from a thread of its own, where this process stands when a step does not end.

    It says so once a step, after `patience` seconds, or `PATIENCE_STEPS` times the longest step where that is more.
    `clock` is that of the process.
    """

    def __init__(self, patience: float | None = None, clock: Callable[[], float] = time.monotonic):
        self.patience, self.clock = PATIENCE_SECONDS if patience is None else patience, clock
        self.over = threading.Event()
        self.step, self.longest, self.told = 0, 0.0, False
        self.since = clock()
        self.watched = threading.get_ident()

    def __enter__(self) -> "StallWatch":
        threading.Thread(target=self._watch, daemon=True, name="stall watch").start()
        return self

    def __exit__(self, *_):
        self.over.set()

    def ended(self, step: int):
        """`step` steps have ended, with all that belongs to the last one."""
        now = self.clock()
        # the first one starts the loader, and may compile
        self.longest = max(self.longest, now - self.since) if self.step else 0.0
        self.step, self.since, self.told = step, now, False

    def _watch(self):
        while not self.over.wait(min(self.patience / 4, 10.0)):
            waited = self.clock() - self.since
            if not self.told and waited > max(self.patience, PATIENCE_STEPS * self.longest):
                self.told = True
                logger.warning("%s", self.words(waited))

    def words(self, waited: float) -> str:
        """What is told after `waited` seconds, with the innermost of the lines that the watched thread is in."""
        frame = sys._current_frames().get(self.watched)
        lines = traceback.extract_stack(frame)[-4:] if frame is not None else []
        places = " < ".join(f"{Path(line.filename).name}:{line.lineno} {line.name}" for line in reversed(lines))
        return (
            f"standing still: no step has ended for {waited:.0f} s, the last was {self.step}; now in {places}."
            " Likely cause: in wait_for a disk, a network or workers that do not answer; in a reduction or a backward"
            " pass of several processes one that is gone or waits for its data; else the machine or its device."
            " Lever: look at the other processes and at the disk; the last checkpoint is good, and the same command"
            " goes on from it."
        )


@contextmanager
def lost_processes_named(num_processes: int, checkpoints: Path) -> Iterator[None]:
    """RuntimeError in words where a collective fails in here because another of `num_processes` has ended."""
    try:
        yield
    except RuntimeError as error:
        failed = isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()
        if num_processes == 1 or not failed:
            raise
        raise RuntimeError(
            f"another process of this run has ended or does not answer ({str(error).splitlines()[0]}); its own output"
            f" says why. The last good checkpoint is {newest_checkpoint(checkpoints)}; the same command goes on there."
        ) from error
