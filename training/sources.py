"""Where utterances come from: folders, manifests, parquet, tar shards and Hub data sets, all as one stream of rows.

A source is three words, `path`, `name` and `split`. What stands at `path` decides how it is read:

| path | read as | order of the rows |
|---|---|---|
| folder with `<split>/metadata.jsonl` (or `.csv`), or with `metadata.*` itself | manifest | of the metadata |
| folder of parquet, tar or audio files, or its `<split>/` | as below; audio alone has no text | of the sorted paths |
| `.jsonl`, `.csv`, `.tsv` | manifest: audio paths relative to it, or absolute, beneath its folder | of its lines |
| `.parquet` | table with a column `audio` of struct<bytes, path>, or with `codes` and no audio | of the table |
| `.tar`, `.tar.gz`, `.tgz` | shard: neighbours that share a stem (audio, `.txt`, `.json`) are one row | of the tar |
| pattern with `*`, `?` or `[` | all matches, one after another | of the sorted paths |
| `owner/name`, when nothing of that name is here | Hub data set, streamed | of the data set |

`name` is the configuration of a Hub data set, or a corpus in the folders of the LDC (ldc.py): `timit`, `wsj`. `split`
is the split of a Hub data set or such a corpus, a sub-folder, or the first word of the parquet and tar files of a
folder (`train-00000.parquet`); a single file is read whole.
Nothing is copied or cached, and no audio is decoded here.

A source comes in shards, which can be read in any order, each from any of its rows on: a tar, a row group of parquet,
a shard of a Hub data set, `ROWS_PER_STRETCH` lines of a manifest or files of audio.
"""

import csv
import glob
import json
import math
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from itertools import chain, groupby, islice
from pathlib import Path, PurePosixPath

SUFFIXES = {
    "manifest": (".jsonl", ".csv", ".tsv"),
    "parquet": (".parquet",),
    "tar": (".tar", ".tar.gz", ".tgz"),
    "audio": (".flac", ".wav", ".mp3", ".ogg", ".opus"),
}
FILE_COLUMNS = ("file_name", "path", "audio_filepath")
TEXT_COLUMNS = ("text", "sentence", "transcript", "transcription")
DURATION_COLUMNS = ("duration", "duration_seconds")
ROWS_PER_STRETCH = 32
# Kinds whose rows come with their audio, so that reading rows for another process costs as much as for one's own
KINDS_WITH_AUDIO = ("parquet", "tar", "hub")
SPLIT_NAMES = ("train", "dev", "valid", "validation", "test")
ACCEPTED_PATHS = (
    "a folder with metadata.jsonl or metadata.csv (or in its sub-folder of the split's name), a folder of parquet, tar"
    " or audio files, a manifest (.jsonl, .csv, .tsv), a .parquet or .tar file, a pattern of these, or the id of a"
    " data set on the Hub"
)


@dataclass(frozen=True)
class Source:
    """One corpus; the head of this file says what `path`, `name` and `split` mean.

    `text_column` is the column to take as the text instead of the usual ones: strings, or lists of symbols such as the
    phones, which are joined by blanks. `weight` is its share of the rows where several sources are mixed; without
    weights each comes as often as it has rows.
    """

    path: str
    name: str | None = None
    split: str = "train"
    text_column: str | None = None
    weight: float | None = None

    def __post_init__(self):
        if not self.path:
            raise ValueError(f"source.path is empty; accepted is {ACCEPTED_PATHS}.")
        if not re.fullmatch(r"\w[\w.-]*", self.split):
            raise ValueError(f"source.split: expected one name (slices can't be streamed), got {self.split!r}.")
        if self.weight is not None and not 0 < self.weight < math.inf:
            raise ValueError(f"source.weight: expected a number above 0, got {self.weight!r}.")


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
    """`rows(begin)` streams the rows from number `begin` on, always in the same order."""

    rows: Callable[[int], Iterator[Row]]


@dataclass(frozen=True)
class RowSource:
    """A source that was found and its kind ("hub", "ldc" or a key of `SUFFIXES`)."""

    source: Source
    kind: str
    find_shards: Callable[[], list[Shard]]

    @cached_property
    def shards(self) -> list[Shard]:
        """All shards, in the order of the source; found when first asked for."""
        return self.find_shards()

    def rows(self) -> Iterator[Row]:
        """Streams all rows from the start, in the order of the source."""
        return chain.from_iterable(shard.rows(0) for shard in self.shards)


