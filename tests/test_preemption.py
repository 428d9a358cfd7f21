"""Signals: the step ends, every rank saves, and the same command goes on as if nothing had happened."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_training import checkpoint_weights, corpus, run_stage, same, tiny, values  # noqa: F401  (fixtures)

from training import finetune, pretrain
from training.preemption import StopRequest

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.mark.parametrize(("stage", "number"), [(pretrain, signal.SIGTERM), (finetune, signal.SIGINT)])
def test_a_run_that_is_asked_to_stop_saves_its_step_and_ends_as_one_never_stopped(tiny, monkeypatch, stage, number):  # noqa: F811
    changes = {"optimization": {"num_steps": 4}, "data": {"num_workers": 1, "batch_seconds": 1.0}}
    whole, stopped = tiny("whole", **changes), tiny("stopped", **changes)
    run_stage(stage, whole)
    compute, calls, before = stage.compute, [], signal.getsignal(number)

    def compute_and_signal(model, batch):
        calls.append(batch)
        if len(calls) == 2:
            # as a terminal or a scheduler does: all processes of the run
            for process in [*multiprocessing.active_children(), multiprocessing.current_process()]:
                os.kill(process.pid, number)
        return compute(model, batch)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "compute", compute_and_signal)
        with pytest.raises(SystemExit) as stop:
            run_stage(stage, stopped)
    assert stop.value.code == 128 + number
    assert len(calls) == 2
    assert checkpoint_weights(stopped, 2)
    assert signal.getsignal(number) == before

    run_stage(stage, stopped)
    assert same(checkpoint_weights(stopped, 4), checkpoint_weights(whole, 4))
    assert values(stopped, "loss") == values(whole, "loss")


def test_a_second_interrupt_ends_the_process_at_once():
    with StopRequest(1) as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.agreed() == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


FAILS = """
from training.data import pretraining_batches
from transformers import Wav2Vec2FeatureExtractor

settings = {{"batch_seconds": 4.0, "min_seconds": 0.1, "max_seconds": 1.0, "num_workers": 1}}
batches = pretraining_batches({corpus!r}, Wav2Vec2FeatureExtractor(), **settings)
stream = iter(batches)
next(stream)
raise RuntimeError("the cause comes last")
"""


def test_a_process_that_fails_does_not_wait_for_its_loaders_workers(corpus):  # noqa: F811
    code = FAILS.format(corpus=str(corpus))
    root = Path(__file__).parents[1]
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
    assert process.returncode == 1
    assert process.stderr.strip().splitlines()[-1] == "RuntimeError: the cause comes last"


def _ask(rank: int, told: int, port: int, answers):
    store = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    with StopRequest(2) as stop:
        before = stop.agreed()
        if rank == told:
            os.kill(os.getpid(), signal.SIGTERM)
        answers.put((rank, before, stop.agreed()))


@pytest.mark.parametrize("told", [0, 1])
def test_all_ranks_stop_when_one_is_told(told, free_port):
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    processes = [fork.Process(target=_ask, args=(rank, told, free_port, answers)) for rank in range(2)]
    for process in processes:
        process.start()
    found = sorted(answers.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    assert found == [(0, 0, signal.SIGTERM), (1, 0, signal.SIGTERM)]
