"""The index of one layer: its entries, and the tree that they make, in one SQLite file.

The table `entry` has the entries of the tar stream, in stream order. The table `node` has the tree
for lookups; it could be rebuilt from `entry`, and the whole index from the content. Nothing is
written before `flush`, so that the caller can reserve `bound` bytes. Version 2 of the format;
version 1 did not say which files are text.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from blobserve.config import Limits
from blobserve.errors import BadImage, BadLayer
from blobserve.store.disk.disk_errors import typed
from blobserve.store.index.apply_layer import LayerApplier
from blobserve.store.index.name_watch import NameWatch
from blobserve.store.index.node_table import (
    EMPTY,
    FileNodes,
    IndexSummary,
    begin,
    disk_errors,
    finish,
    row_bound,
)
from blobserve.tar.reader import Member, TarReader

APPLICATION_ID = 0x626C6F62  # "blob"
VERSION = 2

_SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
CREATE TABLE content (size INTEGER NOT NULL);
CREATE TABLE entry (
    seq INTEGER PRIMARY KEY,
    name BLOB NOT NULL,
    type BLOB NOT NULL,
    mode INTEGER NOT NULL,
    mtime INTEGER,
    link BLOB NOT NULL,
    offset INTEGER NOT NULL,
    size INTEGER NOT NULL,
    sha256 BLOB,
    is_text INTEGER
);
"""
_FLUSH_AT = _PIECE = 1 << 20


class IndexWriter:
    """An index that is being written, at a path that does not exist yet.

    `add` the members of a stream in order, and `flush` when it is `full` and `bound` bytes are
    reserved. At the end call `finish`, or `close` to stop early. Blocks; for one thread at a time.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        self._path = path
        self._database = begin(path, _SCHEMA)
        self.watch = NameWatch(self._database)
        """The watch on names, which sees all flushed members."""
        self._nodes = _WatchedNodes(self._database, self.watch)
        self._applier = LayerApplier(self._nodes, limits)
        self._members: list[Member] = []
        self._entries = 0
        self._bound = self._flushed = EMPTY

    @property
    def bound(self) -> int:
        """The largest size of the file after a flush, in bytes."""
        return self._bound + self._nodes.bound

    @property
    def full(self) -> bool:
        """Return whether a flush is due before more members are added."""
        return self.bound - self._flushed > _FLUSH_AT

    def add(self, member: Member) -> None:
        """Take the next member, without writing.

        :raises BadLayer: when the tree exceeds a limit.
        """
        self._bound += row_bound(len(member.name) + len(member.link) + 96)
        self._entries += 1
        self._members.append(member)
        self._applier.apply(member)

    def flush(self) -> None:
        """Write the members that were added.

        :raises BlobserveError: when the disk is full or fails. The index is lost then, since an
            unknown part of it was written.
        """
        with _final_errors():
            self._database.executemany(
                "INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", self._members
            )
            self._members.clear()
            self._nodes.flush()
        self._flushed = self.bound

    def finish(self, content_size: int) -> IndexSummary:
        """Complete the tree and the file, and close it. Raises the errors of `flush`."""
        self.flush()
        with _final_errors():
            self._applier.finish()
            self._nodes.flush()
            self._database.execute("INSERT INTO content VALUES (?)", (content_size,))
            return finish(self._path, self._database, self._entries)

    def close(self) -> None:
        """Close an unfinished index; the owner of the directory removes the file."""
        self._database.close()

    @classmethod
    def rebuild(cls, directory: Path, limits: Limits) -> IndexSummary:
        """Rebuild the index in a blob's directory from the content, and replace it atomically.

        :raises BadImage: when the content is not a valid layer.
        """
        path = directory / "index.new"
        path.unlink(missing_ok=True)
        index = cls(path, limits)
        reader = TarReader(limits)
        try:
            with disk_errors(), (directory / "content").open("rb") as content:
                while piece := content.read(_PIECE):
                    for member in reader.feed(piece):
                        index.add(member)
                        if index.full:
                            index.flush()
                reader.finish()
                built = index.finish(reader.size)
            path.replace(directory / "index")
        except BadLayer as problem:
            raise BadImage("a blob on disk", str(problem)) from problem
        finally:
            index.close()
            with suppress(OSError):  # After success it does not exist.
                path.unlink()
        return built


class _WatchedNodes(FileNodes):
    """Nodes that report their changes to a `NameWatch`. See `FileNodes`."""

    def __init__(self, database: sqlite3.Connection, watch: NameWatch) -> None:
        super().__init__(database)
        self._watch = watch

    def clear(self, key: bytes) -> None:
        """See `NodeStore.clear`."""
        self._watch.pruned()
        super().clear(key)

    def flush(self) -> None:
        """Write the new nodes."""
        self._watch.wrote(self._fresh.keys())
        super().flush()


@contextmanager
def _final_errors() -> Iterator[None]:
    """Turn SQLite's errors into errors that are final."""
    try:
        yield
    except sqlite3.Error as error:
        raise typed(error) or error from error
