"""The metadata database of a blob space: the small SQLite file `state`.

`MetadataDb` blocks, and may be used from several threads. If the file is lost, blobs are verified
again and references are looked up again, so that responses stay correct. Commits reach the disk
when the kernel writes them, or at a checkpoint. A power cut may lose the last commits, but no part
of one.

`WriteBehind` collects changes and writes them a little later. `StoredReferences` holds the digest
of each reference in memory, and writes it the same way.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from blobserve.errors import MalformedReference
from blobserve.names.digest import Digest
from blobserve.store.disk.files import BLOCK, footprint, remove

_log = Logger()

MOST_CHANGES = 32
"""Rows that one commit may change, so that the bytes it writes are bounded."""

SLACK = 64 * BLOCK
"""Bytes to keep free for commits until the file is measured again."""

_CHECKPOINT_PAGES = 64

_SCHEMA = """
CREATE TABLE IF NOT EXISTS blobs (
    digest TEXT PRIMARY KEY, content_size INTEGER NOT NULL, index_size INTEGER NOT NULL,
    index_sha256 BLOB NOT NULL, used REAL NOT NULL, durable INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS trees (
    digest TEXT PRIMARY KEY, content_size INTEGER NOT NULL, index_size INTEGER NOT NULL,
    index_sha256 BLOB NOT NULL, used REAL NOT NULL, durable INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS manifests (
    digest TEXT PRIMARY KEY, media_type TEXT NOT NULL, used REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS refs (
    reference TEXT PRIMARY KEY, digest TEXT NOT NULL, checked REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS provenance (
    digest TEXT NOT NULL, repository TEXT NOT NULL, access INTEGER NOT NULL, recorded REAL NOT NULL,
    PRIMARY KEY (digest, repository, access)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS versions (
    reference TEXT NOT NULL, digest TEXT NOT NULL, ended REAL NOT NULL,
    PRIMARY KEY (reference, digest)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pins (
    name TEXT PRIMARY KEY, digest TEXT NOT NULL, since REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS purges (
    digest TEXT NOT NULL, repository TEXT NOT NULL, recorded REAL NOT NULL,
    PRIMARY KEY (digest, repository)
) WITHOUT ROWID;
"""


Table = Literal["blobs", "trees"]


@attrs.frozen
class Record:
    """The record of a published blob, or of a merged index, which has no content.

    Sizes are in bytes.
    """

    digest: Digest
    content_size: int
    index_size: int
    index_sha256: bytes
    used: float
    """The time of its last use, by the reactor's clock; only the order matters."""
    durable: bool = attrs.field(default=False, converter=bool)
    """Whether its files were synced to the disk."""


Change = tuple[str, Sequence[object]]
"""One SQL statement and its parameters; it changes one row."""


def recorded(record: Record, table: Table = "blobs") -> Change:
    """Store the record of a blob or merged index that is about to be published."""
    digest, *rest = attrs.astuple(record, recurse=False)
    return f"REPLACE INTO {table} VALUES (?, ?, ?, ?, ?, ?)", (str(digest), *rest)


def made_durable(digest: Digest) -> Change:
    """Mark a blob as durable, after its files were synced."""
    return "UPDATE blobs SET durable = 1 WHERE digest = ?", (str(digest),)


def was_used(digest: Digest, used: float, table: Table = "blobs") -> Change:
    """Store the time of its last use."""
    return f"UPDATE {table} SET used = ? WHERE digest = ?", (used, str(digest))


def removed(digest: Digest, table: Table = "blobs") -> Change:
    """Delete the record of a blob or merged index that was removed."""
    return f"DELETE FROM {table} WHERE digest = ?", (str(digest),)


def remembered(reference: str, digest: Digest, checked: float) -> Change:
    """Store the digest of a reference, and when it was last checked."""
    return "REPLACE INTO refs VALUES (?, ?, ?)", (reference, str(digest), checked)


def forgotten(reference: str) -> Change:
    """Delete a reference."""
    return "DELETE FROM refs WHERE reference = ?", (reference,)


def manifest_put(digest: Digest, media_type: str, used: float) -> Change:
    """Store the media type of a manifest."""
    return "REPLACE INTO manifests VALUES (?, ?, ?)", (str(digest), media_type, used)


def manifest_removed(digest: Digest) -> Change:
    """Delete the row of a manifest that was removed."""
    return "DELETE FROM manifests WHERE digest = ?", (str(digest),)


def provenance_put(digest: Digest, repository: str, access: int, recorded: float) -> Change:
    """Store an entry of `blobserve.store.space.provenance`."""
    values = (str(digest), repository, int(access), recorded)
    return "REPLACE INTO provenance VALUES (?, ?, ?, ?)", values


def provenance_removed(digest: Digest, repository: str, access: int) -> Change:
    """Delete an entry of `blobserve.store.space.provenance`."""
    condition = "digest = ? AND repository = ? AND access = ?"
    return f"DELETE FROM provenance WHERE {condition}", (str(digest), repository, int(access))


def version_put(reference: str, digest: Digest, ended: float) -> Change:
    """Store an earlier version of a tag, and when the tag left it."""
    return "REPLACE INTO versions VALUES (?, ?, ?)", (reference, str(digest), ended)


def version_removed(reference: str, digest: Digest) -> Change:
    """Delete an earlier version of a tag."""
    return "DELETE FROM versions WHERE reference = ? AND digest = ?", (reference, str(digest))


def pin_put(name: str, digest: Digest, since: float) -> Change:
    """Store the pin of a site or tag."""
    return "REPLACE INTO pins VALUES (?, ?, ?)", (name, str(digest), since)


def pin_removed(name: str) -> Change:
    """Delete the pin of a site or tag."""
    return "DELETE FROM pins WHERE name = ?", (name,)


def purge_put(digest: Digest, repository: str, recorded: float) -> Change:
    """Store that an image was purged from a repository."""
    return "REPLACE INTO purges VALUES (?, ?, ?)", (str(digest), repository, recorded)


class MetadataDb:
    """The metadata database. Every method blocks; once it is open, any thread may call them."""

    def __init__(self, path: Path) -> None:
        self.size = 0
        """Its bytes in whole blocks when last measured, with a damaged one that was set aside."""
        self._path = path
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None

    def open(self) -> None:
        """Open it, or create it; a damaged one is set aside as ``state.damaged``.

        Only the owner of the blob space may call it: see `SpaceDirectory.take`.

        :raises OSError: when it can be neither read nor replaced.
        """
        try:
            self._database = self._connect()
        except sqlite3.OperationalError as error:  # not damaged: the disk is full, or read-only
            raise OSError(errno.EIO, f"the state file cannot be opened ({error})") from error
        except sqlite3.DatabaseError as error:
            _log.warn(
                "{path} is damaged ({error}) and set aside; every blob is verified again",
                path=str(self._path),
                error=error,
            )
            self._set_aside()
            self._database = self._connect()
        self._measure()

    def blobs(self) -> list[Record]:
        """Return the records of all blobs, the least recently used first."""
        return [Record(*row) for row in self._rows("SELECT * FROM blobs ORDER BY used")]

    def trees(self) -> list[Record]:
        """Return the records of all merged indexes, the least recently used first."""
        return [Record(*row) for row in self._rows("SELECT * FROM trees ORDER BY used")]

    def manifests(self) -> list[tuple[Digest, str]]:
        """Return digest and media type of every manifest, the oldest first."""
        query = "SELECT digest, media_type FROM manifests ORDER BY used"
        return [(digest, media_type) for digest, media_type in self._rows(query)]

    def references(self) -> list[tuple[str, Digest, float]]:
        """Return each reference, its digest and its last check, the longest unchecked first."""
        query = "SELECT digest, reference, checked FROM refs ORDER BY checked"
        return [(reference, digest, checked) for digest, reference, checked in self._rows(query)]

    def provenance(self) -> list[tuple[Digest, str, int]]:
        """Return digest, repository and access of every entry, the oldest first."""
        query = "SELECT digest, repository, access FROM provenance ORDER BY recorded"
        return [(digest, repository, access) for digest, repository, access in self._rows(query)]

    def versions(self) -> list[tuple[Digest, str, float]]:
        """Return digest, reference and end of every earlier version, the newest first."""
        query = "SELECT digest, reference, ended FROM versions ORDER BY ended DESC"
        return [(digest, reference, ended) for digest, reference, ended in self._rows(query)]

    def pins(self) -> list[tuple[Digest, str]]:
        """Return digest and name of every pin, the oldest first."""
        query = "SELECT digest, name FROM pins ORDER BY since"
        return [(digest, name) for digest, name in self._rows(query)]

    def purges(self) -> list[tuple[Digest, str]]:
        """Return digest and repository of every purge."""
        query = "SELECT digest, repository FROM purges"
        return [(digest, repository) for digest, repository in self._rows(query)]

    def change(self, *changes: Change) -> None:
        """Make these changes, and measure the file.

        :raises sqlite3.Error: when it cannot be written; some changes may have been made.
        """
        with self._lock:
            database = self._opened()
            for start in range(0, len(changes), MOST_CHANGES):
                try:
                    with database:
                        for statement, values in changes[start : start + MOST_CHANGES]:
                            database.execute(statement, values)
                finally:
                    self._measure()

    def close(self) -> None:
        """Write all changes to the file and close it. Idempotent."""
        with self._lock:
            database, self._database = self._database, None
            if database is not None:
                database.close()

    def _opened(self) -> sqlite3.Connection:
        if self._database is None:
            raise sqlite3.ProgrammingError("the state file is closed")
        return self._database

    def _rows(self, query: str) -> Iterator[tuple[Any, ...]]:
        with self._lock:
            rows = self._opened().execute(query).fetchall()
        for text, *rest in rows:
            try:
                yield Digest.parse(text), *rest
            except (MalformedReference, TypeError) as error:
                _log.warn("a row of the state file is damaged: {error}", error=error)

    def _connect(self) -> sqlite3.Connection:
        if any(path.is_symlink() or path.is_dir() for path in self._names()[:-1]):
            raise sqlite3.DatabaseError("it is no file")
        self._path.touch(0o600)  # SQLite gives its other files the mode of this one
        database = sqlite3.connect(self._path, check_same_thread=False)
        # A damaged text fails only the row that has it.
        database.text_factory = lambda text: text.decode("utf-8", "replace")
        try:
            # Exclusive: write-ahead logging then needs no shared memory file.
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
            database.executescript(_SCHEMA)
            [verdict] = database.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
        except BaseException:
            database.close()
            raise
        return database

    def _measure(self) -> None:
        self.size = sum(map(footprint, self._names()))

    def _set_aside(self) -> None:
        state, *rest, aside = self._names()
        for path in (*rest, aside):
            if os.path.lexists(path):
                remove(path)
        state.rename(aside)

    def _names(self) -> list[Path]:
        suffixes = ("", "-wal", "-shm", "-journal", ".damaged")
        return [self._path.with_name(self._path.name + suffix) for suffix in suffixes]


MOST_REFERENCES = 10_000
"""References that are stored; beyond that, the one stored longest ago is dropped."""


class WriteBehind:
    """Writes changes `delay` seconds after the first of them; for each key only the last."""

    def __init__(
        self, clock: IReactorTime, delay: float, write: Callable[[list[Change]], Awaitable[None]]
    ) -> None:
        """`write` must not fail."""
        self._clock = clock
        self._delay = delay
        self._write = write
        self._pending: dict[Hashable, Change] = {}
        self._timer: IDelayedCall | None = None
        self._turn = DeferredLock()

    def put(self, key: Hashable, change: Change) -> None:
        """Schedule a change."""
        self._pending[key] = change
        if self._timer is None:
            self._timer = self._clock.callLater(self._delay, self._due)

    async def flush(self) -> None:
        """Write now; return when all scheduled changes are written."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        # One at a time, or an older change could overwrite a newer one.
        await self._turn.run(self._write_pending)

    def _due(self) -> None:
        Deferred.fromCoroutine(self.flush())

    def _write_pending(self) -> Deferred[None]:
        changes, self._pending = list(self._pending.values()), {}
        return Deferred.fromCoroutine(self._write(changes))  # type: ignore[arg-type]


class StoredRows:
    """The rows about earlier versions, pins and purges: read once, and written a little later."""

    def __init__(self, behind: WriteBehind) -> None:
        self._behind = behind
        self.versions: list[tuple[Digest, str, float]] = []
        """See `MetadataDb.versions`; as they were when the blob space was opened."""
        self.pins: list[tuple[Digest, str]] = []
        """See `MetadataDb.pins`."""
        self.purges: list[tuple[Digest, str]] = []
        """See `MetadataDb.purges`."""

    def load(self, state: MetadataDb) -> None:
        """Read all rows. Blocks."""
        self.versions, self.pins, self.purges = state.versions(), state.pins(), state.purges()

    def put(self, key: Hashable, change: Change) -> None:
        """Schedule a change; of several with one key, only the last is written."""
        self._behind.put(key, change)


class StoredReferences:
    """The references that a blob space stores; they outlive the blobs of their images."""

    def __init__(self, behind: WriteBehind) -> None:
        self._behind = behind
        self._known: dict[str, tuple[Digest, float]] = {}

    def load(self, rows: Iterable[tuple[str, Digest, float]]) -> None:
        """Load the stored references; `rows` are ordered, the longest unchecked first."""
        self._known = {reference: (digest, checked) for reference, digest, checked in rows}

    def remember(self, reference: str, digest: Digest, checked: float) -> None:
        """Store the digest of `reference`, and when it was last checked."""
        self._known.pop(reference, None)
        self._known[reference] = (digest, checked)
        self._behind.put(reference, remembered(reference, digest, checked))
        if len(self._known) > MOST_REFERENCES:
            self.forget(next(iter(self._known)))

    def forget(self, reference: str) -> None:
        """Drop `reference`; do nothing if it is not stored."""
        if self._known.pop(reference, None) is not None:
            self._behind.put(reference, forgotten(reference))

    def all(self) -> list[tuple[str, Digest, float]]:
        """Return each reference, its digest and its last check, the longest unchecked first."""
        return [(reference, *known) for reference, known in self._known.items()]
