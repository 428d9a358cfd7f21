"""Augmentation: exactly what was asked for, the same from the same seed, and nothing else of a batch changes."""

import json
import math
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import soundfile
import torch
from interruptions import forget_accelerator
from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

from training import finetune, pretrain
from training.augmentation import KINDS, BandReject, Noise, Pitch, Reverb, Speed, TimeDropout, make_augmentation, rms
from training.data import BatchLoader, finetuning_batches, pretraining_batches
from training.planning import PlannedRow
from training.recipe import load_recipe

RATE = 16_000


def seeded(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def sine(frequency: float, seconds: float = 1.0) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    return (0.5 * np.sin(2 * math.pi * frequency * time)).astype(np.float32)


def white(seconds: float = 1.0) -> np.ndarray:
    return 0.1 * seeded(1).standard_normal(round(seconds * RATE), dtype=np.float32)


def loudest_frequency(waveform: np.ndarray) -> float:
    """To a fraction of a hertz, the first and last eighth of a second left out."""
    middle = waveform[2_000:-2_000]
    size = 2**18
    return np.abs(np.fft.rfft(middle * np.hanning(len(middle)), size)).argmax() * RATE / size


@pytest.fixture
def folder(tmp_path):
    """Two recordings of half a second: white noise and a hum, at another sampling rate."""
    recordings = tmp_path / "recordings" / "deeper"
    recordings.mkdir(parents=True)
    soundfile.write(recordings / "a.wav", 0.3 * seeded(2).standard_normal(4_000), 8_000)
    soundfile.write(recordings / "b.flac", 0.3 * np.sin(np.arange(4_000) / 10), 8_000)
    return str(tmp_path / "recordings")


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 12.5])
@pytest.mark.parametrize("recorded", [False, True])
def test_noise_is_as_far_below_the_clip_as_was_asked_for(snr_db, recorded, folder):
    clip = sine(440, 1.3)
    for seed in range(4):
        noise = Noise(snr_db=snr_db, folder=folder if recorded else None)(clip, RATE, seeded(seed)) - clip
        assert 20 * math.log10(rms(clip) / rms(noise)) == pytest.approx(snr_db, abs=1e-3)


def test_silence_stays_silent():
    for kind in KINDS.values():
        assert not kind()(np.zeros(4_000, np.float32), RATE, seeded()).any()


@pytest.mark.parametrize("cents", [-700.0, -100.0, 0.0, 300.0, 1200.0])
def test_pitch_moves_a_sine_by_its_cents_and_keeps_the_length(cents):
    clip = sine(1000)
    moved = Pitch(cents=cents)(clip, RATE, seeded())
    assert len(moved) == len(clip)
    assert loudest_frequency(moved) == pytest.approx(1000 * 2 ** (cents / 1200), rel=1e-3)


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.25])
def test_speed_changes_length_and_frequencies_by_its_factor(factor):
    clip = sine(1000)
    played = Speed(factor=factor)(clip, RATE, seeded())
    assert len(played) == pytest.approx(len(clip) / factor, abs=1)
    assert loudest_frequency(played) == pytest.approx(1000 * factor, rel=1e-3)


def test_a_rejected_band_is_gone_and_the_rest_is_left():
    clip = white(4.0)
    for seed in range(5):
        left = BandReject(width=0.2)(clip, RATE, seeded(seed))
        loss = np.abs(np.fft.rfft(left)) / np.abs(np.fft.rfft(clip))
        # averaged over 20 Hz, since a clip that ends blurs its spectrum
        smooth = loss[1:].reshape(-1, 80).mean(axis=1)
        gone = np.flatnonzero(smooth < 0.1)
        assert len(gone) >= 3
        assert (np.diff(gone) == 1).all()
        rest = np.delete(smooth, range(max(gone[0] - 2, 0), gone[-1] + 3))
        assert abs(rest - 1).max() < 0.1


def test_reverb_goes_on_after_a_click_decays_as_asked_and_keeps_level_and_time():
    click = np.zeros(RATE, np.float32)
    click[4_000] = 1.0
    echoing = Reverb(decay_seconds=0.4, direct_db=-20.0)(click, RATE, seeded())
    assert np.abs(echoing[:4_000]).max() < 1e-4
    assert rms(echoing) == pytest.approx(rms(click), rel=1e-4)
    # 60 dB in 0.4 s are 30 dB in 0.2 s
    early, late = rms(echoing[4_100:4_900]), rms(echoing[7_300:8_100])
    assert 20 * math.log10(early / late) == pytest.approx(30.0, abs=1.5)
    dry = Reverb(decay_seconds=0.4, direct_db=60.0)(click, RATE, seeded())
    assert dry.argmax() == 4_000
    assert dry[4_000] > 0.99


