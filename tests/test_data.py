"""Batches: a function of the seed and the position, complete, bounded, and honest about what was left out."""

import json
import logging
import multiprocessing
import os
import signal
import threading
from itertools import islice, pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
import soundfile
import torch
from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

from training import manifests
from training.collators import num_frames_needed
from training.data import finetuning_batches, pretraining_batches
from training.planning import ahead
from training.skips import NUM_ROWS_TO_JUDGE

RATE = 16_000
NUM_CLIPS = 40


def write_corpus(folder, lengths, *, texts=None, with_durations=True):
    """Clips of `lengths` samples; sample s of clip n is n / 100 + s / 10**6, so that a crop tells its place."""
    folder.mkdir(exist_ok=True)
    records = []
    for number, length in enumerate(lengths):
        waveform = number / 100 + np.arange(length, dtype=np.float32) / 10**6
        soundfile.write(folder / f"{number:03d}.wav", waveform, RATE, subtype="FLOAT")
        records.append({"file_name": f"{number:03d}.wav", "text": "AB" if texts is None else texts[number]})
        if with_durations:
            records[-1]["duration"] = length / RATE
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)))
    return folder


@pytest.fixture
def corpus(tmp_path):
    lengths = np.random.default_rng(0).integers(800, 6400, NUM_CLIPS).tolist()
    return write_corpus(tmp_path / "corpus", lengths)


@pytest.fixture
def processor(tmp_path):
    vocabulary = tmp_path / "vocab.json"
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", "A", "B", "C"]
    vocabulary.write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    return Wav2Vec2Processor(make_feature_extractor(do_normalize=True), Wav2Vec2CTCTokenizer(str(vocabulary)))


def make_feature_extractor(do_normalize=False):
    return Wav2Vec2FeatureExtractor(do_normalize=do_normalize, return_attention_mask=True)


def pretraining(corpus, *, do_normalize=False, **settings):
    defaults = {"batch_seconds": 1.0, "min_seconds": 0.0, "max_seconds": 0.2, "shuffle_window": 16}
    return pretraining_batches(corpus, make_feature_extractor(do_normalize), **{**defaults, **settings})


def finetuning(corpus, processor, **settings):
    return finetuning_batches(corpus, processor, **{"batch_seconds": 1.0, "num_epochs": 1, **settings})


def take(batches, number):
    return list(islice(batches, number))


def assert_equal(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]


def all_ids(batches):
    return [name for batch in batches for name in batch["ids"]]


def test_the_number_of_workers_changes_nothing(corpus):
    assert_equal(take(pretraining(corpus, num_workers=0), 15), take(pretraining(corpus, num_workers=2), 15))


def test_workers_leave_signals_to_the_process_that_waits_for_their_batches(corpus):
    batches = iter(pretraining(corpus, num_workers=1))
    came = take(batches, 1)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
    assert_equal(came + take(batches, 12), take(pretraining(corpus), 13))


