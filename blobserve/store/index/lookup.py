"""The served tree of an image: paths in, entries out.

Paths resolve as in a chroot. All looking up is in an index that never changes again; what happens
to its directory meanwhile does not matter. Knows nothing of what a path means to HTTP.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from blobserve.config import Limits
from blobserve.errors import BlobDamaged, IndexDamaged, ListingTooLarge, PathNotFound
from blobserve.names.digest import Digest
from blobserve.store.index import layer_index, merged_index
from blobserve.store.index.entry import Entry, EntryKind
from blobserve.store.index.node_table import opened
from blobserve.store.index.resolve import TooManyLinks, join, parted, steps, walk
from blobserve.tar.header import DIRECTORY, REGULAR, SYMLINK
from blobserve.tar.names import split

_FIND = """
SELECT ifnull(type, X'35'), link, offset, size, sha256, mtime, {layer}
FROM node LEFT JOIN entry ON seq = entry WHERE directory = ? AND node.name = ?
"""
_LIST = """
SELECT node.name, ifnull(type, X'35'), link, offset, size, sha256, mtime, {layer}
FROM node LEFT JOIN entry ON seq = entry WHERE directory = ? ORDER BY node.name
"""
_STEPS_PER_NAME = 8


class _Queries(NamedTuple):
    find: str
    list: str

    @classmethod
    def of(cls, layer: str) -> _Queries:
        """Those of an index that says in which layer a body is by this expression."""
        return cls(_FIND.format(layer=layer), _LIST.format(layer=layer))


_IN_BLOB, _MERGED = _Queries.of("0"), _Queries.of("layer")


class _Match(NamedTuple):
    type: bytes
    link: bytes
    offset: int
    size: int
    sha256: bytes
    mtime: int | None
    layer: int


class IndexReader:
    """The names of an image: an index that is open, of one thread alone."""

    def __init__(
        self,
        digest: Digest,
        limits: Callable[[], Limits],
        database: sqlite3.Connection,
        queries: _Queries = _IN_BLOB,
    ) -> None:
        self.digest = digest
        """Of what makes the tree; of the layer, if that is one."""
        self._limits = limits
        self._database = database
        self._cursor = database.cursor()
        self._queries = queries

    @classmethod
    def open(cls, path: Path, digest: Digest, limits: Callable[[], Limits]) -> IndexReader:
        """Open the tree of several layers, to be closed. Blocks; may be called in any thread.

        :raises BlobDamaged: when there is no tree of our version at `path`.
        """
        try:
            database = _opened(path, merged_index.APPLICATION_ID, merged_index.VERSION)
        except (sqlite3.Error, ValueError) as error:
            raise BlobDamaged(str(digest), str(error)) from error
        return cls(digest, limits, database, _MERGED)

    @classmethod
    def of_blob(
        cls, path: Path, content_size: int, digest: Digest, limits: Callable[[], Limits]
    ) -> IndexReader:
        """The same of a single blob, whose content has so many bytes.

        :raises IndexDamaged: when an index of our version, and of this content, is not there.
        """
        try:
            database = _opened(path, layer_index.APPLICATION_ID, layer_index.VERSION, content_size)
        except (sqlite3.Error, ValueError) as error:
            raise IndexDamaged(str(digest), str(error)) from error
        return cls(digest, limits, database)

    def lookup(self, path: bytes) -> Entry:
        """See `ImageFilesystem.lookup`."""
        try:
            # Most that is looked up is a file, and is there: of that one value is made, not two.
            row = self._cursor.execute(self._queries.find, parted(path)).fetchone()
            if row is not None and row[0] == REGULAR:
                return _file(path, row)
            key, found = path, None if row is None else _Match(*row)
            if found is None or found.type == SYMLINK:
                key, found, missing = walk(split(path), self._get, self._limits())
                if missing or (path.endswith(b"/") and found and found.type != DIRECTORY):
                    raise PathNotFound(_text(path))
        except TooManyLinks as error:
            raise PathNotFound(_text(path)) from error
        except sqlite3.Error as error:
            raise IndexDamaged(str(self.digest), "its index cannot be read") from error
        entry = _entry(key, found)
        if entry is None:
            raise PathNotFound(_text(path))
        return entry

    def names(self, directory: Entry) -> list[bytes]:
        """See `ImageFilesystem.names`."""
        rows = self._database.execute(
            "SELECT name FROM node WHERE directory = ? ORDER BY name", (directory.path,)
        )
        return [name for (name,) in rows]

    def entries(self, directory: Entry, most: int) -> Iterator[tuple[bytes, Entry]]:
        """See `ImageFilesystem.entries`."""
        budget = _Budget(self._database, self._queries.find, most * _STEPS_PER_NAME)
        try:
            rows = self._database.execute(self._queries.list, (directory.path,))
            for count, (name, *row) in enumerate(rows):
                if count == most:
                    raise ListingTooLarge(_text(directory.path), f"{most} entries")
                found = _Match(*row)
                if found.type == SYMLINK:
                    entry = self._led_to(directory.path, name, budget)
                else:
                    entry = _entry(join(directory.path, name), found)
                if budget.left < 0:
                    raise ListingTooLarge(_text(directory.path), "the time its links may take")
                if entry is not None:
                    yield name, entry
        except sqlite3.Error as error:
            raise IndexDamaged(str(self.digest), "its index cannot be read") from error

    def _led_to(self, directory: bytes, name: bytes, budget: _Budget) -> Entry | None:
        """What a link leads to, if that can be served."""
        try:
            key, found, missing = walk([name], budget.get, self._limits(), directory)
        except TooManyLinks:
            return None
        return None if missing else _entry(key, found)

    def close(self) -> None:
        """Close the index. Idempotent."""
        self._database.close()

    def _get(self, key: bytes) -> _Match | None:
        return _find(self._cursor, self._queries.find, key)


class _Budget:
    """Look-ups for one thread, and how many more of them there may be."""

    def __init__(self, database: sqlite3.Connection, find: str, most: int) -> None:
        self.left = most
        self._cursor = database.cursor()
        self._find = find

    def get(self, key: bytes) -> _Match | None:
        """The node at `key`, to which links without end are as good as none."""
        found = _find(self._cursor, self._find, key)
        self.left -= steps(found)
        return found if self.left >= 0 else None


def _find(cursor: sqlite3.Cursor, query: str, key: bytes) -> _Match | None:
    row = cursor.execute(query, parted(key)).fetchone()
    return None if row is None else _Match(*row)


def _entry(key: bytes, found: _Match | None) -> Entry | None:
    """The file or the directory at a key (None: a directory not looked at), if it is one."""
    if found is None or found.type == DIRECTORY:
        return Entry(key, EntryKind.DIRECTORY, mtime=found.mtime if found else None)
    return _file(key, found) if found.type == REGULAR else None


def _file(key: bytes, row: Sequence[Any]) -> Entry:
    _, _, offset, size, sha256, mtime, layer = row
    return Entry(key, EntryKind.FILE, offset, size, sha256, mtime, b"", layer)


def _opened(
    path: Path, application: int, version: int, content_size: int | None = None
) -> sqlite3.Connection:
    database = opened(path)
    try:
        found = _pragma(database, "application_id"), _pragma(database, "user_version")
        if found != (application, version):
            raise ValueError("its index is of another version")
        sized = "SELECT size FROM content"
        if content_size is not None and database.execute(sized).fetchall() != [(content_size,)]:
            raise ValueError("its content is of another size")
    except BaseException:
        database.close()
        raise
    return database


def _pragma(database: sqlite3.Connection, name: str) -> object:
    return database.execute(f"PRAGMA {name}").fetchone()[0]


def _text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
