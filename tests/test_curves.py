"""Pictures of what runs logged."""

import json
from pathlib import Path

import pytest

from training.curves import draw_accuracy_ahead, draw_curves, main, names_of, num_steps_of, schedules_of
from training.recipe import OptimizationRecipe

BASE = Path(__file__).parents[1] / "training" / "recipes" / "wav2vec2" / "base_ls960.yaml"


def test_curves_of_several_runs_share_a_picture_and_keep_their_names(tmp_path):
    runs = [tmp_path / name / "pretraining" for name in ("cpc", "wav2vec")]
    for path in runs:
        path.mkdir(parents=True)
        (path / "log.jsonl").write_text('{"step": 1, "accuracy": 0.1}\n{"step": 2, "accuracy": 0.2}\n')
    assert list(names_of(runs)) == [str(path) for path in runs]
    assert list(names_of(runs[:1])) == ["pretraining"]
    draw_curves({"both": runs}, tmp_path / "together.png", ["accuracy"])
    assert (tmp_path / "together.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="both has no wer; logged are accuracy"):
        draw_curves({"both": runs}, tmp_path / "none.png", ["wer"])


def write_log(path, **numbers):
    path.mkdir(parents=True)
    (path / "log.jsonl").write_text(json.dumps({"step": 1, **numbers}) + "\n")
    return path


def test_accuracy_is_drawn_against_the_step_predicted_of_runs_that_predict_step_by_step(tmp_path):
    ahead = write_log(tmp_path / "cpc", **{f"evaluation/step_accuracies/{k}": 1 / k for k in range(1, 13)})
    draw_accuracy_ahead([ahead], tmp_path / "ahead.png")
    assert (tmp_path / "ahead.png").read_bytes().startswith(b"\x89PNG")
    masked = write_log(tmp_path / "wav2vec2", **{"evaluation/accuracy": 0.2})
    with pytest.raises(ValueError, match="wav2vec2 has no evaluation/step_accuracies"):
        draw_accuracy_ahead([ahead, masked], tmp_path / "both.png")


def test_the_papers_schedules_are_stretched_over_the_steps_of_a_run(tmp_path):
    paper = OptimizationRecipe(
        learning_rate=5e-4,
        num_steps=1000,
        schedule={"kind": "polynomial", "warmup_steps": 100},
        gumbel_temperature={"kind": "linear", "start": 2.0, "end": 0.5, "share": 0.5},
    )
    log = {"learning_rate": ([2, 4], [1e-3, 5e-4]), "gumbel_temperature": ([2], [2.0]), "loss": ([2], [1.0])}
    asked = schedules_of(paper, log, 20)
    assert sorted(asked) == ["gumbel_temperature", "learning_rate"]
    steps, rates = asked["learning_rate"]
    assert (steps[0], steps[-1], rates[-1]) == (0, 20, 0.0)
    assert max(rates) == pytest.approx(1e-3)
    assert steps[rates.index(max(rates))] == 2
    assert asked["gumbel_temperature"][1][-1] == 0.5
    assert "learning_rate" not in schedules_of(paper, {"loss": ([2], [1.0])}, 20)


def test_a_run_is_as_long_as_its_recipe_says_and_else_as_its_log(tmp_path):
    run = write_log(tmp_path / "run", learning_rate=1e-3)
    assert num_steps_of(run) == 1
    (run / "recipe.yaml").write_text("optimization: {num_steps: 70}\n")
    assert num_steps_of(run) == 70
    main([str(run), "--paper", str(BASE), "--output", str(tmp_path / "curves.png")])
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