def test_the_global_generator_is_left_alone_and_has_no_say(corpus):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = take(pretraining(corpus), 5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert_equal(take(pretraining(corpus), 5), first)


def test_seeds_and_epochs_differ_in_order_and_crops(corpus):
    one_epoch = list(pretraining(corpus, num_epochs=1))
    two_epochs = list(pretraining(corpus, num_epochs=2))
    assert_equal(two_epochs[: len(one_epoch)], one_epoch)
    second = [batch for batch in two_epochs if batch["epoch"] == 1]
    other_seed = list(pretraining(corpus, num_epochs=1, seed=1))
    for epoch in (second, other_seed):
        assert sorted(all_ids(epoch)) == sorted(all_ids(one_epoch))
        assert all_ids(epoch) != all_ids(one_epoch)
    assert {frozenset(batch["ids"]) for batch in second} != {frozenset(batch["ids"]) for batch in one_epoch}
    begins = [
        {
            name: crop[0].item()
            for batch in epoch
            for name, crop in zip(batch["ids"], batch["input_values"], strict=True)
        }
        for epoch in (one_epoch, second)
    ]
    assert sum(begins[0][name] != begins[1][name] for name in begins[0]) > NUM_CLIPS / 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_stopped_anywhere_and_resumed_gives_exactly_the_remaining_batches_and_report(corpus, num_workers):
    (corpus / "003.wav").write_bytes(b"")
    (corpus / "020.wav").write_bytes(b"")
    settings = {"num_epochs": 2, "min_seconds": 0.1, "max_bad_fraction": 1.0, "num_workers": num_workers}
    whole = pretraining(corpus, **settings)
    expected = list(whole)
    stops = range(1, len(expected)) if num_workers == 0 else (7,)
    for stop in stops:
        stopped, resumed = pretraining(corpus, **settings), pretraining(corpus, **settings)
        take(stopped, stop)
        resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
        assert_equal(list(resumed), expected[stop:])
        assert resumed.report == whole.report
    assert whole.report.skipped["too_short"] > 0


def test_an_iteration_goes_on_where_the_last_one_stopped_and_begins_again_after_the_end(corpus):
    batches = pretraining(corpus, num_epochs=1)
    expected = list(pretraining(corpus, num_epochs=1))
    assert_equal(take(batches, 3) + list(batches), expected)
    assert_equal(list(batches), expected)
    assert batches.report.rows == NUM_CLIPS


def test_a_state_of_other_settings_is_refused_by_name(corpus):
    state = pretraining(corpus, seed=1).state_dict()
    with pytest.raises(ValueError, match=r"seed \(1 -> 2\)"):
        pretraining(corpus, seed=2).load_state_dict(state)


@pytest.mark.parametrize("shuffle_window", [0, 1, 7, 16, 1000])
def test_an_epoch_has_every_row_once(corpus, shuffle_window):
    assert sorted(all_ids(pretraining(corpus, shuffle_window=shuffle_window, num_epochs=1))) == [
        f"{number:03d}" for number in range(NUM_CLIPS)
    ]


def test_without_a_window_the_order_is_that_of_the_source(corpus):
    names = all_ids(pretraining(corpus, shuffle_window=0, num_epochs=1))
    assert names == sorted(names)


def test_the_ranks_share_out_the_batches_and_the_rows_left_out(corpus):
    (corpus / "007.wav").write_bytes(b"")
    settings = {"num_epochs": 1, "min_seconds": 0.1, "max_bad_fraction": 1.0}
    alone = pretraining(corpus, **settings)
    expected = list(alone)
    ranks = [pretraining(corpus, rank=rank, world_size=3, **settings) for rank in range(3)]
    handed_out = [list(rank) for rank in ranks]
    assert [batch["index"] % 3 for rank in handed_out for batch in rank] == [
        number for number, rank in enumerate(handed_out) for _ in rank
    ]
    assert_equal(sorted((b for rank in handed_out for b in rank), key=lambda b: b["index"]), expected)
    assert sum(rank.report.rows for rank in ranks) == alone.report.rows == NUM_CLIPS
    for reason, number in alone.report.skipped.items():
        assert sum(rank.report.skipped[reason] for rank in ranks) == number


def indices(batches):
    return [batch["index"] for batch in batches]


@pytest.mark.parametrize("num_streams", [1, 2])
@pytest.mark.parametrize(("before", "now"), [(1, 2), (2, 1), (2, 3), (3, 2)])
def test_with_other_processes_a_run_goes_on_with_exactly_the_batches_that_were_left(corpus, num_streams, before, now):
    (corpus / "003.wav").write_bytes(b"")  # batches of a row are passed over, and ranks get uneven
    (corpus / "020.wav").write_bytes(b"")
    settings = {"max_bad_fraction": 1.0, "num_streams": num_streams, "batch_seconds": 0.2}
    expected = take(pretraining(corpus, **settings), 60)
    ranks = [pretraining(corpus, rank=rank, world_size=before, **settings) for rank in range(before)]
    done = [batch for rank in ranks for batch in take(rank, 7)]
    states = [json.loads(json.dumps(rank.state_dict())) for rank in ranks]
    resumed = [pretraining(corpus, rank=rank, world_size=now, num_workers=rank, **settings) for rank in range(now)]
    for rank in resumed:
        rank.load_state_dicts(states)
    assert sum(rank.report.rows for rank in resumed) == sum(rank.report.rows for rank in ranks)
    done += [batch for rank in resumed for batch in take(rank, 9)]
    done.sort(key=lambda batch: batch["index"])
    wanted = set(indices(expected)) & set(range(min(7 * before, indices(done)[-1])))
    assert set(indices(done)) >= wanted
    assert len(set(indices(done))) == len(done)
    by_index = {batch["index"]: batch for batch in expected}
    shared = [batch for batch in done if batch["index"] in by_index]
    assert_equal(shared, [by_index[batch["index"]] for batch in shared])


def test_one_ranks_place_is_refused_by_another_number_of_processes(corpus):
    state = pretraining(corpus, rank=0, world_size=2).state_dict()
    with pytest.raises(ValueError, match=r"world_size \(2 -> 3\)"):
        pretraining(corpus, rank=0, world_size=3).load_state_dict(state)


def test_a_rank_reads_its_own_shards_only_where_rows_come_with_their_audio(corpus, monkeypatch):
    monkeypatch.setattr("training.data.KINDS_WITH_AUDIO", ("manifest",))
    opened, manifest_rows = [], manifests.manifest_rows

    def note(manifest, stretch, begin):
        opened.append(stretch.lines_before)
        return manifest_rows(manifest, stretch, begin)

    monkeypatch.setattr(manifests, "manifest_rows", note)
    seen = []
    for rank in range(2):
        batches = pretraining(corpus, rank=rank, world_size=2)  # 40 rows are two shards
        opened.clear()
        first_epoch = [batch for batch in take(batches, 20) if batch["epoch"] == 0]
        seen.append({name for batch in first_epoch for name in batch["ids"]})
        assert indices(first_epoch) == list(range(rank, 2 * len(first_epoch), 2))
        assert opened[0] == (0 if "000" in seen[rank] else 32)
    assert not seen[0] & seen[1]
    assert len(seen[0] | seen[1]) == NUM_CLIPS


def test_fewer_shards_than_processes_are_read_by_all_and_a_warning_says_so(corpus, monkeypatch, caplog):
    monkeypatch.setattr("training.data.KINDS_WITH_AUDIO", ("manifest",))
    ranks = [pretraining(corpus, rank=rank, world_size=3) for rank in range(3)]
    assert "2 shards for 3 processes" in caplog.text
    monkeypatch.undo()
    expected = take(pretraining(corpus), 9)
    assert_equal(sorted((b for rank in ranks for b in take(rank, 3)), key=lambda b: b["index"]), expected)


def test_batches_of_one_speaker_hold_no_other_and_leave_no_row_out(corpus):
    metadata = corpus / "metadata.jsonl"
    rows = [json.loads(line) for line in metadata.read_text().splitlines()]
    with pytest.raises(ValueError, match="needs a column speaker_id, which 0"):
        take(pretraining(corpus, same_speaker=True), 1)
    speakers = {f"{number:03d}": f"voice-{number % 3}" for number in range(NUM_CLIPS)}
    named = [row | {"speaker_id": speakers[row["file_name"][:3]]} for row in rows]
    metadata.write_text("\n".join(map(json.dumps, named)))
    batches = list(pretraining(corpus, same_speaker=True, with_speakers=True, num_epochs=1, shuffle_window=100))
    assert sorted(all_ids(batches)) == sorted(speakers)
    for batch in batches:
        assert len({speakers[name] for name in batch["ids"]}) == 1
        assert len(batch["speaker_ids"].unique()) == 1
    assert max(len(batch["ids"]) for batch in batches) > 2


def test_sources_are_mixed_by_weight_and_resumed_in_the_middle(tmp_path):
    folders = [write_corpus(tmp_path / name, [2000] * number) for name, number in (("a", 30), ("b", 4))]
    weighted = [{"path": str(folder), "weight": weight} for folder, weight in zip(folders, (1, 3), strict=True)]
    settings = {"batch_seconds": 0.25, "shuffle_window": 8}
    expected = take(pretraining(weighted, **settings), 40)
    small = [name for batch in expected for name in batch["ids"] if name < "004"]
    assert len(small) == pytest.approx(0.75 * 80, abs=4 + 80 * 4 / 30)
    stopped, resumed = pretraining(weighted, **settings), pretraining(weighted, **settings)
    take(stopped, 13)
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert_equal(take(resumed, 27), expected[13:])
    with pytest.raises(ValueError, match="no common epoch"):
        list(pretraining(weighted, num_epochs=1, **settings))


def test_what_is_made_ahead_comes_in_order_with_its_error_and_ends_when_nobody_asks():
    def items():
        for number in range(100):
            if number == 7:
                raise ValueError("the eighth")
            yield number

    came = ahead(items(), 3)
    assert take(came, 7) == list(range(7))
    with pytest.raises(ValueError, match="the eighth"):
        next(came)

    before = set(threading.enumerate())
    unfinished = ahead(iter(range(10**9)), 3)
    assert take(unfinished, 2) == [0, 1]
    (thread,) = set(threading.enumerate()) - before
    unfinished.close()
    thread.join(timeout=60)
    assert not thread.is_alive()


def test_no_batch_is_longer_than_asked_for_padding_included(corpus, processor):
    for batches in (
        pretraining(corpus, num_epochs=1),
        finetuning(corpus, processor),
        finetuning(corpus, processor, shuffle_window=0),
    ):
        sizes = [batch["input_values"].numel() / RATE for batch in batches]
        assert max(sizes) <= 1.0
        assert max(sizes) > 0.8


def test_lengths_come_in_steps_where_they_are_asked_for(corpus, processor):
    seconds = {"length_step_seconds": 0.125, "max_seconds": 0.8, "min_seconds": 0.05}
    crops = {batch["input_values"].shape[1] for batch in pretraining(corpus, num_epochs=1, **seconds)}
    plain = {batch["input_values"].shape[1] for batch in pretraining(corpus, num_epochs=1, max_seconds=0.8)}
    assert all(length % 2_000 == 0 or length == round(0.8 * RATE) or length < 2_000 for length in crops)
    assert max(crops) == 6_000
    assert not all(length % 2_000 == 0 for length in plain)
    padded = list(finetuning(corpus, processor, length_step_seconds=0.125))
    assert all(batch["input_values"].shape[1] % 2_000 == 0 for batch in padded)
    assert all(batch["attention_mask"].sum(1).max() > batch["input_values"].shape[1] - 2_000 for batch in padded)
    assert max(batch["input_values"].numel() for batch in padded) <= RATE


def test_batches_hold_rows_of_about_one_length(tmp_path):
    lengths = np.random.default_rng(0).integers(16_000, 64_000, NUM_CLIPS).tolist()
    corpus = write_corpus(tmp_path / "c", lengths)
    batches = list(pretraining(corpus, max_seconds=4, batch_seconds=8, shuffle_window=1000, num_epochs=1))
    assert len(batches) < NUM_CLIPS / 2
    for batch in batches:
        in_batch = [lengths[int(name)] for name in batch["ids"]]
        assert max(in_batch) < 1.5 * min(in_batch)


def test_batches_of_short_and_long_rows_come_in_mixed_order(corpus):
    batches = pretraining(corpus, max_seconds=0.4, shuffle_window=1000, num_epochs=1)
    lengths = [batch["input_values"].shape[1] for batch in batches]
    assert any(later < 0.8 * earlier for earlier, later in pairwise(lengths))


def test_rows_of_one_batch_are_cropped_at_places_of_their_own(tmp_path):
    (batch,) = pretraining(write_corpus(tmp_path / "c", [8000] * 5), num_epochs=1)
    begins = [crop[0] - int(name) / 100 for name, crop in zip(batch["ids"], batch["input_values"], strict=True)]
    assert len({round(begin.item() * 10**6) for begin in begins}) == 5


def test_crops_lie_inside_their_rows_at_every_place_and_are_as_long_as_the_shortest_row(tmp_path):
    lengths = [5000, 4000, 2000, 3500]
    batches = pretraining(write_corpus(tmp_path / "c", lengths), max_seconds=3000 / RATE, shuffle_window=2)
    places = []
    for batch in take(batches, 200):
        assert batch.keys() == {"input_values", "ids", "index", "epoch", "recorded_rms", "recorded_mean"}
        expected = min(3000, *(lengths[int(name)] for name in batch["ids"]))
        assert batch["input_values"].shape == (len(batch["ids"]), expected)
        for name, crop in zip(batch["ids"], batch["input_values"].double(), strict=True):
            begin = round((crop[0].item() - int(name) / 100) * 10**6)
            np.testing.assert_allclose(crop, int(name) / 100 + (begin + np.arange(expected)) / 10**6, atol=1e-7)
            assert 0 <= begin <= lengths[int(name)] - expected
            if name == "000":
                places.append(begin / (lengths[0] - expected))
    assert min(places) < 0.1
    assert max(places) > 0.9


def test_speakers_have_the_same_number_everywhere_if_every_row_names_one(tmp_path):
    folder = write_corpus(tmp_path / "corpus", [2_000] * 6)
    metadata = folder / "metadata.jsonl"
    rows = [json.loads(line) for line in metadata.read_text().splitlines()]

    def batches(speakers, **settings):
        named = [row | ({} if s is None else {"speaker_id": s}) for row, s in zip(rows, speakers, strict=True)]
        metadata.write_text("\n".join(map(json.dumps, named)))
        return list(pretraining(folder, num_epochs=1, **settings))

    speakers = ["a", "b", "a", 7, 7, "b"]
    numbers = {}
    for num_workers in (0, 1):
        for batch in batches(speakers, with_speakers=True, num_workers=num_workers):
            for name, number in zip(batch["ids"], batch["speaker_ids"].tolist(), strict=True):
                numbers.setdefault(speakers[int(name)], set()).add(number)
    assert all(len(found) == 1 for found in numbers.values())
    assert len(set.union(*numbers.values())) == 3
    assert min(set.union(*numbers.values())) >= 0
    assert all("speaker_ids" not in batch for batch in batches(speakers))
    assert all("speaker_ids" not in batch for batch in batches([None] * 6, with_speakers=True))


def test_rows_are_normalised_as_a_whole_before_they_are_cropped(tmp_path):
    whole = np.arange(8000, dtype=np.float32) / 10**6
    whole = (whole - whole.mean()) / np.sqrt(whole.var() + 1e-7)
    (batch,) = take(pretraining(write_corpus(tmp_path / "c", [8000]), do_normalize=True), 1)
    crop = batch["input_values"][0].numpy()
    begin = np.abs(whole - crop[0]).argmin()
    np.testing.assert_allclose(crop, whole[begin : begin + len(crop)], atol=1e-4)


def test_lengths_come_from_the_headers_where_the_metadata_lack_them(tmp_path):
    lengths = [1000, 3000, 9000]
    batches = [
        list(pretraining(write_corpus(tmp_path / name, lengths, with_durations=known), num_epochs=1, min_seconds=0.1))
        for name, known in (("known", True), ("unknown", False))
    ]
    assert_equal(*batches)
    assert sorted(all_ids(batches[0])) == ["001", "002"]


def test_rows_too_short_and_too_long_are_left_out_and_counted_even_if_the_metadata_lie(tmp_path, processor):
    corpus = write_corpus(tmp_path / "c", [1000, 3000, 9000, 1000, 9000])
    records = [json.loads(line) for line in (corpus / "metadata.jsonl").read_text().splitlines()]
    records[3]["duration"] = records[4]["duration"] = 3000 / RATE
    (corpus / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)))
    batches = finetuning(corpus, processor, min_seconds=0.1, max_seconds=0.5)
    assert all_ids(batches) == ["001"]
    assert batches.report.rows == 5
    assert batches.report.skipped["too_short"] == batches.report.skipped["too_long"] == 2
    assert sorted(batches.report.examples["too_long"])[0].startswith("002: 0.56 s")


