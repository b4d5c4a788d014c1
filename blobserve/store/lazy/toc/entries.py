"""The checked entries of a table of contents, as members and chunks of a layer.

Both formats have the same entries. An ambiguous or impossible entry makes the whole table invalid,
and the layer is pulled as usual.
"""

from __future__ import annotations

import re
from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, NoReturn

from blobserve.errors import BadToc
from blobserve.store.lazy.toc.chunk_records import ChunkRecords, PendingChunk
from blobserve.tar.header import DIRECTORY, LINK, REGULAR, SYMLINK, split
from blobserve.tar.reader import Member

if TYPE_CHECKING:
    from blobserve.config import Limits

_TYPES = {
    "reg": REGULAR,
    "hardlink": LINK,
    "symlink": SYMLINK,
    "char": b"3",
    "block": b"4",
    "dir": DIRECTORY,
    "fifo": b"6",
}
_EMPTY = sha256().digest()
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d{1,9})?(Z|[+-]\d\d:\d\d)", re.ASCII)
# Canonical names: no empty parts, none that begins with a dot, no slash at the end.
_PLAIN = re.compile(rb"[^./\0][^/\0]*(?:/[^./\0][^/\0]*)*")
_MOST = (1 << 63) - 1
# zstd:chunked makes chunks of holes of a kibibyte, and of the few bytes between two of them.
_FEW, _SMALL = 64, 512


class _PendingFile:
    """A regular file with more chunks to come."""

    def __init__(self, member: Member, end: int, first: PendingChunk) -> None:
        self.member = member
        self.end = end
        self.stretches = [first]
        self.reached = first.size


class TocEntries:
    """A reader of the entries of one layer. After an error it must not be used again."""

    def __init__(self, limits: Limits, end: int) -> None:
        """`end` is the largest possible end of a chunk in the layer."""
        self.members: list[Member] = []
        """The members read so far; the caller removes them. Offsets are those of records."""
        self.records = ChunkRecords(end)
        self._limits = limits
        self._count = self._names = self._size = 0
        self._seen: set[bytes] = set()
        self._file: _PendingFile | None = None

    def take(self, entry: dict[str, object]) -> None:
        """Read the next entry.

        :raises BadToc: when it is invalid.
        """
        self._count += 1
        if self._count > self._limits.entries:
            raise BadToc(f"it has more than {self._limits.entries} entries")
        kind = entry.get("type")
        if kind == "chunk":
            self._add_chunk(entry)
            return
        self._end_file()
        type_ = _TYPES.get(kind) if isinstance(kind, str) else None
        if type_ is None:
            raise BadToc("an entry has an unknown type")
        name, link = _text(entry, "name"), _text(entry, "linkName")
        self._check_names(name, link, type_)
        mtime, seq = _mtime(_text(entry, "modtime")), len(self._seen)
        size = _number(entry, "size") if type_ == REGULAR else 0
        if size:
            offset = self.records.offset
            self._begin_file(entry, Member(seq, name, type_, 0, mtime, link, offset, size, None))
        else:
            digest = _EMPTY if type_ == REGULAR else None
            self.members.append(Member(seq, name, type_, 0, mtime, link, 0, 0, digest))

    def skip(self, entry: dict[str, object]) -> None:
        """Read only the position of the next entry's chunk.

        :raises BadToc: when the position is invalid.
        """
        if entry.get("type") == "chunk":
            raise BadToc("the chunks of a file are smaller than the file")
        self._end_file()
        offset = _number(entry, "offset")
        if offset > self.records.newest:
            self.records.seal(offset)

    def finish(self) -> None:
        """Check that the last file is complete.

        :raises BadToc: when chunks of it are missing.
        """
        self._end_file()

    def add_itself(self, name: bytes, size: int, at: int, skip: int, digest: bytes) -> None:
        """Add the table itself as the last file of its layer.

        :raises BadToc: when the table lists that name already.
        """
        if name in self._seen:
            raise BadToc("it has a name twice")
        seq, offset = len(self._seen) + 1, self.records.offset
        self.members.append(Member(seq, name, REGULAR, 0, None, b"", offset, size, digest))
        self.records.add_last(PendingChunk(0, size, at, skip, digest))

    def _check_names(self, name: bytes, link: bytes, type_: bytes) -> None:
        limits, key = self._limits, name
        self._names += len(name) + len(link)
        if len(name) > limits.name_size or len(link) > limits.name_size:
            raise BadToc(f"a name in it is longer than {limits.name_size} bytes")
        if self._names > limits.names_size:
            raise BadToc(f"its names take more than {limits.names_size} bytes")
        if not _PLAIN.fullmatch(name):
            parts = split(name)
            is_bare = not parts or name.endswith(b"/")
            if b".." in parts or b"\0" in name or (type_ != DIRECTORY and is_bare):
                raise BadToc("it has an invalid name")
            key = b"/".join(parts)
        if key in self._seen:
            raise BadToc("it has a name twice")
        if b"\0" in link:
            raise BadToc("it has an invalid link")
        self._seen.add(key)

    def _begin_file(self, entry: dict[str, object], member: Member) -> None:
        size, most = member.size, self._limits.unpacked_size
        self._size += size
        if most is not None and self._size > most:
            raise BadToc(f"it unpacks to more than {most} bytes")
        whole, end = _digest(entry, "digest"), _number(entry, "endOffset")
        first = _stretch(entry, 0, size, whole)
        if first.size < size:
            if whole is None:
                raise BadToc("a file of several chunks has no digest")
            self._file = _PendingFile(member._replace(sha256=whole), end, first)
            return
        if whole not in (None, first.sha256):
            raise BadToc("a file and its only chunk have different digests")
        self.records.add((first,), end)
        self.members.append(member._replace(sha256=first.sha256))

    def _add_chunk(self, entry: dict[str, object]) -> None:
        file = self._file
        if file is None or entry.get("name", "") not in ("", file.member.name.decode()):
            raise BadToc("a chunk belongs to no file")
        stretch = _stretch(entry, file.reached, file.member.size - file.reached, None)
        file.stretches.append(stretch)
        file.reached += stretch.size
        if len(file.stretches) > _FEW + file.member.size // _SMALL:
            raise BadToc("a file is in too many pieces")

    def _end_file(self) -> None:
        """Complete the file that was begun."""
        file, self._file = self._file, None
        if file is None:
            return
        if file.reached != file.member.size:
            raise BadToc("the chunks of a file are smaller than the file")
        self.records.add(file.stretches, file.end)
        self.members.append(file.member)


