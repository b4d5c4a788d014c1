"""The files that a layout consists of, wherever they lie: here, in a directory.

Blocking, for any thread, but for what says otherwise. Paths are those of OCI image-spec
image-layout.md, made of digests; nobody's text becomes one. Nothing is kept open.
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
    """Files by their relative paths. What is wrong with all of them is an `UpstreamError`."""

    @property
    def name(self) -> str:
        """What errors call it."""
        ...

    async def ready(self) -> None:
        """Notice what has changed; to be called before others are, and never blocks."""
        ...

    def has(self, path: str) -> bool:
        """Whether there is such a file."""
        ...

    def read(self, path: str, offset: int, length: int) -> tuple[bytes, int]:
        """Up to `length` bytes of a file from `offset` on, and how many it has in all.

        :raises FileNotFoundError: when there is no such regular file.
        :raises OSError: when it cannot be read.
        """
        ...


@attrs.frozen
class LayoutDirectory:
    """The files below a directory, which may change at any time. See `LayoutFiles`."""

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


@contextmanager
def opened(path: Path) -> Iterator[tuple[int, os.stat_result]]:
    """The descriptor of a regular file, open for reading, and its status.

    :raises OSError: when it cannot be opened, or is no regular file.
    """
    # O_NONBLOCK: a FIFO in its place would hold this thread until somebody writes.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(path)
        yield descriptor, status
    finally:
        os.close(descriptor)


def read_at(descriptor: int, offset: int, length: int) -> bytes:
    """Up to `length` bytes of a file from `offset` on, fewer only at its end."""
    chunks = []
    while length and (chunk := os.pread(descriptor, length, offset)):
        chunks.append(chunk)
        offset, length = offset + len(chunk), length - len(chunk)
    return b"".join(chunks)
