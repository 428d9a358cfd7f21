"""The demo, as a person meets it: a browser, a file, a transcript whose words can be clicked."""

import importlib.util
import json
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_browser import browsed, chromium, codes, served, speak, transcribe
from publications import configuration_of, save_ctc_run, save_processor

import hf_wav2vec_family as family
from hf_wav2vec_family.audio_reading import read_audio
from hf_wav2vec_family.decoding.pipeline import transcriber
from hf_wav2vec_family.demo import transcript
from hf_wav2vec_family.demo.__main__ import main
from hf_wav2vec_family.demo.codes import as_words, codes_of, draw_stretch
from hf_wav2vec_family.demo.drawing import draw_window
from hf_wav2vec_family.demo.live import Live
from training.sources import Source, open_source

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "runs" / "quickstart"
NEEDED = ("gradio", "playwright")
missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
needs_a_browser = pytest.mark.skipif(
    bool(missing) or chromium() is None,
    reason=f"{', '.join(missing) or 'chromium'} is not installed: pip install '.[dev]', apt-get install chromium",
)


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory) -> Path:
    return save_ctc_run(tmp_path_factory.mktemp("run"), "wav2vec2")


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """Three seconds of noise that swells."""
    samples = np.random.default_rng(0).normal(0, 0.2, 48_000) * np.linspace(0.2, 1, 48_000)
    return write_wav(tmp_path_factory.mktemp("clips") / "clip.wav", samples, 16_000)


def write_wav(path: Path, samples: np.ndarray, rate: int) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((samples * 32767).astype(np.int16).tobytes())
    return path


def folder_of(name: str, folder: Path, **fields) -> Path:
    prefix, config = configuration_of(name, **fields)
    torch.manual_seed(0)
    getattr(family, f"{prefix}Model")(config).save_pretrained(folder)
    save_processor(folder, name)
    return folder


@pytest.mark.slow
@needs_a_browser
def test_a_file_put_into_the_browser_comes_back_as_words_that_seek(recogniser, clip, tmp_path):
    quantizer = folder_of("vq-wav2vec", tmp_path / "vq")
    with served(model=str(recogniser), codes=str(quantizer)) as url, browsed(url) as page:
        seen = transcribe(page, clip, tmp_path / "demo.png")
        codes(page, clip, tmp_path / "codes.png")
    expected = transcriber(recogniser)(clip, return_timestamps="word")
    assert seen.text == expected["text"]
    assert [word for word, _ in seen.words] == [chunk["text"] for chunk in expected["chunks"]]
    assert seen.player_seconds == pytest.approx(seen.words[-1][1], abs=0.5)
    for name in ("demo.png", "codes.png"):
        assert (tmp_path / name).stat().st_size > 10_000


@pytest.mark.slow
@needs_a_browser
@pytest.mark.skipif(not QUICKSTART.exists(), reason="runs/quickstart is missing: make quickstart")
def test_the_picture_of_the_documentation_is_of_this_page_and_the_quickstart_s_model():
    model, said = QUICKSTART / "finetuning" / "model", json.loads((QUICKSTART / "quickstart.json").read_text())
    clip = next(row.audio for row in open_source(Source(str(QUICKSTART / "speech"), split="test")).rows() if row.text)
    with served(model=str(model.relative_to(ROOT))) as url, browsed(url) as page:
        seen = transcribe(page, clip, ROOT / "docs" / "images" / "demo.png")
    assert seen.text == said["transcript"]


@pytest.mark.slow
@needs_a_browser
def test_speech_into_the_microphone_comes_back_as_features_and_text(tmp_path, monkeypatch):
    recogniser = save_ctc_run(tmp_path / "run", "cpc")
    seconds = np.arange(96_000) / 48_000
    # in pulses, since browsers take what goes on and on for noise
    tone = write_wav(tmp_path / "said.wav", np.sin(2 * np.pi * 440 * seconds) * (seconds % 0.4 < 0.2), 48_000)
    heard, hear = [], Live.hear
    monkeypatch.setattr(Live, "hear", lambda live, samples: heard.append((live.rate, samples)) or hear(live, samples))
    with served(live=str(recogniser)) as url, browsed(url, said=tone) as page:
        assert speak(page, tmp_path / "live.png")
    samples, rate = np.concatenate([samples for _, samples in heard]), heard[0][0]
    loudest = np.abs(np.fft.rfft(samples)).argmax() * rate / len(samples)
    assert loudest == pytest.approx(440, abs=10)
    assert (tmp_path / "live.png").stat().st_size > 10_000


