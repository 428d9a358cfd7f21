"""Checkpoints of a run: whole or not there at all.

A checkpoint is written to a folder with another name and renamed when every byte is on the disk, so that a run killed
at any moment finds a complete one, or none.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator

logger = logging.getLogger(__name__)

PREFIX = "step-"
UNFINISHED = "unfinished-"


def replace_folder(target: Path, write: Callable[[Path], None]):
    """Lets `write` fill a folder beside `target` and puts it in the place of `target` when it is whole.

    Raises OSError, with the old `target` untouched, when the disk does not take it.
    """
    unfinished = target.with_name(UNFINISHED + target.name)
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        write(unfinished)
        _sync(unfinished)
    except Exception as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(f"{target} could not be written ({error}); what was there before is untouched.") from error
    old = target.with_name(f"old-{target.name}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    unfinished.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def replace_file(target: Path, write: Callable[[Path], object]):
    """Lets `write` fill a file beside `target` and puts it in the place of `target` when it is on the disk."""
    unfinished = target.with_suffix(".unfinished")
    write(unfinished)
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(unfinished, target)


def save_checkpoint(
    folder: Path, *, step: int, accelerator: Accelerator, rank_state: dict, keep: int, run_state: dict
) -> Path:
    """Writes `folder`/step-N: model, optimizer and scaler through Accelerate, and one small JSON per rank.

    Raises OSError, with the last good checkpoint untouched, when the disk does not take it.
    """
    target = folder / f"{PREFIX}{step:08d}"
    unfinished = folder / f"{UNFINISHED}{target.name}"
    try:
        if accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(unfinished))
        rank_file = unfinished / f"rank-{accelerator.process_index}.json"
        rank_file.write_text(json.dumps(rank_state))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (unfinished / "run.json").write_text(json.dumps({"step": step, **run_state}))
            _sync(unfinished)
            shutil.rmtree(target, ignore_errors=True)
            unfinished.rename(target)
            _remove_old(folder, keep)
    except Exception as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        last = newest_checkpoint(folder)
        raise OSError(
            f"checkpoint {target} could not be written ({error}); the last good one is {last or 'none'}."
        ) from error
    accelerator.wait_for_everyone()
    return target


def newest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the highest step, or None."""
    complete = sorted(path for path in folder.glob(f"{PREFIX}*") if (path / "run.json").exists())
    return complete[-1] if complete else None


def read_run_state(path: Path) -> dict:
    """What a checkpoint says of its run, before anything of it is loaded."""
    return json.loads((path / "run.json").read_text())


def load_checkpoint(path: Path, accelerator: Accelerator) -> tuple[dict, dict]:
    """Restores model and optimizer and returns the run's state and this rank's."""
    rank_file = path / f"rank-{accelerator.process_index}.json"
    if not rank_file.exists():
        raise ValueError(
            f"{path} was written by fewer processes than the {accelerator.num_processes} that resume from it."
        )
    accelerator.load_state(str(path))
    run_state = read_run_state(path)
    rank_state = json.loads(rank_file.read_text())
    logger.info("resumed from %s", path)
    return run_state, rank_state


def _remove_old(folder: Path, keep: int):
    complete = sorted(path for path in folder.glob(f"{PREFIX}*") if (path / "run.json").exists())
    for path in complete[: -keep or None]:
        shutil.rmtree(path)


def _sync(folder: Path):
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
