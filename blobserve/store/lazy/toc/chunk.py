"""Chunks: the parts of a layer that can be read, and checked, without the rest of it.

A chunk is a stretch of one file. It lies in a gzip member or a zstd frame, at whose beginning other
things may come first. Pure and blocking; knows nothing of where bytes come from.
"""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import NamedTuple

from blobserve.errors import BadLayer, BadToc
from blobserve.store.extract.decompress import Decompressor

LARGEST = 16 << 20
"""Bytes of a chunk, what comes before it in its member or frame included."""

_RECORD = struct.Struct("<QQIIII32s")
RECORD_SIZE = _RECORD.size

pack = _RECORD.pack
"""A chunk as a record: its `start`, `at`, `size`, `length`, `skip`, `left` and `sha256`."""

_MOST_PARTS = 64  # Members or frames that are looked into for one chunk.


class Chunk(NamedTuple):
    """A stretch of a file, and where the bytes are that it comes out of."""

    start: int
    """Its first byte, in the file."""
    size: int
    at: int
    """Where in the layer its member or frame begins."""
    length: int
    """Bytes of the layer that are enough to make it of."""
    skip: int
    """Bytes that come before it in its member or frame, once that is decompressed."""
    left: int
    """How many chunks of the same file come after it."""
    sha256: bytes

    @classmethod
    def unpacked(cls, record: bytes) -> Chunk:
        """What `pack` has made a record of."""
        start, at, size, length, skip, left, digest = _RECORD.unpack(record)
        return cls(start, size, at, length, skip, left, digest)

    @property
    def key(self) -> tuple[bytes, int]:
        """What it is known by: chunks with the same key, if they are right, are the same."""
        return self.sha256, self.size

    @property
    def end(self) -> int:
        """Where in the layer the bytes end that it comes out of."""
        return self.at + self.length


def extract(chunks: list[Chunk], start: int, content: bytes) -> list[bytes]:
    """Make chunks of the bytes of the layer from `start` on, and check each of them.

    :raises BadTable: when one is not what its digest says.
    """
    whole = memoryview(content)
    return [_extract(each, whole[each.at - start : each.end - start]) for each in chunks]


def _extract(chunk: Chunk, source: memoryview) -> bytes:
    stage = Decompressor("", most_parts=_MOST_PARTS)
    pieces, wanted = bytearray(), chunk.skip + chunk.size
    try:
        stage.feed(bytes(source))
        while len(pieces) < wanted and (piece := stage.read()):
            pieces += piece
    except BadLayer as error:
        raise BadToc("a chunk cannot be decompressed") from error
    content = bytes(pieces[chunk.skip : wanted])
    if len(content) != chunk.size or sha256(content).digest() != chunk.sha256:
        raise BadToc("a chunk is not what its index says")
    return content