def test_codes_of_a_long_recording_are_those_of_the_whole_and_drawn_a_stretch_at_a_time(tmp_path):
    folder = folder_of("vq-wav2vec", tmp_path / "vq", conv_norm="layer")
    samples = np.random.default_rng(0).normal(0, 0.1, 45 * 16_000)
    clip = write_wav(tmp_path / "long.wav", samples, 16_000)
    shares = []
    coded = codes_of(str(folder), clip, shares.append)
    model = family.VQWav2VecModel.from_pretrained(folder).eval()
    whole = model.quantize(torch.from_numpy(read_audio(clip, 16_000))[None])[0]
    assert torch.equal(coded.frames.values, whole)
    assert len(shares) > 1
    assert shares[-1] == 1.0
    assert len(as_words(coded).split()) == len(whole)
    centers = model.frame_centers(2) / 16_000
    assert (coded.frames.first_seconds, coded.num_seconds) == (pytest.approx(centers[0].item()), 45.0)
    for begin, limits in ((0.0, (0, 20)), (12.0, (12, 32)), (99.0, (25, 45))):
        assert draw_stretch(coded, begin).axes[1].get_xlim() == limits


def test_a_model_without_codes_is_refused(recogniser, clip):
    with pytest.raises(ValueError, match="holds a Wav2Vec2Model, which has no codes"):
        codes_of(str(recogniser), clip)


def test_long_recordings_say_how_far_they_are(recogniser, clip):
    shares = []
    heard = transcript.transcribe(str(recogniser), clip, shares.append)
    assert shares[-1] == 1.0
    assert heard.text == transcriber(recogniser)(clip)["text"]


def test_what_is_heard_is_text_and_no_markup(recogniser, clip):
    alignment = transcript.transcribe(str(recogniser), clip)
    word = type(alignment.words[0])("<b>&", 0.5, 1.0)
    html = transcript.as_html(type(alignment)(**{**vars(alignment), "words": [word]}), "/tmp/a b.wav")
    assert "&lt;b&gt;&amp;" in html
    assert 'data-begin="0.500"' in html
    assert "/tmp/a%20b.wav" in html


def test_live_speech_in_pieces_is_what_the_whole_clip_is(tmp_path):
    folder = folder_of("cpc", tmp_path / "cpc")
    samples = (np.random.default_rng(0).normal(0, 0.1, 16_000) * 32767).astype(np.int16)
    live = Live(str(folder), 16_000)
    for begin in range(0, 16_000, 3000):
        live.hear(samples[begin : begin + 3000])
    with torch.no_grad():
        whole = family.CPCModel.from_pretrained(folder)(torch.from_numpy(samples / np.float32(32768))[None])
    heard = len(live.frames)
    assert heard > 90
    np.testing.assert_allclose(live.frames, whole.last_hidden_state[0, :heard].numpy(), atol=1e-5)
    assert draw_window(live.frames, None).shape[2] == 3


def test_live_codes_are_drawn_above_the_features():
    features, found = np.random.default_rng(0).normal(size=(7, 16)), np.arange(14).reshape(7, 2)
    assert draw_window(features, found).shape[0] > draw_window(features, None).shape[0]


def test_a_space_names_the_models_it_was_made_with(tmp_path):
    main(["--model", "me/ctc", "--live", "me/cpc", "--space", str(tmp_path)])
    assert "model='me/ctc'" in (tmp_path / "app.py").read_text()
    compile((tmp_path / "app.py").read_text(), "app.py", "exec")
    assert "- me/cpc\n- me/ctc" in (tmp_path / "README.md").read_text()
