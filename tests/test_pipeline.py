"""The speech recognition pipeline: every kind of audio gives the same text, and what is no audio is refused."""

import importlib.util
import io
import json
import shutil
import subprocess
import sys
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
    pipeline,
)

from hf_wav2vec_family import audio_reading
from hf_wav2vec_family.audio_reading import resample
from hf_wav2vec_family.decoding.__main__ import main
from hf_wav2vec_family.decoding.beam_search import BeamSearchDecoder, BeamSettings
from hf_wav2vec_family.decoding.decoder_folder import load_decoder, save_decoder
from hf_wav2vec_family.decoding.pipeline import BeamSearchPipeline, transcriber
from hf_wav2vec_family.speech_recognition_pipeline import SpeechRecognitionPipeline
from training import evaluate

needs_flashlight = pytest.mark.skipif(
    importlib.util.find_spec("flashlight") is None, reason="flashlight-text is not installed"
)
SAMPLING_RATE = 16_000
RECEPTIVE_FIELD = 30  # samples: 20 of the first convolution, 10 further of the second
HOP = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random recogniser as `save_pretrained` leaves it."""
    folder = tmp_path_factory.mktemp("recogniser")
    vocabulary = {token: index for index, token in enumerate(["<pad>", "|", *"ABCDEFGHIJKLMN"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), bos_token=None, eos_token=None, unk_token="<pad>")
    feature_extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(16, 16),
        conv_kernel=(20, 2),
        conv_stride=(10, 2),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        pad_token_id=0,
    )
    model = Wav2Vec2ForCTC(config)
    # Large weights at the end, or every frame of a random model is the same letter.
    model.lm_head.weight.data.normal_()
    model.save_pretrained(folder)
    Wav2Vec2Processor(feature_extractor, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recognise(folder):
    return transcriber(folder)


@pytest.fixture
def waveform():
    """Half a second of a tone that changes, at 16 kHz, in steps that 16 bits can hold."""
    time = np.arange(SAMPLING_RATE // 2) / SAMPLING_RATE
    tone = np.sin(2 * np.pi * (300 + 2000 * time) * time) * np.linspace(0.2, 0.8, len(time))
    return (np.round(tone * 32767) / 32768).astype(np.float32)


def as_flac(waveform, sampling_rate=SAMPLING_RATE):
    file = io.BytesIO()
    soundfile.write(file, waveform, sampling_rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def test_the_pipeline_comes_through_transformers_own_door(folder):
    recognise = pipeline("automatic-speech-recognition", model=str(folder), pipeline_class=SpeechRecognitionPipeline)
    assert isinstance(recognise, SpeechRecognitionPipeline)


def test_a_model_with_its_processor_transcribes_like_its_folder(folder, recognise, waveform):
    model = Wav2Vec2ForCTC.from_pretrained(folder)
    from_parts = transcriber(model, processor=Wav2Vec2Processor.from_pretrained(folder))
    assert from_parts(waveform) == recognise(waveform)


def test_a_model_without_a_processor_is_refused(recognise):
    with pytest.raises(ValueError, match="processor=None came with a Wav2Vec2ForCTC"):
        transcriber(recognise.model)


def test_the_text_is_the_models_and_not_trivial(recognise, waveform):
    values = recognise.feature_extractor(waveform, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_values
    with torch.no_grad():
        tokens = recognise.model(values).logits.argmax(-1)[0]
    text = recognise(waveform)["text"]
    assert text == recognise.tokenizer.decode(tokens)
    assert len(set(text)) > 2


def test_path_bytes_array_tensor_and_dict_give_one_text(recognise, waveform, tmp_path):
    path = tmp_path / "clip.flac"
    path.write_bytes(as_flac(waveform))
    decoder = SimpleNamespace(
        get_all_samples=lambda: SimpleNamespace(data=torch.from_numpy(waveform)[None], sample_rate=SAMPLING_RATE)
    )
    inputs = [
        path,
        str(path),
        path.read_bytes(),
        waveform,
        waveform.astype(np.float64),
        torch.from_numpy(waveform),
        (waveform * 32768).astype(np.int16),
        {"raw": waveform, "sampling_rate": SAMPLING_RATE},
        {"array": waveform, "sampling_rate": SAMPLING_RATE, "path": None},
        {"bytes": path.read_bytes(), "path": "gone.flac"},
        {"bytes": None, "path": str(path)},
        decoder,
    ]
    expected = recognise(waveform)["text"]
    assert [result["text"] for result in recognise(inputs)] == [expected] * len(inputs)


def test_integers_have_the_full_scale_of_their_type(recognise, waveform):
    given = recognise._read((waveform * 32768).astype(np.int16))["raw"]
    np.testing.assert_array_equal(given, waveform)


@pytest.mark.parametrize("way", ["file", "samples first", "channels first", "tensor"])
def test_stereo_of_another_rate_is_averaged_and_resampled(recognise, waveform, tmp_path, way):
    left = waveform[::2]  # half the samples at half the rate: another sound, but as good a test
    stereo = np.stack([left, np.zeros_like(left)], axis=1)
    if way == "file":
        inputs = tmp_path / "stereo.wav"
        soundfile.write(inputs, stereo, 8_000, subtype="FLOAT")
    else:
        raw = {"samples first": stereo, "channels first": stereo.T, "tensor": torch.from_numpy(stereo)}[way]
        inputs = {"raw": raw, "sampling_rate": 8_000}
    given = recognise._read(inputs)
    np.testing.assert_allclose(
        given["raw"], resample(left / 2, orig_sampling_rate=8_000, sampling_rate=SAMPLING_RATE), atol=1e-6
    )
    assert recognise(inputs) == recognise(given["raw"])


def test_the_callers_dict_is_left_alone_and_its_other_keys_come_back(recognise, waveform):
    inputs = {"raw": waveform, "sampling_rate": SAMPLING_RATE, "speaker": "anna"}
    assert recognise(inputs)["speaker"] == ["anna"]
    assert set(inputs) == {"raw", "sampling_rate", "speaker"}


def test_a_stride_is_counted_in_the_samples_that_came(recognise, waveform):
    low = {"raw": waveform[::2], "sampling_rate": 8_000}
    resampled = resample(waveform[::2], orig_sampling_rate=8_000, sampling_rate=SAMPLING_RATE)
    without_ends = recognise({**low, "stride": (1_000, 500)})
    assert without_ends == recognise({"raw": resampled, "sampling_rate": SAMPLING_RATE, "stride": (2_000, 1_000)})
    assert 0 < len(without_ends["text"]) < len(recognise(low)["text"])


@pytest.mark.parametrize("unit", ["char", "word"])
def test_timestamps_are_seconds_within_the_clip_of_any_rate(recognise, waveform, unit):
    result = recognise({"raw": waveform[::2], "sampling_rate": 8_000}, return_timestamps=unit)
    duration = len(waveform) / SAMPLING_RATE
    times = [time for chunk in result["chunks"] for time in chunk["timestamp"]]
    assert all(type(time) is float and time == round(time, 6) for time in times)
    assert times == sorted(times)
    assert times[0] >= 0
    assert 0.8 * duration < times[-1] <= duration
    assert "".join(chunk["text"] for chunk in result["chunks"]).replace(" ", "") == result["text"].replace(" ", "")


def test_chunks_in_batches_give_the_text_of_chunks_one_by_one(recognise, waveform, tmp_path):
    path = tmp_path / "long.flac"
    path.write_bytes(as_flac(np.tile(waveform, 4)))
    options = {"chunk_length_s": 0.5, "stride_length_s": 0.1}
    one_by_one = recognise([path, waveform], **options)
    assert recognise([path, waveform], batch_size=3, **options) == one_by_one
    assert len(one_by_one[0]["text"]) > 2 * len(one_by_one[1]["text"])


def test_a_file_in_chunks_says_what_its_waveform_does_and_is_never_whole(recognise, waveform, tmp_path, monkeypatch):
    path = tmp_path / "long.flac"
    path.write_bytes(as_flac(np.tile(waveform, 80)))
    monkeypatch.setattr(audio_reading, "PIECE_SAMPLES", 4096)
    read = audio_reading.read_audio(path)
    for options in ({"chunk_length_s": 0.5}, {"chunk_length_s": 0.7, "stride_length_s": (0.2, 0.1)}):
        options |= {"return_timestamps": "char"}
        expected = recognise({"raw": read, "sampling_rate": SAMPLING_RATE, "speaker": "anna"}, **options)
        assert recognise({"path": str(path), "speaker": "anna"}, **options) == expected
    chunks = recognise.preprocess(path, chunk_length_s=0.5)
    tracemalloc.start()
    assert len([None for _ in chunks]) == 120
    assert tracemalloc.get_traced_memory()[1] < read.nbytes / 4
    tracemalloc.stop()
    with pytest.raises(ValueError, match=r"leaves nothing between .* stride_length_s=\(0\.5, 0\.5\)"):
        recognise(path, chunk_length_s=1, stride_length_s=0.5)
    with pytest.raises(ValueError, match=r"stride_length_s=\(-0\.1, 0\.2\)"):
        recognise(path, chunk_length_s=1, stride_length_s=(-0.1, 0.2))


def test_a_short_clip_says_nothing_in_the_padding_beside_a_long_one(recognise, waveform):
    short = waveform[: len(waveform) // 3]
    for options in ({}, {"return_timestamps": "char"}):
        alone = recognise(short, **options)
        batched = recognise([short, np.tile(waveform, 2)], batch_size=2, **options)[0]
        assert len(batched["text"]) == len(alone["text"])
        for chunk in batched.get("chunks", []):
            assert chunk["timestamp"][1] <= len(short) / SAMPLING_RATE + 0.05


@pytest.mark.parametrize("num_samples", [0, 1, RECEPTIVE_FIELD - 1])
def test_too_few_samples_are_refused_with_both_numbers_named(recognise, num_samples):
    with pytest.raises(ValueError, match=rf"has {num_samples} samples .* at least {RECEPTIVE_FIELD}"):
        recognise(np.zeros(num_samples, dtype=np.float32))


def test_the_fewest_samples_accepted_are_those_of_one_frame(recognise):
    assert "text" in recognise(np.ones(RECEPTIVE_FIELD, dtype=np.float32))


def test_too_few_samples_are_counted_at_the_rate_they_came_in(recognise):
    with pytest.raises(ValueError, match=rf"has 10 samples at 8000 Hz, .* at least {RECEPTIVE_FIELD // 2}"):
        recognise({"raw": np.zeros(10, dtype=np.float32), "sampling_rate": 8_000})


def test_samples_too_few_for_a_last_chunk_belong_to_the_one_before(recognise):
    waveform = np.ones(SAMPLING_RATE + 7, dtype=np.float32)
    chunks = list(recognise.preprocess(waveform, chunk_length_s=0.5, stride_length_s=0))
    lengths = [chunk["input_values"].shape[1] for chunk in chunks]
    assert lengths == [399 * HOP + RECEPTIVE_FIELD, SAMPLING_RATE // 2 + 7]
    frames = sum(chunk["stride"][0] // HOP for chunk in chunks)
    assert frames == (len(waveform) - RECEPTIVE_FIELD) // HOP + 1


def test_a_short_file_is_refused_by_name(recognise, tmp_path):
    path = tmp_path / "click.wav"
    soundfile.write(path, np.zeros(5), SAMPLING_RATE)
    with pytest.raises(ValueError, match=r"click\.wav has 5 samples"):
        recognise(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("sampling_rate", [8_000, SAMPLING_RATE])
def test_samples_that_are_not_finite_are_counted_and_refused(recognise, waveform, value, sampling_rate):
    waveform[[3, 5]] = value
    with pytest.raises(ValueError, match=f"2 NaN or infinite samples among its {len(waveform)}"):
        recognise({"raw": waveform, "sampling_rate": sampling_rate})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros((2, 3, 400), dtype=np.float32), r"shape \[2, 3, 400\]"),
        (np.zeros((400, 400), dtype=np.float32), r"shape \[400, 400\]"),
        (np.zeros((16, 400), dtype=np.float32), r"shape \[16, 400\]"),
        (np.zeros((0, 2), dtype=np.float32), r"shape \[0, 2\]"),
        (np.zeros(400, dtype=np.uint8), "uint8"),
        (np.zeros(400, dtype=complex), "complex128"),
        (3.5, "float"),
        (b"these are not the bytes of a sound file", "not readable"),
        ("no/such/file.wav", r"no/such/file\.wav"),
        ({"raw": np.zeros(400)}, "sampling_rate=None"),
        ({"raw": np.zeros(400), "sampling_rate": -1}, "sampling_rate=-1"),
        ({"sampling_rate": 16_000}, "needs one of raw, array, bytes and path"),
        ({"path": "clip.flac", "stride": (1, 1)}, "stride"),
    ],
)
def test_what_is_no_audio_is_refused_with_a_reason(recognise, inputs, message):
    with pytest.raises(ValueError, match=message):
        recognise(inputs)


def test_a_url_is_handed_to_the_parent_class(recognise, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "transformers.pipelines.automatic_speech_recognition.httpx.get",
        lambda url, **_: asked.append(url) or SimpleNamespace(content=b"", **{}),
    )
    monkeypatch.setattr(
        "transformers.pipelines.automatic_speech_recognition.ffmpeg_read", lambda *_: np.ones(400, dtype=np.float32)
    )
    assert "text" in recognise("https://example.org/clip.flac")
    assert asked == ["https://example.org/clip.flac"]


def test_no_other_audio_library_is_loaded(folder, waveform, tmp_path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, waveform, 22_050)
    program = (
        "import sys; from hf_wav2vec_family.decoding.pipeline import transcriber;"
        "[sys.modules.__setitem__(name, None) for name in ('torchaudio', 'torchcodec', 'librosa')];"
        f"import os; os.environ['PATH'] = ''; print(transcriber({str(folder)!r})({str(path)!r}))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "'text'" in result.stdout, result.stderr


@pytest.fixture(scope="module")
def folder_with_decoder(folder, tmp_path_factory):
    """The same recogniser with a beam search beside it, whose lexicon writes words in other letters."""
    copy = tmp_path_factory.mktemp("with_decoder") / "recogniser"
    shutil.copytree(folder, copy)
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(copy)
    lexicon = {letter.lower() * 2: [[letter, "|"]] for letter in "ABCDEFGHIJKLMN"}
    settings = BeamSettings(beam_size=10, word_score=-1.0)
    save_decoder(BeamSearchDecoder(tokenizer, settings, lexicon=lexicon), copy / "decoder")
    return copy


@needs_flashlight
def test_a_folder_with_a_decoder_is_transcribed_with_it(folder, folder_with_decoder, waveform):
    recognise = transcriber(folder_with_decoder)
    values = recognise.feature_extractor(waveform, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_values
    with torch.no_grad():
        logits = recognise.model(values).logits[0]
    decoder = load_decoder(folder_with_decoder / "decoder", recognise.tokenizer)
    expected = decoder.decode(logits)[0].text
    assert len(expected.split()) > 1
    assert recognise(waveform)["text"] == expected
    result = recognise(waveform, return_timestamps="word")
    assert [chunk["text"] for chunk in result["chunks"]] == expected.split()
    times = [time for chunk in result["chunks"] for time in chunk["timestamp"]]
    assert times == sorted(times)
    assert times[-1] <= len(waveform) / SAMPLING_RATE
    through_the_door = pipeline(
        "automatic-speech-recognition",
        model=str(folder_with_decoder),
        pipeline_class=BeamSearchPipeline,
    )
    assert through_the_door(waveform)["text"] == expected
    assert transcriber(folder, decoder=decoder)(waveform)["text"] == expected
    assert transcriber(folder, decoder=folder_with_decoder / "decoder")(waveform)["text"] == expected


@needs_flashlight
def test_a_decoder_can_be_left_out(recognise, folder_with_decoder, waveform):
    assert transcriber(folder_with_decoder, decoder=False)(waveform) == recognise(waveform)


@needs_flashlight
@pytest.mark.parametrize("unit", ["char", "word"])
def test_a_beam_search_that_is_greedy_changes_nothing_of_clips_chunks_and_batches(recognise, waveform, unit):
    greedy = transcriber(
        recognise.model,
        processor=Wav2Vec2Processor(recognise.feature_extractor, recognise.tokenizer),
        decoder=BeamSearchDecoder(recognise.tokenizer, BeamSettings(beam_size=1)),
    )
    clips = [waveform[: len(waveform) // 3], np.tile(waveform, 3)]
    for options in ({}, {"batch_size": 2}, {"chunk_length_s": 0.5, "stride_length_s": 0.1, "batch_size": 3}):
        expected = recognise(clips, return_timestamps=unit, **options)
        assert greedy(clips, return_timestamps=unit, **options) == expected


@needs_flashlight
def test_a_decoder_for_a_model_that_writes_its_own_text_is_refused(recognise, monkeypatch):
    monkeypatch.setattr(recognise.model.config, "model_type", "whisper")
    with pytest.raises(ValueError, match="writes its own text"):
        BeamSearchPipeline(
            recognise.model,
            tokenizer=recognise.tokenizer,
            feature_extractor=recognise.feature_extractor,
            decoder="folder",
        )


def test_without_flashlight_a_folder_with_a_decoder_is_greedy_and_asking_for_it_says_what_to_install(
    recognise, folder, waveform, tmp_path, monkeypatch, caplog
):
    monkeypatch.setitem(sys.modules, "flashlight.lib.text", None)
    copy = tmp_path / "recogniser"
    shutil.copytree(folder, copy)
    (copy / "decoder").mkdir()
    (copy / "decoder" / "decoder.json").write_text(json.dumps({"settings": {}, "hot_words": []}))
    assert transcriber(copy)(waveform) == recognise(waveform)
    assert "pip install 'hf-wav2vec-family[decode]'" in caplog.text
    with pytest.raises(ImportError, match=r"pip install 'hf-wav2vec-family\[decode\]'"):
        transcriber(copy, decoder=copy / "decoder")


@needs_flashlight
def test_tune_stores_a_decoder_that_the_evaluation_and_the_pipeline_use(folder, recognise, waveform, tmp_path, capsys):
    copy, corpus = tmp_path / "recogniser", tmp_path / "corpus"
    shutil.copytree(folder, copy)
    (corpus / "dev").mkdir(parents=True)
    rows = []
    for number in range(3):
        samples = np.roll(waveform, 1000 * number)
        (corpus / "dev" / f"{number}.flac").write_bytes(as_flac(samples))
        text = recognise(samples)["text"].replace(" ", "")
        rows.append({"file_name": f"{number}.flac", "text": " ".join(text), "duration": len(samples) / SAMPLING_RATE})
    (corpus / "dev" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lm = str(tmp_path / "lm.arpa")
    text = ["ngram", str(corpus / "dev" / "metadata.jsonl"), "--output", lm, "--order", "2", "--discount-fallback"]
    assert main(text) == 0
    capsys.readouterr()
    assert main(["tune", str(copy), str(corpus), "--language-model", lm, "--num-trials", "6"]) == 0
    tuned = json.loads(capsys.readouterr().out)
    assert tuned["wer"] < tuned["wer_without_language_model"]
    scores = evaluate.main([str(copy), str(corpus), "--split", "dev", "--decoder", str(copy / "decoder")])
    assert scores["wer"] == pytest.approx(tuned["wer"])
    assert evaluate.main([str(copy), str(corpus), "--split", "dev"])["wer"] != scores["wer"]
    assert main(["tune", str(copy), str(tmp_path / "gone")]) == 2
    assert "metadata.jsonl" in capsys.readouterr().err
