"""A table of names in several images: which is the first image with a file of this name.

A table with many names holds hashes, which take less memory. It is made in one thread and then used
in another one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

MOST_NAMES = 1_000_000
"""Names in one table; beyond that, names of the last images are left out."""

MOST_IN_FULL = 50_000
"""Names that a table holds as they are."""


class NameTable:
    """Names, each with the number of the first image that has it."""

    def __init__(self) -> None:
        self.is_full = False
        """Whether names were left out."""
        self.size = 0
        """The number of names."""
        self._names: dict[bytes, int] = {}
        self._hashes: sqlite3.Connection | None = None

    def get(self, name: bytes) -> int | None:
        """Return the number of the first image with a file of this name.

        A name that no image has may give a number as well, if two hashes are equal.
        """
        if self._hashes is None:
            return self._names.get(name)
        query = "SELECT image FROM names WHERE hash = ?"
        row = self._hashes.execute(query, (hash(name),)).fetchone()
        return None if row is None else int(row[0])

    def add(self, names: Iterable[bytes], image: int) -> None:
        """Add names of an image; images are added in the order of their numbers."""
        if self.is_full:
            return
        if self._hashes is None:
            for name in names:
                self._names.setdefault(name, image)
            self.size = len(self._names)
            if self.size > MOST_IN_FULL:
                self._hashes, self.size = _hash_table(), 0
                self._insert(self._names.items())
                self._names = {}
        else:
            self._insert((name, image) for name in names)
        self.is_full = self.size >= MOST_NAMES

    def _insert(self, rows: Iterable[tuple[bytes, int]]) -> None:
        if self._hashes is not None:
            before = self._hashes.total_changes
            # Python hashes bytes with a random key, so that no image can choose equal hashes.
            hashed = ((hash(name), image) for name, image in rows)
            self._hashes.executemany("INSERT OR IGNORE INTO names VALUES (?, ?)", hashed)
            self.size += self._hashes.total_changes - before


def _hash_table() -> sqlite3.Connection:
    # In autocommit mode, since the table is only in memory.
    database = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode = OFF")
    database.execute("CREATE TABLE names (hash INTEGER PRIMARY KEY, image INTEGER NOT NULL)")
    return database