def test_an_impulse_response_of_a_folder_does_not_delay_the_clip(tmp_path):
    response = np.zeros(800)
    response[[300, 500]] = 0.8, 0.4
    soundfile.write(tmp_path / "room.wav", response, RATE, subtype="FLOAT")
    click = np.zeros(4_000, np.float32)
    click[100] = 1.0
    echoing = Reverb(folder=str(tmp_path))(click, RATE, seeded())
    assert np.abs(echoing).argsort()[-2:].tolist() == [300, 100]
    assert echoing[300] / echoing[100] == pytest.approx(0.5, abs=1e-4)


def test_time_dropout_silences_one_moment_and_nothing_else():
    clip = white()
    dropped = TimeDropout(seconds=0.05)(clip, RATE, seeded())
    silent = np.flatnonzero(dropped == 0)
    assert len(silent) == 800
    assert silent[-1] - silent[0] == 799
    assert np.array_equal(np.delete(dropped, silent), np.delete(clip, silent))
    assert clip.all()


@pytest.mark.parametrize("name", KINDS)
def test_the_same_seed_gives_the_same_audio_and_another_seed_another(name):
    augmentation, clip = make_augmentation({name: {}}), white(0.5)
    first = augmentation(clip, RATE, seeded(3))
    assert np.array_equal(first, augmentation(clip, RATE, seeded(3)))
    assert first.dtype == np.float32
    assert not np.array_equal(first, augmentation(clip, RATE, seeded(4)))
    if KINDS[name].KEEPS_LENGTH:
        assert len(first) == len(clip)


def test_a_kind_is_applied_as_often_as_its_probability_says_and_in_the_order_of_the_recipe():
    augmentation, clip, generator = make_augmentation({"time_dropout": {"prob": 0.3}}), white(0.2), seeded()
    changed = [not np.array_equal(augmentation(clip, RATE, generator), clip) for _ in range(500)]
    assert np.mean(changed) == pytest.approx(0.3, abs=0.06)
    ordered = [
        make_augmentation({name: {} for name in names}).kinds for names in (("noise", "speed"), ("speed", "noise"))
    ]
    assert [[kind.NAME for kind in kinds] for kinds in ordered] == [["noise", "speed"], ["speed", "noise"]]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.augmentation={noyse: {}}", r"data\.augmentation takes noise, reverb, .*, got 'noyse'"),
        ("data.augmentation={noise: {snr: 3}}", r"data\.augmentation\.noise takes prob, snr_db, folder, got .*'snr'"),
        ("data.augmentation={noise: {snr_db: [20, 5]}}", r"data\.augmentation\.noise\.snr_db must be .*\[20, 5\]"),
        ("data.augmentation={pitch: {prob: 2}}", r"data\.augmentation\.pitch\.prob must be between 0 and 1, got 2"),
        ("data.augmentation={noise: {folder: /no-such}}", r"noise\.folder: expected a folder with audio.*/no-such"),
        ("data.augment_past_only=true", r"augment_past_only has no effect without data\.augmentation"),
    ],
)
def test_what_a_recipe_cannot_mean_is_refused_by_name(tmp_path, override, message):
    path = tmp_path / "recipe.yaml"
    path.write_text("data: {train: somewhere}\nrun: {output_dir: runs/x}\n")
    with pytest.raises(ValueError, match=message):
        load_recipe(path, [override])


def test_clips_that_change_their_length_cannot_be_heard_in_the_past_only():
    with pytest.raises(ValueError, match=r"data\.augment_past_only needs clips whose length stays.*speed"):
        make_augmentation({"noise": {}, "speed": {}}, past_only=True)


@pytest.fixture
def corpus(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    records = []
    for number, length in enumerate(seeded().integers(1_600, 4_800, 24).tolist()):
        soundfile.write(corpus / f"{number}.wav", 0.1 * seeded(number).standard_normal(length), RATE)
        records.append({"file_name": f"{number}.wav", "text": "AB", "duration": length / RATE})
    (corpus / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)))
    return corpus


def pretraining(corpus, asked=None, *, past_only=False, **settings):
    augmentation = make_augmentation(asked, past_only=past_only)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    defaults = {"batch_seconds": 1.0, "min_seconds": 0.0, "max_seconds": 0.2, "shuffle_window": 8}
    return pretraining_batches(corpus, extractor, augmentation=augmentation, **{**defaults, **settings})


def take(batches, number):
    return [(batch["ids"], batch["input_values"]) for batch in islice(batches, number)]


def same(left, right):
    return all(ids == others and torch.equal(one, two) for (ids, one), (others, two) in zip(left, right, strict=True))