def as_sources(value, *, split: str = "train") -> list[Source]:
    """The `Source`s meant by a path, a mapping with the fields of one, a `Source`, or a list of any of these.

    `split` is that of values which name none.
    """
    known = [f.name for f in fields(Source)]
    if isinstance(value, Source):
        return [value]
    if isinstance(value, str | Path):
        return [Source(str(value), split=split)]
    if isinstance(value, Mapping) and value.get("path") and set(value) <= set(known):
        return [Source(**{**value, "path": str(value["path"]), "split": value.get("split") or split})]
    if isinstance(value, Sequence) and value:
        return [source for item in value for source in as_sources(item, split=split)]
    raise ValueError(f"source: expected a path, a mapping of {', '.join(known)}, or a list, got {value!r}.")


def openable(sources: list[Source]) -> list[Source]:
    """`sources` themselves, each opened once: what is wrong with one is said now and not hours later."""
    for source in sources:
        open_source(source)
    return sources


def open_source(source: Source) -> RowSource:
    """Finds what stands at `source.path` and how to read it, with the text that `source.text_column` asks for.

    Raises:
        ValueError: nothing readable is there, the split isn't, or `name` is given to something without configurations.
    """
    found = _find(source)
    if source.text_column is None:
        return found

    def find_shards() -> list[Shard]:
        return [Shard(partial(_rows_with_text, shard, source.text_column)) for shard in found.shards]

    return replace(found, find_shards=find_shards)


def _rows_with_text(shard: Shard, column: str, begin: int) -> Iterator[Row]:
    for row in shard.rows(begin):
        text = row.extra.get(column)
        if isinstance(text, list) and all(isinstance(symbol, str) for symbol in text):
            text = " ".join(text)
        if not isinstance(text, str):
            raise ValueError(
                f"{row.id}: source.text_column is {column!r}, expected a string or a list of strings, got {text!r};"
                f" the columns are {', '.join(row.extra) or 'none'}."
            )
        yield replace(row, text=text)


def _find(source: Source) -> RowSource:
    path = Path(source.path).expanduser()
    if path.is_dir() and source.name is not None:
        return RowSource(source, "ldc", partial(_one_shard, _read_corpus(path, source)))
    if path.is_dir():
        kind, find_shards = _read_folder(path, source.split)
    elif path.is_file():
        kind, find_shards = _read_files([path], root=path.parent)
    elif re.search(r"[*?[]", source.path):
        files = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        kind, find_shards = _read_files(files, root=Path(os.path.commonpath([file.parent for file in files] or [""])))
    elif re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", source.path) and _kind(path) is None:
        return RowSource(source, "hub", partial(_dataset_shards, _open_hub(source), source.path))
    else:
        raise ValueError(f"source.path: nothing at {source.path!r}; accepted is {ACCEPTED_PATHS}.")
    if find_shards is None:
        raise ValueError(f"source.path: nothing to read as {kind} at {source.path!r}; accepted is {ACCEPTED_PATHS}.")
    if source.name is not None:
        raise ValueError(f"source.name: {source.name!r} given, but {source.path!r} is not a Hub data set.")
    return RowSource(source, kind, find_shards)


def _one_shard(rows: Callable[[], Iterator[Row]]) -> list[Shard]:
    return [Shard(lambda begin: islice(rows(), begin, None))]


def _read_corpus(folder: Path, source: Source):
    # Here, because a row of a corpus is a `Row` of this file
    from .ldc import READERS, read_ldc

    if source.name not in READERS:
        raise ValueError(
            f"source.name: {source.name!r} given, but {source.path!r} is not a Hub data set; a local folder may be one"
            f" of {', '.join(READERS)}."
        )
    return read_ldc(folder, source.name, source.split)


def _read_folder(folder: Path, split: str):
    root = folder / split if (folder / split).is_dir() else folder
    for metadata in (root / "metadata.jsonl", root / "metadata.csv"):
        if metadata.is_file():
            return _read_files([metadata], root)
    others = sorted(d.name for d in folder.iterdir() if d.is_dir() and (d.name in SPLIT_NAMES or _has_metadata(d)))
    if root is folder and others:
        raise ValueError(f"source.split: no folder {split!r} in {folder}; there are {', '.join(others)}.")
    files = sorted(f for f in root.rglob("*") if not f.name.startswith(".") and f.is_file())
    for kind in ("parquet", "tar", "audio"):
        if found := [file for file in files if _kind(file) == kind]:
            named_by_split = root is folder and kind != "audio"
            return _read_files(_files_of_split(found, split) if named_by_split else found, root)
    return "audio", None


