"""Lookups in the tree of an image: from paths to entries.

Paths resolve as in a chroot. A finished index never changes, and its directory may be moved or
removed while it is open. This module does not know the meaning of a path in HTTP.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from blobserve.config import Limits
from blobserve.errors import BlobDamaged, IndexDamaged, IndexOutdated, ListingTooLarge, PathNotFound
from blobserve.names.digest import Digest
from blobserve.store.index import layer_index, merged_index
from blobserve.store.index.entry import Entry, EntryKind
from blobserve.store.index.node_table import opened
from blobserve.store.index.resolve import TooManyLinks, join, parted, steps, walk
from blobserve.tar.header import DIRECTORY, REGULAR, SYMLINK, split

_FIND = """
SELECT ifnull(type, X'35'), link, offset, size, sha256, mtime, is_text, {layer}
FROM node LEFT JOIN entry ON seq = entry WHERE directory = ? AND node.name = ?
"""
_LIST = """
SELECT node.name, ifnull(type, X'35'), link, offset, size, sha256, mtime, is_text, {layer}
FROM node LEFT JOIN entry ON seq = entry WHERE directory = ? ORDER BY node.name
"""
_STEPS_PER_NAME = 8


class _Queries(NamedTuple):
    find: str
    list: str

    @classmethod
    def of(cls, layer: str) -> _Queries:
        """Return the queries of an index; `layer` is the SQL expression for an entry's layer."""
        return cls(_FIND.format(layer=layer), _LIST.format(layer=layer))


_IN_BLOB, _MERGED = _Queries.of("0"), _Queries.of("layer")


class _OtherVersion(ValueError):
    """An index in a format of another version."""


class _Match(NamedTuple):
    type: bytes
    link: bytes
    offset: int
    size: int
    sha256: bytes
    mtime: int | None
    is_text: int | None
    layer: int


class IndexReader:
    """An open index of a layer or an image, for one thread."""

    def __init__(
        self,
        digest: Digest,
        limits: Callable[[], Limits],
        database: sqlite3.Connection,
        queries: _Queries = _IN_BLOB,
    ) -> None:
        self.digest = digest
        """The digest of the layer, or of the merged index."""
        self._limits = limits
        self._database = database
        self._cursor = database.cursor()
        self._queries = queries

    @classmethod
    def open(cls, path: Path, digest: Digest, limits: Callable[[], Limits]) -> IndexReader:
        """Open a merged index; the caller closes it. Blocks; may be called in any thread.

        :raises BlobDamaged: when `path` is not a merged index of this version.
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
        """Open the index of a layer; its content has `content_size` bytes.

        :raises IndexOutdated: when it is an index of another version.
        :raises IndexDamaged: when `path` is not an index for this content.
        """
        try:
            database = _opened(path, layer_index.APPLICATION_ID, layer_index.VERSION, content_size)
        except _OtherVersion as error:
            raise IndexOutdated(str(digest), str(error)) from error
        except (sqlite3.Error, ValueError) as error:
            raise IndexDamaged(str(digest), str(error)) from error
        return cls(digest, limits, database)

    def lookup(self, path: bytes) -> Entry:
        """See `Filesystem.lookup`."""
        try:
            # Most lookups find a file at once, and need no `_Match`.
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
        """See `Filesystem.names`."""
        rows = self._database.execute(
            "SELECT name FROM node WHERE directory = ? ORDER BY name", (directory.path,)
        )
        return [name for (name,) in rows]

    def entries(self, directory: Entry, most: int) -> Iterator[tuple[bytes, Entry]]:
        """See `Filesystem.entries`."""
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
        """Return the target of a link if it can be served."""
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
    """Lookups for one thread, up to a limit."""

    def __init__(self, database: sqlite3.Connection, find: str, most: int) -> None:
        self.left = most
        self._cursor = database.cursor()
        self._find = find

    def get(self, key: bytes) -> _Match | None:
        """Return the node at `key`; None once the limit is exceeded."""
        found = _find(self._cursor, self._find, key)
        self.left -= steps(found)
        return found if self.left >= 0 else None


def _find(cursor: sqlite3.Cursor, query: str, key: bytes) -> _Match | None:
    row = cursor.execute(query, parted(key)).fetchone()
    return None if row is None else _Match(*row)


def _entry(key: bytes, found: _Match | None) -> Entry | None:
    """Return the entry for a match, or None if it is neither file nor directory.

    `found` is None for a directory that was not looked up.
    """
    if found is None or found.type == DIRECTORY:
        return Entry(key, EntryKind.DIRECTORY, mtime=found.mtime if found else None)
    return _file(key, found) if found.type == REGULAR else None


def _file(key: bytes, row: Sequence[Any]) -> Entry:
    _, _, offset, size, sha256, mtime, is_text, layer = row
    return Entry(key, EntryKind.FILE, offset, size, sha256, mtime, b"", layer, is_text=is_text)


def _opened(
    path: Path, application: int, version: int, content_size: int | None = None
) -> sqlite3.Connection:
    database = opened(path)
    try:
        names = ("application_id", "user_version")
        found = tuple(database.execute(f"PRAGMA {each}").fetchone()[0] for each in names)
        if found != (application, version):
            kind = _OtherVersion if found[0] == application else ValueError
            raise kind("its index is of another version")
        sized = "SELECT size FROM content"
        if content_size is not None and database.execute(sized).fetchall() != [(content_size,)]:
            raise ValueError("its content is of another size")
    except BaseException:
        database.close()
        raise
    return database


def _text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
