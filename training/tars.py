"""Rows of tar shards: neighbours that share a stem, streamed from one end to the other and never extracted."""

import gzip
import logging
import tarfile
import zlib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath

from .rows import SUFFIXES, DamagedShard, Row, make_row, parse_json, stem_of

logger = logging.getLogger(__name__)

BYTES_AT_A_TIME = 2**20
DAMAGES = (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error)


class _CheckedHeader(tarfile.TarInfo):
    """A header that is an error where it is broken; tarfile takes all but the first of those for the tar's end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.EmptyHeaderError:
            if tar.offset:
                logger.warning("%s ends without an end mark; it may have been cut there.", tar.name)
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"at byte {tar.offset}: {error}") from error


def tar_rows(shard: Path, begin: int) -> Iterator[Row]:
    """Rows of a tar, each from the neighbouring members that share a stem; the tar is streamed, never extracted."""
    has_audio: dict[str, bool] = {}
    number = 0
    try:
        with tarfile.open(shard, "r:*", tarinfo=_CheckedHeader) as tar:
            members = _UpToDamage(_checked_members(tar, shard))
            for stem, group in groupby(members, key=lambda m: stem_of(PurePosixPath(m.name))):
                contents = {
                    # read now, while the file stands here: a compressed one cannot go back
                    PurePosixPath(m.name).suffix.lower(): tar.extractfile(m).read() if number >= begin else b""
                    for m in group
                }
                audio = next((contents[suffix] for suffix in SUFFIXES["audio"] if suffix in contents), None)
                if has_audio.setdefault(stem, audio is not None) != (audio is not None):
                    raise ValueError(f"{shard}: the members of {stem!r} must follow each other.")
                if audio is None:
                    continue
                if number >= begin:
                    yield _tar_row(contents, audio, stem, f"{shard}, {stem}")
                number += 1
            if members.damage is not None:
                raise members.damage
            _refuse_what_follows_the_end(tar)
    except DAMAGES as error:
        raise DamagedShard(f"{shard}: not a whole tar file: {error}.") from error


class _UpToDamage:
    """`members` that end where reading them fails, so that the clip before is known to be whole; `damage` is why."""

    def __init__(self, members: Iterator[tarfile.TarInfo]):
        self.members = members
        self.damage: Exception | None = None

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        try:
            yield from self.members
        except DAMAGES as error:
            self.damage = error


def _refuse_what_follows_the_end(tar: tarfile.TarFile):
    """A header that was overwritten with zeros looks like an end mark; a compressed tar has a checksum at its end."""
    try:
        while content := tar.fileobj.read(BYTES_AT_A_TIME):
            if content.strip(b"\0"):
                raise tarfile.ReadError("there is more behind its end mark")
    except gzip.BadGzipFile as error:
        # what is appended to a gzip is none of its business
        if not str(error).startswith("Not a gzipped file"):
            raise


def _tar_row(contents: dict[str, bytes], audio: bytes, stem: str, where: str) -> Row:
    record = parse_json(contents.get(".json", b"{}"), where)
    if ".txt" in contents:
        try:
            record["text"] = contents[".txt"].decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}: the text is not UTF-8: {error}.") from error
    return make_row(record, audio, stem, where)


def _checked_members(tar: tarfile.TarFile, shard: Path) -> Iterator[tarfile.TarInfo]:
    for member in tar:
        if PurePosixPath(member.name).is_absolute() or ".." in PurePosixPath(member.name).parts:
            raise ValueError(f"{shard}: member {member.name!r} points out of the tar; such shards are refused.")
        if not member.isfile() and not member.isdir():
            raise ValueError(f"{shard}: member {member.name!r} is a link or a device; such shards are refused.")
        if member.isfile() and not PurePosixPath(member.name).name:
            raise tarfile.ReadError(f"member {member.name!r} has no name")
        tar.members = []  # or it would remember all that it has passed
        if member.isfile() and not PurePosixPath(member.name).name.startswith("."):
            yield member