@pytest.mark.parametrize("with_durations", [True, False])
def test_bad_rows_are_counted_named_and_left_out(tmp_path, caplog, with_durations):
    corpus = write_corpus(tmp_path / "c", [3000] * 9, with_durations=with_durations)
    (corpus / "000.wav").unlink()
    (corpus / "001.wav").write_bytes(b"RIFF, but not really")
    soundfile.write(corpus / "002.wav", np.full(3000, np.nan), RATE, subtype="FLOAT")
    soundfile.write(corpus / "003.wav", np.zeros(0), RATE)
    batches = pretraining(corpus, num_epochs=1, num_workers=2)
    with caplog.at_level(logging.WARNING):
        assert sorted(all_ids(batches)) == [f"00{number}" for number in range(4, 9)]
    assert batches.report.rows == 9
    assert batches.report.skipped["bad"] == len(batches.report.examples["bad"]) == 4
    for name in ("000", "001", "002", "003"):
        assert f"left out (bad): {name}: " in caplog.text


def test_a_batch_with_nothing_left_is_passed_over_and_the_next_one_handed_out(tmp_path):
    corpus = write_corpus(tmp_path / "c", [3000] * 6)
    (corpus / "002.wav").unlink()
    batches = pretraining(corpus, shuffle_window=0, batch_seconds=0.2, num_epochs=1)
    assert [batch["ids"] for batch in batches] == [["000"], ["001"], ["003"], ["004"], ["005"]]
    assert [batch["index"] for batch in batches] == [0, 1, 3, 4, 5]