def _has_metadata(folder: Path) -> bool:
    return (folder / "metadata.jsonl").is_file() or (folder / "metadata.csv").is_file()


def _files_of_split(files: list[Path], split: str) -> list[Path]:
    """The files whose first word is `split`; all of them, if none of their names begins with any split's name."""
    own = [file for file in files if re.match(rf"{re.escape(split)}([-.]|_\d)", file.name)]
    others = [file.name for file in files if re.match(rf"({'|'.join(SPLIT_NAMES)})(?![a-zA-Z])", file.name)]
    if not own and others:
        raise ValueError(f"source.split: no file of {split!r} in {files[0].parent}; there are {others[0]} and others.")
    return own or files


def _read_files(files: list[Path], root: Path):
    """The kind of `files` and a function that finds their shards."""
    kinds = {_kind(file) for file in files}
    if len(kinds) != 1 or None in kinds:
        return " and ".join(sorted(str(kind or "an unknown kind") for kind in kinds)) or "anything", None
    match kind := kinds.pop():
        case "manifest":
            return kind, lambda: [shard for file in files for shard in _manifest_shards(file)]
        case "parquet":
            return kind, partial(_parquet_shards, files)
        case "tar":
            return kind, lambda: [Shard(partial(_tar_rows, file)) for file in files]
        case "audio":
            return kind, partial(_audio_shards, files, root)


def _audio_shards(files: list[Path], root: Path) -> list[Shard]:
    stretches = (files[begin : begin + ROWS_PER_STRETCH] for begin in range(0, len(files), ROWS_PER_STRETCH))
    return [Shard(partial(_audio_rows, stretch, root)) for stretch in stretches]


def _audio_rows(files: list[Path], root: Path, begin: int) -> Iterator[Row]:
    return (Row(_stem(file.relative_to(root)), str(file)) for file in files[begin:])


def _kind(path: Path) -> str | None:
    return next((kind for kind, suffixes in SUFFIXES.items() if path.name.lower().endswith(suffixes)), None)


def _stem(path: Path | PurePosixPath) -> str:
    return path.with_suffix("").as_posix()


def _row(record: Mapping, audio: str | bytes, default_id: str, where: str) -> Row:
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


@dataclass(frozen=True)
class Stretch:
    """`ROWS_PER_STRETCH` rows of a manifest: where they begin, in bytes and in lines, and the columns of a table."""

    offset: int
    lines_before: int
    columns: tuple[str, ...] | None


def _manifest_shards(manifest: Path) -> list[Shard]:
    """A shard per `ROWS_PER_STRETCH` rows; only their places in the file are kept."""
    return [Shard(partial(_manifest_rows, manifest, stretch)) for stretch in _stretches(manifest)]


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
        text = line.decode("utf-8-sig" if self.num_bytes == 0 else "utf-8")
        self.num_bytes += len(line)
        self.num_lines += 1
        return text

    def __enter__(self) -> "CountedLines":
        return self

    def __exit__(self, *_):
        self.file.close()


def _manifest_rows(manifest: Path, stretch: Stretch, begin: int) -> Iterator[Row]:
    for line, record in islice(_manifest_records(manifest, stretch), begin, None):
        where = f"{manifest}, line {line}"
        column = next((column for column in FILE_COLUMNS if isinstance(record.get(column), str)), None)
        if column is None or None in record:
            raise ValueError(f"{where}: expected a column {' or '.join(FILE_COLUMNS)}, got {list(record)}.")
        file_name = record.pop(column)
        yield _row(record, _beneath(manifest.parent, file_name, where), _stem(PurePosixPath(file_name)), where)


def _beneath(root: Path, name: str, where: str) -> str:
    """The path of `name` in `root`. Who wrote a manifest does not choose which files of this machine are read."""
    path = root / name
    # as it is written: what links lead to is up to those who set them
    if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root)):
        raise ValueError(f"{where}: {name!r} points out of {root}; a manifest stands above all of its audio.")
    return str(path)


