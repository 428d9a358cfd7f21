"""Damaged shards: what is before the damage is read, what follows is left out and counted, too many stop a run."""

import errno
import io
import json
import tarfile
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


def with_zeros_at(place, num=3000):
    def with_zeros(content):
        begin = int(len(content) * place)
        return content[:begin] + bytes(num) + content[begin + num :]

    return with_zeros


def with_broken_header(content):
    return content.replace(b"060.wav", b"060.wax")


def with_header_of_zeros(content):
    begin = content.index(b"060.wav")
    return content[:begin] + bytes(512) + content[begin + 512 :]


def with_wrong_checksum(content):
    return content[:-8] + bytes(byte ^ 255 for byte in content[-8:-4]) + content[-4:]


def without_footer(content):
    return content[:-100]


# how many rows are read before the damage
DAMAGES = {
    "cut tar": (".tar", write_tar, cut, 20),
    "tar with a broken header": (".tar", write_tar, with_broken_header, 20),
    "tar with zeros for a header": (".tar", write_tar, with_header_of_zeros, 20),
    "cut tgz": (".tgz", write_tar, cut, 19),
    "tgz with zeros": (".tgz", write_tar, with_zeros_at(0.5), 20),
    "tgz of another checksum": (".tgz", write_tar, with_wrong_checksum, 40),
    "parquet with a broken page": (".parquet", write_parquet, with_zeros_at(0.85), 32),
    "parquet without its footer": (".parquet", write_parquet, without_footer, 0),
}


@pytest.fixture(params=DAMAGES)
def shards(request, tmp_path):
    return write_shards(tmp_path, *DAMAGES[request.param][:3])


def write_shards(folder, suffix, write, damage, damaged=(DAMAGED,), num_shards=NUM_SHARDS):
    for shard in range(num_shards):
        write(folder / f"{shard}{suffix}", shard)
    for shard in damaged:
        path = folder / f"{shard}{suffix}"
        path.write_bytes(damage(path.read_bytes()))
    return folder


def batches_of(shards, **settings):
    defaults = {"batch_seconds": 0.5, "min_seconds": 0.05, "max_seconds": 0.2, "shuffle_window": 16}
    return pretraining_batches(str(shards), Wav2Vec2FeatureExtractor(), **{**defaults, **settings})


def all_ids(batches):
    return [name for batch in batches for name in batch["ids"]]


def ids_of(*numbers):
    return [f"{number:03d}" for some in numbers for number in some]


def rest_of(shards):
    """The rows that can be read of all shards but the damaged one, and of that one until there."""
    (path,) = shards.glob(f"{DAMAGED}.*")
    whole = ids_of(*(numbers_of(shard) for shard in range(NUM_SHARDS) if shard != DAMAGED))
    return whole + [row.id for row in open_source(Source(str(path))).readable_rows()]


@pytest.mark.parametrize("kind", DAMAGES)
def test_the_rows_before_the_damage_are_read_and_the_shard_is_named(tmp_path, kind, caplog):
    suffix, write, damage, num_rows = DAMAGES[kind]
    write_shards(tmp_path, suffix, write, damage)
    source = open_source(Source(str(tmp_path / f"{DAMAGED}{suffix}")))
    assert [row.id for row in source.readable_rows()] == ids_of(numbers_of(DAMAGED))[:num_rows]
    assert f"left out (damaged): {tmp_path}/{DAMAGED}{suffix}: " in caplog.text
    with pytest.raises(DamagedShard, match=rf"{DAMAGED}{suffix}: "):
        list(source.rows())


@pytest.mark.parametrize("num_streams", [1, 2])
def test_a_run_goes_on_with_all_other_rows_and_counts_the_shard(shards, num_streams):
    expected = rest_of(shards)
    epochs = {"num_epochs": 1} if num_streams == 1 else {"num_streams": 2}
    batches = batches_of(shards, max_bad_fraction=0.3, **epochs)
    seen = [batch for batch in islice(batches, 400) if batch["epoch"] == 0]
    assert sorted(all_ids(seen)) == sorted(expected)
    if num_streams == 1:
        assert batches.report.rows == len(expected) + 1
        assert batches.report.skipped["damaged"] == 1
    assert f"{DAMAGED}." in batches.report.examples["damaged"][0]


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


