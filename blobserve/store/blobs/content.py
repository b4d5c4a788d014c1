"""The content of one blob, and its files: bytes at an offset of a file that is open.

The blob's directory may be moved or removed meanwhile. This module knows no names.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

import attrs
from twisted.internet.defer import Deferred

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

P = ParamSpec("P")
T = TypeVar("T")


class Reader(Protocol):
    """The caller of `File.fetch`: it has threads, and limits how long it waits for the network."""

    def run(self, f: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Call `f` in a thread."""
        ...

    def from_disk(
        self, file: StoredFile, read: Callable[[int, int], T], offset: int, length: int
    ) -> Deferred[T]:
        """Call `read`, which reads `file`, in a thread; check the file before."""
        ...

    def from_network(self, read: Deferred[T]) -> Deferred[T]:
        """Wait for a read from the network."""
        ...


class BlobContent:
    """The bytes of an open blob. Made by `open`; the caller closes it.

    Methods that block, according to their docstrings, may be called in any thread; the others are
    for one thread.
    """

    def __init__(self, digest: Digest, descriptor: int, codings: CodingsFile) -> None:
        self.digest = digest
        self.descriptor = descriptor
        """The descriptor of the content file; -1 after `close`."""
        self.codings = codings
        """The coded variants of its files."""
        self.is_verifying = False
        """See `ImageFilesystem.verify`."""
        self.checked = CheckedFiles()
        """Files that matched the index in this process."""
        self.residency = Residency()

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
        return os.fstat(self.descriptor).st_size

    def close(self) -> None:
        """Close all files. Idempotent."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
        self.codings.close()


class StoredFile:
    """A file of an open blob, or a coded variant of one. See `File`."""

    __slots__ = ("_content", "entry")

    def __init__(self, content: BlobContent, entry: Entry) -> None:
        self._content = content
        self.entry = entry

    @property
    def size(self) -> int:
        """See `File.size`."""
        return self.entry.size

    @property
    def start(self) -> int:
        """The offset of the first byte in the file `descriptor`."""
        return self.entry.offset

    @property
    def descriptor(self) -> int:
        """The descriptor of the file that contains the bytes."""
        return self._codings.descriptor if self.entry.coding else self._content.descriptor

    @property
    def stored(self) -> StoredFile:
        """See `File.stored`."""
        return self

    @property
    def key(self) -> Hashable:
        """A key that is equal for the same bytes of the same open blob."""
        return (self._codings if self.entry.coding else self._content, self.entry.offset)

    @property
    def is_checked(self) -> bool:
        """Return whether the file may be sent: it was checked, or need not be."""
        if not self._content.is_verifying or not self.entry.size:
            return True
        if self.entry.coding:
            return self.entry.offset in self._codings.checked
        return self._content.checked.has(self.entry.offset)

    def coded(self, coding: bytes) -> Entry | NoCoding | None:
        """Return the entry of this file in a content coding; None while that is not known."""
        made = self._content.codings.get(self.entry.sha256, coding)
        if not isinstance(made, CodingExtent):
            return made
        return attrs.evolve(
            self.entry, offset=made.offset, size=made.size, sha256=made.sha256, coding=coding
        )

    def read(self, offset: int, length: int) -> bytes:
        """Read `length` bytes from `offset` on, fewer only at the end. Blocks.

        :raises BlobDamaged: when the disk has lost or changed them.
        """
        self._verify()
        pieces = []
        entry = self.entry
        at, end = entry.offset + offset, entry.offset + min(offset + length, entry.size)
        while at < end:
            pieces.append(piece := self._pread(end - at, at))
            at += len(piece)
        return b"".join(pieces)

    def read_cached(self, offset: int, length: int) -> bytes | None:
        """See `File.read_cached`. Does not block."""
        if not self.is_checked:
            return None
        length = min(length, self.entry.size - offset)
        if length <= 0:
            return b""
        return read_resident(self.descriptor, self.entry.offset + offset, length)

    def fetch(self, offset: int, length: int, reader: Reader) -> Deferred[bytes]:
        """See `File.fetch`.

        :raises BlobDamaged: when the disk has lost or changed the bytes.
        """
        return reader.from_disk(self, self.read, offset, length)

    def apply(self, f: Callable[[bytes], T], length: int, reader: Reader) -> Deferred[T]:
        """See `File.apply`."""
        return reader.from_disk(self, lambda at, size: f(self.read(at, size)), 0, length)

    def is_cached(self, offset: int, length: int) -> bool:
        """Return whether all of those bytes are known to be in memory. Does not block."""
        if not self.is_checked:
            return False
        return self._content.residency.has(self.descriptor, self.entry.offset + offset, length)

    def read_ahead(self, offset: int, length: int) -> None:
        """Load those bytes into the page cache. Blocks.

        :raises BlobDamaged: when the disk has lost or changed them.
        """
        self._verify()
        entry, descriptor = self.entry, self.descriptor
        at, end = entry.offset + offset, entry.offset + min(offset + length, entry.size)
        # The disk reads the bytes that are probably needed next while these are sent.
        ahead = min(_AHEAD, entry.offset + entry.size - at)
        os.posix_fadvise(descriptor, at, ahead, os.POSIX_FADV_WILLNEED)
        while at < end:
            at += len(self._pread(min(end - at, _TOUCH), at))

    def check(self) -> Iterator[None]:
        """Compare the file with its SHA-256, one slice at each step, and remember that it matched.

        Steps block.

        :raises BlobDamaged: when the disk has lost or changed bytes.
        """
        entry = self.entry
        at, end, hash_ = entry.offset, entry.offset + entry.size, hashlib.sha256()
        while at < end:
            slice_ends = min(end, at + _SLICE)
            while at < slice_ends:
                piece = self._pread(min(slice_ends - at, MIB), at)
                hash_.update(piece)
                at += len(piece)
            yield
        if hash_.digest() != entry.sha256:
            raise self.damage("a file does not match its digest")
        if entry.coding:
            self._codings.checked.add(entry.offset)
        else:
            self._content.checked.add(entry.offset)

    def damage(self, problem: str) -> BlobDamaged:
        """Return the error that reports a problem with the bytes of this file."""
        if self.entry.coding:
            blob = self._codings.blob
            return CodingDamaged(blob, problem, self.entry.coding, self.entry.offset)
        return BlobDamaged(str(self._content.digest), problem)

    def close(self) -> None:
        """See `File.close`: the blob stays open."""

    @property
    def _codings(self) -> CodingsFile:
        return self.entry.codings or self._content.codings

    def _verify(self) -> None:
        if not self.is_checked:
            for _ in self.check():
                pass

    def _pread(self, length: int, at: int) -> bytes:
        """Read at least one byte at an offset of the file `descriptor`."""
        try:
            piece = os.pread(self.descriptor, length, at)
        except OSError as error:
            if not is_lost(error):
                raise
            raise self.damage(f"it cannot be read: {error.strerror}") from error
        if not piece:
            raise self.damage("its content is cut short")
        return piece


class CheckedFiles:
    """A set of files by the offsets at which they begin in the content.

    It has one bit for each block, about 200 KiB for a million files.
    """

    def __init__(self) -> None:
        self._content: dict[int, int] = {}

    def has(self, offset: int) -> bool:
        """Return whether the file that begins at `offset` is in the set."""
        stretch, block = divmod(offset // BLOCK, _BLOCKS_PER_STRETCH)
        return bool(self._content.get(stretch, 0) >> block & 1)

    def add(self, offset: int) -> None:
        """Add a file. May be called in any thread; a race can lose an entry, which is harmless."""
        stretch, block = divmod(offset // BLOCK, _BLOCKS_PER_STRETCH)
        self._content[stretch] = self._content.get(stretch, 0) | 1 << block
