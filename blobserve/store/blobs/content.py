"""The bytes of one blob's files: its content file, and what its files have been coded to.

All reading is by offset in files that are open already; what happens to the directory meanwhile
does not matter. Knows nothing of names.

`CheckedFiles` remembers which files were found to match the index in this process: a bit for each
block in which a file begins, about 200 KiB for a million files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import attrs

from blobserve.config import KIB, MIB
from blobserve.errors import BlobDamaged, CodingDamaged
from blobserve.names.digest import Digest
from blobserve.store.disk.codings_file import CodingExtent, CodingsFile, NoCoding
from blobserve.store.disk.disk_errors import is_lost
from blobserve.store.disk.page_cache import Residency, read_resident
from blobserve.store.index.entry import Entry
from blobserve.tar.header import BLOCK

_BLOCKS_PER_STRETCH = 512

_AHEAD = 4 * MIB
_TOUCH = 64 * KIB
_SLICE = 8 * MIB


class BlobContent:
    """The bytes of a blob that is open. Made by `open`; whoever opened it closes it.

    What blocks, by its docstring, is for any thread, the rest for one.
    """

    def __init__(self, digest: Digest, descriptor: int, codings: CodingsFile) -> None:
        self.codings = codings
        """What has been made of its files."""
        self.is_verifying = False
        """See `ImageFilesystem.verify`."""
        self._checked = CheckedFiles()
        self._digest = digest
        self._descriptor = descriptor
        self._residency = Residency()

    @classmethod
    def open(cls, directory: Path, digest: Digest) -> BlobContent:
        """Open the content of the blob in `directory`. Blocks; may be called in any thread.

        :raises OSError: when it cannot be opened.
        """
        descriptor = os.open(directory / "content", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return cls(digest, descriptor, CodingsFile.open(directory, str(digest)))
        except BaseException:
            os.close(descriptor)
            raise

    @property
    def size(self) -> int:
        """Bytes of the content file."""
        return os.fstat(self._descriptor).st_size

    def coded(self, entry: Entry, coding: bytes) -> Entry | NoCoding | None:
        """See `ImageFilesystem.coded`."""
        made = self.codings.get(entry.sha256, coding)
        if not isinstance(made, CodingExtent):
            return made
        return attrs.evolve(
            entry, offset=made.offset, size=made.size, sha256=made.sha256, coding=coding
        )

    def read(self, entry: Entry, offset: int, length: int) -> bytes:
        """See `ImageFilesystem.read`. Blocks."""
        self._verify(entry)
        pieces = []
        at, end = entry.offset + offset, entry.offset + min(offset + length, entry.size)
        while at < end:
            pieces.append(piece := self._pread(entry, end - at, at))
            at += len(piece)
        return b"".join(pieces)

    def read_cached(self, entry: Entry, offset: int, length: int) -> bytes | None:
        """See `ImageFilesystem.read_cached`."""
        if not self.is_checked(entry):
            return None
        length = min(length, entry.size - offset)
        if length <= 0:
            return b""
        return read_resident(self.descriptor_of(entry), entry.offset + offset, length)

    def descriptor_of(self, entry: Entry) -> int:
        """See `ImageFilesystem.descriptor_of`."""
        return self._codings_of(entry).descriptor if entry.coding else self._descriptor

    def is_cached(self, entry: Entry, offset: int, length: int) -> bool:
        """See `ImageFilesystem.is_cached`."""
        if not self.is_checked(entry):
            return False
        return self._residency.has(self.descriptor_of(entry), entry.offset + offset, length)

    def read_ahead(self, entry: Entry, offset: int, length: int) -> None:
        """See `ImageFilesystem.read_ahead`. Blocks."""
        self._verify(entry)
        at, end = entry.offset + offset, entry.offset + min(offset + length, entry.size)
        descriptor = self.descriptor_of(entry)
        # The disk goes on with what is probably asked for next, while this is being sent.
        ahead = min(_AHEAD, entry.offset + entry.size - at)
        os.posix_fadvise(descriptor, at, ahead, os.POSIX_FADV_WILLNEED)
        while at < end:
            at += len(self._pread(entry, min(end - at, _TOUCH), at))

    def is_checked(self, entry: Entry) -> bool:
        """See `ImageFilesystem.is_checked`."""
        if not self.is_verifying or not entry.size:
            return True
        if entry.coding:
            return entry.offset in self._codings_of(entry).checked
        return self._checked.has(entry.offset)

    def check(self, entry: Entry) -> Iterator[None]:
        """See `ImageFilesystem.check`. Steps block."""
        at, end, hash_ = entry.offset, entry.offset + entry.size, hashlib.sha256()
        while at < end:
            slice_ends = min(end, at + _SLICE)
            while at < slice_ends:
                piece = self._pread(entry, min(slice_ends - at, MIB), at)
                hash_.update(piece)
                at += len(piece)
            yield
        if hash_.digest() != entry.sha256:
            raise self.damage(entry, "a file is not what its digest says")
        if entry.coding:
            self._codings_of(entry).checked.add(entry.offset)
        else:
            self._checked.add(entry.offset)

    def damage(self, entry: Entry, problem: str) -> BlobDamaged:
        """See `ImageFilesystem.damage`."""
        if entry.coding:
            blob = self._codings_of(entry).blob
            return CodingDamaged(blob, problem, entry.coding, entry.offset)
        return BlobDamaged(str(self._digest), problem)

    def forget_coding(self, coding: bytes, offset: int) -> None:
        """Give away no longer the coded bytes that begin there, damaged as they are."""
        self.codings.forget(coding, offset)

    def close(self) -> None:
        """Close all files. Idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
        self.codings.close()

    def _codings_of(self, entry: Entry) -> CodingsFile:
        return entry.codings or self.codings

    def _verify(self, entry: Entry) -> None:
        if not self.is_checked(entry):
            for _ in self.check(entry):
                pass

    def _pread(self, entry: Entry, length: int, at: int) -> bytes:
        """Some of those bytes, at least one."""
        try:
            piece = os.pread(self.descriptor_of(entry), length, at)
        except OSError as error:
            if not is_lost(error):
                raise
            raise self.damage(entry, f"it cannot be read: {error.strerror}") from error
        if not piece:
            raise self.damage(entry, "its content is cut short")
        return piece


class CheckedFiles:
    """Remembers where files begin in the content."""

    def __init__(self) -> None:
        self._content: dict[int, int] = {}

    def has(self, offset: int) -> bool:
        """Return whether the file that begins there is among them."""
        stretch, block = divmod(offset // BLOCK, _BLOCKS_PER_STRETCH)
        return bool(self._content.get(stretch, 0) >> block & 1)

    def add(self, offset: int) -> None:
        """Remember the file that begins there. For any thread; at worst it is forgotten again."""
        stretch, block = divmod(offset // BLOCK, _BLOCKS_PER_STRETCH)
        self._content[stretch] = self._content.get(stretch, 0) | 1 << block
