"""Rows of tables that hold their audio, or codes: parquet files and data sets of the Hub."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath

from .rows import ROWS_PER_STRETCH, DamagedShard, Row, Shard, beneath, make_row, stem_of


def parquet_shards(files: Iterable[Path]) -> list[Shard]:
    """A shard per row group; a footer tells how many there are. A file without one is a shard, a damaged one."""
    shards, num_rows = [], 0
    for path in files:
        try:
            file = _opened(path)
        except DamagedShard as error:
            shards.append(Shard(partial(_no_rows, str(error))))
            continue
        with file:
            for group in range(file.num_row_groups):
                shards.append(Shard(partial(_parquet_rows, path, group, num_rows)))
                num_rows += file.metadata.row_group(group).num_rows
    return shards


def _no_rows(damage: str, begin: int) -> Iterator[Row]:
    raise DamagedShard(damage)


def _opened(path: Path, **options):
    import pyarrow.parquet as pq

    with _damage_named(f"{path}: not readable as parquet"):
        return pq.ParquetFile(path, **options)


@contextmanager
def _damage_named(where: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        # what the system reports says nothing about the file, and may be over when it is read again
        if getattr(error, "errno", None) is not None:
            raise
        raise DamagedShard(f"{where}: {error}") from error


def _parquet_rows(path: Path, group: int, rows_before: int, begin: int) -> Iterator[Row]:
    with _opened(path, pre_buffer=False) as file:
        for number, record in _records(file, group, begin, path):
            place = rows_before + number
            yield _dataset_row(record, str(place), f"{path}, row {place}", root=path.parent)


def _records(file, group: int, begin: int, path: Path) -> Iterator[tuple[int, dict]]:
    """The rows of a row group from number `begin` on."""
    number = 0
    with _damage_named(f"{path}: row group {group} cannot be read to its end"):
        for batch in file.iter_batches(ROWS_PER_STRETCH, row_groups=[group]):
            skipped = min(max(begin - number, 0), len(batch))
            yield from enumerate(batch.slice(skipped).to_pylist(), start=number + skipped)
            number += len(batch)


def dataset_shards(dataset, where: str) -> list[Shard]:
    from datasets import Audio

    for column, feature in (dataset.features or {}).items():
        if isinstance(feature, Audio):
            dataset = dataset.cast_column(column, Audio(decode=False))
    return [Shard(partial(_dataset_rows, dataset, where, number)) for number in range(dataset.num_shards)]


def _dataset_rows(dataset, where: str, shard: int, begin: int) -> Iterator[Row]:
    prefix = f"{shard}-" if dataset.num_shards > 1 else ""
    part = dataset.shard(dataset.num_shards, shard)
    try:
        for number, record in enumerate(part.skip(begin) if begin else part, start=begin):
            yield _dataset_row(record, f"{prefix}{number}", f"{where}, row {prefix}{number}")
    except ImportError as error:
        # Only the parquet builder of `datasets` hands out undecoded audio without torchcodec.
        raise ValueError(
            f"{where}: `datasets` can't stream the audio of this layout: {error} Download the data set and give the"
            " folder as the path instead."
        ) from error


def _dataset_row(record: dict, default_id: str, where: str, root: Path | None = None) -> Row:
    """A row of a table; audio that is only a path lies beneath `root`, and there is none without it, as on the Hub."""
    if not {"audio", "codes"} & set(record):
        raise ValueError(f"{where}: expected a column 'audio', or 'codes', got {list(record)}.")
    audio = record.pop("audio", None)
    if not isinstance(audio, Mapping):
        audio = {"path": audio}
    path, content = audio.get("path"), audio.get("bytes") or b""
    row_id = stem_of(PurePosixPath(path)) if path else default_id
    if path and not content and "codes" not in record:
        if root is None:
            raise ValueError(f"{where}: the audio is the path {path!r}, and a data set of the Hub must bring it.")
        content = beneath(root, path, where)
    return make_row(record, content, row_id, where)
