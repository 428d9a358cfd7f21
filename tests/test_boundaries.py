"""What forced alignment is measured by: boundaries found by hand, words found among the phones."""

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from hf_wav2vec_family.decoding.alignment import Alignment, Segment
from training.boundaries import measure
from training.rows import Row

LEXICON = {"TWO": [("T", "UW")], "EIGHT": [("EY", "T")]}
PHONES = ["SIL", "T", "UW", "SIL", "EY", "T", "SIL"]
STARTS = [0.0, 0.1, 0.2, 0.4, 0.5, 0.7, 0.8]


class StubAligner:
    """Says what it was told to, and keeps what it was asked."""

    def __init__(self, alignment: Alignment, symbols: list[str] | None):
        self.alignment, self.texts = alignment, []
        tokenizer = SimpleNamespace(get_vocab=lambda: dict.fromkeys(symbols or []))
        if symbols is None:  # letters
            tokenizer.replace_word_delimiter_char = " "
        self.processor = SimpleNamespace(tokenizer=tokenizer, feature_extractor=SimpleNamespace(sampling_rate=16_000))

    def __call__(self, waveform, text):
        self.texts.append(text)
        return self.alignment


@pytest.fixture
def row(tmp_path) -> Row:
    soundfile.write(tmp_path / "clip.wav", np.ones(16_000) / 2, 16_000)
    extra = {"phones": PHONES, "phone_start_s": STARTS, "phone_end_s": [*STARTS[1:], 1.0]}
    return Row("clip", str(tmp_path / "clip.wav"), "TWO EIGHT", extra=extra)


def segments(*times: tuple[str, float, float]) -> list[Segment]:
    return [Segment(*one) for one in times]


def test_phones_are_compared_half_way_between_each_other_and_words_where_they_begin_and_end(row):
    phones = segments(("T", 0.12, 0.14), ("UW", 0.3, 0.32), ("EY", 0.5, 0.6), ("T", 0.7, 0.9))
    aligner = StubAligner(Alignment("T UW EY T", 1.0, [], phones, "phones"), ["T", "UW", "EY"])
    found = measure([row], aligner, lexicon=LEXICON)
    # the vocabulary has no silence, and what stands on the other side of one is no neighbour
    assert aligner.texts == ["T UW EY T"]
    assert found.phones == pytest.approx([0.22 - 0.2, 0.65 - 0.7])
    assert found.word_starts == pytest.approx([0.02, 0.0])
    assert found.word_ends == pytest.approx([0.32 - 0.4, 0.1])
    summary = found.summary()
    assert summary["phone_boundaries"] == {
        "number": 2,
        "median_error_ms": 35.0,
        "mean_error_ms": 35.0,
        "bias_ms": -15.0,
        "within_20_ms": 0.5,
    }


def test_silences_of_the_vocabulary_are_phones_with_boundaries(row):
    phones = segments(*((phone, start, start + 0.1) for phone, start in zip(PHONES, STARTS, strict=True)))
    aligner = StubAligner(Alignment("", 1.0, [], phones, "phones"), ["T", "UW", "EY", "SIL"])
    found = measure([row], aligner, lexicon=LEXICON)
    assert aligner.texts == [" ".join(PHONES)]
    assert found.phones == pytest.approx([0.0, 0.0, -0.05, 0.0, -0.05, 0.0])
    # what is half way between a word and silence is the word's end
    assert found.word_starts == pytest.approx([0.0, 0.0])
    assert found.word_ends == pytest.approx([-0.05, 0.0])
    assert measure([row], aligner).num_without_words == 1


def test_letters_have_boundaries_of_words_alone(row):
    words = segments(("two", 0.1, 0.4), ("eight", 0.52, 0.75))
    aligner = StubAligner(Alignment("two eight", 1.0, words, [], "letters"), None)
    found = measure([row], aligner, lexicon=LEXICON, text_case="lower")
    assert aligner.texts == ["two eight"]
    assert found.phones == []
    assert found.word_starts == pytest.approx([0.0, 0.02])
    assert found.word_ends == pytest.approx([0.0, -0.05])


def test_a_corpus_without_an_alignment_and_a_model_that_merges_phones_are_refused(row):
    aligner = StubAligner(Alignment("T", 1.0, [], segments(("T", 0.1, 0.2)), "phones"), ["T", "UW", "EY"])
    with pytest.raises(ValueError, match="makes one of equal phones, as in clip"):
        measure([row], aligner)
    row.extra["alignment_ok"] = False
    with pytest.raises(ValueError, match="no utterance has an alignment"):
        measure([row], aligner)
