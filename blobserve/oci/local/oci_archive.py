"""OCI archives: the files of a layout in one tar file, as ``skopeo`` writes ``oci-archive:``.

One pass over the headers finds the offsets of the members. The file may be replaced at any time:
each use and each read checks its device, inode, size and modification time.
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
from blobserve.tar.members import ArchiveMember, Members


@attrs.frozen(eq=False)
class ArchiveContents:
    """The members of one version of the archive."""

    identity: tuple[int, ...]
    members: Members


class OciArchive:
    """The members of a tar file. See `blobserve.oci.local.directory.LayoutFiles`."""

    def __init__(
        self, path: Path, threads: Threads, limits: Limits, name: str = "oci archive"
    ) -> None:
        self.name = name
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
            self._contents = await self._threads.run(self._look, self._contents)
        return self._contents

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
            return read_at(descriptor, part.offset + offset, length)

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

    def _look(self, known: ArchiveContents | None) -> ArchiveContents:
        try:
            with opened(self._path) as (descriptor, status):
                identity = _identity(status)
                if known is not None and known.identity == identity:
                    return known
                read = partial(read_at, descriptor)
                return ArchiveContents(identity, Members.read(read, status.st_size, self._limits))
        except FileNotFoundError as error:
            raise RegistryFailed(self.name, "there is no such file") from error
        except OSError as error:
            raise RegistryFailed(self.name, "it cannot be read") from error
        except BadLayer as problem:
            raise RegistryFailed(self.name, str(problem)) from problem


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
