"""Timestamps: a frame is where its convolutions look, chunks change nothing, files say what was found."""

import json
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch
import transformers

import hf_wav2vec_family as family
from hf_wav2vec_family import audio_reading
from hf_wav2vec_family.decoding import __main__ as command
from hf_wav2vec_family.decoding.alignment import Aligner, Alignment, Segment, best_path, labels_of, timed
from hf_wav2vec_family.decoding.emissions import Emissions, emissions_of
from hf_wav2vec_family.decoding.pipeline import transcriber
from hf_wav2vec_family.decoding.textgrid import textgrid
from hf_wav2vec_family.frame_places import frame_centers_of

RATE = 16_000
LETTERS = ["<pad>", "<unk>", "|", *"ABC"]
WAV2VEC2 = {
    "vocab_size": len(LETTERS),
    "pad_token_id": 0,
    "conv_dim": [8] * 7,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
}


def wav2letter(criterion: str, vocabulary: list[str], **fields) -> family.Wav2LetterForCTC:
    """A model that hears 10 frames to either side and no more."""
    config = family.Wav2LetterConfig(
        criterion=criterion,
        conv_dim=[16, 16],
        conv_kernel=[11, 11],
        feature_norm="none",
        vocab_size=len(vocabulary),
        pad_token_id=vocabulary.index("<pad>"),
        **fields,
    )
    transformers.set_seed(0)
    model = family.Wav2LetterForCTC(config).eval()
    # large weights at the end, or every frame of a random model is the same symbol
    model.lm_head.weight.data.normal_()
    return model


def letter_tokenizer(folder, vocabulary=LETTERS, of=transformers.Wav2Vec2CTCTokenizer):
    path = folder / "vocab.json"
    path.write_text(json.dumps({symbol: i for i, symbol in enumerate(vocabulary)}))
    return of(str(path), bos_token=None, eos_token=None)


