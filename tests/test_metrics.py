"""The word, character and phone error rates: right counts, the same three ways in, and clear refusals."""

from pathlib import Path

import numpy as np
import pytest

evaluate = pytest.importorskip("evaluate", reason="the metrics are `evaluate` metrics (extra `train`)")
pytest.importorskip("jiwer", reason="the metrics align with jiwer (extra `train`)")

from hf_wav2vec_family.metrics import cer, per, wer  # noqa: E402
from hf_wav2vec_family.metrics.bootstrap import confidence_interval  # noqa: E402
from hf_wav2vec_family.phones import timit_map  # noqa: E402


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_EVALUATE_OFFLINE", True)


@pytest.fixture(params=["class", "script"])
def word_error_rate(request, tmp_path):
    return _metric(wer.WordErrorRate, wer.__file__, request.param, tmp_path)


@pytest.fixture(params=["class", "script"])
def character_error_rate(request, tmp_path):
    return _metric(cer.CharacterErrorRate, cer.__file__, request.param, tmp_path)


@pytest.fixture(params=["class", "script"])
def phone_error_rate(request, tmp_path):
    return _metric(per.PhoneErrorRate, per.__file__, request.param, tmp_path)


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
        (per.PhoneErrorRate(), "num_reference_phones"),
    ):
        assert count in metric.inputs_description


@pytest.mark.parametrize("module", [wer, cer, per], ids=["wer", "cer", "per"])
def test_the_file_can_travel_alone(module):
    source = Path(module.__file__).read_text(encoding="utf-8")
    assert "hf_wav2vec_family" not in source
    assert "from ." not in source


def test_every_kind_of_phone_error_is_counted_and_phones_are_what_blanks_separate(phone_error_rate):
    result = phone_error_rate.compute(predictions=["sil k  ae t sil", "s aa"], references=["sil k ae sil", "s ao z"])
    assert result == {
        "per": pytest.approx(3 / 7),
        "substitutions": 1,
        "insertions": 1,
        "deletions": 1,
        "hits": 5,
        "num_reference_phones": 7,
    }


def test_timits_61_phones_are_scored_as_39_with_silences_that_meet_as_one(phone_error_rate):
    # h# kcl k ao pau tcl t q ux: sil sil k aa sil sil t - uw
    said, heard = "h# kcl k ao pau tcl t q ux", "sil k aa sil t uw"
    assert phone_error_rate.compute(predictions=[heard], references=[said], phone_map=timit_map())["per"] == 0
    assert phone_error_rate.compute(predictions=[said], references=[heard], phone_map=timit_map())["per"] == 0
    apart = phone_error_rate.compute(
        predictions=[heard], references=[said], phone_map=timit_map(), merge_repeats=False
    )
    assert (apart["deletions"], apart["num_reference_phones"]) == (2, 8)
    in_48 = phone_error_rate.compute(predictions=["aa cl"], references=["ao tcl"], phone_map=timit_map(48))
    assert (in_48["substitutions"], in_48["hits"]) == (1, 1)


def test_without_a_map_a_phone_said_twice_counts_twice(phone_error_rate):
    assert phone_error_rate.compute(predictions=["t uw"], references=["t t uw"])["deletions"] == 1
    assert phone_error_rate.compute(predictions=["t uw"], references=["t t uw"], merge_repeats=True)["per"] == 0


def test_a_phone_that_the_map_does_not_have_is_refused_by_name(phone_error_rate):
    with pytest.raises(ValueError, match="phone_map has no xx"):
        phone_error_rate.compute(predictions=["aa xx"], references=["aa"], phone_map=timit_map())


def test_errors_per_clip_add_up_to_those_of_the_set(word_error_rate, character_error_rate, phone_error_rate):
    texts = {"predictions": ["a b c", "", "x y", "q"], "references": ["a x c d", "a", "x y", ""]}
    for metric, errors, lengths in (
        (word_error_rate, [2, 1, 0, 1], [4, 1, 2, 0]),
        (phone_error_rate, [2, 1, 0, 1], [4, 1, 2, 0]),
        (character_error_rate, [3, 1, 0, 1], [7, 1, 3, 0]),
    ):
        result = metric.compute(**texts, per_clip=True)
        assert (result["clip_errors"], result["clip_lengths"]) == (errors, lengths)
        assert sum(errors) == result["substitutions"] + result["insertions"] + result["deletions"]
        assert "clip_errors" not in metric.compute(**texts)


def test_a_confidence_interval_is_that_of_rates_of_clips_drawn_with_replacement():
    generator = np.random.default_rng(1)
    lengths = generator.integers(5, 30, size=200)
    errors = generator.binomial(lengths, 0.2)
    low, high = confidence_interval(errors, lengths)
    # errors independent of each other: the deviation of a share
    deviation = np.sqrt(0.2 * 0.8 / lengths.sum())
    rate = errors.sum() / lengths.sum()
    assert low == pytest.approx(rate - 1.96 * deviation, abs=0.4 * deviation)
    assert high == pytest.approx(rate + 1.96 * deviation, abs=0.4 * deviation)
    # the same words in clips where all is right or all is wrong leave far less certain what the rate is
    wrong = generator.random(200) < 0.2
    wide = confidence_interval(wrong * lengths, lengths)
    assert wide.high - wide.low > 2 * (high - low)
    assert confidence_interval(errors, lengths, level=0.5).high < high


def test_a_draw_has_the_rate_of_its_whole_set_and_not_the_mean_over_clips():
    # a quarter of the draws has the first clip twice, a quarter the second, and all others both: 1 error in 100
    assert confidence_interval([1, 0], [1, 99], level=0.4) == pytest.approx((0.01, 0.01))


def test_a_confidence_interval_is_the_same_from_the_same_seed_in_blocks_of_any_size(monkeypatch):
    errors, lengths = [1, 0, 3, 2, 0], [4, 5, 6, 3, 9]
    whole = confidence_interval(errors, lengths)
    monkeypatch.setattr("hf_wav2vec_family.metrics.bootstrap.BLOCK", 17)
    assert confidence_interval(errors, lengths) == whole
    assert confidence_interval(errors, lengths, num_draws=9) != confidence_interval(
        errors, lengths, num_draws=9, seed=1
    )
    assert confidence_interval([0, 0], [3, 4]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("errors", "lengths", "level", "message"),
    [
        ([1], [2, 3], 0.95, "got 1 and 2"),
        ([], [], 0.95, "got 0 and 0"),
        ([1], [0], 0.95, "sum of 0"),
        ([1], [2], 95, "got 95"),
    ],
)
def test_an_interval_of_nothing_is_refused(errors, lengths, level, message):
    with pytest.raises(ValueError, match=message):
        confidence_interval(errors, lengths, level=level)
