"""Stopping a run from outside: SIGTERM of a scheduler that wants the machine back, SIGINT of a person.

The first signal lets the step end that is being computed; then all ranks save and leave, even if only one of them was
told. A second SIGINT ends the process at once.
"""

import atexit
import multiprocessing
import signal
import threading
from functools import cache
from types import FrameType

import torch

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether a signal has asked to stop; a context, since handlers belong to the whole process.

    Args:
        num_processes: with several, `agreed` is a collective call, over gloo, so that no device is waited for.
    """

    def __init__(self, num_processes: int):
        self.number = 0
        self.group = torch.distributed.new_group(backend="gloo") if num_processes > 1 else None
        self.handlers_before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self.handlers_before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self.handlers_before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None):
        self.number = int(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def agreed(self) -> int:
        """The number of a signal that has reached any rank, or 0; the same on all ranks."""
        if self.group is None:
            return self.number
        number = torch.tensor(self.number)
        torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX, group=self.group)
        return int(number)


def leave_signals_to_the_main_process(worker: int):
    """For workers of a loader: terminals and schedulers signal them too, and their batches are still needed."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@cache
def end_workers_at_exit():
    """Lets this process end although workers of a loader are left, as an error leaves them.

    Python ends them with SIGTERM and waits for them, but that is one of the signals that they leave alone.
    """
    atexit.register(_kill_daemons)


def _kill_daemons():
    if hasattr(signal, "SIGCHLD"):  # or torch would call it an error that a worker was killed
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        if process.daemon:  # which Python ends at exit too
            process.kill()