def extractor(**options) -> transformers.Wav2Vec2FeatureExtractor:
    return transformers.Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True, **options)


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise whose loudness changes all the time, so that every frame is another."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    envelope = 0.1 + 0.1 * np.sin(2 * np.pi * 3 * time) * np.sin(2 * np.pi * 0.7 * time)
    tone = np.sin(2 * np.pi * (500 + 400 * np.sin(5 * time)) * time)
    return (envelope * (tone + 0.3 * generator.standard_normal(len(time)))).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny wav2vec 2.0 with letters, as fine-tuning leaves it."""
    folder = tmp_path_factory.mktemp("letters")
    transformers.set_seed(0)
    model = family.Wav2Vec2ForCTC(family.Wav2Vec2Config(**WAV2VEC2))
    model.lm_head.weight.data.normal_()
    model.save_pretrained(folder)
    transformers.Wav2Vec2Processor(extractor(), letter_tokenizer(folder)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def aligner(folder):
    return Aligner.from_pretrained(folder)


def emissions(num_frames: int, first: float = 0.0125, hop: float = 0.01) -> Emissions:
    return Emissions(torch.zeros(num_frames, 3), None, first, hop, num_seconds=first + hop * num_frames)


def test_the_frames_of_every_architecture_stand_where_their_convolutions_look():
    vq = {"conv_kernel": [10, 8, 4, 4, 4], "conv_stride": [5, 4, 2, 2, 2]}
    causal = {"conv_dim": [8] * 5, "context_dim": [8, 8], "context_kernel": [2, 3]}
    cpc = {"conv_dim": [8] * 5, "hidden_size": 8}
    roberta = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = {"vq_wav2vec_config": {**causal, **vq, "num_codevectors_per_group": 4}, "roberta_config": roberta}
    adapter = {"add_adapter": True, "num_adapter_layers": 2}  # each layer doubles the hop and stays where it is
    encoder = family.CPCModel(family.CPCConfig(**cpc))
    on_encoder = {"conv_dim": [8], "conv_kernel": [3], "vocab_size": 4, "pad_token_id": 3}
    for model, hop, first in (
        (family.Wav2Vec2Model(family.Wav2Vec2Config(**WAV2VEC2)), 320, 199.5),
        (family.Wav2Vec2Model(family.Wav2Vec2Config(**WAV2VEC2, **adapter)), 1280, 199.5),
        (transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**WAV2VEC2)), 320, 199.5),
        (encoder, 160, 79.0),
        (family.Wav2LetterForCTC.from_encoder(encoder, **on_encoder), 160, 79.0),
        (wav2letter("ctc", LETTERS), 160, 199.5),
        (family.Wav2VecModel(family.Wav2VecConfig(**causal)), 160, 232.0),
        (family.VQWav2VecModel(family.VQWav2VecConfig(**causal, **vq)), 160, 232.0),
        (family.DiscreteBertModel(family.DiscreteBertConfig(**bert)), 160, 232.0),
    ):
        assert frame_centers_of(model, 3).tolist() == [first, first + hop, first + 2 * hop], type(model)
    other = transformers.BertModel(transformers.BertConfig(num_hidden_layers=1, hidden_size=12))
    assert frame_centers_of(other, 2) is None


def test_a_frame_lasts_from_half_way_before_its_centre_to_half_way_behind_it():
    ours = emissions(4)
    assert [ours.border(frame) for frame in range(5)] == pytest.approx([0.0075, 0.0175, 0.0275, 0.0375, 0.0475])
    # never outside of the recording
    early = emissions(2, first=0.002)
    assert early.border(0) == 0.0
    assert early.border(9) == early.num_seconds


def test_a_word_lasts_from_the_first_frame_of_its_first_letter_to_the_last_of_its_last(tmp_path):
    path = torch.tensor([0, 3, 3, 0, 4, 2, 0, 3, 0, 3])
    found = timed(path, emissions(10), letter_tokenizer(tmp_path))
    assert (found.text, found.unit) == ("AB AA", "letters")
    spans = [(part.text, round(part.start, 4), round(part.end, 4)) for part in found.words]
    assert spans == [("AB", 0.0175, 0.0575), ("AA", 0.0775, 0.1075)]
    spans = [(part.text, round(part.start, 4), round(part.end, 4)) for part in found.symbols]
    assert spans == [
        ("A", 0.0175, 0.0375),
        ("B", 0.0475, 0.0575),
        ("A", 0.0775, 0.0875),
        ("A", 0.0975, 0.1075),
    ]


def test_letters_that_one_replabel_stands_for_share_its_time(tmp_path):
    vocabulary = ["<pad>", "<unk>", "|", *"AB", "1", "2"]
    tokenizer = letter_tokenizer(tmp_path, vocabulary, family.Wav2LetterCTCTokenizer)
    found = timed(torch.tensor([2, 3, 6, 6, 4, 2]), emissions(6, first=0.005), tokenizer)
    assert found.text == "AAAB"
    starts = [round(part.start, 4) for part in found.symbols]
    assert starts == [0.01, 0.02, 0.03, 0.04]
    assert all(one.end <= other.start for one, other in pairwise(found.symbols))


def test_phones_are_no_words(tmp_path):
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps({"AA": 0, "T": 1, "<pad>": 2, "<unk>": 3}))
    tokenizer = transformers.Wav2Vec2PhonemeCTCTokenizer(str(path), do_phonemize=False, bos_token=None, eos_token=None)
    assert labels_of("T AA  T", tokenizer) == [1, 0, 1]
    found = timed(torch.tensor([2, 1, 0, 0, 2]), emissions(5, first=0.005), tokenizer)
    assert (found.text, found.unit, found.words) == ("T AA", "phones", [])
    assert [part.text for part in found.symbols] == ["T", "AA"]
    with pytest.raises(ValueError, match=r"text: X is not in the vocabulary, which has .*AA T; got 'T X'"):
        labels_of("T X", tokenizer)


@pytest.mark.parametrize("criterion", ["ctc", "asg"])
@pytest.mark.parametrize("num_samples", [0, 1, 79, 159])
def test_chunks_give_the_frames_of_the_whole_recording(criterion, num_samples):
    vocabulary = [*"ABCD", "<pad>"]
    model, waveform = wav2letter(criterion, vocabulary), sound(6.0)[: 6 * RATE - num_samples]
    whole = emissions_of(model, extractor(), waveform, chunk_seconds=None)
    in_chunks = emissions_of(model, extractor(), waveform, chunk_seconds=1.0, context_seconds=0.2)
    assert len(whole.scores) == model.num_frames(len(waveform))
    torch.testing.assert_close(in_chunks.scores, whole.scores, atol=1e-4, rtol=1e-4)
    one, other = (best_path(found, None, blank=4) for found in (whole, in_chunks))
    assert torch.equal(one, other)
    assert len(one.unique()) > 2
    assert (whole.transitions is None) == (criterion == "ctc")
    # with less context than the model hears, frames at the ends of chunks say something else
    deaf = emissions_of(model, extractor(), waveform, chunk_seconds=1.0, context_seconds=0.05)
    assert not torch.allclose(deaf.scores, whole.scores, atol=1e-4)


def test_a_waveform_is_normalised_as_its_feature_extractor_does_and_as_a_whole(folder, aligner):
    normalising = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    waveform = np.concatenate([sound(1.0), 0.1 + 0.01 * sound(1.0)])  # its halves alone would be of other loudness
    heard = []
    handle = aligner.model.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0][0]))
    try:
        emissions_of(aligner.model, normalising, waveform, chunk_seconds=1.0, context_seconds=0.0)
    finally:
        handle.remove()
    expected = normalising(waveform, sampling_rate=RATE, return_tensors="pt").input_values[0]
    torch.testing.assert_close(heard[0], expected[: len(heard[0])], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(heard[-1], expected[-len(heard[-1]) :], atol=1e-5, rtol=1e-5)


def test_frames_of_padded_convolutions_stay_where_they_are_in_chunks():
    config = family.CPCConfig(conv_dim=[8] * 5, hidden_size=8, vocab_size=4, pad_token_id=0)
    transformers.set_seed(0)
    model, waveform = family.CPCForCTC(config).eval(), sound(3.0)[:-77]
    whole = emissions_of(model, extractor(), waveform, chunk_seconds=None)
    in_chunks = emissions_of(model, extractor(), waveform, chunk_seconds=1.2, context_seconds=0.5)
    # the recurrent context has forgotten what it heard half a second ago
    torch.testing.assert_close(in_chunks.scores, whole.scores, atol=1e-3, rtol=1e-3)
    assert in_chunks.first_seconds == 79 / RATE


def test_a_model_never_hears_more_than_a_chunk_at_once(aligner):
    heard = []
    handle = aligner.model.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0].shape[1]))
    try:
        emissions_of(aligner.model, extractor(), sound(7.0), chunk_seconds=1.0, context_seconds=0.2)
        emissions_of(aligner.model, extractor(), sound(21.0), chunk_seconds=1.0, context_seconds=0.2)
    finally:
        handle.remove()
    assert max(heard) <= RATE + 400
    assert len(heard) == 11 + 35


def test_chunks_without_a_frame_of_their_own_and_too_few_samples_are_refused(aligner):
    with pytest.raises(ValueError, match=r"chunk_seconds=1\.0 leaves no frame"):
        emissions_of(aligner.model, extractor(), sound(2.0), chunk_seconds=1.0, context_seconds=0.5)
    with pytest.raises(ValueError, match=r"at least 400 samples.*got 399"):
        emissions_of(aligner.model, extractor(), np.zeros(399, dtype=np.float32))


def test_an_alignment_spells_its_text_in_order_and_within_the_recording(aligner):
    found = aligner(sound(1.5), "ABBA  C")
    assert [word.text for word in found.words] == ["ABBA", "C"]
    assert "".join(part.text for part in found.symbols) == "ABBAC"
    times = [time for part in found.symbols for time in (part.start, part.end)]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] <= found.num_seconds == 1.5
    assert found.words[0].start == found.symbols[0].start
    assert found.words[0].end == found.symbols[3].end


def test_without_a_text_it_is_what_the_pipeline_hears(folder, aligner):
    waveform = sound(2.0, seed=3)
    found = aligner(waveform)
    result = transcriber(folder)(waveform, return_timestamps="char")
    assert found.text == result["text"]
    assert len(found.text) > 3


def test_the_pipelines_timestamps_are_those_of_the_frames_in_chunks_as_at_once(tmp_path):
    tokenizer = letter_tokenizer(tmp_path)
    processor = transformers.Wav2Vec2Processor(extractor(), tokenizer)
    model, waveform = wav2letter("ctc", LETTERS), sound(6.0)[:-77]
    recognise = transcriber(model, processor=processor)
    found = Aligner(model, processor, chunk_seconds=None)(waveform)
    expected = [
        (part.text, pytest.approx(part.start, abs=1e-6), pytest.approx(part.end, abs=1e-6)) for part in found.symbols
    ]
    assert len({part.text for part in found.symbols}) > 2
    for options in ({}, {"chunk_length_s": 1.0, "stride_length_s": 0.25}):
        chunks = recognise(waveform, return_timestamps="char", **options)["chunks"]
        spoken = [(chunk["text"], *chunk["timestamp"]) for chunk in chunks if chunk["text"] != " "]
        assert spoken == expected
    # as far as the middle of what the first frame sees is from half a hop
    assert recognise.delay_seconds == pytest.approx((199.5 - 80) / RATE)


@pytest.mark.parametrize("fields", [{"feat_extract_norm": "group"}, {"add_adapter": True, "num_adapter_layers": 1}])
def test_the_pipeline_hears_in_chunks_what_the_aligner_does(fields, tmp_path):
    transformers.set_seed(0)
    model = family.Wav2Vec2ForCTC(family.Wav2Vec2Config(**{**WAV2VEC2, **fields})).eval()
    model.lm_head.weight.data.normal_()
    normalizing = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    processor = transformers.Wav2Vec2Processor(normalizing, letter_tokenizer(tmp_path))
    aligner = Aligner(model, processor, chunk_seconds=2.0, context_seconds=0.4)
    recognise = transcriber(model, processor=processor)
    # one of them shorter than a chunk; each has statistics of its own beside the others
    waveforms = [sound(7.0, seed=1), 3 * sound(1.0, seed=2) + 1, 0.1 * sound(5.3, seed=3)]
    options = {"chunk_length_s": 2.0, "stride_length_s": 0.4, "return_timestamps": "char"}
    for batch_size in (1, 3):
        for waveform, result in zip(waveforms, recognise(waveforms, batch_size=batch_size, **options), strict=True):
            found = aligner(waveform)
            expected = [(part.text, round(part.start, 3), round(part.end, 3)) for part in found.symbols]
            chunks = [chunk for chunk in result["chunks"] if chunk["text"] != " "]
            times = [tuple(round(time, 3) for time in chunk["timestamp"]) for chunk in chunks]
            assert [(chunk["text"], *time) for chunk, time in zip(chunks, times, strict=True)] == expected
            assert len({part.text for part in found.symbols}) > 1


@pytest.mark.parametrize("normalizing", [True, False])
def test_a_file_that_is_read_in_pieces_says_what_its_waveform_does(aligner, tmp_path, monkeypatch, normalizing):
    soundfile.write(tmp_path / "clip.wav", 0.1 + sound(9.0), 22_050)
    monkeypatch.setattr(audio_reading, "PIECE_SAMPLES", 5000)
    processor = transformers.Wav2Vec2Processor(
        transformers.Wav2Vec2FeatureExtractor(do_normalize=normalizing), aligner.processor.tokenizer
    )
    in_chunks = Aligner(aligner.model, processor, chunk_seconds=1.0, context_seconds=0.2)
    found = in_chunks(tmp_path / "clip.wav")
    assert found == in_chunks(audio_reading.read_audio(tmp_path / "clip.wav"))
    assert len(found.text) > 3


def test_an_empty_text_is_silence_for_ctc(aligner):
    found = aligner(sound(0.5), "")
    assert (found.text, found.words, found.symbols) == ("", [], [])


def test_asg_aligns_with_silence_around_and_merges_phones_where_its_training_did(tmp_path):
    vocabulary = ["AA", "T", "sil", "<pad>", "<unk>"]
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps({symbol: i for i, symbol in enumerate(vocabulary)}))
    tokenizer = transformers.Wav2Vec2PhonemeCTCTokenizer(str(path), do_phonemize=False, bos_token=None, eos_token=None)
    processor = transformers.Wav2Vec2Processor(extractor(), tokenizer)
    model = wav2letter("asg", vocabulary, merge_repeated_labels=True)
    found = Aligner(model, processor)(sound(0.5), "sil sil T AA T sil")
    assert found.text == "sil T AA T sil"
    # every frame of ASG is somebody's
    assert all(one.end == other.start for one, other in pairwise(found.symbols))


def test_a_textgrid_covers_the_recording_and_doubles_quotes():
    said = Alignment(
        'A "B"', 2.0, [Segment('A "B"', 0.5, 1.0)], [Segment("A", 0.5, 0.6), Segment("B", 0.7, 2.0)], "letters"
    )
    content = textgrid(said)
    assert 'name = "words"' in content
    assert 'text = "A ""B"""' in content
    assert content.count("intervals: size = 3") == 1
    assert content.count("intervals: size = 4") == 1
    for tier in content.split("item [")[2:]:
        lines = [line.strip() for line in tier.split("intervals: size")[1].splitlines()]
        starts = [float(line.split(" = ")[1]) for line in lines if line.startswith("xmin")]
        ends = [float(line.split(" = ")[1]) for line in lines if line.startswith("xmax")]
        assert starts == [0.0, *ends[:-1]]
        assert ends[-1] == 2.0
    assert 'name = "words"' not in textgrid(Alignment("", 1.0, [], [], "phones"))
    assert "intervals: size = 1" in textgrid(Alignment("", 1.0, [], [], "phones"))


