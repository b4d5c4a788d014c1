"""Records of chunks: where in a layer each lies, in the order in which they lie there.

A chunk ends where the next begins: that is known one file later. Pure; knows nothing of names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from blobserve.errors import BadToc
from blobserve.store.lazy.toc.chunk import LARGEST, RECORD_SIZE, pack

# What deflate and zstd make larger by what they cannot make smaller, and the rest of a header.
_OVERHEAD = 4096


class PendingChunk(NamedTuple):
    """A chunk of a file of which it is not known yet where in the layer it ends."""

    start: int
    size: int
    at: int
    skip: int
    sha256: bytes


class ChunkRecords:
    """The records of one layer's chunks. After an error it must not be used again."""

    def __init__(self, end: int) -> None:
        """`end`: where in the layer the last of them ends at the latest."""
        self.end = end
        """Where the last of them ends at the latest."""
        self._packed: list[bytes] = []
        self._count = 0
        self._open: list[tuple[PendingChunk, int]] = []
        self._at = self._free = 0  # Where the newest member begins, and where the next may.
        self._inner = 0  # And where in the newest the next chunk may.

    @property
    def offset(self) -> int:
        """Where the record of the next chunk will be, counted from the first."""
        return RECORD_SIZE * self._count

    @property
    def newest(self) -> int:
        """Where in the layer the member or frame begins that the newest chunk is in."""
        return self._at

    @property
    def packed(self) -> bytes:
        """The records that are complete, since `clear` was last called."""
        return b"".join(self._packed)

    def clear(self) -> None:
        """Forget those."""
        self._packed.clear()

    def add(self, stretches: Sequence[PendingChunk], end: int = 0) -> None:
        """Put in the chunks of one file; `end`: where the last of them ends, if that is known.

        :raises BadTable: when one is not after all that was before it, or outside of the layer.
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
        """Say that what was put in last ends at `end` at the latest, and what follows lies behind.

        :raises BadTable: when that cannot be.
        """
        if not self._at < end <= self.end:
            raise BadToc("its chunks overlap, or are not in order")
        self._seal(end)
        self._free = max(self._free, end)

    def add_last(self, stretch: PendingChunk) -> None:
        """Put in a chunk that lies where the others end."""
        self._put(stretch, 0)

    def finish(self, end: int) -> None:
        """Say that these were all; the last ends at `end`."""
        self._seal(end)

    def _put(self, stretch: PendingChunk, left: int) -> None:
        self._seal(stretch.at)
        self._open.append((stretch, left))
        self._count += 1
        self._at, self._inner = stretch.at, stretch.skip + stretch.size

    def _seal(self, at: int) -> None:
        """What is open ends at `at`, if it began before."""
        if not self._open or self._at == at:
            return
        for (start, size, begin, skip, digest), left in self._open:
            enough = skip + size + (skip + size) // 64 + _OVERHEAD
            length = min(at - begin, enough)
            self._packed.append(pack(start, begin, size, length, skip, left, digest))
        self._open.clear()