def test_batches_of_fewer_clips_than_the_objective_needs_are_counted_and_left_out(corpus):
    batches = pretraining(corpus, min_clips=2, num_epochs=1, batch_seconds=0.45)
    seen = list(batches)
    assert min(len(batch["ids"]) for batch in seen) == 2
    assert batches.report.skipped["alone"] == NUM_CLIPS - len(all_ids(seen)) > 0
    assert "1 clips in its batch" in batches.report.examples["alone"][0]


@pytest.mark.parametrize("with_durations", [True, False])
def test_too_many_bad_rows_stop_the_iteration_with_their_share_and_names(tmp_path, with_durations):
    corpus = write_corpus(tmp_path / "c", [800] * (NUM_ROWS_TO_JUDGE + 20), with_durations=with_durations)
    for number in (1, 5, 9):
        (corpus / f"{number:03d}.wav").unlink()
    assert len(all_ids(pretraining(corpus, num_epochs=1, max_bad_fraction=0.03))) == NUM_ROWS_TO_JUDGE + 17
    with pytest.raises(ValueError, match=r"^3 of 1[02]0 rows \(\d\.\d%\).*0\.5%.*001: .*no such file.*005: .*009: "):
        list(pretraining(corpus, shuffle_window=0, num_epochs=1, max_bad_fraction=0.005))


