"""What a table of contents says: its entries, checked, as the members and the chunks of a layer.

Both formats say it in the same words. An entry that could mean two things, or means what cannot be,
refuses the whole table: there is always the plain pull. Pure; knows nothing of where tables lie.
"""

from __future__ import annotations

import re
from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from blobserve.errors import BadTable
from blobserve.store.header import DIRECTORY, LINK, REGULAR, SYMLINK
from blobserve.store.published.chunk import LARGEST, RECORD_SIZE, Chunk
from blobserve.store.replay import split
from blobserve.store.tar import Member

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
# What deflate and zstd make larger by what they cannot make smaller, and the rest of a header.
_OVERHEAD = 4096
_MOST = (1 << 63) - 1


class _Stretch(NamedTuple):
    """A chunk of which it is not known yet where in the layer it ends."""

    start: int
    size: int
    at: int
    skip: int
    left: int
    sha256: bytes


class _File:
    """A regular file whose chunks are coming in."""

    def __init__(self, member: Member, end: int) -> None:
        self.member = member
        self.end = end
        self.stretches: list[_Stretch] = []
        self.reached = 0


class Contents:
    """The contents of one layer, entry by entry. After an error it must not be used again."""

    def __init__(self, limits: Limits, end: int) -> None:
        """`end`: where in the layer the last chunk ends at the latest."""
        self.members: list[Member] = []
        """What was read since somebody last took it; the offset is that of the first chunk."""
        self.records: list[bytes] = []
        """The chunks of those, and of others to come, packed."""
        self._limits = limits
        self._end = end
        self._count = self._names = self._size = 0
        self._chunks = 0
        self._seen: set[bytes] = set()
        self._file: _File | None = None
        self._open: list[_Stretch] = []
        self._at = self._free = 0  # Where the newest member begins, and where the next may.
        self._inner = 0  # And where in the newest the next chunk may.

    def take(self, entry: dict[str, object]) -> None:
        """Read the next entry.

        :raises BadTable: when it cannot be, where it stands.
        """
        self._count += 1
        if self._count > self._limits.entries:
            raise BadTable(f"it has more than {self._limits.entries} entries")
        kind = entry.get("type")
        if kind == "chunk":
            self._go_on(entry)
            return
        self._end_file()
        type_ = _TYPES.get(kind) if isinstance(kind, str) else None
        if type_ is None:
            raise BadTable("an entry is of no known type")
        name, link = _text(entry, "name"), _text(entry, "linkName")
        self._check_names(name, link, type_)
        size = _number(entry, "size") if type_ == REGULAR else 0
        self._size += size
        most = self._limits.unpacked_size
        if most is not None and self._size > most:
            raise BadTable(f"it unpacks to more than {most} bytes")
        mtime = _mtime(_text(entry, "modtime"))
        offset = RECORD_SIZE * self._chunks
        member = Member(len(self._seen), name, type_, 0, mtime, link, offset, size, None)
        if type_ != REGULAR:
            self.members.append(member)
        elif size == 0:
            self.members.append(member._replace(sha256=_EMPTY))
        else:
            self._begin_file(member, entry)

    def add(self, name: bytes, size: int, at: int, skip: int, digest: bytes) -> None:
        """Put in a file of one chunk that the table does not list: itself."""
        self._end_file()
        self._seal(at)
        if name in self._seen:
            raise BadTable("a name stands in it twice")
        self._seen.add(name)
        offset = RECORD_SIZE * self._chunks
        self._chunks += 1
        self._open = [_Stretch(0, size, at, skip, 0, digest)]
        seq = len(self._seen)
        self.members.append(Member(seq, name, REGULAR, 0, None, b"", offset, size, digest))

    def finish(self, end: int) -> None:
        """Say that all entries have been read; `end`: where the last chunk ends."""
        self._end_file()
        self._seal(end)

    def _check_names(self, name: bytes, link: bytes, type_: bytes) -> None:
        limits, parts = self._limits, split(name)
        self._names += len(name) + len(link)
        if len(name) > limits.name_size or len(link) > limits.name_size:
            raise BadTable(f"a name in it is longer than {limits.name_size} bytes")
        if self._names > limits.names_size:
            raise BadTable(f"its names take more than {limits.names_size} bytes")
        is_bare = not parts or name.endswith(b"/")
        if b".." in parts or b"\0" in name + link or (type_ != DIRECTORY and is_bare):
            raise BadTable("a name in it leads elsewhere, or to what it cannot name")
        key = b"/".join(parts)
        if key in self._seen:
            raise BadTable("a name stands in it twice")
        self._seen.add(key)

    def _begin_file(self, member: Member, entry: dict[str, object]) -> None:
        self._file = file = _File(member, _number(entry, "endOffset"))
        whole = _digest(entry, "digest")
        if whole is not None:
            file.member = member._replace(sha256=whole)
        if _number(entry, "chunkOffset"):
            raise BadTable("the first chunk of a file is not its beginning")
        self._add_stretch(file, entry, whole)

    def _go_on(self, entry: dict[str, object]) -> None:
        file = self._file
        if file is None or entry.get("name", "") not in ("", file.member.name.decode()):
            raise BadTable("a chunk belongs to no file")
        if _number(entry, "chunkOffset") != file.reached:
            raise BadTable("the chunks of a file do not follow each other")
        self._add_stretch(file, entry, None)

    def _add_stretch(self, file: _File, entry: dict[str, object], whole: bytes | None) -> None:
        rest = file.member.size - file.reached
        size = _number(entry, "chunkSize") or rest
        digest = _digest(entry, "chunkDigest")
        if digest is None and size == file.member.size:
            digest = whole
        if digest is None:
            raise BadTable("a chunk has no digest")
        at, skip = _number(entry, "offset"), _number(entry, "innerOffset")
        if not 0 < size <= rest:
            raise BadTable("the chunks of a file are more than it has bytes")
        if size + skip > LARGEST:
            raise BadTable(f"a chunk is larger than {LARGEST} bytes")
        self._place(at, skip, file)
        file.reached += size
        file.stretches.append(_Stretch(file.reached - size, size, at, skip, 0, digest))
        self._inner = skip + size

    def _place(self, at: int, skip: int, file: _File) -> None:
        """See that a chunk comes after all that was before it."""
        is_first = not self._chunks and not file.stretches
        if at < max(self._at, self._free):
            raise BadTable("its chunks overlap, or are not in order")
        if at == self._at and not is_first and skip < self._inner:
            raise BadTable("two chunks overlap")
        if at >= self._end or file.end > self._end or (file.end and at >= file.end):
            raise BadTable("a chunk lies outside of its layer or of its file")
        self._at = at

    def _end_file(self) -> None:
        """All chunks of the file that was begun are here."""
        file, self._file = self._file, None
        if file is None:
            return
        if file.reached != file.member.size:
            raise BadTable("the chunks of a file are less than it has bytes")
        last = len(file.stretches) - 1
        digest = file.member.sha256 or file.stretches[0].sha256
        if last == 0 and digest != file.stretches[0].sha256:
            raise BadTable("a file and its only chunk have different digests")
        if last and file.member.sha256 is None:
            raise BadTable("a file of several chunks has no digest")
        for number, stretch in enumerate(file.stretches):
            self._seal(stretch.at)
            self._open.append(stretch._replace(left=last - number))
            self._chunks += 1
        if file.end:
            self._seal(file.end)
            self._free = file.end
        self.members.append(file.member._replace(sha256=digest))

    def _seal(self, at: int) -> None:
        """What is open ends at `at`, if it began before."""
        if not self._open or self._open[0].at == at:
            return
        for start, size, begin, skip, left, digest in self._open:
            enough = skip + size + (skip + size) // 64 + _OVERHEAD
            chunk = Chunk(start, size, begin, min(at - begin, enough), skip, left, digest)
            self.records.append(chunk.packed())
        self._open.clear()


def _number(entry: dict[str, object], key: str) -> int:
    number = entry.get(key, 0)
    if type(number) is not int or not 0 <= number <= _MOST:
        _refuse(key, "is no number of bytes")
    return number


def _text(entry: dict[str, object], key: str) -> bytes:
    text = entry.get(key, "")
    if type(text) is not str:
        _refuse(key, "is no text")
    try:
        return text.encode()
    except UnicodeEncodeError:
        _refuse(key, "is no text")


def _digest(entry: dict[str, object], key: str) -> bytes | None:
    text = entry.get(key, "")
    if text == "":
        return None
    found = _DIGEST.fullmatch(text) if type(text) is str else None
    if found is None:
        _refuse(key, "is no SHA-256 digest")
    return bytes.fromhex(found[1])


def _refuse(key: str, problem: str) -> NoReturn:
    raise BadTable(f"the {key} of an entry {problem}")


@lru_cache(1024)
def _mtime(text: bytes) -> int | None:
    """Seconds since 1970; None where the table says nothing that makes sense. RFC 3339."""
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
