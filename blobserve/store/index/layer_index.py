"""The index of one blob: all entries of its layer, and the tree they make, in one SQLite file.

`entry` has what the tar stream says, in its order; `node` is the view that serving needs, and could
be made again from `entry`, as all of it can from the content. Nothing is written before `flush`, so
that an owner can see in `bound` what it may come to, and grant it. Version 1 of the format.
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
VERSION = 1

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
    sha256 BLOB
);
"""
_FLUSH_AT = _PIECE = 1 << 20


class IndexWriter:
    """An index being made, at a path that does not exist yet.

    Add the members of a stream in order; `flush` as often as `full` says and `bound` is granted;
    `finish`, or `close` to give up. Blocks; used by one thread at a time.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        self._path = path
        self._database = begin(path, _SCHEMA)
        self.sightings = NameWatch(self._database)
        """What has come of names, as far as it was flushed."""
        self._nodes = _WatchedNodes(self._database, self.sightings)
        self._replay = LayerApplier(self._nodes, limits)
        self._members: list[Member] = []
        self._entries = 0
        self._bound = self._flushed = EMPTY

    @property
    def bound(self) -> int:
        """The bytes that the file will take at most, once all that was added is flushed."""
        return self._bound + self._nodes.bound

    @property
    def full(self) -> bool:
        """Whether so much waits in memory that it should be flushed before more is added."""
        return self.bound - self._flushed > _FLUSH_AT

    def add(self, member: Member) -> None:
        """Take the next member. Writes nothing.

        :raises BadLayer: when the tree goes beyond a limit.
        """
        self._bound += row_bound(len(member.name) + len(member.link) + 96)
        self._entries += 1
        self._members.append(member)
        self._replay.apply(member)

    def flush(self) -> None:
        """Write what was added.

        :raises BlobserveError: when the disk is full, or fails; the index is lost then, for nobody
            can tell how much was written.
        """
        with _final_errors():
            self._database.executemany(
                "INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", self._members
            )
            self._members.clear()
            self._nodes.flush()
        self._flushed = self.bound

    def finish(self, content_size: int) -> IndexSummary:
        """Complete the tree and the file, and close it. See `flush` for what it raises."""
        self.flush()
        with _final_errors():
            self._replay.finish()
            self._nodes.flush()
            self._database.execute("INSERT INTO content VALUES (?)", (content_size,))
            return finish(self._path, self._database, self._entries)

    def close(self) -> None:
        """Give up an index that is not finished; whoever owns the directory removes the file."""
        self._database.close()

    @classmethod
    def rebuild(cls, directory: Path, limits: Limits) -> IndexSummary:
        """Make the index in a blob's directory again, from its content alone.

        The new one takes the place of the old one at once, or not at all.

        :raises BadImage: when the content is not a layer.
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
            with suppress(OSError):  # as when it has taken its place
                path.unlink()
        return built


class _WatchedNodes(FileNodes):
    """Nodes whose changes are told to who watches names. See `FileNodes`."""

    def __init__(self, database: sqlite3.Connection, sightings: NameWatch) -> None:
        super().__init__(database)
        self._sightings = sightings

    def clear(self, key: bytes) -> None:
        """See `NodeStore.clear`."""
        self._sightings.pruned()
        super().clear(key)

    def flush(self) -> None:
        """Write the newest."""
        self._sightings.wrote(self._fresh.keys())
        super().flush()


@contextmanager
def _final_errors() -> Iterator[None]:
    """Turn SQLite's errors into those that are not worth trying again."""
    try:
        yield
    except sqlite3.Error as error:
        raise typed(error) or error from error
