"""TIMIT and WSJ: rows from trees like those of the LDC, made here out of noise."""

import numpy as np
import pytest
import soundfile

from hf_wav2vec_family.audio_reading import read_audio
from training.ldc import TIMIT_SPEAKERS, spoken_words
from training.sources import Source, as_sources, open_source

PHONES = "0 160 h#\n160 480 sh\n480 800 ix\n800 960 q\n960 1600 tcl\n"


def write_sphere(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    waveform = np.random.default_rng(seed).uniform(-0.5, 0.5, 1600).astype(np.float32)
    with open(path, "wb") as file:
        soundfile.write(file, waveform, 16_000, format="NIST", subtype="PCM_16")
    return waveform


def rows_of(root, name, split):
    (source,) = as_sources({"path": str(root), "name": name, "split": split})
    return list(open_source(source).rows())


def add_sentence(root, part, speaker, sentence, lower):
    folder = root / part / "DR1" / speaker
    names = (f"{sentence}.WAV", f"{sentence}.PHN")
    audio, phones = (folder / name for name in names)
    if lower:
        audio, phones = (root / str(path.relative_to(root)).lower() for path in (audio, phones))
    write_sphere(audio)
    phones.write_text(PHONES)


@pytest.fixture(params=["upper", "lower"])
def timit(tmp_path, request):
    """One sentence of each speaker of the smaller splits, one of another speaker of each part, and SA sentences."""
    lower = request.param == "lower"
    for speaker in [*TIMIT_SPEAKERS["dev"], *TIMIT_SPEAKERS["test"], "faaa0"]:
        for sentence in ("SX1", "SA1"):
            add_sentence(tmp_path / "disc", "TEST", speaker.upper(), sentence, lower)
    for sentence in ("SI10", "SX5", "SA2"):
        add_sentence(tmp_path / "disc", "TRAIN", "MBBB0", sentence, lower)
    return tmp_path


def test_timit_has_every_sentence_of_a_splits_speakers_but_the_shared_ones(timit):
    assert [row.id for row in rows_of(timit, "timit", "train")] == ["mbbb0_si10", "mbbb0_sx5"]
    for split, size in (("dev", 50), ("test", 24)):
        rows = rows_of(timit, "timit", split)
        assert {row.extra["speaker_id"] for row in rows} == TIMIT_SPEAKERS[split]
        assert len(rows) == size
    assert not TIMIT_SPEAKERS["dev"] & TIMIT_SPEAKERS["test"]


def test_timit_rows_have_folded_phones_their_times_and_readable_audio(timit):
    texts = {name: rows_of(timit, name, "train")[0].text for name in ("timit", "timit48", "timit61")}
    assert texts == {"timit": "sil sh ih sil", "timit48": "sil sh ix cl", "timit61": "h# sh ix q tcl"}
    row = rows_of(timit, "timit", "train")[0]
    assert row.extra["phones"] == row.text.split()
    assert row.extra["phone_start_s"] == [0.0, 0.01, 0.03, 0.06]
    assert row.extra["phone_end_s"] == [0.01, 0.03, 0.05, 0.1]
    np.testing.assert_allclose(read_audio(row.audio), np.random.default_rng(0).uniform(-0.5, 0.5, 1600), atol=1e-4)


def test_a_timit_that_is_not_whole_is_refused_with_what_is_missing(timit, caplog):
    with pytest.raises(ValueError, match=r"source\.split: timit has train, dev, test, got 'all'"):
        open_source(Source(str(timit), "timit", "all"))
    rows_of(timit, "timit", "test")
    assert "24 utterances are there; the whole corpus has 192" in caplog.text
    for path in timit.rglob("*"):
        if path.is_dir() and path.name.lower() == "mdab0":
            gone = path
    for path in gone.iterdir():
        if path.suffix.lower() == ".wav":
            path.unlink()
    with pytest.raises(ValueError, match="no audio beside it"):
        open_source(Source(str(timit), "timit", "test"))
    for path in gone.iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="speakers mdab0"):
        open_source(Source(str(timit), "timit", "test"))
    (timit / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no timit at .*expected TRAIN/DR1"):
        open_source(Source(str(timit / "empty"), "timit", "train"))


def test_a_line_of_phones_that_means_nothing_is_named(timit):
    next(path for path in timit.rglob("*") if path.name.lower() == "si10.phn").write_text("0 160 h#\n160 sh\n")
    with pytest.raises(ValueError, match=r"(?i)si10\.phn, line 2: expected first sample, .*'160 sh'"):
        rows_of(timit, "timit", "train")


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture(params=["discs", "merged"])
def wsj(tmp_path, request):
    """Both corpora, each disc in a folder of its own or all in one."""
    discs = request.param == "discs"

    def disc(name):
        return tmp_path / "csr" / name if discs else tmp_path

    indices = disc("11-13.1") / "wsj0/doc/indices"
    put(
        indices / "train/tr_s_wv1.ndx",
        ";; comment\n11_1_1:wsj0/si_tr_s/011/011c0202.wv1\n11_1_1:wsj0/si_tr_s/011/011C0201.wv1\n"
        "11_2_1:wsj0/si_tr_s/401/401c0201.wv1\n",
    )
    put(indices / "test/nvp/si_et_20.ndx", "11_13_1: wsj0/si_et_20/440/440c0401\n")
    put(disc("13-34.1") / "wsj1/doc/indices/si_tr_s.ndx", "13_1_1: /wsj1/si_tr_s/4aa/4aac0201.wv1\n")
    put(disc("13-34.1") / "wsj1/doc/indices/h1_p0.ndx", "13_16_1: wsj1/si_dt_20/4k0/4k0c0301.wv1\n")
    put(disc("13-32.1") / "wsj1/doc/indices/wsj1/eval/h1_p0.ndx", "13_32_1: wsj1/si_et_h1/4o0/4o0c0201.wv1\n")
    for number, place in enumerate(["011/011c0201", "011/011c0202", "401/401c0201"]):
        write_sphere(disc("11-1.1") / f"wsj0/si_tr_s/{place}.wv1", number)
    write_sphere(disc("11-13.1") / "wsj0/si_et_20/440/440c0401.wv1")
    write_sphere(disc("13-1.1") / "wsj1/si_tr_s/4aa/4aac0201.wv1")
    write_sphere(disc("13-16.1") / "wsj1/si_dt_20/4k0/4k0c0301.wv1")
    dots = disc("11-13.1") / "wsj0/transcrp/dots"
    put(dots / "si_tr_s/011/011c0200.dot", "The first \\. one (011c0201)\nMr. Smith's ,COMMA [door_slam] (011c0202)\n")
    put(dots / "si_et_20/440/440c0400.dot", "A test (440C0401)\n")
    put(disc("13-34.1") / "wsj1/trans/wsj1/si_tr_s/4aa/4aac0200.dot", "Of wsj1 (4aac0201)\n")
    put(disc("13-34.1") / "wsj1/trans/wsj1/si_dt_20/4k0/4k0c0300.dot", "For development (4k0c0301)\n")
    return tmp_path


def test_wsj_splits_are_those_of_the_index_files(wsj):
    si84 = {"011c0201": "The first one", "011c0202": "Mr. Smith's COMMA"}
    expected = {
        "si84": si84,
        "si284": si84 | {"4aac0201": "Of wsj1"},
        "nov92": {"440c0401": "A test"},
        "nov93dev": {"4k0c0301": "For development"},
    }
    for split, alias in (("si84", "si84"), ("si284", "train"), ("nov92", "test"), ("nov93dev", "dev")):
        assert {row.id: row.text for row in rows_of(wsj, "wsj", split)} == expected[split]
        assert rows_of(wsj, "wsj", alias) == rows_of(wsj, "wsj", split)
    row = rows_of(wsj, "wsj", "si84")[1]
    assert row.extra == {"speaker_id": "011"}
    np.testing.assert_allclose(read_audio(row.audio), np.random.default_rng(1).uniform(-0.5, 0.5, 1600), atol=1e-4)


def test_wsj_compressed_with_shorten_is_refused_until_it_is_converted(wsj):
    audio = next(wsj.rglob("440c0401.wv1"))
    audio.write_bytes(b"NIST_1A\n   1024\nsample_coding -s26 pcm,embedded-shorten-v2.00\nend_head\n".ljust(2048))
    with pytest.raises(ValueError, match=r"440c0401\.wv1 is compressed with shorten.*sph2pipe"):
        open_source(Source(str(wsj), "wsj", "nov92"))
    soundfile.write(audio.with_suffix(".wav"), np.zeros(1600), 16_000)
    assert [row.audio for row in rows_of(wsj, "wsj", "nov92")] == [str(audio.with_suffix(".wav"))]


def test_a_wsj_that_is_not_whole_is_refused_with_what_is_missing(wsj):
    with pytest.raises(ValueError, match=r"source\.split: wsj has si84, .*got 'nov94'"):
        open_source(Source(str(wsj), "wsj", "nov94"))
    next(wsj.rglob("440c0400.dot")).write_text("Another (440c0402)\n")
    with pytest.raises(ValueError, match="transcript of 440c0401"):
        open_source(Source(str(wsj), "wsj", "nov92"))
    next(wsj.rglob("4k0c0301.wv1")).unlink()
    with pytest.raises(ValueError, match=r"wsj1/si_dt_20/4k0/4k0c0301\.wv1 of .* is not there"):
        open_source(Source(str(wsj), "wsj", "nov93dev"))
    next(wsj.rglob("si_tr_s.ndx")).unlink()
    with pytest.raises(ValueError, match=r"no wsj1/doc/indices/si_tr_s\.ndx"):
        open_source(Source(str(wsj), "wsj", "train"))


def test_transcripts_keep_the_words_that_were_spoken():
    for transcript, words in {
        "*mispronounced* <verbal> re(port) it's !so": "mispronounced verbal re it's so",
        "[<laughter] yes [laughter>] [cough] ~ . ~~ no": "yes no",
        "\"DOUBLE-QUOTE Buy .PERIOD 'SINGLE-QUOTE -HYPHEN .POINT five %PERCENT": (
            "DOUBLEQUOTE Buy PERIOD SINGLEQUOTE HYPHEN POINT five PERCENT"
        ),
        'U. S. Corp; don`t \\"rock\\" long-term \'em': "U. S. Corp don't rock longterm 'em",
    }.items():
        assert spoken_words(transcript) == words


def test_a_name_that_is_no_corpus_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(ValueError, match=r"source\.name: 'swb'.*timit, timit48, timit61, wsj"):
        open_source(Source(str(tmp_path), "swb"))
