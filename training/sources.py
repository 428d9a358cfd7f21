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

import glob
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path

from .ldc import READERS, read_ldc
from .manifests import manifest_shards
from .parquet import dataset_shards, parquet_shards
from .rows import ROWS_PER_STRETCH, Row, Shard, kind_of, stem_of
from .tars import tar_rows

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
        """Streams all rows from the start, in the order of the source; raises `DamagedShard` where one is."""
        return chain.from_iterable(shard.rows(0) for shard in self.shards)

    def readable_rows(self) -> Iterator[Row]:
        """The same, but of a damaged shard the rows before the damage."""
        return chain.from_iterable(shard.readable_rows() for shard in self.shards)


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
    elif re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", source.path) and kind_of(path) is None:
        return RowSource(source, "hub", partial(dataset_shards, _open_hub(source), source.path))
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
        if found := [file for file in files if kind_of(file) == kind]:
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
    kinds = {kind_of(file) for file in files}
    if len(kinds) != 1 or None in kinds:
        return " and ".join(sorted(str(kind or "an unknown kind") for kind in kinds)) or "anything", None
    match kind := kinds.pop():
        case "manifest":
            return kind, lambda: [shard for file in files for shard in manifest_shards(file)]
        case "parquet":
            return kind, partial(parquet_shards, files)
        case "tar":
            return kind, lambda: [Shard(partial(tar_rows, file)) for file in files]
        case "audio":
            return kind, partial(_audio_shards, files, root)


def _audio_shards(files: list[Path], root: Path) -> list[Shard]:
    stretches = (files[begin : begin + ROWS_PER_STRETCH] for begin in range(0, len(files), ROWS_PER_STRETCH))
    return [Shard(partial(_audio_rows, stretch, root)) for stretch in stretches]


def _audio_rows(files: list[Path], root: Path, begin: int) -> Iterator[Row]:
    return (Row(stem_of(file.relative_to(root)), str(file)) for file in files[begin:])


def _open_hub(source: Source):
    from datasets import load_dataset

    try:
        return load_dataset(source.path, source.name, split=source.split, streaming=True)
    except (FileNotFoundError, ConnectionError) as error:
        raise ValueError(
            f"source.path: nothing at {source.path!r}, and no such data set within reach on the Hub"
            f" ({error}); accepted is {ACCEPTED_PATHS}."
        ) from error
