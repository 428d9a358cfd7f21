"""Reading of audio files: what is read equals what was written, and what can't be read is refused by name."""

import io
import json
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hf_wav2vec_family import audio_reading
from hf_wav2vec_family.audio_reading import AudioError, Recording, audio_info, read_audio, resample

SHARED = Path(__file__).parents[2] / "shared"
FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


def tone(frequency=220.0, *, num_samples=32_000, sampling_rate=16_000):
    noise = np.random.default_rng(0).normal(size=num_samples) * 0.02
    return (0.4 * np.sin(2 * np.pi * frequency * np.arange(num_samples) / sampling_rate) + noise).astype(np.float32)


def encoded(waveform, kind, sampling_rate=16_000):
    container, subtype = FORMATS.get(kind, ("WAV", kind))
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, sampling_rate, format=container, subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_read_equals_what_was_written_from_a_file_from_bytes_and_from_a_record(kind, tmp_path):
    waveform = tone()
    path = tmp_path / f"clip.{kind}"
    path.write_bytes(encoded(waveform, kind))
    read = read_audio(path)
    assert read.dtype == np.float32
    assert read.shape == waveform.shape
    assert np.corrcoef(read, waveform)[0, 1] > (0.9999 if kind in ("wav", "flac") else 0.98)
    for source in (str(path), path.read_bytes(), {"bytes": path.read_bytes(), "path": None}, {"path": str(path)}):
        np.testing.assert_array_equal(read_audio(source), read)


def test_stereo_at_8_khz_becomes_the_mean_of_the_channels_at_16_khz():
    left, right = tone(300, num_samples=8_000, sampling_rate=8_000), tone(500, num_samples=8_000, sampling_rate=8_000)
    source = encoded(np.stack([left, right], axis=1), "FLOAT", sampling_rate=8_000)
    read = read_audio(source)
    assert audio_info(source).sampling_rate == 8_000
    assert audio_info(source).duration_seconds == 1.0
    assert read.shape == (16_000,)
    np.testing.assert_allclose(read[200:-200:2], ((left + right) / 2)[100:-100], atol=2e-2)
    assert np.abs(np.fft.rfft(read)).argmax() in (300, 500)


def test_a_decoded_record_is_resampled_like_a_file():
    waveform = tone(num_samples=8_000)
    record = {"array": waveform.astype(np.float64), "sampling_rate": 8_000}
    np.testing.assert_array_equal(
        read_audio(record), resample(waveform, orig_sampling_rate=8_000, sampling_rate=16_000)
    )
    assert audio_info(record).duration_seconds == 1.0


def test_a_tone_above_the_new_band_does_not_fold_back():
    high = tone(7_000, num_samples=16_000) - tone(0, num_samples=16_000)
    assert np.abs(resample(high, orig_sampling_rate=16_000, sampling_rate=8_000)[50:-50]).max() < 1e-3


@pytest.mark.parametrize("share", [0.97, 0.6])
@pytest.mark.parametrize("kind", [*FORMATS, "FLOAT", "ULAW"])
def test_a_file_that_was_cut_short_is_refused_by_name(kind, share, tmp_path):
    whole = encoded(tone(), kind)
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(AudioError, match=rf"cut\.{kind}"):
        read_audio(path)


def test_an_ogg_file_cut_between_two_pages_is_refused():
    whole = encoded(tone(num_samples=160_000), "opus")
    with pytest.raises(AudioError, match="cut short"):
        read_audio(whole[: whole.rindex(b"OggS")])


def test_a_wav_from_a_pipe_whose_header_knows_no_size_is_read_whole():
    wav = bytearray(encoded(tone(), "wav"))
    size = wav.index(b"data") + 4
    wav[size : size + 4] = struct.pack("<I", 0xFFFFFFFF)
    np.testing.assert_array_equal(read_audio(bytes(wav)), read_audio(encoded(tone(), "wav")))


def test_a_flac_that_hides_its_length_is_refused():
    flac = bytearray(encoded(tone(), "flac"))
    flac[21] &= 0xF0
    flac[22:26] = bytes(4)  # the 36 bits of STREAMINFO that count the samples
    for read in (read_audio, audio_info, Recording):
        with pytest.raises(AudioError, match="doesn't tell"):
            read(bytes(flac))


