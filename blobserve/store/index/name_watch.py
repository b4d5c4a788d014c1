"""A watch on names in a layer that is being extracted: are they regular files yet, and where.

The extractor reports writes and removals, which costs nothing while no name is watched. `look` is
called between two of its steps, when everything is flushed. A name is looked up when it is first
watched and when it may have changed, so names that never come cost nothing. Names are canonical
keys, so a name behind a link is never found.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, KeysView
from typing import NamedTuple

from blobserve.store.index.resolve import join, parted

_FIND = """
SELECT seq, offset, size, is_text FROM node JOIN entry ON seq = entry
WHERE directory = ? AND node.name = ? AND type = X'30'
"""


class FileLocation(NamedTuple):
    """A regular file in the content: the number of its entry, and the position of its bytes."""

    entry: int
    offset: int
    size: int
    is_text: int | None = None


Seen = dict[bytes, "FileLocation | None"]
"""The changes of names; None for a name that is no longer a regular file."""


class NameWatch:
    """A watch on names in one unfinished index."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._names: Collection[bytes] = frozenset()
        self._reported: Seen = {}
        self._changed: set[bytes] = set()
        self._is_pruned = False

    def wrote(self, keys: KeysView[bytes]) -> None:
        """Note that nodes were written at these keys."""
        if self._reported:
            self._changed |= self._reported.keys() & keys

    def pruned(self) -> None:
        """Note that nodes below some key were removed."""
        # The key does not matter: a hostile layer removes nodes at every entry.
        self._is_pruned = True

    def look(self, names: frozenset[bytes]) -> Seen:
        """Watch these names and no others; return the changes since the last call.

        Names that were not watched before are returned if they are regular files.
        """
        reported = self._reported
        again = set(reported) if self._is_pruned else self._changed
        self._changed, self._is_pruned = set(), False
        if names is not self._names:
            self._names = names
            for name in reported.keys() - names:
                del reported[name]
            new = names - reported.keys()
            reported.update(dict.fromkeys(new))
            again = (again & names) | new
        seen: Seen = {}
        for name in again:
            place = self._find(name)
            if place != reported[name]:
                seen[name] = reported[name] = place
        return seen

    def _find(self, name: bytes) -> FileLocation | None:
        key = parted(name)
        if join(*key) != name:
            return None  # Changes are reported under the canonical spelling only.
        row = self._database.execute(_FIND, key).fetchone()
        return None if row is None else FileLocation(*row)