def test_a_budget_of_labels_is_drawn_from_what_can_be_read(shards):
    expected = rest_of(shards)
    found = all_ids(batches_of(shards, num_epochs=1, max_bad_fraction=0.3, budget_seconds=8.0))
    assert len(set(found)) == len(found) > 60
    assert set(found) < set(expected)


TOO_MANY = r"^2 of 6 shards \(33\.3%\) are damaged; max_bad_fraction is 20\.0%\. The first: .*\.tar: not a whole tar"


@pytest.mark.parametrize("num_streams", [1, 3])
def test_more_damaged_shards_than_the_share_stop_the_run_again_and_again(tmp_path, num_streams):
    write_shards(tmp_path, ".tar", write_tar, cut, damaged=(1, 4), num_shards=6)
    settings = {"max_bad_fraction": 0.2, "num_streams": num_streams}
    stopped = batches_of(tmp_path, **settings)
    with pytest.raises(ValueError, match=TOO_MANY):
        list(islice(stopped, 400))
    resumed = batches_of(tmp_path, **settings)
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    with pytest.raises(ValueError, match=TOO_MANY):
        list(islice(resumed, 400))


def test_a_damaged_shard_is_no_bad_row_however_often_it_is_met(tmp_path):
    for name, damaged, num_shards in (("large", (), 4), ("small", (0,), 1)):
        (tmp_path / name).mkdir()
        write_shards(tmp_path / name, ".tar", write_tar, cut, damaged=damaged, num_shards=num_shards)
    sources = [{"path": str(tmp_path / name), "weight": 0.5} for name in ("large", "small")]
    batches = pretraining_batches(
        sources, Wav2Vec2FeatureExtractor(), batch_seconds=0.5, min_seconds=0.05, max_seconds=0.2, max_bad_fraction=0.2
    )
    assert len(list(islice(batches, 200))) == 200
    assert batches.report.skipped["damaged"] > 2
    assert batches.report.skipped["bad"] == 0


def test_a_source_with_a_weight_of_which_nothing_can_be_read_is_refused(tmp_path):
    sources = []
    for name in ("one", "two"):
        (tmp_path / f"{name}.tar").write_bytes(b"X" * 2000)
        sources.append({"path": str(tmp_path / f"{name}.tar"), "weight": 0.5})
    batches = pretraining_batches(
        sources, Wav2Vec2FeatureExtractor(), batch_seconds=0.5, min_seconds=0.05, max_seconds=0.2, max_bad_fraction=1.0
    )
    with pytest.raises(ValueError, match="a source with a weight has no rows that can be read"):
        next(iter(batches))


def test_an_error_of_the_disk_is_no_damage(tmp_path, monkeypatch):
    write_parquet(tmp_path / "0.parquet", 0)
    source = open_source(Source(str(tmp_path / "0.parquet")))
    assert len(source.shards) == 1

    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("pyarrow.parquet.ParquetFile.iter_batches", fail)
    with pytest.raises(OSError, match="Input/output error"):
        list(source.readable_rows())


def test_a_tar_that_was_never_closed_is_read_whole_with_a_warning(tmp_path, caplog):
    write_tar(tmp_path / "0.tar", 0)
    content = (tmp_path / "0.tar").read_bytes()
    end = content.rstrip(b"\0")
    (tmp_path / "0.tar").write_bytes(content[: -(-len(end) // 512) * 512])
    assert [row.id for row in open_source(Source(str(tmp_path / "0.tar"))).rows()] == ids_of(numbers_of(0))
    assert "0.tar ends without an end mark" in caplog.text


def test_what_is_appended_to_a_compressed_tar_is_none_of_its_rows_and_no_damage(tmp_path):
    write_tar(tmp_path / "0.tgz", 0)
    with (tmp_path / "0.tgz").open("ab") as file:
        file.write(b"garbage")
    assert len(list(open_source(Source(str(tmp_path / "0.tgz"))).rows())) == ROWS_PER_SHARD
