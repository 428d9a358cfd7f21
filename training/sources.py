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
"""

import csv
import glob
import json
import math
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import chain, groupby
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
    phones, which are joined by blanks.
    """

    path: str
    name: str | None = None
    split: str = "train"
    text_column: str | None = None

    def __post_init__(self):
        if not self.path:
            raise ValueError(f"source.path is empty; accepted is {ACCEPTED_PATHS}.")
        if not re.fullmatch(r"\w[\w.-]*", self.split):
            raise ValueError(f"source.split: expected one name (slices can't be streamed), got {self.split!r}.")


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
class RowSource:
    """A source that was found and its kind ("hub", "ldc" or a key of `SUFFIXES`).

    Every call of `rows()` streams all rows from the start, in the same order.
    """

    source: Source
    kind: str
    rows: Callable[[], Iterator[Row]]


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
        return [Source(str(value["path"]), value.get("name"), value.get("split") or split, value.get("text_column"))]
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
    return found if source.text_column is None else replace(found, rows=partial(_rows_with_text, found))


def _rows_with_text(found: RowSource) -> Iterator[Row]:
    column = found.source.text_column
    for row in found.rows():
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
        return RowSource(source, "ldc", _read_corpus(path, source))
    if path.is_dir():
        kind, rows = _read_folder(path, source.split)
    elif path.is_file():
        kind, rows = _read_files([path], root=path.parent)
    elif re.search(r"[*?[]", source.path):
        files = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        kind, rows = _read_files(files, root=Path(os.path.commonpath([file.parent for file in files] or [""])))
    elif re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", source.path) and _kind(path) is None:
        return RowSource(source, "hub", partial(_dataset_rows, _open_hub(source), source.path))
    else:
        raise ValueError(f"source.path: nothing at {source.path!r}; accepted is {ACCEPTED_PATHS}.")
    if rows is None:
        raise ValueError(f"source.path: nothing to read as {kind} at {source.path!r}; accepted is {ACCEPTED_PATHS}.")
    if source.name is not None:
        raise ValueError(f"source.name: {source.name!r} given, but {source.path!r} is not a Hub data set.")
    return RowSource(source, kind, rows)


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
    """The kind of `files` and a function that streams their rows."""
    kinds = {_kind(file) for file in files}
    if len(kinds) != 1 or None in kinds:
        return " and ".join(sorted(str(kind or "an unknown kind") for kind in kinds)) or "anything", None
    match kind := kinds.pop():
        case "manifest":
            return kind, lambda: chain.from_iterable(map(_manifest_rows, files))
        case "parquet":
            return kind, partial(_parquet_rows, files)
        case "tar":
            return kind, lambda: chain.from_iterable(map(_tar_rows, files))
        case "audio":
            return kind, lambda: (Row(_stem(file.relative_to(root)), str(file)) for file in files)


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


def _manifest_rows(manifest: Path) -> Iterator[Row]:
    for line, record in _manifest_records(manifest):
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


def _manifest_records(manifest: Path) -> Iterator[tuple[int, dict]]:
    with open(manifest, encoding="utf-8-sig", newline="") as lines:
        if manifest.suffix.lower() == ".jsonl":
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, _parse_json(line, f"{manifest}, line {number}")
        elif manifest.suffix.lower() == ".csv":
            reader = csv.DictReader(lines)
            yield from ((reader.line_num, record) for record in reader)
        else:
            # As Common Voice writes them: a quotation mark in a tsv is a character of the sentence.
            reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            yield from ((reader.line_num, record) for record in reader)


def _parse_json(text: str | bytes, where: str) -> dict:
    try:
        record = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}.") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(record).__name__}.")
    return record


def _parquet_rows(files: Iterable[Path]) -> Iterator[Row]:
    from datasets import load_dataset

    files = [str(file) for file in files]
    dataset = load_dataset("parquet", data_files={"train": files}, split="train", streaming=True)
    return _dataset_rows(dataset, files[0], root=Path(files[0]).parent)


def _open_hub(source: Source):
    from datasets import load_dataset

    try:
        return load_dataset(source.path, source.name, split=source.split, streaming=True)
    except (FileNotFoundError, ConnectionError) as error:
        raise ValueError(
            f"source.path: nothing at {source.path!r}, and no such data set within reach on the Hub"
            f" ({error}); accepted is {ACCEPTED_PATHS}."
        ) from error


def _dataset_rows(dataset, where: str, root: Path | None = None) -> Iterator[Row]:
    """Rows of a table; audio that is only a path lies beneath `root`, and there is none without it, as on the Hub."""
    from datasets import Audio

    for column, feature in (dataset.features or {}).items():
        if isinstance(feature, Audio):
            dataset = dataset.cast_column(column, Audio(decode=False))
    try:
        for number, record in enumerate(dataset):
            if not {"audio", "codes"} & set(record):
                raise ValueError(f"{where}: expected a column 'audio', or 'codes', got {list(record)}.")
            audio = record.pop("audio", None)
            if not isinstance(audio, Mapping):
                audio = {"path": audio}
            path, content = audio.get("path"), audio.get("bytes") or b""
            default_id = _stem(PurePosixPath(path)) if path else str(number)
            in_row = f"{where}, row {number}"
            if path and not content and "codes" not in record:
                if root is None:
                    raise ValueError(
                        f"{in_row}: the audio is the path {path!r}, and a data set of the Hub must bring it."
                    )
                content = _beneath(root, path, in_row)
            yield _row(record, content, default_id, in_row)
    except ImportError as error:
        # Only the parquet builder of `datasets` hands out undecoded audio without torchcodec.
        raise ValueError(
            f"{where}: `datasets` can't stream the audio of this layout: {error} Download the data set and give the"
            " folder as the path instead."
        ) from error


def _tar_rows(shard: Path) -> Iterator[Row]:
    """Rows of a tar, each from the neighbouring members that share a stem; the tar is streamed, never extracted."""
    has_audio: dict[str, bool] = {}
    try:
        with tarfile.open(shard, "r|*") as tar:
            for stem, members in groupby(_checked_members(tar, shard), key=lambda m: _stem(PurePosixPath(m.name))):
                contents = {PurePosixPath(m.name).suffix.lower(): tar.extractfile(m).read() for m in members}
                audio = next((contents[suffix] for suffix in SUFFIXES["audio"] if suffix in contents), None)
                if has_audio.setdefault(stem, audio is not None) != (audio is not None):
                    raise ValueError(f"{shard}: the members of {stem!r} must follow each other.")
                if audio is not None:
                    where = f"{shard}, {stem}"
                    record = _parse_json(contents.get(".json", b"{}"), where)
                    if ".txt" in contents:
                        record["text"] = contents[".txt"].decode("utf-8").strip()
                    yield _row(record, audio, stem, where)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{shard}: not a whole tar file: {error}.") from error


def _checked_members(tar: tarfile.TarFile, shard: Path) -> Iterator[tarfile.TarInfo]:
    for member in tar:
        if PurePosixPath(member.name).is_absolute() or ".." in PurePosixPath(member.name).parts:
            raise ValueError(f"{shard}: member {member.name!r} points out of the tar; such shards are refused.")
        if not member.isfile() and not member.isdir():
            raise ValueError(f"{shard}: member {member.name!r} is a link or a device; such shards are refused.")
        if member.isfile() and not PurePosixPath(member.name).name.startswith("."):
            yield member
