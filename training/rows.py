"""A row of a source before anything is decoded, and what readers of all kinds of sources share."""

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

logger = logging.getLogger(__name__)

SUFFIXES = {
    "manifest": (".jsonl", ".csv", ".tsv"),
    "parquet": (".parquet",),
    "tar": (".tar", ".tar.gz", ".tgz"),
    "audio": (".flac", ".wav", ".mp3", ".ogg", ".opus"),
}
TEXT_COLUMNS = ("text", "sentence", "transcript", "transcription")
DURATION_COLUMNS = ("duration", "duration_seconds")
ROWS_PER_STRETCH = 32


@dataclass(frozen=True)
class Row:
    """One utterance, not decoded.

    `id` is the column of that name, else the file name without its suffix; `audio` a path or the bytes of a file;
    `text` and `duration_seconds` are None where the source doesn't tell; `extra` holds all other columns. A row of
    codes has no bytes of audio.
    """

    id: str
    audio: str | bytes
    text: str | None = None
    duration_seconds: float | None = None
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Shard:
    """`rows(begin)` streams the rows from number `begin` on, always in the same order; may raise `DamagedShard`."""

    rows: Callable[[int], Iterator[Row]]

    def readable_rows(self) -> Iterator[Row]:
        """All rows, or those before the damage, of which the log is told."""
        try:
            yield from self.rows(0)
        except DamagedShard as error:
            logger.warning("left out (damaged): %s", error)


class DamagedShard(ValueError):
    """Raised while a shard is read, where damage is found: there are no more rows of it.

    Those before are whole, but of a compressed tar, whose checksum stands at its end, they may hold altered bytes.
    """


def kind_of(path: Path) -> str | None:
    return next((kind for kind, suffixes in SUFFIXES.items() if path.name.lower().endswith(suffixes)), None)


def stem_of(path: Path | PurePosixPath) -> str:
    return path.with_suffix("").as_posix()


def make_row(record: Mapping, audio: str | bytes, default_id: str, where: str) -> Row:
    """The row of one `record`, whose columns are the source's own; `where` names the record in errors."""
    extra = dict(record)

    def first(columns):
        present = [column for column in columns if column in extra]
        return extra.pop(present[0]) if present else None

    row_id, duration = first(["id"]), first(DURATION_COLUMNS)
    text = next((extra[column] for column in TEXT_COLUMNS if column in extra), None)
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{where}: the text is {type(text).__name__} {text!r}, expected a string.")
    try:
        duration = None if duration in (None, "") else float(duration)
    except (TypeError, ValueError):
        duration = math.nan
    if duration is not None and not 0 <= duration < math.inf:
        raise ValueError(f"{where}: the duration is not a number of seconds.")
    return Row(default_id if row_id is None else str(row_id), audio, text, duration, extra)


def beneath(root: Path, name: str, where: str) -> str:
    """The path of `name` in `root`. Who wrote a manifest does not choose which files of this machine are read."""
    path = root / name
    # as it is written: what links lead to is up to those who set them
    if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root)):
        raise ValueError(f"{where}: {name!r} points out of {root}; a manifest stands above all of its audio.")
    return str(path)


def parse_json(text: str | bytes, where: str) -> dict:
    try:
        record = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}.") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(record).__name__}.")
    return record
