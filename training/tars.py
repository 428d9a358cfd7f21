"""Rows of tar shards: neighbours that share a stem, streamed from one end to the other and never extracted."""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath

from .rows import SUFFIXES, DamagedShard, Row, make_row, parse_json, stem_of

BYTES_AT_A_TIME = 2**20


class _CheckedHeader(tarfile.TarInfo):
    """A header that ends the tar only where its end mark stands; tarfile takes a broken or missing one for it, too."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"at byte {tar.offset}: {error}") from error


def tar_rows(shard: Path, begin: int) -> Iterator[Row]:
    """Rows of a tar, each from the neighbouring members that share a stem; the tar is streamed, never extracted."""
    has_audio: dict[str, bool] = {}
    number = 0
    try:
        with tarfile.open(shard, "r:*", tarinfo=_CheckedHeader) as tar:
            for stem, members in groupby(_checked_members(tar, shard), key=lambda m: stem_of(PurePosixPath(m.name))):
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
            # to the end, where the checksum of a compressed tar stands: damage may look like an end mark
            while tar.fileobj.read(BYTES_AT_A_TIME):
                pass
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DamagedShard(f"{shard}: not a whole tar file: {error}.") from error


def _tar_row(contents: dict[str, bytes], audio: bytes, stem: str, where: str) -> Row:
    record = parse_json(contents.get(".json", b"{}"), where)
    if ".txt" in contents:
        record["text"] = contents[".txt"].decode("utf-8").strip()
    return make_row(record, audio, stem, where)


def _checked_members(tar: tarfile.TarFile, shard: Path) -> Iterator[tarfile.TarInfo]:
    for member in tar:
        if PurePosixPath(member.name).is_absolute() or ".." in PurePosixPath(member.name).parts:
            raise ValueError(f"{shard}: member {member.name!r} points out of the tar; such shards are refused.")
        if not member.isfile() and not member.isdir():
            raise ValueError(f"{shard}: member {member.name!r} is a link or a device; such shards are refused.")
        tar.members = []  # or it would remember all that it has passed
        if member.isfile() and not PurePosixPath(member.name).name.startswith("."):
            yield member
