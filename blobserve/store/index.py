"""The index of one blob: all entries of its layer, and the tree they make, in one SQLite file.

`entry` has what the tar stream says, in its order; `node` is the view that serving needs, and could
be made again from `entry`, as all of it can from the content. Nothing is written before `flush`, so
that an owner can see in `bound` what it may come to, and grant it. Version 1 of the format.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

import attrs

from blobserve.config import Limits
from blobserve.errors import BadImage, BadLayer
from blobserve.store.damage import typed
from blobserve.store.replay import IMPLIED, Node, Replay, join, parted
from blobserve.store.tar import Member, Reader

APPLICATION_ID = 0x626C6F62  # "blob"
VERSION = 1

_SCHEMA = f"""
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA temp_store = MEMORY;
PRAGMA cache_size = -4096;
BEGIN;
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
CREATE TABLE node (
    directory BLOB NOT NULL,
    name BLOB NOT NULL,
    entry INTEGER REFERENCES entry (seq),
    PRIMARY KEY (directory, name)
) WITHOUT ROWID;
"""
_NODE = """
SELECT entry, type, link FROM node LEFT JOIN entry ON seq = entry
WHERE directory = ? AND node.name = ?
"""
_LINKS = """
SELECT directory, node.name, entry, type, link FROM node JOIN entry ON seq = entry
WHERE (directory, node.name) > (?, ?) AND type = X'31' ORDER BY directory, node.name LIMIT 500
"""
_FLUSH_AT = _PIECE = 1 << 20


@attrs.frozen
class Built:
    """A finished index: its size in bytes, the SHA-256 of the file, the number of its entries."""

    size: int
    sha256: bytes
    entries: int


class Index:
    """An index being made, at a path that does not exist yet.

    Add the members of a stream in order; `flush` as often as `full` says and `bound` is granted;
    `finish`, or `close` to give up. Blocks; used by one thread at a time.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        os.close(create(path))
        self._path = path
        self._database = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
        )
        self._database.executescript(_SCHEMA)
        self._nodes = _Nodes(self._database)
        self._replay = Replay(self._nodes, limits)
        self._members: list[Member] = []
        self._entries = 0
        self._bound = self._flushed = 8 * 4096

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
        self._bound += _bound(len(member.name) + len(member.link) + 96)
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

    def finish(self, content_size: int) -> Built:
        """Complete the tree and the file, and close it. See `flush` for what it raises."""
        self.flush()
        with _final_errors():
            self._replay.finish()
            self._nodes.flush()
            self._database.execute("INSERT INTO content VALUES (?)", (content_size,))
            self._database.execute("COMMIT")
            self.close()
        with self._path.open("rb") as file:
            hash_ = sha256()
            while piece := file.read(_PIECE):
                hash_.update(piece)
            return Built(file.tell(), hash_.digest(), self._entries)

    def close(self) -> None:
        """Give up an index that is not finished; whoever owns the directory removes the file."""
        self._database.close()

    @classmethod
    def rebuild(cls, directory: Path, limits: Limits) -> Built:
        """Make the index in a blob's directory again, from its content alone.

        The new one takes the place of the old one at once, or not at all.

        :raises BadImage: when the content is not a layer.
        """
        path = directory / "index.new"
        path.unlink(missing_ok=True)
        index = cls(path, limits)
        reader = Reader(limits)
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


class _Nodes:
    """The nodes of an index being made: the newest in memory, the others in its file.

    See `blobserve.store.replay.Nodes`.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self.bound = 0
        """The bytes that all nodes put so far may take in the file."""
        self._database = database
        self._fresh: dict[bytes, Node] = {}

    def get(self, key: bytes) -> Node | None:
        """See `Nodes.get`."""
        node = self._fresh.get(key)
        if node is not None:
            return node
        row = self._database.execute(_NODE, parted(key)).fetchone()
        if row is None:
            return None
        return IMPLIED if row[0] is None else Node(*row)

    def put(self, key: bytes, node: Node) -> None:
        """See `Nodes.put`."""
        self._fresh[key] = node
        self.bound += _bound(len(key) + 24)

    def clear(self, key: bytes) -> None:
        """See `Nodes.clear`."""
        below = key + b"/"
        for fresh in [fresh for fresh in self._fresh if fresh.startswith(below)]:
            del self._fresh[fresh]
        # Two statements: with OR, SQLite reads the whole table. b"0" is the byte after b"/".
        self._database.execute("DELETE FROM node WHERE directory = ?", (key,))
        self._database.execute(
            "DELETE FROM node WHERE directory > ? AND directory < ?", (below, key + b"0")
        )

    def links(self) -> Iterator[tuple[bytes, Node]]:
        """See `Nodes.links`. By pages, each written before the next is read."""
        last = (b"", b"")
        while True:
            self.flush()
            page = self._database.execute(_LINKS, last).fetchall()
            if not page:
                return
            for directory, name, *node in page:
                yield join(directory, name), Node(*node)
            last = page[-1][:2]

    def flush(self) -> None:
        """Write the newest."""
        rows = ((*parted(key), node.entry) for key, node in self._fresh.items())
        self._database.executemany("INSERT OR REPLACE INTO node VALUES (?, ?, ?)", rows)
        self._fresh.clear()


def create(path: Path) -> int:
    """Create a file that only its owner may read, and open it for writing.

    :raises FileExistsError: when there is anything at `path`, a dangling link included.
    """
    flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY | os.O_CLOEXEC
    return os.open(path, flags, 0o600)


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turn SQLite's errors into the `OSError` that the disk gave, as near as SQLite tells."""
    try:
        yield
    except sqlite3.Error as error:
        number = errno.ENOSPC if "full" in str(error) else errno.EIO
        raise OSError(number, os.strerror(number)) from error


@contextmanager
def _final_errors() -> Iterator[None]:
    """Turn SQLite's errors into those that are not worth trying again."""
    try:
        yield
    except sqlite3.Error as error:
        raise typed(error) or error from error


def _bound(payload: int) -> int:
    """What a row takes at most: pages may be half empty, and long rows spill into pages alone."""
    return 2 * payload + (8192 if payload > 900 else 0)