def _stretch(entry: dict[str, object], start: int, rest: int, whole: bytes | None) -> PendingChunk:
    """Return the chunk of an entry; `rest` bytes of its file are still missing."""
    if _number(entry, "chunkOffset") != start:
        raise BadToc("the chunks of a file do not follow each other")
    size = _number(entry, "chunkSize") or rest
    if not 0 < size <= rest:
        raise BadToc("the chunks of a file are larger than the file")
    digest = _digest(entry, "chunkDigest")
    if digest is None and size == rest:
        digest = whole
    if digest is None:
        raise BadToc("a chunk has no digest")
    return PendingChunk(
        start, size, _number(entry, "offset"), _number(entry, "innerOffset"), digest
    )


def _number(entry: dict[str, object], key: str) -> int:
    number = entry.get(key, 0)
    if type(number) is not int or not 0 <= number <= _MOST:
        _refuse(key, "is not a number of bytes")
    return number


def _text(entry: dict[str, object], key: str) -> bytes:
    text = entry.get(key, "")
    if type(text) is not str:
        _refuse(key, "is not a text")
    try:
        return text.encode()
    except UnicodeEncodeError:
        _refuse(key, "is not a text")


def _digest(entry: dict[str, object], key: str) -> bytes | None:
    text = entry.get(key, "")
    if text == "":
        return None
    found = _DIGEST.fullmatch(text) if type(text) is str else None
    if found is None:
        _refuse(key, "is not a SHA-256 digest")
    return bytes.fromhex(found[1])


def _refuse(key: str, problem: str) -> NoReturn:
    raise BadToc(f"the {key} of an entry {problem}")


@lru_cache(1024)
def _mtime(text: bytes) -> int | None:
    """Return seconds since 1970, or None for an unusable time. RFC 3339."""
    found = _TIME.fullmatch(text.decode())
    if found is None:
        return None
    try:
        seconds = int(
            datetime.fromisoformat(found[1] + found[2].replace("Z", "+00:00")).timestamp()
        )
    except ValueError:
        return None
    return seconds if seconds >= 0 else None
