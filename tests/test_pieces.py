"""Cutting utterances at their pauses."""

import json

import numpy as np
import pytest
import soundfile

from training.pieces import cuts_of, gaps_of, main, pieces_of, read_lexicon
from training.rows import Row

LEXICON = """;;; a comment
an  AE1 N
an(2)  AH0 N
apple  AE1 P AH0 L # a fruit
fell  F EH1 L
"""
# 0.1 s each, with a pause of 0.2 s after the second word; "FIG" is in no lexicon
PHONES = ["SIL", "AH", "N", "AE", "P", "AH", "L", "SIL", "SIL", "F", "IH", "G", "F", "EH", "L", "SIL"]


def row_of(text="AN APPLE FIG FELL", phones=PHONES):
    merged = [(number, phone) for number, phone in enumerate(phones) if number == 0 or phone != phones[number - 1]]
    extra = {"phones": [phone for _, phone in merged], "phone_start_s": [number / 10 for number, _ in merged]}
    return Row("a", "a.wav", text, 1.6, extra)


@pytest.fixture
def lexicon(tmp_path):
    path = tmp_path / "lexicon"
    path.write_text(LEXICON)
    return read_lexicon(path)


def test_a_lexicon_has_capitals_variants_and_no_stress(lexicon):
    assert lexicon["AN"] == [("AE", "N"), ("AH", "N")]
    assert lexicon["APPLE"] == [("AE", "P", "AH", "L")]


def test_words_are_found_among_the_phones_and_unknown_ones_take_what_is_left(lexicon):
    gaps = gaps_of(row_of(), lexicon, 1.6)
    assert [round(gap.start, 2) for gap in gaps] == [0.0, 0.3, 0.7, 1.2, 1.5]
    assert [round(gap.end, 2) for gap in gaps] == [0.1, 0.3, 0.9, 1.2, 1.6]


def test_words_that_do_not_fit_the_phones_are_not_placed(lexicon):
    assert gaps_of(row_of("AN APPLE FELL"), lexicon, 1.6) != []  # AN APPLE FIG-FELL: the last word is said otherwise
    assert gaps_of(row_of("AN"), lexicon, 1.6) == []  # one word does not go on after a pause
    assert gaps_of(row_of(" ".join(["AN"] * 30)), lexicon, 1.6) == []


def test_a_long_utterance_is_cut_at_its_longest_pause_first(lexicon):
    cuts = cuts_of(gaps_of(row_of(), lexicon, 1.6), max_seconds=1.0)
    assert [cut.num_words for cut in cuts] == [0, 2, 4]
    everywhere = cuts_of(gaps_of(row_of(), lexicon, 1.6), max_seconds=0.01)
    assert [cut.num_words for cut in everywhere] == [0, 1, 2, 3, 4]


def test_pieces_have_all_the_words_and_phones_and_their_times(lexicon):
    first, second = pieces_of(row_of(), cuts_of(gaps_of(row_of(), lexicon, 1.6), max_seconds=1.0))
    assert (first["text"], second["text"]) == ("AN APPLE", "FIG FELL")
    assert first["phones"] == ["SIL", "AH", "N", "AE", "P", "AH", "L", "SIL"]
    assert second["phones"] == ["SIL", "F", "IH", "G", "F", "EH", "L", "SIL"]
    assert second["phone_start_s"] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])


def test_the_audio_of_the_pieces_is_that_of_the_utterance(tmp_path):
    (tmp_path / "lexicon").write_text(LEXICON)
    waveform = np.random.default_rng(0).uniform(-0.5, 0.5, 25_600).astype(np.float32)
    soundfile.write(tmp_path / "a.flac", waveform, 16_000, subtype="PCM_16")
    record = {"file_name": "a.flac", "text": "AN APPLE FIG FELL", **row_of().extra}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(record) + "\n")

    output = tmp_path / "pieces"
    command = [str(tmp_path / "metadata.jsonl"), "--lexicon", str(tmp_path / "lexicon"), "--max-seconds", "1.0"]
    counts = main([*command, "--output", str(output)])
    assert counts == {"utterances": 1, "unaligned": 0, "pieces": 2, "seconds": 1.6}
    pieces = [json.loads(line) for line in (output / "train" / "metadata.jsonl").read_text().splitlines()]
    cut = [soundfile.read(output / "train" / piece["file_name"])[0] for piece in pieces]
    assert np.abs(np.concatenate(cut) - waveform).max() < 1e-4


def test_a_lexicon_of_nothing_is_refused(tmp_path):
    (tmp_path / "lexicon").write_text(";;; nothing\n")
    with pytest.raises(ValueError, match="no line of"):
        read_lexicon(tmp_path / "lexicon")
