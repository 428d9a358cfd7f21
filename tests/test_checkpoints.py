"""Checkpoints: whole or not there at all, whatever happens while one is written."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from training import checkpoints
from training.checkpoints import (
    checkpoint_to_resume,
    load_checkpoint,
    newest_checkpoint,
    newest_undamaged_checkpoint,
    save_checkpoint,
)


class Run:
    """A model with an optimizer that has taken a step, and its folder of checkpoints."""

    def __init__(self, folder: Path, width: int = 4):
        self.folder = folder
        self.accelerator = Accelerator(cpu=True)
        torch.manual_seed(0)
        model = nn.Linear(width, width)
        self.model, self.optimizer = self.accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))
        self.learn()

    def learn(self):
        self.model(torch.ones(1, self.model.in_features)).sum().backward()
        self.optimizer.step()

    def save(self, step: int, *, keep: int = 2, **run_state) -> Path:
        rank_state = {"batches": {"position": step}}
        arguments = {"accelerator": self.accelerator, "rank_state": rank_state, "keep": keep, "run_state": run_state}
        return save_checkpoint(self.folder, step=step, **arguments)


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "checkpoints")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_without_checkpoints_or_no_folder_at_all_has_no_newest(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_what_was_saved_is_what_is_loaded(run):
    saved = run.save(3, best=0.5, best_step=2)
    before = [parameter.detach().clone() for parameter in run.model.parameters()]
    moments = run.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    run.learn()

    restored = load_checkpoint(saved, run.accelerator)
    assert restored.run == {"step": 3, "best": 0.5, "best_step": 2}
    assert restored.ranks == [{"batches": {"position": 3}}]
    assert all(map(torch.equal, before, run.model.parameters()))
    assert torch.equal(moments, run.optimizer.state_dict()["state"][0]["exp_avg"])


def test_a_checkpoint_interrupted_half_way_is_not_found(run, monkeypatch):
    good = run.save(1)

    def killed(folder):
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(run.accelerator, "save_state", killed)
    with pytest.raises(KeyboardInterrupt):
        run.save(2)
    assert len(names(run.folder)) == 2
    assert newest_checkpoint(run.folder) == good


def test_what_an_interrupted_checkpoint_left_does_not_get_into_the_next_one_of_its_step(run):
    left = run.folder / "unfinished-step-00000002" / "left_behind"
    left.parent.mkdir(parents=True)
    left.touch()
    assert "left_behind" not in names(run.save(2))
    assert names(run.folder) == ["step-00000002"]


def test_the_newest_complete_checkpoint_is_taken(run):
    for step in (9, 10, 200):
        run.save(step, keep=3)
    (run.folder / "step-00000200" / "run.json").unlink()
    assert newest_checkpoint(run.folder).name == "step-00000010"


@pytest.mark.parametrize("keep", [1, 2])
def test_only_so_many_checkpoints_are_kept_and_they_are_the_newest(run, keep):
    for step in (1, 2, 3):
        run.save(step, keep=keep)
    assert names(run.folder) == [f"step-{step:08d}" for step in (1, 2, 3)[-keep:]]


def test_the_checkpoint_of_the_best_step_is_kept_beside_the_newest(run):
    for step, best_step in ((1, 1), (2, 2), (3, 2), (4, 2), (5, 5), (6, 5)):
        run.save(step, keep=1, best_step=best_step)
    assert names(run.folder) == ["step-00000005", "step-00000006"]


def test_steps_beyond_the_one_that_is_saved_belong_to_a_run_given_up_and_go(run):
    for step in (10, 20, 30):
        run.save(step, keep=3)
    run.save(15, keep=2)
    assert names(run.folder) == ["step-00000010", "step-00000015"]


def shorten(path: Path):
    path.write_bytes(path.read_bytes()[:-1])


def alter(path: Path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "rank-0.json", "run.json"])
@pytest.mark.parametrize("damage", [shorten, alter, Path.unlink])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning_that_names_the_file(run, caplog, name, damage):
    good, damaged = run.save(1), run.save(2)
    damage(damaged / name)
    found = newest_undamaged_checkpoint(run.folder, run.accelerator)
    if (name, damage) == ("run.json", Path.unlink):
        assert found == good  # never was complete, and is nothing to warn of
        return
    assert found == good
    assert f"{damaged} is damaged and passed over: {name}" in caplog.text
    load_checkpoint(found, run.accelerator)


def test_checkpoints_that_are_all_damaged_do_not_start_a_run_anew(run):
    for step in (1, 2):
        alter(run.save(step) / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"every checkpoint is damaged.*step-00000002: model\.safetensors has another"
    ):
        newest_undamaged_checkpoint(run.folder, run.accelerator)


def test_a_run_goes_on_from_its_own_checkpoint_and_without_one_from_that_of_a_folder_or_of_the_hub(
    run, tmp_path, monkeypatch
):
    own = tmp_path / "own"

    def found(resume):
        return checkpoint_to_resume(own, resume, run.accelerator)

    saved, asked = run.save(3), []

    def download(repository, *, allow_patterns, revision=None):
        asked.append((repository, revision, *allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert found(True) is found(False) is None
    assert found(str(tmp_path)) == found(str(tmp_path / "checkpoints")) == found("owner/run") == saved
    listed, fetched = asked
    assert listed == ("owner/run", None, "checkpoints/*/run.json")
    assert fetched == ("owner/run", tmp_path.name, "checkpoints/step-00000003/*")
    monkeypatch.setattr(checkpoints, "download_run_states", lambda _: own)
    with pytest.raises(ValueError, match=r"run\.resume: no checkpoint in .*owner"):
        found("owner/nothing")
    run.folder = own
    newest = run.save(1)
    assert found(True) == found(str(tmp_path)) == newest
    assert found(False) is None


def test_deepspeed_goes_on_with_as_many_processes_only(run, monkeypatch):
    saved = run.save(1)
    monkeypatch.setattr(checkpoints, "keeps_gradients", lambda _: True)
    load_checkpoint(saved, run.accelerator)
    described = json.loads((saved / "run.json").read_text())
    (saved / "run.json").write_text(json.dumps({**described, "num_ranks": 4}))
    with pytest.raises(ValueError, match=r"num_processes: .*DeepSpeed on 4 processes.*got\s+1"):
        load_checkpoint(saved, run.accelerator)


def test_nothing_in_a_checkpoint_has_to_be_unpickled_but_tensors(run):
    assert [path.name for path in run.save(1).iterdir() if path.suffix == ".pkl"] == []


def test_saving_a_step_again_replaces_it(run):
    run.save(1, best=2.0)
    run.save(1, best=1.0)
    assert json.loads((newest_checkpoint(run.folder) / "run.json").read_text())["best"] == 1.0
    assert names(run.folder) == ["step-00000001"]


def test_a_full_disk_leaves_the_last_good_checkpoint_and_names_it(run, monkeypatch):
    good = run.save(1)

    def full(folder):
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run.accelerator, "save_state", full)
    with pytest.raises(OSError, match=f"step-00000002 could not be written.*No space left.*{good}"):
        run.save(2)
    assert names(run.folder) == [good.name]
    monkeypatch.undo()
    load_checkpoint(newest_checkpoint(run.folder), run.accelerator)


def test_a_full_disk_at_the_first_checkpoint_says_that_there_is_none(run, monkeypatch):
    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run.accelerator, "save_state", full)
    with pytest.raises(OSError, match="the last good one is none"):
        run.save(1)


OUT_OF_ROOM = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_checkpoints import Run

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit is then an OSError, as on a full disk
run = Run(Path({folder!r}), width=512)
run.save(1)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
run.save(2)
"""


def test_a_write_that_the_system_refuses_ends_the_process_and_leaves_the_last_good_checkpoint(tmp_path):
    pytest.importorskip("resource", reason="needs POSIX limits on file sizes")
    folder = tmp_path / "checkpoints"
    code = OUT_OF_ROOM.format(tests=str(Path(__file__).parent), folder=str(folder))
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert process.returncode == 1
    last_line = process.stderr.strip().splitlines()[-1]
    assert "step-00000002 could not be written" in last_line
    assert str(folder / "step-00000001") in last_line
    assert names(folder) == ["step-00000001"]

    run = Run(folder, width=512)
    assert load_checkpoint(newest_checkpoint(folder), run.accelerator).run["step"] == 1
