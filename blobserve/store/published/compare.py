"""How a published index differs from what the layer turned out to have. Blocks."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from blobserve.store.nodes import opened

_NODES = """
SELECT directory, node.name, ifnull(type, X'35'), ifnull(link, X''), ifnull(sha256, X'')
FROM node LEFT JOIN entry ON seq = entry ORDER BY directory, node.name
"""
_LINKS = (b"1", b"2")

_Row = tuple[bytes, bytes, bytes, bytes, bytes]


def differences(published: Path, own: Path) -> Iterator[bytes]:
    """The paths at which two indexes, both files on disk, say different things."""
    with closing(opened(published)) as first, closing(opened(own)) as second:
        yield from _differing(_rows(first), _rows(second))


def _differing(first: Iterator[_Row], second: Iterator[_Row]) -> Iterator[bytes]:
    one, other = next(first, None), next(second, None)
    while one is not None or other is not None:
        if one == other:
            one, other = next(first, None), next(second, None)
        elif other is None or (one is not None and one[:2] < other[:2]):
            assert one is not None
            yield _path(one)
            one = next(first, None)
        elif one is None or other[:2] < one[:2]:
            yield _path(other)
            other = next(second, None)
        else:
            yield _path(one)
            one, other = next(first, None), next(second, None)


def _rows(database: sqlite3.Connection) -> Iterator[_Row]:
    for directory, name, type_, link, digest in database.execute(_NODES):
        yield directory, name, type_, link if type_ in _LINKS else b"", digest


def _path(row: _Row) -> bytes:
    return b"/".join(filter(None, row[:2]))
