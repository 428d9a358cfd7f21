"""What benchmarks/scaling.py times, in short: its own run takes minutes and a quiet machine."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.scaling import points_of
from benchmarks.wav2vec2_sizes import training_flop

ROOT = Path(__file__).parents[1]
MIDDLE = {"size": "base", "batch_size": 2, "seconds": 2.0, "threads": 1}
VARIED = {"sizes": ["base", "small"], "batches": [1, 2, 4], "crops": [1.0, 2.0], "processes": [1, 2]}


def test_a_point_differs_from_the_middle_in_what_is_varied_alone():
    points = points_of(Namespace(**MIDDLE, **VARIED, device="cpu"))
    middle = points.pop("middle")[0]
    fields = {"size": [{"size"}], "batch": [{"batch_size"}], "crop": [{"seconds"}]}
    fields["processes"] = [{"ddp"}, {"processes", "ddp"}, {"threads"}]
    for varied, found in points.items():
        for point in found:
            assert {name for name, value in vars(point).items() if value != getattr(middle, name)} in fields[varied]
    assert [len(found) for found in points.values()] == [1, 2, 1, 3]


def test_two_processes_have_as_many_threads_together_as_the_one_beside_them():
    found = points_of(Namespace(**{**MIDDLE, "threads": 2}, **VARIED, device="cpu"))["processes"]
    threads = [point.processes * point.threads for point in found if point.ddp]
    assert threads == [2, 4]
    assert [point.threads for point in found if not point.ddp] == [4]


def test_a_gpu_has_no_point_of_threads():
    assert all(p.ddp for p in points_of(Namespace(**MIDDLE, **VARIED, device="cuda"))["processes"])


def test_one_and_two_processes_are_timed_and_written_down(tmp_path):
    command = [sys.executable, "-m", "benchmarks.scaling", "--allocator", "default", "--rounds", "1", "--warmup", "0"]
    command += ["--size", "small", "--batch-size", "1", "--seconds", "0.5", "--sizes", "--batches", "2", "--crops"]
    command += ["--processes", "2", "--output", str(tmp_path / "scaling.json")]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    rows = json.loads((tmp_path / "scaling.json").read_text())["rows"]
    assert [(row["varied"], row["processes"], row["batch_size"]) for row in rows] == [
        ("middle", 1, 1),
        ("batch", 1, 2),
        ("processes", 2, 1),
        ("processes", 1, 1),
    ]
    for row in rows:
        clips = row["processes"] * row["batch_size"]
        assert row["audio_seconds_per_second"] == pytest.approx(0.5 * clips / row["step_seconds"])
        assert row["teraflops"] == pytest.approx(training_flop("small", clips, 0.5) / row["step_seconds"] / 1e12)
        assert f"| {row['varied']} | small | {row['batch_size']} x 0.5 s |" in run.stdout