@pytest.mark.parametrize("num_clips", [3, 120])
def test_a_corpus_of_nothing_but_unusable_rows_is_an_error_and_no_endless_loop(tmp_path, processor, num_clips):
    corpus = write_corpus(tmp_path / "c", [800] * num_clips, texts=["abc"] * num_clips)
    with pytest.raises(ValueError, match=r"None of .* too_short.*\d{3}: 0\.05 s, min_seconds"):
        next(iter(pretraining(corpus, min_seconds=0.1)))
    with pytest.raises(ValueError, match=r"None of .* bad_text.*not in the vocabulary: 'a' 'b' 'c'"):
        next(iter(finetuning(corpus, processor, num_epochs=None)))
    with pytest.raises(ValueError, match=r"None of .* bad_text"):
        list(finetuning(corpus, processor))
    for path in corpus.glob("*.wav"):
        path.unlink()
    with pytest.raises(ValueError, match=r"no usable audio|None of .* bad"):
        next(iter(pretraining(corpus)))


def test_settings_that_contradict_each_other_are_refused(corpus, processor):
    for settings in (
        {"min_seconds": 0.3, "max_seconds": 0.2},
        {"max_seconds": 2.0},
        {"rank": 2, "world_size": 2},
        {"shuffle_window": -1},
        {"length_step_seconds": -1},
    ):
        with pytest.raises(ValueError, match="expected"):
            pretraining(corpus, **settings)
    with pytest.raises(ValueError, match="text_case"):
        finetuning(corpus, processor, text_case="title")
    with pytest.raises(ValueError, match="on_bad_text"):
        finetuning(corpus, processor, on_bad_text="ignore")


