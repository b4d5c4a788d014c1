"""An entry: the file or directory that a path leads to."""

from __future__ import annotations

import enum

import attrs

from blobserve.store.disk.codings_file import CodingsFile


class EntryKind(enum.Enum):
    """The kinds of entries that can be served."""

    FILE = enum.auto()
    DIRECTORY = enum.auto()


@attrs.frozen
class Entry:
    """A file or directory of the tree. Only a file has bytes, and their `sha256`.

    `path` is canonical: no leading slash, and no link on the way. `offset` counts in the content
    file; `mtime` is in seconds since 1970, or None if the layer has no usable time. With a
    `coding`, `offset`, `size` and `sha256` are those of the coded bytes. These are in the codings
    of the same blob, or in `codings` if they belong to another blob. `layer` is the number of the
    layer that has the bytes; the lowest layer is 0.
    """

    path: bytes
    kind: EntryKind
    offset: int = 0
    size: int = 0
    sha256: bytes = b""
    mtime: int | None = None
    coding: bytes = b""
    layer: int = 0
    is_text: int | None = None
    """1 or 0: whether a file starts as text does. None: unknown."""
    codings: CodingsFile | None = attrs.field(default=None, eq=False, repr=False)
