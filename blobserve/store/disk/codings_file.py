"""What a blob's files have been coded to: one file of records, `codings`, beside its content.

A record tells all about itself: whose bytes they are in which coding, how many, and the hash that
they must have. Records are only ever appended, the header after its bytes, so a crash leaves at
most a tail without a header, which is not read. Nothing here has to be there, and nothing is
synced: bytes are checked by their hash before they are first served, and what is damaged is made
again. Knows neither how codings are made nor who wants them; nothing from an image names a file.
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
"""The content codings that are made here."""

_NAME = "codings"
_MAGIC = b"blobcod\x01"  # with the version of the format
_HEADER = struct.Struct(">8s32s8sQ32s")
_CHECKSUM = struct.Struct(">I")
HEADER_SIZE = _HEADER.size + _CHECKSUM.size

# What may pass, so that the codings are not to blame for it.
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class NoCoding(enum.Enum):
    """Why there is no coding of a file."""

    PENDING = enum.auto()
    """It is being made, or looked at: ask again."""
    NEVER = enum.auto()
    """It is not worth it, or cannot be made; not for a while, at least."""


@attrs.frozen
class CodingExtent:
    """The bytes of one coding: where they are in `codings`, how many, and their SHA-256."""

    offset: int
    size: int
    sha256: bytes


Made = CodingExtent | Literal[NoCoding.NEVER]
"""What came of coding a file: its bytes, or the mark that these were hardly fewer."""


class CodingsFile:
    """The codings of a blob that is open. Whoever opened them closes them.

    The table is for the reactor's thread; whatever touches the file blocks, and is called by one
    thread at a time but for reading at `descriptor`.
    """

    def __init__(
        self, descriptor: int = -1, end: int = 0, is_whole: bool = True, blob: str = ""
    ) -> None:
        self.descriptor = descriptor
        """Of the file; -1 while there is none."""
        self.end = end
        """Where the next record goes."""
        self.is_whole = is_whole
        """Whether all there is under this name is records, so that nothing has to be mended."""
        self.blob = blob
        """The digest of the blob that they belong to, for messages."""
        self.checked: set[int] = set()
        """Offsets of coded bytes that were compared with their hash in this process."""
        self._made: dict[bytes, dict[bytes, Made]] = {coding: {} for coding in CODINGS}
        self._unchecked: dict[tuple[bytes, bytes], CodingExtent] = {}

    @classmethod
    def open(cls, directory: Path, blob: str = "") -> CodingsFile:
        """Take up the codings in a blob's directory, as far as they are whole. Changes nothing.

        Reads the headers alone. Whatever else is wrong with the file is not the blob's trouble.

        :raises OSError: when the process is out of descriptors or memory.
        """
        path = directory / _NAME
        codings = cls(blob=blob)
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                return cls(is_whole=False, blob=blob)
            codings.descriptor = _open(path)
            codings._take_up()
        except FileNotFoundError:
            pass
        except OSError as error:
            codings.close()
            if error.errno in _OUT_OF_RESOURCES:
                raise
            return cls(is_whole=False, blob=blob)
        return codings

    def get(self, sha256: bytes, coding: bytes) -> Made | None:
        """What came of coding a file with these bytes; None when that is not known, or unchecked.

        `sha256` is of the bytes before they were coded, here and below.
        """
        made = self._made.get(coding)
        return None if made is None else made.get(sha256)

    def unchecked(self, sha256: bytes, coding: bytes) -> CodingExtent | None:
        """Bytes that were found when it was opened, and have not been checked since."""
        return self._unchecked.get((sha256, coding))

    def next_unchecked(self) -> tuple[bytes, bytes] | None:
        """The hash and the coding of any such."""
        return next(iter(self._unchecked), None)

    def put(self, sha256: bytes, coding: bytes, made: Made | None) -> None:
        """Keep what is certain from now on; None: that what was found is damaged."""
        self._unchecked.pop((sha256, coding), None)
        if made is not None:
            self._made[coding][sha256] = made

    def forget(self, coding: bytes, offset: int) -> None:
        """Have no bytes there any more, found damaged as they are: another coding may be made."""
        made = self._made.get(coding, {})
        for sha256 in [
            s for s, m in made.items() if isinstance(m, CodingExtent) and m.offset == offset
        ]:
            del made[sha256]
        self.checked.discard(offset)

    def begin(self, directory: Path, is_needed: bool) -> int:
        """Remove what is no record; have a file if it `is_needed`. What it was charged with before.

        :raises OSError: when the disk does not let it.
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
        """Write bytes of the next record, the first of them at ``end + HEADER_SIZE``."""
        view = memoryview(piece)
        while view:
            written = os.pwrite(self.descriptor, view, offset)
            view, offset = view[written:], offset + written

    def finish(self, sha256: bytes, coding: bytes, size: int, coded_sha256: bytes) -> Made:
        """Complete the next record of `size` bytes; of none, it is the mark. Not `put` yet."""
        start = self.end + HEADER_SIZE
        # What was written before the mark, if that is what it is.
        os.ftruncate(self.descriptor, start + size)
        header = _HEADER.pack(_MAGIC, sha256, coding, size, coded_sha256)
        self.write(header + _CHECKSUM.pack(zlib.crc32(header)), self.end)
        self.end = start + size
        return CodingExtent(start, size, coded_sha256) if size else NoCoding.NEVER

    def abandon(self) -> None:
        """Take back what was written of the next record."""
        self.is_whole = False
        os.ftruncate(self.descriptor, self.end)
        self.is_whole = True

    def charge(self) -> int:
        """Bytes that the file is to be charged with, wherever its directory is by now."""
        return blocks(os.fstat(self.descriptor).st_size) if self.descriptor >= 0 else 0

    def close(self) -> None:
        """Close the file. Idempotent."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _take_up(self) -> None:
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
    """The records up to the first that is not whole: hash, coding, what was made, where it ends."""
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
