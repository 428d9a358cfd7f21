"""The probe: labels stand where the phones are, frames are told apart as far as they differ, runs go on."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transformers

import hf_wav2vec_family
from training import abx, front_ends, probe
from training.abx import items_of
from training.alignments import aligned_batches, alignment_of
from training.front_ends import FrontEnd
from training.probe import LabelledFrames, accuracy_of, fit, standardize
from training.probe_tasks import TASKS, nearest_frames, numbered
from training.rows import Row
from training.skips import UnusableRow

RATE = 16_000
PITCH = {"AA": 300, "IY": 900, "S": 2_700}
TINY = {
    "CPC": {"conv_dim": [16] * 5, "hidden_size": 12, "predictor_intermediate_size": 16},
    "Wav2Vec": {"conv_dim": [8] * 5, "context_dim": [10, 10], "context_kernel": [2, 3]},
    "VQWav2Vec": {
        "conv_dim": [8] * 5,
        "conv_kernel": [10, 8, 4, 4, 4],
        "conv_stride": [5, 4, 2, 2, 2],
        "context_dim": [10, 10],
        "context_kernel": [2, 3],
        "num_codevectors_per_group": 4,
    },
    "Wav2Vec2": {
        "conv_dim": [8] * 7,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
        "num_codevectors_per_group": 4,
        "codevector_dim": 8,
        "proj_codevector_dim": 8,
    },
}


def write_clip(folder: Path, number: int, rng) -> dict:
    """A clip of tones, a pitch per phone, and its row of metadata."""
    phones = [str(p) for p in rng.choice(list(PITCH), size=6)]
    borders = np.concatenate([[0], np.cumsum(rng.integers(1_280, 3_000, size=6))])
    pieces = [
        0.3 * np.sin(2 * np.pi * PITCH[phone] / RATE * np.arange(stop - start))
        for phone, (start, stop) in zip(phones, pairwise(borders), strict=True)
    ]
    waveform = np.concatenate(pieces)
    soundfile.write(folder / f"{number}.wav", waveform + 0.01 * rng.standard_normal(len(waveform)), RATE)
    return {
        "file_name": f"{number}.wav",
        "phones": phones,
        "phone_start_s": (borders[:-1] / RATE).tolist(),
        "speaker_id": f"voice {number % 2}",
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("aligned"), np.random.default_rng(0)
    for split, num_clips in (("train", 12), ("dev", 4)):
        (folder / split).mkdir()
        rows = [write_clip(folder / split, number, rng) for number in range(num_clips)]
        (folder / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """A tiny folder of each architecture as pre-training leaves it."""
    transformers.set_seed(7)
    folders = {}
    for name, fields in TINY.items():
        config = getattr(hf_wav2vec_family, f"{name}Config")(**fields)
        folders[name] = str(tmp_path_factory.mktemp(name))
        getattr(hf_wav2vec_family, f"{name}ForPreTraining")(config).save_pretrained(folders[name])
        extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=config.expects_normalized_input)
        extractor.save_pretrained(folders[name])
    return folders


def run(corpus, output, *more: str) -> probe.Report:
    common = ["--test-split", "dev", "--num-epochs", "100", "--seeds", "2", "--device", "cpu", "--batch-seconds", "3"]
    return probe.main([str(corpus), *common, "--output", str(output), *more])


def row(**columns) -> Row:
    return Row("clip", "clip.wav", extra={"phones": ["A", "B"], "phone_start_s": [0.0, 0.02]} | columns)


def one_hot_frames(num_frames=400, num_phones=5, seed=0) -> LabelledFrames:
    """Frames that spell out their phone."""
    which = torch.randint(num_phones, (num_frames,), generator=torch.Generator().manual_seed(seed))
    phones = np.array([f"P{i}" for i in which])
    return LabelledFrames(torch.nn.functional.one_hot(which, num_phones).float(), torch.arange(num_frames), phones)


def test_a_label_is_the_phone_at_the_middle_of_each_whole_10_ms():
    alignment = alignment_of(row(), num_seconds=0.0499)
    np.testing.assert_allclose(alignment.times, [0.005, 0.015, 0.025, 0.035])
    assert alignment.phones.tolist() == ["A", "A", "B", "B"]
    assert len(alignment_of(row(), num_seconds=0.05).times) == 5


def test_a_phone_begins_at_its_start_and_what_has_no_phone_has_no_label():
    alignment = alignment_of(row(phone_start_s=[0.015, 0.035], phone_end_s=[0.025, 0.06]), num_seconds=0.08)
    np.testing.assert_allclose(alignment.times, [0.015, 0.035, 0.045, 0.055])
    assert alignment.phones.tolist() == ["A", "B", "B", "B"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"phones": None}, "clip: expected lists in the columns phones and phone_start_s, but phones is none"),
        ({"phones": "A B", "phone_start_s": "0 1"}, "phones and phone_start_s is none"),
        ({"phone_start_s": [0.0]}, "2, 1 and 1 entries"),
        ({"phone_start_s": [0.5, 0.1]}, r"must not fall, got \[0.5, 0.1\]"),
    ],
)
def test_columns_that_give_no_labels_are_refused_by_name(columns, message):
    with pytest.raises(ValueError, match=message):
        alignment_of(row(**columns), num_seconds=1.0)


def test_a_corpus_without_phones_is_refused_and_says_which_columns_it_has(corpus, tmp_path):
    write_clip(tmp_path, 0, np.random.default_rng(0))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.wav", "text": "A", "chapter": "x"}')
    with pytest.raises(ValueError, match="there are text, chapter"):
        run(tmp_path, tmp_path / "out", "--baseline", "mfcc", "--train-split", "dev")


def test_rows_that_are_not_aligned_are_left_out(corpus, tmp_path):
    rows = [json.loads(line) for line in (corpus / "dev" / "metadata.jsonl").read_text().splitlines()]
    (tmp_path / "dev").symlink_to(corpus / "dev")
    rows = [{**r, "file_name": f"dev/{r['file_name']}", "alignment_ok": i != 1} for i, r in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=False)
    batches = aligned_batches(str(tmp_path / "rows.jsonl"), extractor, batch_seconds=5.0)
    assert sum(len(batch["alignments"]) for batch in batches) == len(rows) - 1
    collator = batches.collator
    with pytest.raises(UnusableRow):
        collator.prepare(replace(row(), extra={**row().extra, "alignment_ok": False}), np.zeros(RATE))


def test_the_nearest_frame_is_that_with_the_nearest_centre():
    centers, times = torch.tensor([2.0, 4.0, 8.0]), torch.linspace(-1, 12, 50)
    expected = (times[:, None] - centers).abs().argmin(dim=1)
    assert nearest_frames(centers, times).tolist() == expected.tolist()
    assert nearest_frames(centers[:1], times).unique().tolist() == [0]


def test_each_label_gets_the_frame_centred_nearest_and_padding_gets_none(corpus):
    def centers(total):
        return 100.0 + 320 * torch.arange(total, dtype=torch.float64)

    def encode(input_values, attention_mask):
        total = input_values.shape[1] // 320
        return {"c": centers(total).float().expand(len(input_values), -1).unsqueeze(-1)}

    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=False)
    front_end = FrontEnd(encode, lambda samples: samples // 320, centers, extractor)

    def batches():
        return aligned_batches(str(corpus), extractor, batch_seconds=5.0)

    frames = probe.extract(front_end, batches(), TASKS["phones"], "cpu")["c"]
    nearest_centers, num_frames = [], 0
    for batch in batches():
        for samples, alignment in zip(batch["attention_mask"].sum(dim=1), batch["alignments"], strict=True):
            own = centers(int(samples) // 320).numpy()
            distance = np.abs(own - RATE * alignment.times[:, None])
            nearest_centers.append(own[distance.argmin(axis=1)])
            num_frames += len(own)
    assert len(frames.values) == num_frames
    np.testing.assert_array_equal(frames.values[frames.nearest, 0], np.concatenate(nearest_centers))
    short = replace(front_end, num_frames=lambda samples: samples // 640)
    with pytest.raises(ValueError, match="frames where the convolutions make"):
        probe.extract(short, batches(), TASKS["phones"], "cpu")


def test_frames_that_spell_out_the_phone_are_told_apart_without_error():
    train, test = one_hot_frames(seed=0), one_hot_frames(seed=1)
    standardize(train, test)
    classes = sorted(set(train.labels))
    fitted = fit(train, numbered(train.labels, classes), len(classes), seed=0, num_epochs=200)
    assert accuracy_of(fitted, test, numbered(test.labels, classes)) == 1.0


def test_labels_in_random_order_are_told_at_chance():
    train, test = one_hot_frames(4_000, seed=0), one_hot_frames(4_000, seed=1)
    for frames in (train, test):
        np.random.default_rng(0).shuffle(frames.labels)
    standardize(train, test)
    classes = sorted(set(train.labels))
    fitted = fit(train, numbered(train.labels, classes), len(classes), seed=0, num_epochs=50)
    assert accuracy_of(fitted, test, numbered(test.labels, classes)) == pytest.approx(0.2, abs=0.05)


def test_a_phone_that_training_has_not_seen_counts_as_an_error():
    assert numbered(np.array(["B", "X", "A"]), ["A", "B"]).tolist() == [1, -1, 0]


def test_standardised_channels_have_mean_0_and_variance_1_and_constant_ones_are_0():
    values = 5 + 3 * torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    values[:, 1] = 7.0
    train, test = (LabelledFrames(v, torch.arange(2), np.array(["A", "B"])) for v in (values, values[:2] + 1))
    standardize(train, test)
    torch.testing.assert_close(train.values.mean(dim=0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.values.var(dim=0, correction=0), torch.tensor([1.0, 0.0, 1.0]))
    assert (test.values[:, 1] == 0).all()


def test_the_same_seed_gives_the_same_probe_and_another_seed_another():
    train = one_hot_frames()
    targets = numbered(train.labels, sorted(set(train.labels)))
    first, again, other = (fit(train, targets, 5, seed=seed, num_epochs=1).weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_architecture_is_probed_beside_the_baselines(corpus, models, tmp_path, capsys):
    named = [f"{name}={folder}" for name, folder in models.items()]
    report = run(corpus, tmp_path, "--model", *named, "--layer", "c", "--random", "--baseline", "mfcc", "log_mel")
    rows = [f"{name} c{more}" for name in models for more in ("", ", random weights")] + ["mfcc", "log_mel"]
    assert list(report.summary()) == rows
    # the same labels for all, though wav2vec 2.0 has half the frames
    assert len({(r["num_train_labels"], r["num_test_labels"], r["chance"]) for r in report.results}) == 1
    assert report.summary()["mfcc"]["mean"] > 0.9
    assert [report.summary()[name]["num_channels"] for name in ("CPC c", "Wav2Vec2 c", "mfcc")] == [12, 16, 39]
    random = {r["accuracy"] for r in report.results if r["features"] == "Wav2Vec c, random weights"}
    assert len(random) == 2
    assert set(report.codes) == {"VQWav2Vec", "Wav2Vec2"}
    assert report.codes["VQWav2Vec"]["num_codes"] == 8
    assert 1 <= report.codes["VQWav2Vec"]["num_used_codes"] <= 8
    saved = json.loads((tmp_path / "probe.json").read_text())
    assert saved["summary"] == report.summary()
    shown = capsys.readouterr().out
    assert "| mfcc | 39 | " in shown
    for codes in report.codes.values():
        assert 0 <= codes["pnmi"] <= 1
        assert f"| {codes['phone_purity']:.3f} | {codes['cluster_purity']:.3f} | {codes['pnmi']:.3f} |" in shown


def test_layers_are_those_of_the_output_record(models):
    waveform = torch.randn(2, 3_200, generator=torch.Generator().manual_seed(0))
    encoder = front_ends.load_model(models["VQWav2Vec"]).base_model
    mask = torch.ones(2, 3_200, dtype=torch.long)
    output = encoder(waveform, attention_mask=mask, output_hidden_states=True)
    expected = {
        "c": output.last_hidden_state,
        "z": output.extract_features,
        "q": output.quantized_features,
        "1": output.hidden_states[1],
    }
    # all of them from one pass
    calls = []
    handle = encoder.register_forward_hook(lambda *_: calls.append(1))
    found = front_ends.frames_of(encoder, list(expected), waveform, mask)
    handle.remove()
    assert len(calls) == 1
    for layer, frames in expected.items():
        torch.testing.assert_close(found[layer], frames)
    for layer in ("3", "x"):
        with pytest.raises(ValueError, match=f"0 to 2 for VQWav2VecModel, got '{layer}'"):
            front_ends.frames_of(encoder, [layer], waveform, mask)
    with pytest.raises(ValueError, match="CPCModel has no q"):
        front_ends.frames_of(front_ends.load_model(models["CPC"]).base_model, ["q"], waveform, mask)


def test_random_weights_are_fresh_for_each_seed_and_those_of_the_folder_stay(models):
    saved, first, again, other = (front_ends.load_model(models["CPC"], seed) for seed in (None, 0, 0, 1))
    weights = [model.base_model.encoder.layers[0].conv.weight for model in (saved, first, again, other)]
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[1], weights[3])
    assert not torch.equal(weights[0], weights[1])


def test_a_run_that_goes_on_does_nothing_twice(corpus, tmp_path, monkeypatch):
    first = run(corpus, tmp_path, "--baseline", "mfcc", "--seeds", "1")
    fitted = []
    monkeypatch.setattr(probe, "fit", lambda *args, seed, **kw: fitted.append(seed) or fit(*args, seed=seed, **kw))
    more = run(corpus, tmp_path, "--baseline", "mfcc", "log_mel")
    assert fitted == [1, 0, 1]
    assert more.results[0] == first.results[0]
    monkeypatch.setattr(probe, "extract", None)  # would fail if it were called again
    assert run(corpus, tmp_path, "--baseline", "mfcc", "log_mel").results == more.results


def test_other_settings_or_another_model_of_the_name_are_refused(corpus, models, tmp_path):
    run(corpus, tmp_path, "--model", f"a={models['CPC']}", "--seeds", "1")
    with pytest.raises(ValueError, match=r"other settings.*train_seconds"):
        run(corpus, tmp_path, "--baseline", "mfcc", "--train-seconds", "3")
    with pytest.raises(ValueError, match=r"a c stands for .*rename one"):
        run(corpus, tmp_path, "--model", f"a={models['Wav2Vec']}", "--seeds", "1")
    with pytest.raises(ValueError, match="none twice"):
        run(corpus, tmp_path, "--baseline", "mfcc", "mfcc")
    with pytest.raises(ValueError, match="none twice"):
        run(corpus, tmp_path)


def test_all_layers_and_kinds_of_probe_come_from_one_extraction_and_what_is_there_is_not_made_again(
    corpus, models, tmp_path, monkeypatch
):
    extracted = []
    extract = probe.extract

    def counted(*arguments):
        extracted.append(1)
        return extract(*arguments)

    monkeypatch.setattr(probe, "extract", counted)
    options = ["--model", f"a={models['CPC']}", "--num-epochs", "1", "--probe", "linear", "hidden"]
    report = run(corpus, tmp_path, *options, "--layer", "c", "z")
    assert list(report.summary()) == ["a c", "a c, one hidden layer", "a z", "a z, one hidden layer"]
    assert len(extracted) == 2  # train and test, for 2 layers, 2 probes and 2 seeds
    more = run(corpus, tmp_path, *options, "--layer", "c", "z", "1", "--seeds", "3")
    assert len(extracted) == 4
    assert more.results[: len(report.results)] == report.results
    assert {(row, len(result["accuracies"])) for row, result in more.summary().items()} == {
        (f"a {layer}{kind}", 3) for layer in ("c", "z", "1") for kind in ("", ", one hidden layer")
    }


def test_a_hidden_layer_tells_what_no_line_separates():
    points = torch.randint(2, (600, 2), generator=torch.Generator().manual_seed(0)).float()
    labels = np.where((points[:, 0] == points[:, 1]).numpy(), "same", "other")  # exclusive or
    frames = LabelledFrames(2 * points - 1, torch.arange(600), labels)
    targets = numbered(labels, ["other", "same"])
    linear, hidden = (fit(frames, targets, 2, seed=0, num_epochs=30, kind=kind) for kind in ("linear", "hidden"))
    assert accuracy_of(linear, frames, targets) < 0.8
    assert accuracy_of(hidden, frames, targets) == 1.0


def test_a_speaker_is_told_from_the_mean_of_an_utterance(corpus, models, tmp_path):
    report = run(corpus, tmp_path, "--task", "speaker", "--model", f"a={models['CPC']}", "--baseline", "mfcc")
    result = report.results[0]
    assert (result["num_train_labels"], result["num_test_labels"], result["num_classes"]) == (12, 4, 2)
    assert result["num_channels"] == 12
    front_end = front_ends.baseline_front_end("mfcc", "cpu")
    settings, loading = report.settings, probe.Loading("cpu", 3.0, 0)
    batches = list(probe.batches_of(settings, "test", front_end.feature_extractor, loading))
    found = probe.extract(front_end, batches, TASKS["speaker"], "cpu")["mfcc"]
    clips = [clip["mfcc"].mean(dim=0) for batch in batches for clip in front_end.clips(batch, "cpu")]
    torch.testing.assert_close(found.values, torch.stack(clips))
    assert found.labels.tolist() == ["voice 0", "voice 1", "voice 0", "voice 1"]
    with pytest.raises(ValueError, match="other settings"):
        run(corpus, tmp_path, "--baseline", "mfcc")


def test_a_test_split_without_the_speakers_of_training_is_refused(corpus, tmp_path):
    for split, speaker in (("train", "a"), ("dev", "b")):
        (tmp_path / split).mkdir()
        (tmp_path / split / "0.wav").symlink_to(corpus / split / "0.wav")
        row = {"file_name": "0.wav", "speaker_id": speaker}
        (tmp_path / split / "metadata.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match="'dev' has none of the 1 labels of 'train'"):
        run(tmp_path, tmp_path / "out", "--task", "speaker", "--baseline", "mfcc")


def test_a_network_trained_end_to_end_tells_more_than_one_of_random_weights(corpus, models, tmp_path, monkeypatch):
    monkeypatch.setattr("training.supervised.LEARNING_RATE", 1e-2)
    options = ["--model", f"a={models['CPC']}", "--layer", "z", "--random", "--seeds", "1", "--num-epochs", "20"]
    report = run(corpus, tmp_path, *options, "--supervised-epochs", "6")
    rows = report.summary()
    assert list(rows) == ["a z", "a z, random weights", "a z, supervised"]
    assert rows["a z, supervised"]["mean"] > rows["a z, random weights"]["mean"] + 0.05
    with pytest.raises(ValueError, match=r"a z, supervised stands for .*6 epochs.*and now for .*5 epochs"):
        run(corpus, tmp_path, *options, "--supervised-epochs", "5")
    with pytest.raises(ValueError, match="got q, made of codes"):
        run(corpus, tmp_path / "q", *options[:2], "--layer", "q", "--supervised-epochs", "1")


def test_abx_compares_phones_between_the_same_neighbours_over_a_corpus(corpus, models, tmp_path):
    common = [str(corpus), "--split", "train", "--batch-seconds", "3", "--device", "cpu"]
    options = ["--model", f"a={models['CPC']}", "--layer", "c", "z", "--random", "--baseline", "mfcc"]
    results = abx.main([*common, *options, "--context", "none", "--output", str(tmp_path)])
    assert list(results) == ["a c", "a z", "a c, random weights", "a z, random weights", "mfcc"]
    # 4 of the 6 phones of each of 12 clips have two neighbours
    assert {result["num_takes"] for result in results.values()} == {48}
    assert {result["num_within_cells"] for result in results.values()} == {12}
    # tones of one pitch each
    assert results["mfcc"]["within"] < 0.05
    assert json.loads((tmp_path / "abx.json").read_text())["results"] == results


def test_an_item_file_says_what_abx_compares(corpus, tmp_path):
    rows = [json.loads(line) for line in (corpus / "train" / "metadata.jsonl").read_text().splitlines()]
    lines = ["#file onset offset #phone prev-phone next-phone speaker"]
    for number, found in enumerate(rows):
        starts, phones = found["phone_start_s"], found["phones"]
        lines += [
            f"{number} {starts[i]} {starts[i + 1]} {phones[i]} x y {found['speaker_id'].split()[1]}"
            for i in (1, 2, 3, 4)
        ]
    (tmp_path / "train.item").write_text("\n".join(lines))
    common = [str(corpus), "--split", "train", "--device", "cpu", "--baseline", "mfcc"]
    by_items = abx.main([*common, "--items", str(tmp_path / "train.item")])
    assert by_items == abx.main([*common, "--context", "none"])
    with pytest.raises(ValueError, match="at least one set of features"):
        abx.main(common[:-2])


def test_silences_are_neither_phones_nor_neighbours_for_abx():
    phones = ["SIL", "A", "B", "A", "B", "SIL", "A"]
    found = list(items_of(row(phones=phones, phone_start_s=[0.1 * i for i in range(7)], speaker_id=3), 1.0))
    assert [(item.phone, item.context, item.speaker) for item in found] == [("B", "A+A", "3"), ("A", "B+B", "3")]
    assert (found[0].onset, found[0].offset) == pytest.approx((0.2, 0.3))
