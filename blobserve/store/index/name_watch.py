"""Sightings: which names of a layer that is being extracted are regular files by now, and where.

Whoever extracts says what was written and what was pruned, which costs nothing while no name is
watched; whoever asks looks between two of its steps, when all of it is in the file. A name is
looked up when it is first watched and when it may have changed, so that a thousand that do not come
cost no more than one. Names are canonical keys: what lies behind a link is never sighted.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, KeysView
from typing import NamedTuple

from blobserve.store.index.resolve import join, parted

_FIND = """
SELECT seq, offset, size FROM node JOIN entry ON seq = entry
WHERE directory = ? AND node.name = ? AND type = X'30'
"""


class FileLocation(NamedTuple):
    """A regular file in the content: which entry it is, and where its bytes lie."""

    entry: int
    offset: int
    size: int


Seen = dict[bytes, "FileLocation | None"]
"""What names have come to mean; None: no regular file any more."""


class NameWatch:
    """The names that are watched in one index that is being made."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._names: Collection[bytes] = frozenset()
        self._told: Seen = {}
        self._changed: set[bytes] = set()
        self._is_pruned = False

    def wrote(self, keys: KeysView[bytes]) -> None:
        """Nodes were put at these keys."""
        if self._told:
            self._changed |= self._told.keys() & keys

    def pruned(self) -> None:
        """Nodes below some key were removed."""
        # Which ones is not asked: a hostile layer prunes at every entry.
        self._is_pruned = True

    def look(self, names: frozenset[bytes]) -> Seen:
        """Watch these names and no others; what they mean, where that is not what was last told.

        Of the names that were not watched before: those that are regular files.
        """
        told = self._told
        again = set(told) if self._is_pruned else self._changed
        self._changed, self._is_pruned = set(), False
        if names is not self._names:
            self._names = names
            for gone in told.keys() - names:
                del told[gone]
            new = names - told.keys()
            told.update(dict.fromkeys(new))
            again = (again & names) | new
        seen: Seen = {}
        for name in again:
            place = self._find(name)
            if place != told[name]:
                seen[name] = told[name] = place
        return seen

    def _find(self, name: bytes) -> FileLocation | None:
        key = parted(name)
        if join(*key) != name:
            return None  # Of another spelling, no change would be noticed.
        row = self._database.execute(_FIND, key).fetchone()
        return None if row is None else FileLocation(*row)
