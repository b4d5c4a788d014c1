"""OCI archives: the files of a layout in one tar file, as ``skopeo`` writes ``oci-archive:``.

One pass over the headers finds the offsets of the members. The file may be replaced at any time:
each use and each read checks its device, inode, size and modification time.

A file that is compressed as a whole is unpacked first, by a function that another part provides.
The unpacked bytes are discarded when the file changes.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import attrs
from twisted.internet.defer import DeferredLock

from blobserve.concurrency.threads import Threads
from blobserve.config import Limits
from blobserve.errors import BadLayer, RegistryBusy, RegistryFailed
from blobserve.oci.local.directory import opened, read_at
from blobserve.oci.local.unpacking import ArchiveVersion, Unpack, UnpackedArchive, is_compressed
from blobserve.tar.header import BLOCK
from blobserve.tar.members import ArchiveMember, Members


@attrs.frozen(eq=False)
class ArchiveContents:
    """The members of one version of the archive."""

    identity: tuple[int, ...]
    members: Members
    unpacked: UnpackedArchive | None = None
    """The bytes of the members if the archive is compressed as a whole."""


@attrs.frozen
class _CompressedVersion:
    """A version of the archive that must be unpacked."""

    identity: tuple[int, ...]


class OciArchive:
    """The members of a tar file. See `blobserve.oci.local.directory.LayoutFiles`."""

    def __init__(
        self,
        path: Path,
        threads: Threads,
        limits: Limits,
        name: str = "oci archive",
        unpack: Unpack | None = None,
    ) -> None:
        """Without `unpack`, an archive that is compressed as a whole is refused."""
        self.name = name
        self._unpack = unpack
        self._is_closed = False
        self._refused: tuple[tuple[int, ...], str] | None = None
        """A version that cannot be unpacked, with the reason."""
        self._path = path
        self._threads = threads
        self._limits = limits
        self._contents: ArchiveContents | None = None
        self._lock = DeferredLock()  # Callers wait for a pass without holding a thread.

    async def ready(self) -> None:
        """See `LayoutFiles.ready`."""
        await self.contents()

    async def contents(self) -> ArchiveContents:
        """Return the members of the file; the same object until the file changes.

        :raises RegistryFailed: when the file is missing, or not a tar archive.
        """
        async with self._lock:
            known = self._contents
            try:
                found = await self._threads.run(self._look, known)
                if found is not known:
                    await self._discard(known)
                if isinstance(found, _CompressedVersion):
                    found = await self._unpacked(found.identity)
            except RegistryFailed:
                await self._discard(known)
                raise
            self._contents = found
        return found

    async def close(self) -> None:
        """See `LayoutFiles.close`."""
        self._is_closed = True
        async with self._lock:
            await self._discard(self._contents)

    def has(self, path: str) -> bool:
        """See `LayoutFiles.has`."""
        return self._find(path) is not None

    def read(self, path: str, offset: int, length: int) -> tuple[bytes, int]:
        """See `LayoutFiles.read`."""
        part = self._find(path)
        if part is None:
            raise FileNotFoundError(path)
        return self.read_part(self._known(), part, offset, length), part.size

    def read_part(
        self, contents: ArchiveContents, part: ArchiveMember, offset: int, length: int
    ) -> bytes:
        """Return up to `length` bytes of a member from `offset` on. Blocks.

        :raises RegistryBusy: when the file has changed since `contents`.
        """
        length = max(0, min(length, part.size - offset))
        with opened(self._path) as (descriptor, status):
            if _identity(status) != contents.identity:
                raise RegistryBusy(self.name, 1.0)
            if contents.unpacked is None:
                return read_at(descriptor, part.offset + offset, length)
        try:
            with opened(contents.unpacked.path) as (descriptor, _):
                return read_at(descriptor, part.offset + offset, length)
        except FileNotFoundError as error:  # it was discarded meanwhile
            raise RegistryBusy(self.name, 1.0) from error

    def find(self, contents: ArchiveContents, path: str) -> ArchiveMember | None:
        """Return the member at `path`; None if there is none.

        :raises RegistryFailed: when a link is broken.
        """
        try:
            return contents.members.find(path.encode("utf-8", "surrogatepass"))
        except BadLayer as problem:
            raise RegistryFailed(self.name, str(problem)) from problem

    def _find(self, path: str) -> ArchiveMember | None:
        return self.find(self._known(), path)

    def _known(self) -> ArchiveContents:
        if self._contents is None:
            raise RegistryBusy(self.name, 1.0)
        return self._contents

    async def _discard(self, contents: ArchiveContents | None) -> None:
        if contents is not None and contents.unpacked is not None:
            self._contents = None
            await contents.unpacked.discard()

    async def _unpacked(self, identity: tuple[int, ...]) -> ArchiveContents:
        if self._unpack is None or self._is_closed:
            raise RegistryBusy(self.name, 1.0)
        if self._refused is not None and self._refused[0] == identity:
            raise RegistryFailed(self.name, self._refused[1])
        read = partial(self._read_version, identity)
        try:
            unpacked = await self._unpack(ArchiveVersion(self._path, identity), read)
            try:
                members = await self._threads.run(self._members_of, unpacked)
            except BaseException:
                await unpacked.discard()
                raise
        except BadLayer as problem:
            # The same bytes would fail again, and unpacking them takes long.
            self._refused = identity, f"{self._path.name}: {problem}"
            raise RegistryFailed(self.name, self._refused[1]) from problem
        return ArchiveContents(identity, members, unpacked)

    def _members_of(self, unpacked: UnpackedArchive) -> Members:
        with opened(unpacked.path) as (descriptor, _):
            return Members.read(partial(read_at, descriptor), unpacked.size, self._limits)

    def _read_version(self, identity: tuple[int, ...], offset: int, length: int) -> bytes:
        """Return up to `length` bytes of a version of the file. Blocks.

        :raises RegistryBusy: when the file has changed.
        :raises RegistryFailed: when it cannot be read.
        """
        try:
            with opened(self._path) as (descriptor, status):
                content = read_at(descriptor, offset, length)
                if not identity == _identity(status) == _identity(os.fstat(descriptor)):
                    raise RegistryBusy(self.name, 1.0)
                return content
        except OSError as error:
            raise RegistryFailed(self.name, "it cannot be read") from error

    def _look(self, known: ArchiveContents | None) -> ArchiveContents | _CompressedVersion:
        try:
            with opened(self._path) as (descriptor, status):
                identity = _identity(status)
                if known is not None and known.identity == identity and _is_present(known):
                    return known
                read = partial(read_at, descriptor)
                if self._unpack is not None and is_compressed(read(0, BLOCK)):
                    return _CompressedVersion(identity)
                return ArchiveContents(identity, Members.read(read, status.st_size, self._limits))
        except FileNotFoundError as error:
            raise RegistryFailed(self.name, "there is no such file") from error
        except OSError as error:
            raise RegistryFailed(self.name, "it cannot be read") from error
        except BadLayer as problem:
            raise RegistryFailed(self.name, str(problem)) from problem


def _is_present(contents: ArchiveContents) -> bool:
    """Return whether the bytes of the members can be read."""
    return contents.unpacked is None or contents.unpacked.path.is_file()


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
