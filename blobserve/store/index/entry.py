"""What a path leads to: a file or a directory of the tree that is served, as a value."""

from __future__ import annotations

import enum

import attrs

from blobserve.store.disk.codings_file import CodingsFile


class EntryKind(enum.Enum):
    """What can be served."""

    FILE = enum.auto()
    DIRECTORY = enum.auto()


@attrs.frozen
class Entry:
    """A file or a directory of the tree. Only a file has bytes, and a `sha256` of them.

    `path` is canonical: no leading slash, no link on the way. `offset` counts in the content file;
    `mtime` is in seconds since 1970, None where the layer gives none that makes sense. With a
    `coding`, `offset`, `size` and `sha256` are those of the coded bytes. These lie in the codings
    of the same blob, or in `codings` if another blob lends them. `layer` says which of the layers
    that are served has the bytes, 0 the lowest.
    """

    path: bytes
    kind: EntryKind
    offset: int = 0
    size: int = 0
    sha256: bytes = b""
    mtime: int | None = None
    coding: bytes = b""
    layer: int = 0
    codings: CodingsFile | None = attrs.field(default=None, eq=False, repr=False)
