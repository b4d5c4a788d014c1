"""Records of the chunks of a layer, in the order of their positions.

A chunk ends at the beginning of the next, which is known one file later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from blobserve.errors import BadToc
from blobserve.store.lazy.toc.chunk import LARGEST, RECORD_SIZE, pack

# The bytes by which deflate and zstd enlarge data that does not compress, and the rest of a header.
_OVERHEAD = 4096


class PendingChunk(NamedTuple):
    """A chunk with an unknown end in the layer."""

    start: int
    size: int
    at: int
    skip: int
    sha256: bytes


class ChunkRecords:
    """The records of one layer's chunks. After an error it must not be used again."""

    def __init__(self, end: int) -> None:
        """`end` is the largest possible end of a chunk in the layer."""
        self.end = end
        """The largest possible end of a chunk in the layer."""
        self._packed: list[bytes] = []
        self._count = 0
        self._open: list[tuple[PendingChunk, int]] = []
        self._at = self._free = 0  # The beginning of the newest member, and the least of the next.
        self._inner = 0  # The least offset of the next chunk in the newest member.

    @property
    def offset(self) -> int:
        """The offset of the next chunk's record, from the first record on."""
        return RECORD_SIZE * self._count

    @property
    def newest(self) -> int:
        """The offset in the layer of the newest chunk's member or frame."""
        return self._at

    @property
    def packed(self) -> bytes:
        """The records that were completed since the last `clear`."""
        return b"".join(self._packed)

    def clear(self) -> None:
        """Forget the completed records."""
        self._packed.clear()

    def add(self, stretches: Sequence[PendingChunk], end: int = 0) -> None:
        """Add the chunks of one file; `end` is the end of the last one, or 0 if unknown.

        :raises BadToc: when a chunk overlaps one before it, or lies outside of the layer.
        """
        left = len(stretches)
        for stretch in stretches:
            left -= 1
            _, size, at, skip, _ = stretch
            if at < self._at or at < self._free:
                raise BadToc("its chunks overlap, or are not in order")
            if at == self._at and skip < self._inner:
                raise BadToc("two chunks overlap")
            if at >= self.end or end > self.end or (end and at >= end):
                raise BadToc("a chunk lies outside of its layer or of its file")
            if size + skip > LARGEST:
                raise BadToc(f"a chunk is larger than {LARGEST} bytes")
            self._put(stretch, left)
        if end:
            self._seal(end)
            self._free = end

    def seal(self, end: int) -> None:
        """Set the largest possible end of the last chunk; later chunks must begin after it.

        :raises BadToc: when that is not possible.
        """
        if not self._at < end <= self.end:
            raise BadToc("its chunks overlap, or are not in order")
        self._seal(end)
        self._free = max(self._free, end)

    def add_last(self, stretch: PendingChunk) -> None:
        """Add a chunk after all others."""
        self._put(stretch, 0)

    def finish(self, end: int) -> None:
        """Complete the last record; its chunk ends at `end`."""
        self._seal(end)

    def _put(self, stretch: PendingChunk, left: int) -> None:
        self._seal(stretch.at)
        self._open.append((stretch, left))
        self._count += 1
        self._at, self._inner = stretch.at, stretch.skip + stretch.size

    def _seal(self, at: int) -> None:
        """Complete the open records at `at`, if their chunks begin before it."""
        if not self._open or self._at == at:
            return
        for (start, size, begin, skip, digest), left in self._open:
            enough = skip + size + (skip + size) // 64 + _OVERHEAD
            length = min(at - begin, enough)
            self._packed.append(pack(start, begin, size, length, skip, left, digest))
        self._open.clear()