NOISY = {"noise": {"snr_db": [0, 10]}, "reverb": {"prob": 0.5}, "pitch": {}}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_that_resumes_is_augmented_as_if_it_had_never_stopped(corpus, num_workers):
    whole = take(pretraining(corpus, NOISY), 12)
    stopped = pretraining(corpus, NOISY, num_workers=num_workers)
    first = take(stopped, 5)
    resumed = pretraining(corpus, NOISY, num_workers=num_workers)
    resumed.load_state_dict(stopped.state_dict())
    assert same(first + take(resumed, 7), whole)
    assert not same(take(pretraining(corpus, NOISY, seed=1), 12)[:1], whole[:1])


def test_a_row_sounds_different_in_every_epoch_and_alike_whenever_it_comes_up_in_one(corpus):
    batches = pretraining(corpus, NOISY)
    loader = BatchLoader(batches.collator, batches.settings)
    row = PlannedRow(3, next(batches.sources[0].rows()), 0.1)
    first, again, next_epoch = (loader.load(row, epoch)["input_values"] for epoch in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, next_epoch)
    assert not np.array_equal(first, loader.load(replace(row, number=4), 0)["input_values"])


def test_past_only_augmentation_keeps_the_same_clean_crops_beside_the_augmented(corpus):
    clean = list(pretraining(corpus, num_epochs=1))
    both = list(pretraining(corpus, {"noise": {"snr_db": 0}}, past_only=True, num_epochs=1))
    for one, other in zip(clean, both, strict=True):
        assert torch.equal(one["input_values"], other["clean_input_values"])
        assert not torch.equal(one["input_values"], other["input_values"])
        assert "clean_input_values" not in one


def test_augmentation_leaves_rows_labels_and_padding_alone(corpus, tmp_path):
    vocabulary = tmp_path / "vocab.json"
    vocabulary.write_text(
        json.dumps({token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"AB"])})
    )
    extractor = Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    processor = Wav2Vec2Processor(extractor, Wav2Vec2CTCTokenizer(str(vocabulary)))
    plain, noisy = (
        list(finetuning_batches(corpus, processor, batch_seconds=1.0, num_epochs=1, augmentation=augmentation))
        for augmentation in (None, make_augmentation({"noise": {"snr_db": 0}, "reverb": {}}))
    )
    for one, other in zip(plain, noisy, strict=True):
        assert one["ids"] == other["ids"]
        for name in ("attention_mask", "labels", "recorded_rms", "recorded_mean"):
            assert torch.equal(one[name], other[name])
        padding = other["attention_mask"] == 0
        assert not other["input_values"][padding].any()
        assert (one["input_values"] != other["input_values"])[~padding].float().mean() > 0.9


CPC = """
architecture: CPC
model: {conv_dim: [8, 8, 8, 8, 8], hidden_size: 8, num_prediction_steps: 2, num_negatives: 5}
data: {batch_seconds: 1.0, max_seconds: 0.2, num_workers: 0, augmentation: {noise: {snr_db: 0}}}
optimization: {num_steps: 2, schedule: {kind: constant}}
run: {trackers: [], log_every_steps: 1}
"""


@pytest.mark.usefixtures("fresh_accelerator")
def test_a_recipe_trains_on_augmented_clips_and_cpc_predicts_the_clean_ones(corpus, tmp_path, monkeypatch):
    (tmp_path / "cpc.yaml").write_text(CPC)
    compute, seen = pretrain.compute, []
    monkeypatch.setattr(pretrain, "compute", lambda model, batch: seen.append(batch) or compute(model, batch))

    def gradients(name, *overrides):
        recipe = load_recipe(
            tmp_path / "cpc.yaml", [f"data.train={corpus}", f"run.output_dir={tmp_path / name}", *overrides]
        )
        forget_accelerator()
        seen.clear()
        pretrain.main(recipe)
        return [json.loads(line)["gradient_norm"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]

    plain = gradients("plain", "data.augmentation=null")
    noisy = gradients("noisy")
    assert not any("clean_input_values" in batch for batch in seen)
    past_only = gradients("past only", "data.augment_past_only=true")
    assert all((batch["clean_input_values"] != batch["input_values"]).any() for batch in seen)
    assert len({first for first, _ in (plain, noisy, past_only)}) == 3


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize(
    ("stage", "architecture", "message"),
    [
        (
            pretrain,
            "Wav2Vec",
            "augment_past_only needs a model that takes clean_input_values, such as CPC, got Wav2Vec",
        ),
        (finetune, "CPC", "augment_past_only has no effect in fine-tuning"),
    ],
)
def test_past_only_augmentation_is_refused_where_nothing_can_be_done_with_it(tmp_path, stage, architecture, message):
    (tmp_path / "recipe.yaml").write_text("data: {augmentation: {noise: {}}, augment_past_only: true, train: here}")
    recipe = load_recipe(
        tmp_path / "recipe.yaml", [f"architecture={architecture}", f"run.output_dir={tmp_path / 'run'}"]
    )
    with pytest.raises(ValueError, match=message):
        stage.main(recipe)