def _manifest_records(manifest: Path, stretch: Stretch) -> Iterator[tuple[int, dict]]:
    """The line at which each record of a stretch ends, and the record."""
    with CountedLines(manifest, stretch.offset, stretch.lines_before) as lines:
        if stretch.columns is None:
            for line in islice(lines, ROWS_PER_STRETCH):
                if line.strip():
                    yield lines.num_lines, _parse_json(line, f"{manifest}, line {lines.num_lines}")
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


def _parse_json(text: str | bytes, where: str) -> dict:
    try:
        record = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}.") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(record).__name__}.")
    return record


def _parquet_shards(files: Iterable[Path]) -> list[Shard]:
    """A shard per row group; a footer tells how many there are."""
    import pyarrow.parquet as pq

    shards, num_rows = [], 0
    for path in files:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                shards.append(Shard(partial(_parquet_rows, path, group, num_rows)))
                num_rows += file.metadata.row_group(group).num_rows
    return shards


def _parquet_rows(path: Path, group: int, rows_before: int, begin: int) -> Iterator[Row]:
    import pyarrow.parquet as pq

    number = 0
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(ROWS_PER_STRETCH, row_groups=[group]):
            skipped = min(max(begin - number, 0), len(batch))
            records = batch.slice(skipped).to_pylist()
            for place, record in enumerate(records, start=rows_before + number + skipped):
                yield _dataset_row(record, str(place), f"{path}, row {place}", root=path.parent)
            number += len(batch)


def _open_hub(source: Source):
    from datasets import load_dataset

    try:
        return load_dataset(source.path, source.name, split=source.split, streaming=True)
    except (FileNotFoundError, ConnectionError) as error:
        raise ValueError(
            f"source.path: nothing at {source.path!r}, and no such data set within reach on the Hub"
            f" ({error}); accepted is {ACCEPTED_PATHS}."
        ) from error


def _dataset_shards(dataset, where: str) -> list[Shard]:
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
    row_id = _stem(PurePosixPath(path)) if path else default_id
    if path and not content and "codes" not in record:
        if root is None:
            raise ValueError(f"{where}: the audio is the path {path!r}, and a data set of the Hub must bring it.")
        content = _beneath(root, path, where)
    return _row(record, content, row_id, where)


def _tar_rows(shard: Path, begin: int) -> Iterator[Row]:
    """Rows of a tar, each from the neighbouring members that share a stem; the tar is streamed, never extracted."""
    has_audio: dict[str, bool] = {}
    number = 0
    try:
        with tarfile.open(shard, "r:*") as tar:
            for stem, members in groupby(_checked_members(tar, shard), key=lambda m: _stem(PurePosixPath(m.name))):
                contents = {
                    # read now, while the file stands here: a compressed one cannot go back
                    PurePosixPath(m.name).suffix.lower(): tar.extractfile(m).read() if number >= begin else b""
                    for m in members
                }
                audio = next((contents[suffix] for suffix in SUFFIXES["audio"] if suffix in contents), None)
                if has_audio.setdefault(stem, audio is not None) != (audio is not None):
                    raise ValueError(f"{shard}: the members of {stem!r} must follow each other.")
                if audio is None:
                    continue
                if number >= begin:
                    yield _tar_row(contents, audio, stem, f"{shard}, {stem}")
                number += 1
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"{shard}: not a whole tar file: {error}.") from error


def _tar_row(contents: dict[str, bytes], audio: bytes, stem: str, where: str) -> Row:
    record = _parse_json(contents.get(".json", b"{}"), where)
    if ".txt" in contents:
        record["text"] = contents[".txt"].decode("utf-8").strip()
    return _row(record, audio, stem, where)


def _checked_members(tar: tarfile.TarFile, shard: Path) -> Iterator[tarfile.TarInfo]:
    for member in tar:
        if PurePosixPath(member.name).is_absolute() or ".." in PurePosixPath(member.name).parts:
            raise ValueError(f"{shard}: member {member.name!r} points out of the tar; such shards are refused.")
        if not member.isfile() and not member.isdir():
            raise ValueError(f"{shard}: member {member.name!r} is a link or a device; such shards are refused.")
        tar.members = []  # or it would remember all that it has passed
        if member.isfile() and not PurePosixPath(member.name).name.startswith("."):
            yield member
