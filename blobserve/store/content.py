"""The bytes of one blob's files: its content file, and what its files have been coded to.

All reading is by offset in files that are open already; what happens to the directory meanwhile
does not matter. Knows nothing of names.
"""

from __future__ import annotations

import os
from pathlib import Path

import attrs

from blobserve.config import KIB, MIB
from blobserve.errors import BlobDamaged
from blobserve.oci.digest import Digest
from blobserve.store.codings import Coded, Codings, Uncoded
from blobserve.store.entry import Entry
from blobserve.store.residency import Residency

_AHEAD = 4 * MIB
_TOUCH = 64 * KIB


class Content:
    """The bytes of a blob that is open. Made by `open`; whoever opened it closes it.

    What blocks, by its docstring, is for any thread, the rest for one.
    """

    def __init__(self, digest: Digest, descriptor: int, codings: Codings) -> None:
        self.codings = codings
        """What has been made of its files."""
        self._digest = digest
        self._descriptor = descriptor
        self._residency = Residency()

    @classmethod
    def open(cls, directory: Path, digest: Digest) -> Content:
        """Open the content of the blob in `directory`. Blocks; may be called in any thread.

        :raises OSError: when it cannot be opened.
        """
        descriptor = os.open(directory / "content", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return cls(digest, descriptor, Codings.open(directory))
        except BaseException:
            os.close(descriptor)
            raise

    @property
    def size(self) -> int:
        """Bytes of the content file."""
        return os.fstat(self._descriptor).st_size

    def coded(self, entry: Entry, coding: bytes) -> Entry | Uncoded | None:
        """See `ImageFilesystem.coded`."""
        made = self.codings.get(entry.sha256, coding)
        if not isinstance(made, Coded):
            return made
        return attrs.evolve(
            entry, offset=made.offset, size=made.size, sha256=made.sha256, coding=coding
        )

    def read(self, entry: Entry, offset: int, length: int) -> bytes:
        """See `ImageFilesystem.read`. Blocks."""
        pieces = []
        at, end = entry.offset + offset, entry.offset + min(offset + length, entry.size)
        descriptor = self.descriptor_of(entry)
        while at < end:
            piece = os.pread(descriptor, end - at, at)
            if not piece:
                raise BlobDamaged(str(self._digest), "its content is cut short")
            pieces.append(piece)
            at += len(piece)
        return b"".join(pieces)

    def read_cached(self, entry: Entry, offset: int, length: int) -> bytes | None:
        """See `ImageFilesystem.read_cached`."""
        length = min(length, entry.size - offset)
        if length <= 0:
            return b""
        buffer = bytearray(length)
        try:
            at = entry.offset + offset
            read = os.preadv(self.descriptor_of(entry), [buffer], at, os.RWF_NOWAIT)
        except OSError:  # Not in memory; or a file system that cannot tell.
            return None
        return bytes(memoryview(buffer)[:read]) or None

    def descriptor_of(self, entry: Entry) -> int:
        """See `ImageFilesystem.descriptor_of`."""
        return self.codings.descriptor if entry.coding else self._descriptor

    def is_cached(self, entry: Entry, offset: int, length: int) -> bool:
        """See `ImageFilesystem.is_cached`."""
        return self._residency.has(self.descriptor_of(entry), entry.offset + offset, length)

    def read_ahead(self, entry: Entry, offset: int, length: int) -> None:
        """See `ImageFilesystem.read_ahead`. Blocks."""
        at, end = entry.offset + offset, entry.offset + min(offset + length, entry.size)
        descriptor = self.descriptor_of(entry)
        # The disk goes on with what is probably asked for next, while this is being sent.
        ahead = min(_AHEAD, entry.offset + entry.size - at)
        os.posix_fadvise(descriptor, at, ahead, os.POSIX_FADV_WILLNEED)
        while at < end:
            touched = len(os.pread(descriptor, min(end - at, _TOUCH), at))
            if not touched:
                raise BlobDamaged(str(self._digest), "its content is cut short")
            at += touched

    def close(self) -> None:
        """Close all files. Idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
        self.codings.close()
