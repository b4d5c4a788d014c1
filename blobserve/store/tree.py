"""The served tree of one blob: paths in, entries and their bytes out.

Paths resolve as in a chroot. All reading is by offset in a content file that is open already, all
looking up in an index that never changes again; what happens to the directory meanwhile does not
matter. Knows nothing of what a path means to HTTP.
"""

from __future__ import annotations

import enum
import hashlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import attrs

from blobserve.config import KIB, MIB, Limits
from blobserve.errors import BlobDamaged, CodingDamaged, IndexDamaged, PathNotFound
from blobserve.oci.digest import Digest
from blobserve.store.checked import Checked
from blobserve.store.codings import Coded, Codings, Uncoded
from blobserve.store.damage import is_lost
from blobserve.store.header import DIRECTORY, REGULAR, SYMLINK
from blobserve.store.index import APPLICATION_ID, VERSION
from blobserve.store.replay import TooManyLinks, parted, split, walk
from blobserve.store.residency import Residency

_AHEAD = 4 * MIB
_TOUCH = 64 * KIB
_SLICE = 8 * MIB

_FIND = """
SELECT ifnull(type, X'35'), link, offset, size, sha256, mtime
FROM node LEFT JOIN entry ON seq = entry WHERE directory = ? AND node.name = ?
"""


class Kind(enum.Enum):
    """What can be served."""

    FILE = enum.auto()
    DIRECTORY = enum.auto()


@attrs.frozen
class Entry:
    """A file or a directory of the tree. Only a file has bytes, and a `sha256` of them.

    `path` is canonical: no leading slash, no link on the way. `offset` counts in the content file;
    `mtime` is in seconds since 1970, None where the layer gives none that makes sense. With a
    `coding`, `offset`, `size` and `sha256` are those of the coded bytes, which lie elsewhere.
    """

    path: bytes
    kind: Kind
    offset: int = 0
    size: int = 0
    sha256: bytes = b""
    mtime: int | None = None
    coding: bytes = b""


class _Found(NamedTuple):
    type: bytes
    link: bytes
    offset: int
    size: int
    sha256: bytes
    mtime: int | None


