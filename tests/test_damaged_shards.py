"""Damaged shards: what is before the damage is read, what follows is left out and counted, too many stop a run."""

import io
import json
import tarfile
from contextlib import suppress
from itertools import islice

import numpy as np
import pytest
import soundfile
import torch
from transformers import Wav2Vec2FeatureExtractor

from training.data import pretraining_batches
from training.rows import DamagedShard
from training.sources import Source, open_source

RATE, ROWS_PER_SHARD, NUM_SHARDS = 16_000, 40, 4
DAMAGED = 1


def wav(number):
    file = io.BytesIO()
    waveform = np.random.default_rng(number).uniform(-0.5, 0.5, 1600 + 40 * (number % 7))
    soundfile.write(file, waveform, RATE, format="wav", subtype="PCM_16")
    return file.getvalue()


def numbers_of(shard):
    return range(shard * ROWS_PER_SHARD, (shard + 1) * ROWS_PER_SHARD)


def write_tar(path, shard):
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as tar:
        for number in numbers_of(shard):
            member = tarfile.TarInfo(f"{number:03d}.wav")
            content = wav(number)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_parquet(path, shard):
    import pyarrow as pa
    import pyarrow.parquet as pq

    audio = [{"path": f"{number:03d}.wav", "bytes": wav(number)} for number in numbers_of(shard)]
    # small pages, of which the broken one is not the first
    pq.write_table(pa.table({"audio": audio}), path, use_dictionary=False, data_page_size=1024, write_batch_size=8)


def cut(content):
    return content[: len(content) // 2]


def cut_between_members(content):
    return content[: content.index(b"060.wav")]


def with_zeros_at(place):
    def with_zeros(content):
        begin = int(len(content) * place)
        return content[:begin] + bytes(3000) + content[begin + 3000 :]

    return with_zeros


def with_broken_header(content):
    return content.replace(b"060.wav", b"060.wax")


DAMAGES = {
    "cut tar": (".tar", write_tar, cut),
    "tar cut between members": (".tar", write_tar, cut_between_members),
    "tar with a broken header": (".tar", write_tar, with_broken_header),
    "cut tgz": (".tgz", write_tar, cut),
    "tgz with zeros": (".tgz", write_tar, with_zeros_at(0.5)),
    "parquet with a broken page": (".parquet", write_parquet, with_zeros_at(0.85)),
}


@pytest.fixture(params=DAMAGES)
def shards(request, tmp_path):
    suffix, write, damage = DAMAGES[request.param]
    for shard in range(NUM_SHARDS):
        write(tmp_path / f"{shard}{suffix}", shard)
    damaged = tmp_path / f"{DAMAGED}{suffix}"
    damaged.write_bytes(damage(damaged.read_bytes()))
    return tmp_path


def batches_of(shards, **settings):
    defaults = {"batch_seconds": 0.5, "min_seconds": 0.05, "max_seconds": 0.2, "shuffle_window": 16}
    return pretraining_batches(str(shards), Wav2Vec2FeatureExtractor(), **{**defaults, **settings})


@pytest.fixture
def damaged(shards):
    (path,) = shards.glob(f"{DAMAGED}.*")
    return open_source(Source(str(path)))


def ids_before_the_damage(damaged):
    ids = []
    with suppress(DamagedShard):
        for row in damaged.rows():
            ids.append(row.id)
    return ids


def all_ids(batches):
    return [name for batch in batches for name in batch["ids"]]


def test_the_rows_before_the_damage_are_read_and_the_shard_is_named(damaged):
    ids = ids_before_the_damage(damaged)
    assert ids == [f"{number:03d}" for number in numbers_of(DAMAGED)][: len(ids)]
    assert 0 < len(ids) <= ROWS_PER_SHARD
    with pytest.raises(DamagedShard, match=rf"{DAMAGED}\.\w+: "):
        list(damaged.rows())


@pytest.mark.parametrize("num_streams", [1, 2])
def test_a_run_goes_on_with_all_other_rows_and_counts_the_shard(shards, damaged, num_streams):
    expected = ids_before_the_damage(damaged)
    expected += [f"{number:03d}" for shard in range(NUM_SHARDS) if shard != DAMAGED for number in numbers_of(shard)]
    epochs = {"num_epochs": 1} if num_streams == 1 else {"num_streams": 2}
    batches = batches_of(shards, max_bad_fraction=0.3, **epochs)
    seen = [batch for batch in islice(batches, 400) if batch["epoch"] == 0]
    assert sorted(all_ids(seen)) == sorted(expected)
    if num_streams == 1:
        assert batches.report.rows == len(expected) + 1
        assert batches.report.skipped["bad"] == 1
    assert "The rest of it is left out." in batches.report.examples["bad"][0]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_resumed_anywhere_passes_over_the_damage_as_an_unbroken_one(shards, num_workers):
    settings = {"num_epochs": 2, "max_bad_fraction": 0.3, "num_workers": num_workers}
    whole = batches_of(shards, **settings)
    expected = list(whole)
    for stop in range(1, len(expected), 3) if num_workers == 0 else (len(expected) // 3,):
        stopped, resumed = batches_of(shards, **settings), batches_of(shards, **settings)
        list(islice(stopped, stop))
        resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
        rest = list(resumed)
        assert [batch["ids"] for batch in rest] == [batch["ids"] for batch in expected[stop:]]
        assert all(
            torch.equal(one["input_values"], other["input_values"])
            for one, other in zip(rest, expected[stop:], strict=True)
        )
        assert resumed.report == whole.report


def test_more_damaged_shards_than_the_share_stop_the_run(shards):
    with pytest.raises(ValueError, match=r"^1 of \d shards \(\d+\.\d%\) are damaged; .* is 20\.0%\. The last: .*1\."):
        list(batches_of(shards, num_epochs=1, max_bad_fraction=0.2))
