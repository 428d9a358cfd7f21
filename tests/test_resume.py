"""Runs that are killed, in short: benchmarks/resume.py kills every kind of run twenty times."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub
from test_doctor import make_recipe, run, same, weights  # noqa: F401  (a fixture)

from benchmarks.resume import Cell, Run, judge, num_lines, recipe_of, warm_context, write_corpus
from training.checkpoints import newest_checkpoint


@pytest.mark.parametrize(
    "cell",
    [
        Cell("folder", num_workers=2, num_processes=1, stage="pretrain", architecture="Wav2Vec2"),
        Cell("tar", num_workers=0, num_processes=2, stage="finetune", architecture="CPC"),
    ],
    ids=lambda cell: f"{cell.stage}-{cell.architecture}-{cell.kind}",
)
def test_a_run_killed_anywhere_and_started_again_ends_in_the_weights_and_rows_of_one_never_killed(tmp_path, cell):
    write_corpus(tmp_path / "corpus")
    outcome = judge(warm_context(), cell, tmp_path / "corpus", tmp_path, num_steps=12, kills=3, seed=1)
    assert outcome.kills > 0
    assert outcome.good, outcome


def test_a_process_that_is_killed_ends_the_others_with_the_cause_and_the_run_goes_on_from_its_checkpoint(tmp_path):
    corpus, output = tmp_path / "corpus", tmp_path / "run"
    write_corpus(corpus)
    cell = Cell("folder", num_workers=0, num_processes=2, stage="pretrain", architecture="CPC")
    context, recipe = warm_context(), recipe_of(cell, corpus, output, 40)
    run = Run(context, cell, recipe, corpus)
    run.wait_until(lambda: num_lines(output / "rows-0.jsonl") >= 12)
    run.processes[1].kill()
    run.processes[0].join(120)
    assert run.processes[0].exitcode not in (0, None), "it waits for ever"
    last = (output / "process-0.txt").read_text().strip().splitlines()[-1]
    assert last.startswith("RuntimeError: another process of this run has ended")
    assert str(newest_checkpoint(output / "checkpoints")) in last
    Run(context, cell, recipe, corpus).finish()
    assert newest_checkpoint(output / "checkpoints").name == "step-00000040"


@pytest.mark.parametrize("damaged", [(), ("step-00000004",)], ids=["whole", "newest damaged"])
def test_a_run_goes_on_from_the_newest_whole_checkpoint_of_another_on_the_hub(
    make_recipe,  # noqa: F811
    tmp_path,
    fresh_accelerator,
    damaged,
):
    whole = make_recipe("optimization.num_steps=6", name="whole")
    often = "run.checkpoint_every_steps=1"
    begun = make_recipe("optimization.num_steps=4", often, f"data.train={whole.data.train}", name="begun")
    run(whole)
    run(begun)
    checkpoints = Path(begun.run.output_dir) / "checkpoints"
    for name in damaged:
        weights_of = checkpoints / name / "model.safetensors"
        weights_of.write_bytes(weights_of.read_bytes()[:-1])
    files = {
        f"checkpoints/{p.relative_to(checkpoints)}": p.read_bytes() for p in checkpoints.rglob("*") if p.is_file()
    }
    with LoopbackHub() as hub:
        hub.add("user/begun", files)
        overrides = ["optimization.num_steps=6", f"data.train={whole.data.train}", "run.resume=user/begun"]
        overrides.append(f"run.output_dir={tmp_path / 'elsewhere'}")
        process = subprocess.run(
            [sys.executable, "-m", "training.pretrain", str(tmp_path / "begun.yaml"), *overrides],
            cwd=Path(__file__).parents[1],
            env={**os.environ, **hub.environment(HF_HOME=str(tmp_path / "cache"), OMP_NUM_THREADS="1")},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert process.returncode == 0, process.stderr
    for name in damaged:
        assert f"{name} is damaged and passed over: model.safetensors has" in process.stderr
    fetched = {name for name in ("step-00000003", "step-00000004") if any(f"{name}/model" in r for r in hub.requests)}
    assert fetched == {"step-00000004", *(["step-00000003"] if damaged else [])}
    expected = weights(whole, 6)
    whole.run.output_dir = str(tmp_path / "elsewhere")
    assert same(weights(whole, 6), expected)
    assert len((tmp_path / "elsewhere" / "log.jsonl").read_text().splitlines()) == (3 if damaged else 2)
