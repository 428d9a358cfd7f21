"""What an evaluation counts: words and letters, or phones; what several of them make of a table."""

import json

import pytest
import transformers

from hf_wav2vec_family.phones import CMU_39, TIMIT_39
from training import evaluate, summarize
from training.evaluate import Utterance, score
from training.finetune import write_vocabulary


def phone_tokenizer(folder, phones):
    path = write_vocabulary([*phones, "<pad>", "<unk>"], folder)
    return transformers.Wav2Vec2PhonemeCTCTokenizer(path, do_phonemize=False, bos_token=None, eos_token=None)


def utterance(reference: str, hypothesis: str) -> Utterance:
    return Utterance("id", reference, hypothesis, 1.0)


def test_phones_have_a_phone_error_rate_and_no_words(tmp_path):
    heard = [utterance("SIL T UW T UW", "SIL T UW UW"), utterance("AA <unk>", "AA")]
    scores = score(heard, phone_tokenizer(tmp_path, ["SIL", *CMU_39]))
    assert scores["per"] == 2 / 7
    assert scores["per_num_reference_phones"] == 7
    assert scores["per_interval"][0] <= 2 / 7 <= scores["per_interval"][1]
    assert not {"wer", "cer"} & set(scores)


def test_phones_of_timit_are_scored_as_39_with_runs_merged(tmp_path):
    heard = [utterance("sil sil t ao", "sil t aa <unk>")]
    scores = score(heard, phone_tokenizer(tmp_path, TIMIT_39))
    assert (scores["per_insertions"], scores["per_hits"], scores["per_num_reference_phones"]) == (1, 3, 3)


def test_letters_have_word_and_character_error_rates(tmp_path):
    path = write_vocabulary(["<pad>", "<unk>", "|", *"ABC"], tmp_path)
    tokenizer = transformers.Wav2Vec2CTCTokenizer(path)
    for scores in (score([utterance("A B", "A C")]), score([utterance("A B", "A C")], tokenizer)):
        assert (scores["wer"], scores["cer"]) == (1 / 2, 1 / 3)
        assert scores["wer_interval"] == [0.5, 0.5]
        assert "per" not in scores


def test_a_set_without_speech_has_no_interval():
    assert "wer_interval" not in score([utterance("", "A")])


def write_scores(folder, **scores):
    evaluate.write_report(folder, {"num_utterances": 2, **scores}, [])
    return folder


def test_several_runs_make_a_row_of_mean_and_deviation(tmp_path, capsys):
    runs = [str(write_scores(tmp_path / str(i), wer=rate, cer=0.1)) for i, rate in enumerate((0.1, 0.2, 0.3))]
    summarize.main([*runs, "--name", "ours"])
    assert capsys.readouterr().out.splitlines() == [
        "|  | WER | CER | utterances | runs |",
        "| --- | --- | --- | --- | --- |",
        "| ours | 20.00 ± 10.00 | 10.00 ± 0.00 | 2 | 3 |",
    ]


def test_a_single_run_has_its_confidence_interval(tmp_path):
    run = write_scores(tmp_path, per=0.2, per_interval=[0.15, 0.25]) / "scores.json"
    assert summarize.main([str(run), "--name", "ours"]).endswith("| ours | 20.00 (15.00 to 25.00) | 2 | 1 |")


def test_a_run_on_a_set_without_speech_has_a_row_too():
    scores = {"num_utterances": 1, **score([utterance("", "A")])}
    assert summarize.table([scores], "ours").endswith("| ours | 100.00 | 100.00 | 1 | 1 |")


def test_runs_that_were_not_measured_alike_have_no_mean(tmp_path):
    one, other = write_scores(tmp_path / "a", wer=0.1), write_scores(tmp_path / "b", per=0.1)
    with pytest.raises(ValueError, match="not measured alike"):
        summarize.main([str(one), str(other), "--name", "ours"])
    (other / "scores.json").write_text(json.dumps({"num_utterances": 3, "wer": 0.1}))
    with pytest.raises(ValueError, match="not measured alike"):
        summarize.main([str(one), str(other), "--name", "ours"])
    with pytest.raises(ValueError, match="holds no scores"):
        summarize.main([str(tmp_path), "--name", "ours"])


def test_a_phone_that_the_model_does_not_have_is_one_that_it_gets_wrong(tmp_path):
    heard = [Utterance("1", "aa b", "aa b", 1.0), Utterance("2", "zz b", "aa b", 1.0)]
    assert score(heard, phone_tokenizer(tmp_path, TIMIT_39))["per"] == 1 / 4
