"""The word and character error rates: right counts, the same three ways in, and clear refusals."""

from pathlib import Path

import pytest

evaluate = pytest.importorskip("evaluate", reason="the metrics are `evaluate` metrics (extra `train`)")
pytest.importorskip("jiwer", reason="the metrics align with jiwer (extra `train`)")

from hf_wav2vec_family.metrics import cer, wer  # noqa: E402


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_EVALUATE_OFFLINE", True)


@pytest.fixture(params=["class", "script"])
def word_error_rate(request, tmp_path):
    return _metric(wer.WordErrorRate, wer.__file__, request.param, tmp_path)


@pytest.fixture(params=["class", "script"])
def character_error_rate(request, tmp_path):
    return _metric(cer.CharacterErrorRate, cer.__file__, request.param, tmp_path)


def _metric(metric_class, file, way, tmp_path):
    return metric_class(cache_dir=str(tmp_path)) if way == "class" else evaluate.load(file, cache_dir=str(tmp_path))


def test_every_kind_of_word_error_is_counted(word_error_rate):
    result = word_error_rate.compute(
        predictions=["THE CAT SAT DOWN", "A FOG"], references=["THE CAT SAT", "A DOG RAN"]
    )
    assert result == {
        "wer": pytest.approx(3 / 6),
        "substitutions": 1,
        "insertions": 1,
        "deletions": 1,
        "hits": 4,
        "num_reference_words": 6,
    }


def test_spaces_between_words_are_characters_and_those_around_the_text_are_not(character_error_rate):
    result = character_error_rate.compute(predictions=["ABC ", "X"], references=["AB C", " X"])
    assert result == {
        "cer": pytest.approx(1 / 5),
        "substitutions": 0,
        "insertions": 0,
        "deletions": 1,
        "hits": 4,
        "num_reference_characters": 5,
    }


def test_rates_are_of_the_whole_set_and_not_the_mean_over_clips(word_error_rate):
    assert word_error_rate.compute(predictions=["X", "A B C"], references=["Y", "A B C"])["wer"] == 1 / 4


def test_batches_added_one_by_one_score_as_all_at_once(word_error_rate):
    word_error_rate.add(prediction="A B", reference="A C")
    word_error_rate.add_batch(predictions=["A", "B"], references=["A", "C D"])
    assert word_error_rate.compute()["wer"] == 3 / 5


def test_words_predicted_where_nothing_was_said_are_insertions(word_error_rate, character_error_rate):
    result = word_error_rate.compute(predictions=["A B", "C"], references=["", "C"])
    assert (result["wer"], result["insertions"], result["num_reference_words"]) == (2.0, 2, 1)
    result = character_error_rate.compute(predictions=["A B", "C"], references=["", "C"])
    assert (result["cer"], result["insertions"], result["num_reference_characters"]) == (3.0, 3, 1)


def test_without_any_reference_word_the_rate_is_the_number_of_insertions(word_error_rate):
    assert word_error_rate.compute(predictions=["A B", ""], references=["", ""])["wer"] == 2.0
    assert word_error_rate.compute(predictions=[""], references=[""])["wer"] == 0.0


def test_lists_that_differ_in_length_are_refused_with_both_lengths_named(word_error_rate, character_error_rate):
    for metric in (word_error_rate, character_error_rate):
        with pytest.raises(ValueError, match=r"predictions \(1\) and references \(2\)"):
            metric.compute(predictions=["A"], references=["A", "B"])


def test_no_clips_at_all_are_refused_and_the_metric_can_be_used_afterwards(word_error_rate, character_error_rate):
    for metric, rate in ((word_error_rate, "wer"), (character_error_rate, "cer")):
        with pytest.raises(ValueError, match="references are empty"):
            metric.compute(predictions=[], references=[])
        assert metric.compute(predictions=["A"], references=["A"])[rate] == 0.0


def test_the_description_says_what_comes_in_and_out():
    for metric, count in (
        (wer.WordErrorRate(), "num_reference_words"),
        (cer.CharacterErrorRate(), "num_reference_characters"),
    ):
        assert count in metric.inputs_description


@pytest.mark.parametrize("module", [wer, cer], ids=["wer", "cer"])
def test_the_file_can_travel_alone(module):
    source = Path(module.__file__).read_text(encoding="utf-8")
    assert "hf_wav2vec_family" not in source
    assert "from ." not in source