def test_finetuning_batches_are_whole_utterances_padded_with_masks_and_labels(tmp_path, processor):
    corpus = write_corpus(tmp_path / "c", [2000, 3000], texts=["A  B\n", "ABC"])
    (batch,) = finetuning(corpus, processor, shuffle_window=0)
    assert batch["attention_mask"].sum(1).tolist() == [2000, 3000]
    assert batch["input_values"].shape == batch["attention_mask"].shape == (2, 3000)
    assert not batch["input_values"][0, 2000:].any()
    assert batch["input_values"][0, :2000].mean().item() == pytest.approx(0, abs=1e-3)
    assert batch["input_values"][0, :2000].std().item() == pytest.approx(1, abs=0.2)
    assert batch["labels"].tolist() == [[5, 4, 6], [5, 6, 7]]
    assert batch["texts"] == ["A B", "ABC"]
    assert batch["ids"] == ["000", "001"]


def test_shorter_labels_are_padded_with_minus_100(tmp_path, processor):
    corpus = write_corpus(tmp_path / "c", [2000, 3000, 3000], texts=["A", "ABC", ""])
    (batch,) = finetuning(corpus, processor, shuffle_window=0)
    assert batch["labels"].tolist() == [[5, -100, -100], [5, 6, 7], [-100, -100, -100]]


