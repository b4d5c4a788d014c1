"""The merged index of several layers: one SQLite file, made from the indexes of the layers.

The table `entry` has the entries of all layers, one layer after the other, with the number of the
layer that has the bytes. The table `node` is as in the index of one layer. No content is read.
Version 2 of the format.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from blobserve.concurrency.steps import Steps
from blobserve.config import Limits
from blobserve.errors import BadLayer
from blobserve.names.digest import Digest
from blobserve.store.index.apply_layer import IMPLIED, MADE, LayerApplier, Node
from blobserve.store.index.node_table import (
    EMPTY,
    FileNodes,
    IndexSummary,
    begin,
    finish,
    opened,
    row_bound,
)
from blobserve.store.index.resolve import parted
from blobserve.tar.header import DIRECTORY, LINK
from blobserve.tar.reader import Member

APPLICATION_ID = 0x626C6F74  # "blot"
VERSION = 2

_RULES = 3
"""The version of the rules that make a tree from layers, in the same file format.

It is part of the digest: a tree of older rules is not used again, and is evicted in time.
"""

_SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
CREATE TABLE entry (
    seq INTEGER PRIMARY KEY,
    layer INTEGER NOT NULL,
    type BLOB NOT NULL,
    link BLOB NOT NULL,
    offset INTEGER NOT NULL,
    size INTEGER NOT NULL,
    sha256 BLOB,
    mtime INTEGER,
    is_text INTEGER
);
CREATE TABLE pending (
    directory BLOB NOT NULL, name BLOB NOT NULL, PRIMARY KEY (directory, name)
) WITHOUT ROWID;
CREATE TABLE hidden (
    directory BLOB NOT NULL,
    name BLOB NOT NULL,
    entry INTEGER,
    whiteout INTEGER NOT NULL,
    PRIMARY KEY (directory, name)
) WITHOUT ROWID;
"""
_PENDING = """
SELECT node.directory, node.name, entry, type, link
FROM pending JOIN node USING (directory, name) JOIN entry ON seq = entry
WHERE (node.directory, node.name) > (?, ?) AND type = X'31'
ORDER BY node.directory, node.name LIMIT 500
"""
_WHITEOUTS = "SELECT seq, name FROM entry WHERE instr(name, X'2E77682E') ORDER BY seq"
_FIRST_LINK = "SELECT min(seq) FROM entry WHERE type = X'31'"
_HIDDEN = """
SELECT hidden.entry, type, link FROM hidden LEFT JOIN entry ON seq = hidden.entry
WHERE directory = ? AND name = ? AND whiteout > ?
"""
_SET_ASIDE = "INSERT INTO hidden SELECT directory, name, entry, ? FROM node"
_PAGE = 500
"""Entries that one step applies, in a few milliseconds."""


@lru_cache(4096)
def tree_digest(layers: tuple[Digest, ...]) -> Digest:
    """Return the digest that identifies the merged index of these layers, the lowest first."""
    made_of = "\n".join([f"tree {_RULES}", *map(str, layers)])
    # Hashed twice, so that no layer can be made to have the digest of a tree.
    return Digest.of(sha256(made_of.encode()).digest())


def merge(
    path: Path, indexes: Sequence[Path], limits: Limits, allowance: Callable[[], int]
) -> Steps[IndexSummary]:
    """Make the merged index of the layers with these indexes, the lowest first, at a new path.

    See `blobserve.concurrency.steps`; `allowance` returns the bytes that the file may take. If the
    generator does not finish, the caller removes the file.

    :raises BadLayer: when the layers together exceed a limit.
    :raises OSError: when the disk fails or is full; also SQLite's own errors.
    """
    lower = 0
    for index in indexes:
        with closing(opened(index)) as layer:
            lower += _last(layer) + 1
    if lower > limits.entries:
        raise BadLayer(f"its layers have {lower} entries together, more than {limits.entries}")
    merging = _Merge(path, limits)
    try:
        lower = 0
        for number, index in enumerate(indexes):
            with closing(opened(index)) as layer:
                steps = merging.layer(layer, number, lower)
                lower += _last(layer) + 1
                for _ in steps:
                    while (lacking := merging.bound - allowance()) > 0:
                        yield lacking
                    merging.flush()
                    yield 0
        return merging.finish()
    finally:
        merging.close()


