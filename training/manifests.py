"""Rows of manifests: metadata.jsonl, and tables in .csv and .tsv, with a column of paths."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

from .rows import ROWS_PER_STRETCH, Row, Shard, beneath, make_row, parse_json, stem_of

FILE_COLUMNS = ("file_name", "path", "audio_filepath")


@dataclass(frozen=True)
class Stretch:
    """`ROWS_PER_STRETCH` rows of a manifest: where they begin, in bytes and in lines, and the columns of a table."""

    offset: int
    lines_before: int
    columns: tuple[str, ...] | None


def manifest_shards(manifest: Path) -> list[Shard]:
    """A shard per `ROWS_PER_STRETCH` rows; only their places in the file are kept."""
    return [Shard(partial(manifest_rows, manifest, stretch)) for stretch in _stretches(manifest)]


def _stretches(manifest: Path) -> Iterator[Stretch]:
    with CountedLines(manifest) as lines:
        is_table = manifest.suffix.lower() != ".jsonl"
        records = csv.reader(lines, **_dialect(manifest)) if is_table else lines
        columns = tuple(next(records, ())) if is_table else None
        while True:
            stretch = Stretch(lines.num_bytes, lines.num_lines, columns)
            if not sum(1 for _ in islice(records, ROWS_PER_STRETCH)):
                return
            yield stretch


class CountedLines:
    """The lines of a text file from a byte on, and how far they were read."""

    def __init__(self, path: Path, offset: int = 0, num_lines: int = 0):
        self.file, self.num_bytes, self.num_lines = open(path, "rb"), offset, num_lines  # noqa: SIM115
        self.file.seek(offset)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self.file)
        # some programs begin a file with a mark of its encoding
        try:
            text = line.decode("utf-8-sig" if self.num_bytes == 0 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.file.name}, line {self.num_lines + 1}: not UTF-8: {error}.") from error
        self.num_bytes += len(line)
        self.num_lines += 1
        return text

    def __enter__(self) -> "CountedLines":
        return self

    def __exit__(self, *_):
        self.file.close()


def manifest_rows(manifest: Path, stretch: Stretch, begin: int) -> Iterator[Row]:
    for line, record in islice(_manifest_records(manifest, stretch), begin, None):
        where = f"{manifest}, line {line}"
        named = [column for column in FILE_COLUMNS if isinstance(record.get(column), str) and record[column]]
        column = named[0] if named else None
        if column is None or None in record:
            raise ValueError(f"{where}: expected a column {' or '.join(FILE_COLUMNS)}, got {list(record)}.")
        file_name = record.pop(column)
        yield make_row(record, beneath(manifest.parent, file_name, where), stem_of(PurePosixPath(file_name)), where)


def _manifest_records(manifest: Path, stretch: Stretch) -> Iterator[tuple[int, dict]]:
    """The line at which each record of a stretch ends, and the record."""
    with CountedLines(manifest, stretch.offset, stretch.lines_before) as lines:
        if stretch.columns is None:
            for line in islice(lines, ROWS_PER_STRETCH):
                if line.strip():
                    yield lines.num_lines, parse_json(line, f"{manifest}, line {lines.num_lines}")
            return
        # the rows of a stretch were counted by a reader that sees empty lines, which one of dictionaries passes over
        for values in islice(csv.reader(lines, **_dialect(manifest)), ROWS_PER_STRETCH):
            if values:
                yield lines.num_lines, _record(stretch.columns, values)


def _record(columns: tuple[str, ...], values: list[str]) -> dict:
    """As csv.DictReader has it: what is too much stands under None, what is missing is None."""
    record = dict(zip(columns, values, strict=False)) | dict.fromkeys(columns[len(values) :])
    return record if len(values) <= len(columns) else {**record, None: values[len(columns) :]}


def _dialect(manifest: Path) -> dict:
    # As Common Voice writes them: a quotation mark in a tsv is a character of the sentence.
    return {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if manifest.suffix.lower() == ".tsv" else {}