class ImageFilesystem:
    """The files of a published blob. Made by `open`; whoever opened it closes it.

    Look-ups are for one thread, and take microseconds; what blocks, by its docstring, is for any.
    """

    def __init__(
        self,
        digest: Digest,
        limits: Limits,
        database: sqlite3.Connection,
        content: int,
        codings: Codings,
    ) -> None:
        self.digest = digest
        """The digest of the layer."""
        self.codings = codings
        """What has been made of its files."""
        self.is_verifying = False
        """Whether no byte of a file is given away before all of it was found to be right."""
        self._checked = Checked()
        self._limits = limits
        self._database = database
        self._cursor = database.cursor()
        self._content = content
        self._residency = Residency()

    @classmethod
    def open(cls, directory: Path, digest: Digest, limits: Limits) -> ImageFilesystem:
        """Open the blob in `directory`. Blocks; may be called in any thread.

        :raises IndexDamaged: when an index of our version, and of this content, is not there.
        :raises OSError: when they cannot be opened.
        """
        with ExitStack() as failing:
            content = os.open(directory / "content", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            failing.callback(os.close, content)
            codings = Codings.open(directory)
            failing.callback(codings.close)
            try:
                database = _open_index(directory / "index", os.fstat(content).st_size)
            except (sqlite3.Error, ValueError) as error:
                raise IndexDamaged(str(digest), str(error)) from error
            failing.pop_all()
        return cls(digest, limits, database, content, codings)

    def lookup(self, path: bytes) -> Entry:
        """Find what `path` names, through links, from the root of the tree.

        :raises PathNotFound: when that is no file and no directory, or not to be reached.
        :raises IndexDamaged: when the index cannot be read.
        """
        try:
            key, found = path, self._get(path)
            if found is None or found.type == SYMLINK:
                key, found, missing = walk(split(path), self._get, self._limits)
                if missing or (path.endswith(b"/") and found and found.type != DIRECTORY):
                    raise PathNotFound(_text(path))
        except TooManyLinks as error:
            raise PathNotFound(_text(path)) from error
        except sqlite3.Error as error:
            raise IndexDamaged(str(self.digest), "its index cannot be read") from error
        if found is None or found.type == DIRECTORY:
            return Entry(key, Kind.DIRECTORY, mtime=found.mtime if found else None)
        if found.type != REGULAR:
            raise PathNotFound(_text(path))
        return Entry(key, Kind.FILE, found.offset, found.size, found.sha256, found.mtime)

    def names(self, directory: Entry) -> list[bytes]:
        """The names in a directory, sorted by their bytes; `lookup` tells which can be served."""
        rows = self._database.execute(
            "SELECT name FROM node WHERE directory = ? ORDER BY name", (directory.path,)
        )
        return [name for (name,) in rows]

    def coded(self, entry: Entry, coding: bytes) -> Entry | Uncoded | None:
        """The same file in a content coding; None when that is not known yet."""
        made = self.codings.get(entry.sha256, coding)
        if not isinstance(made, Coded):
            return made
        path, kind, mtime = entry.path, entry.kind, entry.mtime
        return Entry(path, kind, made.offset, made.size, made.sha256, mtime, coding)

    def read(self, entry: Entry, offset: int, length: int) -> bytes:
        """Read `length` bytes of a file from `offset` on, fewer only at its end. Blocks.

        :raises BlobDamaged: when the disk has lost them, or has others.
        """
        self._verify(entry)
        pieces = []
        at, end = entry.offset + offset, entry.offset + min(offset + length, entry.size)
        while at < end:
            pieces.append(piece := self._pread(entry, end - at, at))
            at += len(piece)
        return b"".join(pieces)

    def read_cached(self, entry: Entry, offset: int, length: int) -> bytes | None:
        """The same without blocking: what of it is in memory, None when nothing is."""
        if not self.is_checked(entry):
            return None
        length = min(length, entry.size - offset)
        if length <= 0:
            return b""
        buffer = bytearray(length)
        try:
            at = entry.offset + offset
            read = os.preadv(self.descriptor_of(entry), [buffer], at, os.RWF_NOWAIT)
        except OSError:  # Not in memory; or a file system that cannot tell.
            return None
        return bytes(memoryview(buffer)[:read]) or None

    def descriptor_of(self, entry: Entry) -> int:
        """The descriptor of the file that has an entry's bytes, from its `offset` on."""
        return self.codings.descriptor if entry.coding else self._content

    def is_cached(self, entry: Entry, offset: int, length: int) -> bool:
        """Whether all of that is in memory, as far as anybody can tell."""
        at = entry.offset + offset
        return self.is_checked(entry) and self._residency.has(self.descriptor_of(entry), at, length)

    def read_ahead(self, entry: Entry, offset: int, length: int) -> None:
        """Bring it into memory, where it stays as long as there is room. Blocks.

        :raises BlobDamaged: when the disk has lost it, or has something else.
        """
        self._verify(entry)
        at, end = entry.offset + offset, entry.offset + min(offset + length, entry.size)
        descriptor = self.descriptor_of(entry)
        # The disk goes on with what is probably asked for next, while this is being sent.
        ahead = min(_AHEAD, entry.offset + entry.size - at)
        os.posix_fadvise(descriptor, at, ahead, os.POSIX_FADV_WILLNEED)
        while at < end:
            at += len(self._pread(entry, min(end - at, _TOUCH), at))

    def is_checked(self, entry: Entry) -> bool:
        """Whether a file may be given away, because it was checked or need not be."""
        if not self.is_verifying or not entry.size:
            return True
        return self._checked.has(entry.offset, bool(entry.coding))

    def check(self, entry: Entry) -> Iterator[None]:
        """Compare a file with its SHA-256, a slice at each step; once it is right, that holds.

        Steps block. Nothing of it is given away before, if the filesystem `is_verifying`.

        :raises BlobDamaged: when the disk has lost it, or has something else.
        """
        at, end, hash_ = entry.offset, entry.offset + entry.size, hashlib.sha256()
        while at < end:
            slice_ends = min(end, at + _SLICE)
            while at < slice_ends:
                piece = self._pread(entry, min(slice_ends - at, MIB), at)
                hash_.update(piece)
                at += len(piece)
            yield
        if hash_.digest() != entry.sha256:
            raise self.damage(entry, "a file is not what its digest says")
        self._checked.add(entry.offset, bool(entry.coding))

    def damage(self, entry: Entry, problem: str) -> BlobDamaged:
        """The error that says what is wrong with the bytes of an entry."""
        if entry.coding:
            return CodingDamaged(str(self.digest), problem, entry.coding, entry.offset)
        return BlobDamaged(str(self.digest), problem)

    def forget_coding(self, coding: bytes, offset: int) -> None:
        """Give away no longer the coded bytes that begin there, damaged as they are."""
        self.codings.forget(coding, offset)
        self._checked.remove_coded(offset)

    def take_index(self, other: ImageFilesystem) -> None:
        """Look up in the index of `other` from now on, the same blob opened anew; it is closed."""
        former, self._database = self._database, other._database
        self._cursor, other._database = other._cursor, former
        other.close()

    def close(self) -> None:
        """Close all files. Idempotent."""
        content, self._content = self._content, -1
        if content >= 0:
            os.close(content)
        self._database.close()
        self.codings.close()

    def _verify(self, entry: Entry) -> None:
        if not self.is_checked(entry):
            for _ in self.check(entry):
                pass

    def _pread(self, entry: Entry, length: int, at: int) -> bytes:
        """Some of those bytes, at least one."""
        try:
            piece = os.pread(self.descriptor_of(entry), length, at)
        except OSError as error:
            if not is_lost(error):
                raise
            raise self.damage(entry, f"it cannot be read: {error.strerror}") from error
        if not piece:
            raise self.damage(entry, "its content is cut short")
        return piece

    def _get(self, key: bytes) -> _Found | None:
        row = self._cursor.execute(_FIND, parted(key)).fetchone()
        return None if row is None else _Found(*row)


def _open_index(path: Path, content_size: int) -> sqlite3.Connection:
    # Immutable: no locks, and no look at whether it has changed.
    database = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False
    )
    try:
        version = (APPLICATION_ID, VERSION)
        if (_pragma(database, "application_id"), _pragma(database, "user_version")) != version:
            raise ValueError("its index is of another version")
        if database.execute("SELECT size FROM content").fetchall() != [(content_size,)]:
            raise ValueError("its content is of another size")
    except BaseException:
        database.close()
        raise
    return database


def _pragma(database: sqlite3.Connection, name: str) -> object:
    return database.execute(f"PRAGMA {name}").fetchone()[0]


def _text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