def test_the_command_writes_a_file_per_recording_of_a_manifest(folder, tmp_path):
    for name in ("one", "two"):
        soundfile.write(tmp_path / f"{name}.wav", sound(1.0), 8_000)
    rows = [{"file_name": "one.wav", "text": "ab c"}, {"file_name": "two.wav", "text": "b"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "metadata.csv").write_text("file_name,text\none.wav,ab c\ntwo.wav,b\n")
    for manifest in ("metadata.jsonl", "metadata.csv"):
        output = tmp_path / manifest[9:]
        arguments = ["align", str(folder), "--manifest", str(tmp_path / manifest)]
        assert command.main([*arguments, "--output", str(output), "--device", "cpu"]) == 0
        assert sorted(path.name for path in output.iterdir()) == [
            "one.TextGrid",
            "one.json",
            "two.TextGrid",
            "two.json",
        ]
        found = json.loads((output / "one.json").read_text())
        assert [word["text"] for word in found["words"]] == ["AB", "C"]
        assert [letter["text"] for letter in found["letters"]] == ["A", "B", "C"]
        assert found["num_seconds"] == 2.0
        assert 'text = "AB"' in (output / "one.TextGrid").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clip.wav", "--text", "XYZ"], "clip.wav: text: X Y Z is not in the vocabulary"),
        (["clip.wav", "--text", "ABC" * 40], "clip.wav: targets, rows [0] of the batch: there are more symbols"),
        (["gone.wav"], "gone.wav: gone.wav: no such file"),
        (["clip.wav", "clip.wav", "--text", "A"], "--text is of a single recording"),
        ([], "at least one is needed, got 0"),
        (["clip.wav", "--manifest", "rows.jsonl"], "--manifest takes the place of audio"),
        (["--manifest", "rows.jsonl"], "row 1 needs file_name and text, it has file_name"),
        (["clip.wav", "clip.wav", "--output", "out"], "several recordings are called clip"),
    ],
)
def test_what_cannot_be_aligned_is_said_in_a_line(folder, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    soundfile.write("clip.wav", sound(1.0), RATE)
    (tmp_path / "rows.jsonl").write_text('{"file_name": "clip.wav"}')
    assert command.main(["align", str(folder), *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
