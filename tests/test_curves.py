"""Pictures of what runs logged."""

import json

import pytest

from training.curves import draw_accuracy_ahead, draw_curves, names_of


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
