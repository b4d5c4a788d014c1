"""Unpacked archives: a local source that is compressed as a whole, unpacked in the blob space.

An unpacked archive is a file in a temporary directory of the blob space. It is counted in the
quota, and the next start removes it after a crash.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from blobserve.config import KIB, MIB, Limits
from blobserve.errors import BadLayer, DiskFull, NoSpace
from blobserve.oci.local.unpacking import ArchiveVersion, Read
from blobserve.store.blobspace import BlobSpace
from blobserve.store.disk.disk_errors import is_full, typed
from blobserve.store.extract.decompress import Decompressor
from blobserve.store.space.scratch import Scratch

_log = Logger()

_IN = 256 * KIB
_OUT = 4 * MIB
"""Bytes that one job unpacks: the longest that other jobs and a stop of the server wait for."""

_MOST_IN = 1 * MIB
"""Bytes that one job reads, since damaged or hostile data may unpack to nothing."""

_MOST_PARTS = 1_000_000
"""The limit of gzip members or zstd frames; parallel compressors write one for 64 KiB or more."""

_FREE = 64 * MIB
_FREE_SHARE = 100
"""The part of a disk that stays free: `_FREE`, or on a small disk one part in this number."""

RETRY_AFTER = 60.0
"""Seconds for which the same archive is not unpacked again after the space did not suffice."""


@attrs.frozen(eq=False)
class UnpackedFile:
    """See `UnpackedArchive`."""

    path: Path
    size: int
    _scratch: Scratch

    async def discard(self) -> None:
        """See `UnpackedArchive.discard`."""
        await self._scratch.discard()


class Unpacker:
    """A maker of unpacked archives in one blob space."""

    def __init__(self, space: BlobSpace, limits: Callable[[], Limits], clock: IReactorTime) -> None:
        self._space = space
        self._limits = limits
        self._clock = clock
        self._too_large: dict[Path, tuple[ArchiveVersion, float]] = {}

    async def unpack(self, version: ArchiveVersion, read: Read) -> UnpackedFile:
        """Unpack an archive. See `Unpack`."""
        refused, since = self._too_large.get(version.path, (None, 0.0))
        if refused == version and 0 <= self._clock.seconds() - since < RETRY_AFTER:
            raise DiskFull
        try:
            unpacked = await self._unpacked(version, read)
        except NoSpace:
            self._too_large[version.path] = version, self._clock.seconds()
            raise
        self._too_large.pop(version.path, None)
        return unpacked

    async def _unpacked(self, version: ArchiveVersion, read: Read) -> UnpackedFile:
        try:
            scratch = await self._space.scratch()
        except OSError as error:
            raise typed(error) or error from error
        path = scratch.directory / "archive"
        try:
            size = await self._fill(path, scratch, read)
        except BaseException as error:
            await scratch.discard()
            if isinstance(error, OSError):
                raise typed(error) or error from error
            raise
        _log.info("unpacked {path}: {size} bytes", path=str(version.path), size=size)
        return UnpackedFile(path, size, scratch)

    async def _fill(self, path: Path, scratch: Scratch, read: Read) -> int:
        """Unpack into a new file; return its size."""
        run, unpacking, size = scratch.threads.run, _ArchiveStream(read), 0
        limit = self._limits().unpacked_size
        most = self._space.bound if limit is None else limit
        await run(path.touch, 0o600)
        while (piece := await run(unpacking.next)) is not None:
            if most is not None and size + len(piece) > most:
                raise BadLayer(f"it unpacks to more than {most} bytes")
            await scratch.reserve(len(piece))
            while True:
                try:
                    await run(_write, path, size, piece)
                    break
                except OSError as error:
                    if not is_full(error) or not await self._space.relieve(len(piece)):
                        raise
            size += len(piece)
        return size


class _ArchiveStream:
    """An archive that is being unpacked, for one job at a time."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._at = 0
        self._decompressor = Decompressor(most_parts=_MOST_PARTS)

    def next(self) -> bytes | None:
        """Return the next bytes, which may be none; None at the end. Blocks."""
        pieces, size, begun_at = list[bytes](), 0, self._at
        while size < _OUT:
            if piece := self._decompressor.read():
                pieces.append(piece)
                size += len(piece)
                continue
            if self._at - begun_at >= _MOST_IN:
                break
            chunk = self._read(self._at, _IN)
            if not chunk:
                if not pieces:
                    self._decompressor.finish()
                    return None
                break
            self._decompressor.feed(chunk)
            self._at += len(chunk)
        return b"".join(pieces)


def _write(path: Path, offset: int, content: bytes) -> None:
    """Write at an offset of a file, unless the disk would be nearly full. Blocks.

    :raises OSError: when it cannot be written.
    """
    # The file is not kept open: a job may still run when its caller has been cancelled.
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        disk = os.fstatvfs(descriptor)
        least = min(_FREE, disk.f_blocks * disk.f_frsize // _FREE_SHARE)
        if disk.f_bavail * disk.f_frsize - len(content) < least:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        view = memoryview(content)
        while view:
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written
    finally:
        os.close(descriptor)