def test_a_text_outside_the_vocabulary_or_missing_is_left_out_and_named_or_an_error(tmp_path, processor):
    corpus = write_corpus(tmp_path / "c", [2000] * 3, texts=["ABBÉ?", "abc", None])
    batches = finetuning(corpus, processor, text_case="upper", shuffle_window=0)
    assert [batch["texts"] for batch in batches] == [["ABC"]]
    assert batches.report.examples["bad_text"] == ["000: not in the vocabulary: '?' 'É'.", "002: no text."]
    for num_workers in (0, 1):
        settings = {"shuffle_window": 0, "on_bad_text": "error", "num_workers": num_workers}
        with pytest.raises(ValueError, match=r"^000: not in the vocabulary: '\?' 'É'\.$"):
            list(finetuning(corpus, processor, text_case="upper", **settings))


def test_labels_that_do_not_fit_the_frames_are_an_error_if_asked(tmp_path, processor):
    corpus = write_corpus(tmp_path / "c", [1600] * 2, texts=["ABCABC", "A"])
    settings = {"shuffle_window": 0, "num_frames": lambda num_samples: num_samples // 320, "on_bad_text": "error"}
    with pytest.raises(ValueError, match=r"^000: 6 labels need 6 frames, the audio gives 5\.$"):
        list(finetuning(corpus, processor, **settings))


def test_labels_that_do_not_fit_the_frames_are_left_out_blanks_between_doubles_included(tmp_path, processor):
    labels = ([], [5], [5, 6, 5], [5, 5, 5])
    assert [num_frames_needed(one) for one in labels] == [0, 1, 3, 5]
    assert [num_frames_needed(one, merge_repeats=True) for one in labels] == [0, 1, 3, 1]
    corpus = write_corpus(tmp_path / "c", [1600] * 3, texts=["ABCAB", "AABC", "AABB"])
    batches = finetuning(corpus, processor, shuffle_window=0, num_frames=lambda num_samples: num_samples // 320)
    assert all_ids(batches) == ["000", "001"]
    assert batches.report.examples["too_many_labels"] == ["002: 4 labels need 6 frames, the audio gives 5."]


def test_a_label_budget_keeps_the_first_rows_of_the_documented_shuffle(corpus):
    records = [json.loads(line) for line in (corpus / "metadata.jsonl").read_text().splitlines()]
    for budget_seconds, seed in ((1.0, 0), (3.0, 0), (3.0, 1)):
        shuffled = list(records)
        Random(seed).shuffle(shuffled)
        kept = []
        while sum(record["duration"] for record in kept) < budget_seconds:
            kept.append(shuffled[len(kept)])
        batches = pretraining(corpus, num_epochs=2, budget_seconds=budget_seconds, budget_seed=seed)
        assert sorted(all_ids(batches)) == sorted([record["file_name"][:3] for record in kept] * 2)
    with pytest.raises(ValueError, match="budget_seconds: 1000"):
        next(iter(pretraining(corpus, budget_seconds=1000)))


def test_several_sources_are_read_one_after_another(tmp_path):
    folders = [write_corpus(tmp_path / name, [2000, 3000]) for name in "ab"]
    batches = pretraining([str(folder) for folder in folders], shuffle_window=0, num_epochs=1)
    assert all_ids(batches) == ["000", "001", "000", "001"]


def test_real_opus_speech_becomes_batches_of_the_ten_minutes_asked_for(processor):
    folder = Path(__file__).parents[2] / "shared" / "data" / "librispeech-clean-5"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    source = {"path": str(folder), "split": "dev"}
    batches = pretraining(source, num_epochs=1, batch_seconds=80, max_seconds=15.0, budget_seconds=120)
    seconds = [batch["input_values"].numel() / RATE for batch in batches]
    assert 60 < sum(seconds) < 140
    assert max(seconds) <= 80
    assert batches.report.rows == batches.report.used


def test_more_streams_than_shards_are_refused(tmp_path):
    corpus = write_corpus(tmp_path / "c", [2000] * 3)
    with pytest.raises(ValueError, match="num_streams: expected at most 1, the shards of a source, got 2"):
        pretraining_batches(corpus, Wav2Vec2FeatureExtractor(), batch_seconds=20.0, num_streams=2)
