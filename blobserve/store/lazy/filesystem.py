"""The files of a layer that is not here yet: their names, and the chunks that they are made of.

To whoever looks names up it is the filesystem of any image. Bytes are not read out of it: it says
which chunks they are in. Pure; knows nothing of how chunks are fetched.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from blobserve.config import Limits
from blobserve.names.digest import Digest
from blobserve.store.blobs.filesystem import ImageFilesystem
from blobserve.store.disk.codings_file import NoCoding
from blobserve.store.index.entry import Entry
from blobserve.store.lazy.toc.chunk import RECORD_SIZE, Chunk


class LazyFilesystem(ImageFilesystem):
    """The files of a published index. Made by `open`; whoever opened it closes it."""

    @classmethod
    def open(cls, directory: Path, digest: Digest, limits: Callable[[], Limits]) -> LazyFilesystem:
        """See `ImageFilesystem.open`."""
        opened = super().open(directory, digest, limits)
        assert isinstance(opened, cls)  # it makes one of its own class
        return opened

    def chunk(self, entry: Entry, number: int) -> Chunk:
        """The chunk of a file that is not empty with this number, from 0 on."""
        at = entry.offset + RECORD_SIZE * number
        descriptor = super().descriptor_of(entry)
        return Chunk.unpacked(os.pread(descriptor, RECORD_SIZE, at))

    def chunk_at(self, entry: Entry, offset: int) -> tuple[int, Chunk]:
        """The number of the chunk that has a byte of a file, and the chunk."""
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

    def coded(self, entry: Entry, coding: bytes) -> NoCoding:
        """See `ImageFilesystem.coded`: nothing is coded before it is here."""
        return NoCoding.NEVER

    def read_cached(self, entry: Entry, offset: int, length: int) -> None:
        """See `ImageFilesystem.read_cached`: nothing is."""

    def is_cached(self, entry: Entry, offset: int, length: int) -> bool:
        """See `ImageFilesystem.is_cached`: nothing is."""
        return False

    def read(self, entry: Entry, offset: int, length: int) -> NoReturn:
        """Not to be called: the bytes of a layer that is not here are fetched."""
        raise TypeError("the bytes of a layer that is not here are fetched")

    def descriptor_of(self, entry: Entry) -> NoReturn:
        """Not to be called either."""
        raise TypeError("a layer that is not here has no file")

    def read_ahead(self, entry: Entry, offset: int, length: int) -> NoReturn:
        """Nor this."""
        raise TypeError("the bytes of a layer that is not here are fetched")
