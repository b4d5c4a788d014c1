"""The index of a layer that is pulled lazily: its tree, and the chunks that make up its files.

This module does not fetch chunks.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from blobserve.config import Limits
from blobserve.names.digest import Digest
from blobserve.store.index.entry import Entry
from blobserve.store.index.lookup import IndexReader
from blobserve.store.lazy.toc.chunk import RECORD_SIZE, Chunk


class LazyIndex:
    """A tree and records of chunks. Made by `open`; the caller closes it."""

    def __init__(self, tree: IndexReader, records: int) -> None:
        self.tree = tree
        self._records = records

    @classmethod
    def open(cls, directory: Path, digest: Digest, limits: Callable[[], Limits]) -> LazyIndex:
        """Open the index that `build_index` made in `directory`. Blocks; may run in any thread.

        :raises IndexDamaged: when there is no index for these records.
        :raises OSError: when a file cannot be opened.
        """
        records = os.open(directory / "content", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            size = os.fstat(records).st_size
            return cls(IndexReader.of_blob(directory / "index", size, digest, limits), records)
        except BaseException:
            os.close(records)
            raise

    def chunk(self, entry: Entry, number: int) -> Chunk:
        """Return a chunk of a file that is not empty, by its number from 0 on."""
        at = entry.offset + RECORD_SIZE * number
        return Chunk.unpacked(os.pread(self._records, RECORD_SIZE, at))

    def chunk_at(self, entry: Entry, offset: int) -> tuple[int, Chunk]:
        """Return the chunk that contains a byte of a file, and its number."""
        low, found = 0, self.chunk(entry, 0)
        high = found.left
        while low < high:
            middle = (low + high + 1) // 2
            probe = self.chunk(entry, middle)
            if probe.start <= offset:
                low, found = middle, probe
            else:
                high = middle - 1
        return low, found

    def close(self) -> None:
        """Close all files. Idempotent."""
        self.tree.close()
        records, self._records = self._records, -1
        if records >= 0:
            os.close(records)