class _Merge:
    """A merged index that is being made."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self._path = path
        self._database = begin(path, _SCHEMA)
        self._nodes = _MergedNodes(self._database, _PENDING)
        self._applier = LayerApplier(self._nodes, limits)
        self._rows: list[tuple[object, ...]] = []
        self._entries = 0
        self._bound = EMPTY
        self._aside = 0
        """The largest size of the nodes that a layer sets aside: that of all nodes before it."""

    @property
    def bound(self) -> int:
        """The largest size of the file after a flush, in bytes."""
        return self._bound + self._nodes.bound + self._aside

    def layer(self, index: sqlite3.Connection, number: int, lower: int) -> Iterator[None]:
        """Apply a layer above `lower` entries; the caller flushes after each step."""
        if number:
            [first_link] = index.execute(_FIRST_LINK).fetchone()
            if first_link is not None:
                self._aside = self._nodes.bound
                self._nodes.set_aside_after(lower + first_link)
                yield
            for page in _pages(index.execute(_WHITEOUTS)):
                for seq, name in page:
                    self._applier.apply_whiteout(name, lower + seq)
                yield
        for page in _pages(index.execute("SELECT * FROM entry ORDER BY seq")):
            for row in page:
                member = Member(*row)
                self._add(member._replace(seq=lower + member.seq), number)
            yield
        self._applier.finish()
        yield
        self._nodes.end_layer()

    def flush(self) -> None:
        """Write the entries and nodes that were added."""
        self._database.executemany(
            "INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", self._rows
        )
        self._rows.clear()
        self._nodes.flush()

    def finish(self) -> IndexSummary:
        """Complete the file, and close it."""
        return finish(self._path, self._database, self._entries)

    def close(self) -> None:
        """Close the file, finished or not."""
        self._database.close()

    def _add(self, member: Member, number: int) -> None:
        if member.type not in MADE:
            return
        self._bound += row_bound(len(member.link) + 96)
        self._entries += 1
        self._rows.append(
            (
                member.seq,
                number,
                member.type,
                member.link,
                member.offset,
                member.size,
                member.sha256,
                member.mtime,
                member.is_text,
            )
        )
        self._applier.apply(member)


class _MergedNodes(FileNodes):
    """The nodes of a merged index; `links` yields the pending hard links of the current layer."""

    def __init__(self, database: sqlite3.Connection, links: str) -> None:
        super().__init__(database, links)
        self._pending: list[bytes] = []
        self._first_link: int | None = None
        self._last_whiteout = -1
        """The last whiteout that set nodes aside."""

    def put(self, key: bytes, node: Node) -> None:
        """See `NodeStore.put`."""
        super().put(key, node)
        if node.type == LINK:
            self._pending.append(key)
            self.bound += row_bound(len(key) + 24)
        if node.type != DIRECTORY and node.entry is not None and node.entry < self._last_whiteout:
            self._drop_hidden(key)

    def set_aside_after(self, first_link: int) -> None:
        """Set nodes aside for whiteouts after this hard link, the first that can see them."""
        self._first_link = first_link

    def set_aside(self, key: bytes, whiteout: int, is_opaque: bool) -> None:
        """See `NodeStore.set_aside`."""
        if self._first_link is None or whiteout < self._first_link:
            return
        self._last_whiteout = whiteout
        where = _below(key)
        if not is_opaque:
            where.append(("directory = ? AND name = ?", parted(key)))
        for condition, values in where:
            self._database.execute(f"{_SET_ASIDE} WHERE {condition}", (whiteout, *values))

    def hidden(self, key: bytes, entry: int) -> Node | None:
        """See `NodeStore.hidden`."""
        if entry > self._last_whiteout:
            return None
        row = self._database.execute(_HIDDEN, (*parted(key), entry)).fetchone()
        if row is None:
            return None
        return IMPLIED if row[0] is None else Node(*row)

    def flush(self) -> None:
        """Write the new nodes."""
        super().flush()
        self._database.executemany(
            "INSERT OR IGNORE INTO pending VALUES (?, ?)", map(parted, self._pending)
        )
        self._pending.clear()

    def end_layer(self) -> None:
        """Forget the nodes set aside, and the pending links, which no upper layer can resolve."""
        self._database.execute("DELETE FROM pending")
        self._database.execute("DELETE FROM hidden")
        self._first_link, self._last_whiteout = None, -1

    def _drop_hidden(self, key: bytes) -> None:
        """Forget the hidden nodes below `key`, which is no longer a directory."""
        for condition, values in _below(key):
            self._database.execute(f"DELETE FROM hidden WHERE {condition}", values)


def _below(key: bytes) -> list[tuple[str, tuple[bytes, ...]]]:
    """Return the conditions, with their values, for all nodes below `key`."""
    if not key:
        return [("TRUE", ())]
    # Two conditions, as in `FileNodes.clear`.
    below = key + b"/"
    return [("directory = ?", (key,)), ("directory > ? AND directory < ?", (below, key + b"0"))]


def _pages(rows: sqlite3.Cursor) -> Iterator[list[Any]]:
    while page := rows.fetchmany(_PAGE):
        yield page


def _last(index: sqlite3.Connection) -> int:
    """Return the number of the last entry, or -1 if there is none."""
    [last] = index.execute("SELECT ifnull(max(seq), -1) FROM entry").fetchone()
    return int(last)
