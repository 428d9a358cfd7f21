"""Extraction of codes: whole shards, the same after a kill and from any number of processes, counted and pictured."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from interruptions import Killed, forget_accelerator

from hf_wav2vec_family import (
    SpeechCodesTokenizer,
    VQWav2VecConfig,
    VQWav2VecForPreTraining,
    Wav2VecConfig,
    Wav2VecModel,
)
from training import extract_codes
from training.extract_codes import Shards, read_codes, read_state, usage_of
from training.pretrain import make_feature_extractor
from training.recipe import Recipe
from training.sources import Source, open_source

RATE = 16_000
NUM_ROWS = 9
TINY = {
    "conv_dim": [8] * 5,
    "conv_kernel": [10, 8, 4, 4, 4],
    "conv_stride": [5, 4, 2, 2, 2],
    "context_dim": [8],
    "context_kernel": [2],
    "num_codevectors_per_group": 6,
}


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch, fresh_accelerator):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vq")
    torch.manual_seed(0)
    config = VQWav2VecConfig(**TINY)
    VQWav2VecForPreTraining(config).save_pretrained(folder)
    make_feature_extractor(Recipe(), config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Nine clips of noise of different lengths, one without a text, and one file that is no audio."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    with (folder / "metadata.jsonl").open("w") as metadata:
        for number in range(NUM_ROWS):
            tone = np.sin(np.arange(int(rng.uniform(0.2, 0.6) * RATE)) * 0.02 * (number + 1))
            soundfile.write(folder / f"{number}.wav", 0.3 * tone + 0.02 * rng.standard_normal(len(tone)), RATE)
            row = {"file_name": f"{number}.wav", "speaker_id": number % 2}
            metadata.write(json.dumps(row | ({"text": f"text {number}"} if number else {})) + "\n")
    return folder


def extract(model_folder: Path, corpus: Path, output: Path, *more: str) -> dict:
    forget_accelerator()
    arguments = [str(model_folder), str(corpus), "--output", str(output), "--batch-seconds", "1.0"]
    return extract_codes.main([*arguments, "--rows-per-shard", "2", "--num-workers", "0", *more])


@pytest.fixture(scope="module")
def whole(model_folder, corpus, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("codes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        extract(model_folder, corpus, output)
    return output


def rows_of(output: Path) -> dict:
    return {row.id: row for row in open_source(Source(str(output))).rows()}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_row_has_the_codes_of_its_clip_alone_its_length_text_and_speaker(whole, model_folder, corpus):
    model = VQWav2VecForPreTraining.from_pretrained(model_folder).eval()
    rows = rows_of(whole)
    assert sorted(rows) == [str(number) for number in range(NUM_ROWS)]
    for name, row in rows.items():
        waveform, _ = soundfile.read(corpus / f"{name}.wav", dtype="float32")
        alone = model.quantize(torch.from_numpy(waveform)[None])[0]
        assert torch.equal(torch.tensor(row.extra["codes"]), alone)
        assert row.duration_seconds == len(waveform) / RATE
        assert row.text == (f"text {name}" if name != "0" else None)
        assert row.extra["speaker_id"] == str(int(name) % 2)


def test_the_usage_is_that_of_all_codes_together(whole):
    codes = torch.cat([read_codes(path) for path in sorted((whole / "train").glob("*.parquet"))])
    usage = json.loads((whole / "train" / "usage.json").read_text())
    assert (usage["num_rows"], usage["num_frames"], usage["skipped"]) == (NUM_ROWS, len(codes), {})
    assert usage["num_used_tuples"] == len({tuple(frame) for frame in codes.tolist()})
    assert usage["seconds"] == pytest.approx(sum(row.duration_seconds for row in rows_of(whole).values()))
    for group, found in zip(codes.T, usage["groups"], strict=True):
        counts = torch.bincount(group)
        shares = counts[counts > 0] / len(codes)
        assert found["num_used_codes"] == len(shares)
        assert found["perplexity"] == pytest.approx(math.exp(-(shares * shares.log()).sum()), rel=1e-4)
    assert usage["perplexity"] == pytest.approx(sum(group["perplexity"] for group in usage["groups"]))
    assert len(usage["counts"]) == 2
    assert len(usage["counts"][0]) == TINY["num_codevectors_per_group"]
    assert (whole / "train" / "usage.png").read_bytes().startswith(b"\x89PNG")


def test_the_vocabulary_is_learned_from_all_shards(whole):
    codes = [read_codes(path) for path in sorted((whole / "train").glob("*.parquet"))]
    assert len(codes) > 2
    learned = SpeechCodesTokenizer.from_pretrained(whole / "train" / "vocabulary")
    assert learned.word_counts == SpeechCodesTokenizer.from_codes(codes).word_counts
    assert learned.num_codevectors_per_group == TINY["num_codevectors_per_group"]


def test_words_that_are_seldom_can_be_left_out_of_the_vocabulary(whole, model_folder, corpus, tmp_path):
    extract(model_folder, corpus, tmp_path, "--min-count", "10")
    everything = SpeechCodesTokenizer.from_pretrained(whole / "train" / "vocabulary").word_counts
    often = SpeechCodesTokenizer.from_pretrained(tmp_path / "train" / "vocabulary").word_counts
    assert {word for word, count in often.items() if count} == {w for w, count in everything.items() if count >= 10}
    assert set(everything) - set(often)


@pytest.mark.parametrize("shards_before", [0, 2])
def test_a_killed_run_that_is_started_again_leaves_the_same_files(
    whole, model_folder, corpus, tmp_path, monkeypatch, shards_before
):
    replace, calls = os.replace, []

    def replace_until_killed(source, target):
        if str(source).endswith(".unfinished"):
            calls.append(target)
            if len(calls) > shards_before:
                raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_until_killed)
        with pytest.raises(Killed):
            extract(model_folder, corpus, tmp_path)
    assert len(list((tmp_path / "train").glob("*.parquet"))) == shards_before
    assert not (tmp_path / "train" / "usage.json").exists()
    encode, encoded = extract_codes.encode, []
    monkeypatch.setattr(
        extract_codes, "encode", lambda model, batch: encoded.extend(batch["ids"]) or encode(model, batch)
    )
    extract(model_folder, corpus, tmp_path)
    assert contents(tmp_path) == contents(whole)
    assert (len(encoded) < NUM_ROWS) == (shards_before > 0)


def test_a_finished_run_that_is_started_again_encodes_nothing(whole, model_folder, corpus, monkeypatch):
    before = contents(whole)
    monkeypatch.setattr(extract_codes, "encode", None)
    extract(model_folder, corpus, whole)
    assert contents(whole) == before


def test_two_processes_find_what_one_finds(whole, model_folder, corpus, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    arguments = [str(model_folder), str(corpus), "--output", str(tmp_path), "--batch-seconds", "1.0"]
    process = subprocess.run(
        [*command, "-m", "training.extract_codes", *arguments, "--rows-per-shard", "2", "--num-workers", "0"],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    one, two = rows_of(whole), rows_of(tmp_path)
    assert {path.name[:5] for path in (tmp_path / "train").glob("*.parquet")} == {"00000", "00001"}
    assert len(list(open_source(Source(str(tmp_path))).rows())) == NUM_ROWS
    assert two == one
    words = {"train/vocabulary/dict.txt", "train/usage.json", "train/usage.png"}
    assert {name: contents(tmp_path)[name] for name in words} == {name: contents(whole)[name] for name in words}
    with pytest.raises(ValueError, match="of a run of more than 1 processes"):
        extract(model_folder, corpus, tmp_path)


def test_a_folder_with_codes_of_something_else_is_refused(whole, model_folder, corpus):
    with pytest.raises(ValueError, match=r"holds codes of .*not of"):
        extract(model_folder, corpus / "metadata.jsonl", whole)
    with pytest.raises(ValueError, match="batch_seconds"):
        extract(model_folder, corpus, whole, "--batch-seconds", "2.0")


def test_rows_that_cannot_be_read_are_counted(model_folder, corpus, tmp_path):
    manifest = tmp_path / "some.jsonl"
    shutil.copy(corpus / "1.wav", tmp_path)
    lines = [{"file_name": "1.wav"}, {"file_name": "absent.wav"}]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    usage = extract(model_folder, manifest, tmp_path / "codes")
    assert (usage["num_rows"], usage["skipped"]) == (1, {"bad": 1})


def test_shards_of_which_some_are_missing_are_not_summed_up(tmp_path):
    shards = Shards(tmp_path, 0, 2, {"model": "m"})
    assert shards.state() is None
    row = {"id": "a", "codes": np.array([[1, 2], [0, 2]]), "duration": 0.02, "text": None, "speaker_id": None}
    shards.write([row], position={"batch": 1}, finished=False)
    assert shards.state() == {"origin": {"model": "m"}, "position": {"batch": 1}, "finished": False}
    assert read_state(shards.paths()[0]) == shards.state()
    assert read_codes(shards.paths()[0]).tolist() == [[1, 2], [0, 2]]
    with pytest.raises(ValueError, match="00000 end early"):
        usage_of(shards.paths(), 3)


def test_a_process_without_rows_leaves_an_empty_shard_that_can_be_read(tmp_path):
    state = {"position": {"report": {"skipped": {}}}, "finished": True}
    row = {"id": "a", "codes": np.array([[1, 2]]), "duration": 0.01, "text": None, "speaker_id": None}
    Shards(tmp_path, 0, 2, {}).write([row], **state)
    Shards(tmp_path, 1, 2, {}).write([], **state)
    assert usage_of(tmp_path.glob("*.parquet"), 3).num_frames == 1
    assert [row.id for row in open_source(Source(str(tmp_path))).rows()] == ["a"]


def test_a_model_without_codes_is_refused_by_name(tmp_path, corpus):
    fields = {name: value for name, value in TINY.items() if name != "num_codevectors_per_group"}
    Wav2VecModel(Wav2VecConfig(**fields)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Wav2VecModel, which has no codes"):
        extract(tmp_path, corpus, tmp_path / "codes")