def test_a_damaged_flac_is_refused():
    flac = bytearray(encoded(tone(), "flac"))
    flac[len(flac) // 2 : len(flac) // 2 + 50] = b"\xff" * 50
    with pytest.raises(AudioError, match="not readable"):
        read_audio(bytes(flac))


def test_unusable_sources_are_refused_by_name_without_their_bytes(tmp_path):
    garbage = tmp_path / "garbage.wav"
    garbage.write_bytes(b"garbage" * 100)
    holes = tone()
    holes[7] = np.nan
    endless = tone()
    endless[7] = np.inf
    for source, message in [
        (tmp_path / "missing.wav", r"missing\.wav: no such file"),
        (tmp_path, "no such file"),
        (garbage, r"garbage\.wav: not readable"),
        ({"bytes": garbage.read_bytes(), "path": "a.wav"}, "a.wav: not readable"),
        (b"", "0 bytes of audio: not readable"),
        (encoded(tone()[:0], "wav"), "no samples"),
        (encoded(holes, "FLOAT"), "NaN"),
        (encoded(endless, "FLOAT"), "infinite"),
        ({"array": np.zeros(0), "sampling_rate": 16_000}, "no samples"),
        ({"array": np.zeros(9, dtype=np.int16), "sampling_rate": 16_000}, "int16"),
        ({"array": np.zeros((2, 9)), "sampling_rate": 16_000}, r"\[2, 9\]"),
        ({"bytes": None, "path": None}, "a record of bytes, path"),
        (None, "NoneType"),
    ]:
        for read in (read_audio, Recording):
            with pytest.raises(AudioError, match=message) as error:
                read(source)
            assert "garbagegarbage" not in str(error.value)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("sampling_rate", [16_000, 48_000])
def test_a_recording_has_the_samples_of_the_whole_in_whatever_pieces_it_is_read(kind, sampling_rate, monkeypatch):
    source = encoded(tone(num_samples=sampling_rate, sampling_rate=sampling_rate), kind, sampling_rate)
    whole = read_audio(source)
    monkeypatch.setattr(audio_reading, "PIECE_SAMPLES", 1000)
    recording = Recording(source)
    assert len(recording) == recording.shape[0] == len(whole)
    assert recording.mean == pytest.approx(whole.mean(dtype=np.float64), abs=1e-9)
    assert recording.variance == pytest.approx(whole.var(dtype=np.float64), rel=1e-6)
    # ahead with and without overlap, over a gap, nothing, up to the end, back again, all of it
    places = [(0, 5), (3, 4000), (4000, 4001), (9000, 9500), (9100, 9100), (9200, None), (17, 900), (-10, None)]
    for begin, end in [*places, (0, None)]:
        # an mp3 is decoded a little differently in other pieces
        np.testing.assert_allclose(recording[begin:end], whole[begin:end], atol=1e-6 if kind == "mp3" else 0)
    with pytest.raises(ValueError, match="got a step of 2"):
        recording[::2]


def test_a_recording_that_is_read_piece_by_piece_is_never_in_memory_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(audio_reading, "PIECE_SAMPLES", 4096)
    num_samples = 30 * 44_100
    soundfile.write(tmp_path / "long.flac", tone(num_samples=num_samples, sampling_rate=44_100), 44_100)
    tracemalloc.start()
    recording = Recording(tmp_path / "long.flac")
    for begin in range(0, len(recording), 8000):
        recording[max(begin - 1000, 0) : begin + 9000]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(recording)  # a quarter of its bytes


def test_the_header_alone_tells_the_length(tmp_path):
    path = tmp_path / "clip.flac"
    path.write_bytes(encoded(tone(), "flac")[:200])
    assert audio_info(path).num_samples == 32_000
    assert audio_info({"bytes": path.read_bytes()}).duration_seconds == 2.0


def test_real_opus_files_are_as_long_as_their_metadata_says():
    folder = SHARED / "data" / "librispeech-clean-5" / "dev"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    records = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()[:5]]
    for record in records:
        waveform = read_audio(folder / record["file_name"])
        assert len(waveform) / 16_000 == pytest.approx(record["duration"], abs=1e-3)
        assert 0.05 < np.abs(waveform).max() < 1.1
