"""Checkpoints of a run: whole or not there at all.

A checkpoint is written to a folder with another name and renamed when every byte is on the disk, so that a run killed
at any moment finds a complete one, or none. `run.json` lists its files with their sizes and sums, so that one that was
damaged later is found out and passed over.
"""

import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from .engine import keeps_gradients

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
    _put_in_place(unfinished, target)


def _put_in_place(unfinished: Path, target: Path):
    old = target.with_name(f"old-{target.name}")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    unfinished.rename(target)
    _sync_folder(target.parent)
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

    Of the older ones, `keep` with this one stay, and that of the `best_step` of `run_state`. Those of later steps,
    which a run had reached that was given up, go.

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
        # whatever a step draws is seeded by the step, and pickles are nothing to publish
        (unfinished / f"random_states_{accelerator.process_index}.pkl").unlink(missing_ok=True)
        rank_file = unfinished / f"rank-{accelerator.process_index}.json"
        rank_file.write_text(json.dumps(rank_state))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            files = {str(path.relative_to(unfinished)): _fingerprint(path) for path in _files(unfinished)}
            run = {"step": step, "num_ranks": accelerator.num_processes, "files": files, **run_state}
            (unfinished / "run.json").write_text(json.dumps(run))
            _sync(unfinished)
            _put_in_place(unfinished, target)
            _remove_others(folder, target, keep, run_state.get("best_step"))
    except Exception as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        last = newest_checkpoint(folder)
        raise OSError(
            f"checkpoint {target} could not be written ({error}); the last good one is {last or 'none'}."
        ) from error
    accelerator.wait_for_everyone()
    return target


def newest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the highest step, or None; its files are not looked into."""
    complete = _complete(folder)
    return complete[-1] if complete else None


def newest_undamaged_checkpoint(
    folder: Path, accelerator: Accelerator, fetch: Callable[[Path], object] | None = None
) -> Path | None:
    """The complete checkpoint with the highest step whose files are as they were written, or None.

    The main process looks for all. A damaged one is named in a warning and passed over.

    Args:
        fetch: brings the files of a checkpoint of which nothing but run.json is there.

    Raises:
        ValueError: there are checkpoints, and all of them are damaged: starting anew would be no resume.
    """
    found: list[Path | str | None] = [None]
    if accelerator.is_main_process:
        damages = {}
        for path in reversed(_complete(folder)):
            if fetch is not None:
                fetch(path)
            damages[path] = damage_of(path)
            if damages[path] is None:
                found = [path]
                break
            logger.warning("checkpoint %s is damaged and passed over: %s", path, damages[path])
        else:
            if damages:
                described = "; ".join(f"{path}: {damage}" for path, damage in damages.items())
                found = [f"every checkpoint is damaged ({described}); run.resume=false starts anew."]
    broadcast_object_list(found)
    if isinstance(found[0], str):
        raise ValueError(found[0])
    if fetch is not None and found[0] is not None and not accelerator.is_main_process:
        # another machine has a disk of its own
        fetch(found[0])
    return found[0]


def checkpoint_to_resume(folder: Path, resume: bool | str, accelerator: Accelerator) -> Path | None:
    """Where a run goes on: its own newest checkpoint or, without one, that of the folder or Hub id in `resume`.

    Raises:
        ValueError: `resume` names something without a checkpoint, or all that there are are damaged.
    """
    own = newest_undamaged_checkpoint(folder, accelerator) if resume else None
    if own is not None or isinstance(resume, bool):
        return own
    if Path(resume).is_dir():
        places, fetch = (Path(resume) / "checkpoints", Path(resume)), None
    else:
        with accelerator.main_process_first():
            places, fetch = (download_run_states(resume),), partial(download_checkpoint, resume)
    for place in places:
        found = newest_undamaged_checkpoint(place, accelerator, fetch)
        if found is not None:
            return found
    raise ValueError(
        f"run.resume: no checkpoint in {resume!r}; expected true, false, or the folder or Hub id of a run."
    )


def download_run_states(repository: str) -> Path:
    """The folder of a run's checkpoints on the Hub, with nothing of each but what it is.

    Raises:
        ValueError: there is no such run, or no way to it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=["checkpoints/*/run.json"])) / "checkpoints"
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ValueError(
            f"run.resume: {repository!r} is no folder, and cannot be had from the Hub: {error}"
        ) from error


def download_checkpoint(repository: str, path: Path):
    """Brings the other files of a checkpoint that `download_run_states` found, of the same commit."""
    from huggingface_hub import snapshot_download

    commit = path.parents[1].name
    snapshot_download(repository, revision=commit, allow_patterns=[f"checkpoints/{path.name}/*"])


def damage_of(path: Path) -> str | None:
    """What is wrong with the files of a checkpoint, in words, or None."""
    try:
        files = read_run_state(path)["files"]
    except (ValueError, KeyError, OSError) as error:
        return f"run.json cannot be read ({error})"
    for name, expected in files.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if (path / name).stat().st_size != expected[0]:
            return f"{name} has {(path / name).stat().st_size} bytes of {expected[0]}"
        if _fingerprint(path / name) != expected:
            return f"{name} has another content than was written"
    return None


def read_run_state(path: Path) -> dict:
    """What a checkpoint says of its run, before anything of it is loaded."""
    return json.loads((path / "run.json").read_text())


@dataclass
class Restored:
    """What a checkpoint knows besides model and optimizer: the state of the run, and of each rank that wrote it."""

    run: dict
    ranks: list[dict]


def load_checkpoint(path: Path, accelerator: Accelerator) -> Restored:
    """Restores model and optimizer, whatever the number of processes that wrote them, and returns the rest.

    Raises:
        ValueError: DeepSpeed, which leaves each process its part of the optimizer, had another number of them.
    """
    run = read_run_state(path)
    if keeps_gradients(accelerator) and run["num_ranks"] != accelerator.num_processes:
        raise ValueError(
            f"num_processes: {path} is of DeepSpeed on {run['num_ranks']} processes, which goes on with as many, got"
            f" {accelerator.num_processes}; start it anew with run.resume=false, or train with DDP or FSDP2, which"
            " take any number."
        )
    accelerator.load_state(str(path))
    ranks = [json.loads((path / f"rank-{rank}.json").read_text()) for rank in range(run.pop("num_ranks"))]
    del run["files"]
    logger.info("resumed from %s", path)
    return Restored(run, ranks)


def _complete(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"{PREFIX}*") if (path / "run.json").exists())


def _remove_others(folder: Path, newest: Path, keep: int, best_step: int | None):
    complete = _complete(folder)
    kept = [path for path in complete if path <= newest][-keep:]
    best = folder / f"{PREFIX}{best_step or 0:08d}"
    for path in complete:
        if path not in kept and not (path == best and path < newest):
            shutil.rmtree(path)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _fingerprint(path: Path) -> list[int]:
    """Size and CRC-32: enough to tell damage, nobody here means harm."""
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(2**22):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]


def _sync(folder: Path):
    """Waits until everything in `folder` is on the disk, the names of its files included."""
    for path in _files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        _sync_folder(path)


def _sync_folder(folder: Path):
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
