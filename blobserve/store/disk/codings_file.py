"""The codings of a blob's files: one file of records, `codings`, beside its content.

A record has the SHA-256 of the uncoded file, the coding, and the size and SHA-256 of the coded
bytes. Records are only appended, and each header is written after its bytes, so a crash leaves at
most a tail without a header, which is not read. The file is optional and never synced: coded bytes
are checked by their hash before they are first served, and damaged ones are made again.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import attrs

from blobserve.store.disk.files import blocks, footprint, remove

CODINGS = (b"zstd", b"gzip")
"""The content codings that blobserve makes."""

_NAME = "codings"
_MAGIC = b"blobcod\x01"  # with the version of the format
_HEADER = struct.Struct(">8s32s8sQ32s")
_CHECKSUM = struct.Struct(">I")
HEADER_SIZE = _HEADER.size + _CHECKSUM.size

# Temporary errors, which say nothing about the codings.
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class NoCoding(enum.Enum):
    """The reason why a file has no coding."""

    PENDING = enum.auto()
    """It is being made or checked: ask again."""
    NEVER = enum.auto()
    """It is useless, or cannot be made for a while at least."""


@attrs.frozen
class CodingExtent:
    """The bytes of one coding: their offset in `codings`, their number and their SHA-256."""

    offset: int
    size: int
    sha256: bytes


Made = CodingExtent | Literal[NoCoding.NEVER]
"""The outcome of coding a file: its bytes, or NEVER if they were hardly fewer."""


class CodingsFile:
    """The codings of an open blob. The caller closes them.

    The table in memory belongs to the reactor's thread. The methods `open`, `begin`, `write`,
    `finish`, `abandon` and `charge` block, and only one thread at a time may call them. Reading at
    `descriptor` is always allowed.
    """

    def __init__(
        self, descriptor: int = -1, end: int = 0, is_whole: bool = True, blob: str = ""
    ) -> None:
        self.descriptor = descriptor
        """The file descriptor; -1 while there is no file."""
        self.end = end
        """The offset of the next record."""
        self.is_whole = is_whole
        """Whether the file holds nothing but whole records."""
        self.blob = blob
        """The digest of the blob, for messages."""
        self.checked: set[int] = set()
        """Offsets of coded bytes that this process has checked by their hash."""
        self._made: dict[bytes, dict[bytes, Made]] = {coding: {} for coding in CODINGS}
        self._unchecked: dict[tuple[bytes, bytes], CodingExtent] = {}

    @classmethod
    def open(cls, directory: Path, blob: str = "") -> CodingsFile:
        """Read the headers of the codings in a blob's directory, up to the first incomplete one.

        This changes no file. Any other error of the file is taken as no codings.

        :raises OSError: when the process is out of descriptors or memory.
        """
        path = directory / _NAME
        codings = cls(blob=blob)
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                return cls(is_whole=False, blob=blob)
            codings.descriptor = _open(path)
            codings._read_headers()
        except FileNotFoundError:
            pass
        except OSError as error:
            codings.close()
            if error.errno in _OUT_OF_RESOURCES:
                raise
            return cls(is_whole=False, blob=blob)
        return codings

    def get(self, sha256: bytes, coding: bytes) -> Made | None:
        """Return the outcome of coding this file; None if it is unknown or unchecked.

        In all methods, `sha256` is the hash of the uncoded bytes.
        """
        made = self._made.get(coding)
        return None if made is None else made.get(sha256)

    def unchecked(self, sha256: bytes, coding: bytes) -> CodingExtent | None:
        """Return coded bytes that were found by `open` and not checked since."""
        return self._unchecked.get((sha256, coding))

    def next_unchecked(self) -> tuple[bytes, bytes] | None:
        """Return the hash and the coding of any unchecked bytes."""
        return next(iter(self._unchecked), None)

    def put(self, sha256: bytes, coding: bytes, made: Made | None) -> None:
        """Set the checked outcome; None if the bytes that `open` found are damaged."""
        self._unchecked.pop((sha256, coding), None)
        if made is not None:
            self._made[coding][sha256] = made

    def forget(self, coding: bytes, offset: int) -> None:
        """Drop the damaged coded bytes at `offset`, so that they can be made again."""
        made = self._made.get(coding, {})
        for sha256 in [
            s for s, m in made.items() if isinstance(m, CodingExtent) and m.offset == offset
        ]:
            del made[sha256]
        self.checked.discard(offset)

    def begin(self, directory: Path, is_needed: bool) -> int:
        """Remove incomplete records; create the file if it `is_needed`; return its old footprint.

        :raises OSError: when the disk refuses it.
        """
        path = directory / _NAME
        charged = footprint(path)
        if not self.is_whole:
            if self.end:
                os.ftruncate(self.descriptor, self.end)
            else:
                self.close()
                remove(path)
            self.is_whole = True
        if is_needed and self.descriptor < 0:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self.descriptor = os.open(path, flags, 0o600)
        return charged

    def write(self, piece: bytes, offset: int) -> None:
        """Write bytes of the next record; its first byte is at ``end + HEADER_SIZE``."""
        view = memoryview(piece)
        while view:
            written = os.pwrite(self.descriptor, view, offset)
            view, offset = view[written:], offset + written

    def finish(self, sha256: bytes, coding: bytes, size: int, coded_sha256: bytes) -> Made:
        """Complete the next record of `size` bytes; 0 makes a record of NEVER."""
        start = self.end + HEADER_SIZE
        # A record of NEVER may follow bytes that turned out to be useless.
        os.ftruncate(self.descriptor, start + size)
        header = _HEADER.pack(_MAGIC, sha256, coding, size, coded_sha256)
        self.write(header + _CHECKSUM.pack(zlib.crc32(header)), self.end)
        self.end = start + size
        return CodingExtent(start, size, coded_sha256) if size else NoCoding.NEVER

    def abandon(self) -> None:
        """Remove the bytes of the next record."""
        self.is_whole = False
        os.ftruncate(self.descriptor, self.end)
        self.is_whole = True

    def charge(self) -> int:
        """Return the bytes to charge for the file, even if its directory was moved away."""
        return blocks(os.fstat(self.descriptor).st_size) if self.descriptor >= 0 else 0

    def close(self) -> None:
        """Close the file. Idempotent."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _read_headers(self) -> None:
        size = os.fstat(self.descriptor).st_size
        for sha256, coding, made, end in _records(self.descriptor, size):
            self.end = end
            if coding not in self._made:
                continue  # of another release
            self._made[coding].pop(sha256, None)
            self._unchecked.pop((sha256, coding), None)
            if isinstance(made, CodingExtent):
                self._unchecked[sha256, coding] = made
            else:
                self._made[coding][sha256] = made
        self.is_whole = self.end == size


def _records(descriptor: int, size: int) -> Iterator[tuple[bytes, bytes, Made, int]]:
    """Yield the hash, coding, outcome and end of each record, up to the first incomplete one."""
    end = 0
    while len(header := os.pread(descriptor, HEADER_SIZE, end)) == HEADER_SIZE:
        magic, sha256, coding, length, coded_sha256 = _HEADER.unpack_from(header)
        [checksum] = _CHECKSUM.unpack_from(header, _HEADER.size)
        start = end + HEADER_SIZE
        end = start + length
        if magic != _MAGIC or checksum != zlib.crc32(header[: _HEADER.size]) or end > size:
            return
        made: Made = CodingExtent(start, length, coded_sha256) if length else NoCoding.NEVER
        yield sha256, coding.rstrip(b"\0"), made, end


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES):
            raise
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
