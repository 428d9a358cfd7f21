"""The spoken corpus of the quick start: plain text, many voices, no leaks between splits, the same bytes each time."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from training.synthetic_speech import (
    ACCENTS,
    SAMPLING_RATE,
    TEXT_FILE,
    VARIANTS,
    SpeechSynthesizer,
    Voice,
    sample_voices,
    transcript,
    write_corpus,
)

SENTENCES = TEXT_FILE.read_text(encoding="utf-8").splitlines()
SPLITS = ("train", "dev", "test")


@pytest.fixture(scope="module")
def synthesizer():
    pytest.importorskip("espeakng_loader", reason="speaking needs espeak-ng (extra `demo`)")
    return SpeechSynthesizer()


@pytest.fixture(scope="module")
def corpus(synthesizer, tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("speech") / "corpus", num_utterances=150, num_voices=20, seed=1)


def rows_of(corpus: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (corpus / split / "metadata.jsonl").read_text().splitlines()]


def digest(corpus: Path) -> str:
    files = sorted(path for path in corpus.rglob("*") if path.is_file())
    names = "".join(str(path.relative_to(corpus)) for path in files)
    return hashlib.sha256(names.encode() + b"".join(path.read_bytes() for path in files)).hexdigest()


def test_the_text_is_short_sentences_all_different_that_cover_the_alphabet():
    assert len(set(map(transcript, SENTENCES))) == len(SENTENCES) > 1500
    assert all(3 <= len(transcript(sentence).split()) <= 10 for sentence in SENTENCES)
    counts = Counter("".join(map(transcript, SENTENCES)))
    assert min(counts[letter] for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ") >= 10


def test_a_transcript_is_upper_case_letters_apostrophes_and_single_spaces():
    assert transcript("We'll  meet you, won't we?") == "WE'LL MEET YOU WON'T WE"


@pytest.mark.parametrize("sentence", ["Meet me at 7.", "Ein schöner Tag.", "half-past nine", "..."])
def test_text_that_cannot_be_spelt_is_refused(sentence):
    with pytest.raises(ValueError, match=re.escape(repr(sentence))):
        transcript(sentence)


def test_every_accent_and_variant_is_a_voice_that_speaks_without_clipping(synthesizer):
    voices = [Voice(accent, "m1") for accent in ACCENTS] + [Voice("en-us", variant) for variant in VARIANTS]
    for voice in voices:
        speech = synthesizer.speak("The kettle is boiling on the stove.", voice)
        assert speech.dtype == np.float32
        assert 1 < len(speech) / synthesizer.sampling_rate < 4
        assert 0.05 < np.abs(speech).max() < 0.99, voice.name


def test_accent_variant_pitch_and_speed_all_change_the_sound(synthesizer):
    voices = [
        Voice("en-us", "m1"),
        Voice("en-gb-scotland", "m1"),
        Voice("en-us", "f2"),
        Voice("en-us", "m1", pitch=70),
        Voice("en-us", "m1", words_per_minute=130),
    ]
    # A fresh synthesizer each: from one, even equal voices would differ a little.
    sounds = [type(synthesizer)().speak("Fog covered the valley.", voice) for voice in voices]
    assert len({sound.tobytes() for sound in sounds}) == len(voices)
    assert len(sounds[4]) > 1.1 * len(sounds[0])


@pytest.mark.parametrize("voice", [Voice("en-us", "nobody"), Voice("en-nowhere", "m1")])
def test_a_voice_that_is_not_there_is_refused_by_name(synthesizer, voice):
    with pytest.raises(ValueError, match=re.escape(voice.name)):
        synthesizer.speak("Hello.", voice)


@pytest.mark.parametrize("text", ["", " ", "..."])
def test_text_without_anything_to_say_is_refused(synthesizer, text):
    with pytest.raises(ValueError, match="said nothing"):
        synthesizer.speak(text, Voice("en-us", "m1"))


def test_voices_differ_and_share_no_variant_while_there_are_others():
    voices = sample_voices(len(ACCENTS) * len(VARIANTS), np.random.default_rng(0))
    assert len({voice.name for voice in voices}) == len(voices)
    assert len({voice.variant for voice in voices[: len(VARIANTS)]}) == len(VARIANTS)
    with pytest.raises(ValueError, match=f"num_voices={len(voices) + 1}"):
        sample_voices(len(voices) + 1, np.random.default_rng(0))


def test_the_folder_holds_what_the_metadata_says(corpus):
    for split in SPLITS:
        rows = rows_of(corpus, split)
        files = {path.name for path in (corpus / split).iterdir()}
        assert files == {row["file_name"] for row in rows} | {"metadata.jsonl"}
        for row in rows:
            info = soundfile.info(corpus / split / row["file_name"])
            assert (info.samplerate, info.channels, info.format) == (SAMPLING_RATE, 1, "FLAC")
            assert row["duration"] == info.frames / SAMPLING_RATE
            assert 1.2 < row["duration"] < 5.0
            assert transcript(row["text"]) == row["text"]
    assert [len(rows_of(corpus, split)) for split in SPLITS] == [120, 15, 15]


def test_no_speaker_and_no_sentence_is_in_two_splits(corpus):
    for key, num_different in (("speaker_id", [16, 2, 2]), ("text", [120, 15, 15])):
        values = [{row[key] for row in rows_of(corpus, split)} for split in SPLITS]
        assert [len(value) for value in values] == num_different
        assert len(set.union(*values)) == sum(num_different)


def test_clips_are_neither_clipped_nor_sterile(corpus):
    peaks, floors = [], []
    for row in rows_of(corpus, "train"):
        clip, _ = soundfile.read(corpus / "train" / row["file_name"])
        peaks.append(np.abs(clip).max())
        floors.append(np.std(clip[: int(0.15 * SAMPLING_RATE)]) / np.std(clip))
    assert max(peaks) < 0.99
    assert max(peaks) > 3 * min(peaks)
    assert min(floors) > 0.002
    assert max(floors) < 0.2


def test_no_speaker_says_a_sentence_twice(synthesizer, tmp_path):
    corpus = write_corpus(tmp_path / "corpus", num_utterances=310, num_voices=4, seed=0, splits=("train",))
    rows = rows_of(corpus, "train")
    assert len({(row["text"], row["speaker_id"]) for row in rows}) == len(rows) == 310


def test_one_seed_gives_the_same_bytes_in_this_process_and_in_another(corpus, tmp_path):
    again = write_corpus(tmp_path / "again", num_utterances=150, num_voices=20, seed=1)
    assert digest(again) == digest(corpus)
    other = tmp_path / "other"
    program = (
        "from training.synthetic_speech import write_corpus;"
        f"write_corpus({str(other)!r}, num_utterances=150, num_voices=20, seed=1)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=TEXT_FILE.parents[1], env=dict(os.environ))
    assert digest(other) == digest(corpus)


def test_another_seed_gives_other_bytes(synthesizer, tmp_path):
    corpora = [write_corpus(tmp_path / str(seed), num_utterances=5, num_voices=3, seed=seed) for seed in (0, 1)]
    assert digest(corpora[0]) != digest(corpora[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_utterances": 30, "num_voices": 2}, "num_voices are 2"),
        ({"num_utterances": 2, "num_voices": 20}, "num_utterances are 2"),
        ({"num_utterances": 6000, "num_voices": 3}, r"num_utterances=6000 puts 4800 in 'train'"),
        ({"num_utterances": 30, "num_voices": 0}, "num_voices=0"),
    ],
)
def test_counts_that_do_not_fit_are_refused_and_leave_nothing_behind(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_corpus(tmp_path / "corpus", seed=0, **arguments)
    assert not any(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        write_corpus(tmp_path, num_utterances=30, num_voices=3, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]


def test_a_corpus_that_is_interrupted_leaves_nothing_behind(synthesizer, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(SpeechSynthesizer, "speak", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_corpus(tmp_path / "corpus", num_utterances=30, num_voices=3, seed=0)
    assert not any(tmp_path.iterdir())


def test_without_espeak_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(RuntimeError, match="pip install espeakng_loader"):
        SpeechSynthesizer()
