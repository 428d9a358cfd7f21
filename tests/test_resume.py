"""Runs that are killed, in short: benchmarks/resume.py kills every kind of run twenty times."""

import pytest

from benchmarks.resume import Cell, judge, warm_context, write_corpus


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
