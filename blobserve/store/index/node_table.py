"""The parts that layer indexes and merged indexes share: a SQLite file, and its table of nodes.

The two kinds of index define their own table of entries.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from blobserve.store.disk.files import checksum
from blobserve.store.index.apply_layer import IMPLIED, Node
from blobserve.store.index.resolve import join, parted

BEGIN = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA temp_store = MEMORY;
PRAGMA cache_size = -4096;
BEGIN;
CREATE TABLE node (
    directory BLOB NOT NULL,
    name BLOB NOT NULL,
    entry INTEGER REFERENCES entry (seq),
    PRIMARY KEY (directory, name)
) WITHOUT ROWID;
"""
EMPTY = 8 * 4096
"""The largest size of an empty index, in bytes."""

_NODE = """
SELECT entry, type, link FROM node LEFT JOIN entry ON seq = entry
WHERE directory = ? AND node.name = ?
"""
_LINKS = """
SELECT directory, node.name, entry, type, link FROM node JOIN entry ON seq = entry
WHERE (directory, node.name) > (?, ?) AND type = X'31' ORDER BY directory, node.name LIMIT 500
"""


@attrs.frozen
class IndexSummary:
    """A finished index: its size in bytes, the SHA-256 of the file, the number of its entries."""

    size: int
    sha256: bytes
    entries: int


def begin(path: Path, schema: str) -> sqlite3.Connection:
    """Begin an index file at a path that does not exist."""
    os.close(create(path))
    database = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
    )
    database.executescript(BEGIN + schema)
    return database


def finish(path: Path, database: sqlite3.Connection, entries: int) -> IndexSummary:
    """Complete the file, and close it."""
    database.execute("COMMIT")
    database.close()
    return IndexSummary(path.stat().st_size, checksum(path), entries)


def opened(path: Path) -> sqlite3.Connection:
    """Open a finished index file for reading."""
    # Immutable: SQLite takes no locks and does not check for changes.
    uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    return sqlite3.connect(uri, uri=True, check_same_thread=False)


class FileNodes:
    """The nodes of an unfinished index: new ones in memory, the others in its file.

    See `blobserve.store.index.apply_layer.NodeStore`.
    """

    def __init__(self, database: sqlite3.Connection, links: str = _LINKS) -> None:
        """`links` selects hard links after a directory and a name, in their order."""
        self.bound = 0
        """The largest number of bytes that all nodes may take in the file."""
        self._database = database
        self._links = links
        self._fresh: dict[bytes, Node] = {}

    def get(self, key: bytes) -> Node | None:
        """See `NodeStore.get`."""
        node = self._fresh.get(key)
        if node is not None:
            return node
        row = self._database.execute(_NODE, parted(key)).fetchone()
        if row is None:
            return None
        return IMPLIED if row[0] is None else Node(*row)

    def put(self, key: bytes, node: Node) -> None:
        """See `NodeStore.put`."""
        self._fresh[key] = node
        self.bound += row_bound(len(key) + 24)

    def clear(self, key: bytes) -> None:
        """See `NodeStore.clear`."""
        if not key:
            self._fresh.clear()
            self._database.execute("DELETE FROM node")
            return
        below = key + b"/"
        for fresh in [fresh for fresh in self._fresh if fresh.startswith(below)]:
            del self._fresh[fresh]
        # Two statements: with OR, SQLite reads the whole table. b"0" is the byte after b"/".
        self._database.execute("DELETE FROM node WHERE directory = ?", (key,))
        self._database.execute(
            "DELETE FROM node WHERE directory > ? AND directory < ?", (below, key + b"0")
        )

    def remove(self, key: bytes) -> None:
        """See `NodeStore.remove`."""
        self._fresh.pop(key, None)
        self._database.execute("DELETE FROM node WHERE directory = ? AND name = ?", parted(key))

    def set_aside(self, key: bytes, whiteout: int, is_opaque: bool) -> None:
        """See `NodeStore.set_aside`. A single layer has no whiteouts."""

    def hidden(self, key: bytes, entry: int) -> Node | None:
        """See `NodeStore.hidden`."""
        return None

    def links(self) -> Iterator[tuple[bytes, Node]]:
        """See `NodeStore.links`. Reads pages, and writes changes before the next one."""
        last = (b"", b"")
        while True:
            self.flush()
            page = self._database.execute(self._links, last).fetchall()
            if not page:
                return
            for directory, name, *node in page:
                yield join(directory, name), Node(*node)
            last = page[-1][:2]

    def flush(self) -> None:
        """Write the new nodes."""
        rows = ((*parted(key), node.entry) for key, node in self._fresh.items())
        self._database.executemany("INSERT OR REPLACE INTO node VALUES (?, ?, ?)", rows)
        self._fresh.clear()


def create(path: Path) -> int:
    """Create a file that only its owner can read, and open it for reading and writing.

    :raises FileExistsError: when `path` exists, even as a dangling link.
    """
    flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_RDWR | os.O_CLOEXEC
    return os.open(path, flags, 0o600)


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turn SQLite's errors into the most likely `OSError` of the disk."""
    try:
        yield
    except sqlite3.Error as error:
        number = errno.ENOSPC if "full" in str(error) else errno.EIO
        raise OSError(number, os.strerror(number)) from error


def row_bound(payload: int) -> int:
    """Return the largest number of bytes that a row takes.

    Pages may be half empty, and long rows have pages of their own.
    """
    return 2 * payload + (8192 if payload > 900 else 0)
