"""The files of an image layout: the interface, and its form as a directory.

Functions block, for use in any thread, unless they say otherwise. Paths are those of OCI
image-spec image-layout.md. They are made of digests only. No file stays open.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import attrs


class LayoutFiles(Protocol):
    """Files by relative path. A fault of the whole layout raises an `UpstreamError`."""

    @property
    def name(self) -> str:
        """The name of the source in error texts."""
        ...

    async def ready(self) -> None:
        """Detect changed files, without blocking. Call it before the other methods."""
        ...

    def has(self, path: str) -> bool:
        """Return whether there is such a file."""
        ...

    def read(self, path: str, offset: int, length: int) -> tuple[bytes, int]:
        """Return up to `length` bytes of a file from `offset` on, and the size of the file.

        :raises FileNotFoundError: when there is no such regular file.
        :raises OSError: when it cannot be read.
        """
        ...

    async def close(self) -> None:
        """Remove unpacked bytes. Reads may fail after that. Idempotent."""
        ...


@attrs.frozen
class LayoutDirectory:
    """A layout in a directory, which may change at any time. See `LayoutFiles`."""

    path: Path
    name: str = "oci layout"

    async def ready(self) -> None:
        """See `LayoutFiles.ready`."""

    def has(self, path: str) -> bool:
        """See `LayoutFiles.has`."""
        return (self.path / path).is_file()

    def read(self, path: str, offset: int, length: int) -> tuple[bytes, int]:
        """See `LayoutFiles.read`."""
        with opened(self.path / path) as (descriptor, status):
            return read_at(descriptor, offset, length), status.st_size

    async def close(self) -> None:
        """See `LayoutFiles.close`."""


@contextmanager
def opened(path: Path) -> Iterator[tuple[int, os.stat_result]]:
    """Open a regular file for reading; give its descriptor and its status.

    :raises OSError: when it cannot be opened, or is not a regular file.
    """
    # O_NONBLOCK: without it, a FIFO would block this thread until another process writes.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(path)
        yield descriptor, status
    finally:
        os.close(descriptor)


def read_at(descriptor: int, offset: int, length: int) -> bytes:
    """Return up to `length` bytes of a file from `offset` on, fewer only at its end."""
    chunks = []
    while length and (chunk := os.pread(descriptor, length, offset)):
        chunks.append(chunk)
        offset, length = offset + len(chunk), length - len(chunk)
    return b"".join(chunks)
