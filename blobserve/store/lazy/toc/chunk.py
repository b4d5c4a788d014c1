"""Chunks: the parts of a layer that can be read and verified without the rest of it.

A chunk is a part of one file. It lies in a gzip member or a zstd frame, after other data of the
same member or frame.
"""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import NamedTuple

from blobserve.errors import BadLayer, BadToc
from blobserve.store.extract.decompress import Decompressor

LARGEST = 16 << 20
"""Bytes of a chunk, including the data before it in its member or frame."""

_RECORD = struct.Struct("<QQIIII32s")
RECORD_SIZE = _RECORD.size

pack = _RECORD.pack
"""A chunk as a record: its `start`, `at`, `size`, `length`, `skip`, `left` and `sha256`."""

_MOST_PARTS = 64  # Members or frames that are decompressed for one chunk.


class Chunk(NamedTuple):
    """A part of a file, and the position of its compressed bytes in the layer."""

    start: int
    """The offset of its first byte in the file."""
    size: int
    at: int
    """The offset of its member or frame in the layer."""
    length: int
    """The number of bytes of the layer that are sufficient to decompress it."""
    skip: int
    """The number of decompressed bytes before it in its member or frame."""
    left: int
    """The number of chunks of the same file after it."""
    sha256: bytes

    @classmethod
    def unpacked(cls, record: bytes) -> Chunk:
        """Return the chunk of a record that `pack` made."""
        start, at, size, length, skip, left, digest = _RECORD.unpack(record)
        return cls(start, size, at, length, skip, left, digest)

    @property
    def key(self) -> tuple[bytes, int]:
        """Return a key that is equal for equal bytes."""
        return self.sha256, self.size

    @property
    def end(self) -> int:
        """The end of its compressed bytes in the layer."""
        return self.at + self.length


def extract(chunks: list[Chunk], start: int, content: bytes) -> list[bytes]:
    """Decompress and verify chunks; `content` has the bytes of the layer from `start` on.

    :raises BadToc: when a chunk does not match its digest.
    """
    whole = memoryview(content)
    return [_extract(each, whole[each.at - start : each.end - start]) for each in chunks]


def _extract(chunk: Chunk, source: memoryview) -> bytes:
    stage = Decompressor(most_parts=_MOST_PARTS)
    pieces, wanted = bytearray(), chunk.skip + chunk.size
    try:
        stage.feed(bytes(source))
        while len(pieces) < wanted and (piece := stage.read()):
            pieces += piece
    except BadLayer as error:
        raise BadToc("a chunk cannot be decompressed") from error
    content = bytes(pieces[chunk.skip : wanted])
    if len(content) != chunk.size or sha256(content).digest() != chunk.sha256:
        raise BadToc("a chunk does not match its digest")
    return content
