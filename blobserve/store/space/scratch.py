"""A temporary directory of a blob space, counted in its quota.

The next start removes directories that a crash left behind.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from blobserve.concurrency.threads import Threads


class Scratch:
    """A temporary directory. `BlobSpace.scratch` makes it, and the caller discards it."""

    def __init__(
        self,
        directory: Path,
        threads: Threads,
        reserve: Callable[[int], Awaitable[None]],
        discard: Callable[[Path, int], Awaitable[None]],
    ) -> None:
        self.directory = directory
        self.threads = threads
        """The threads for computations on its files."""
        self._reserve = reserve
        self._discard = discard
        self._size: int | None = 0

    async def reserve(self, size: int) -> None:
        """Reserve bytes that are about to be written there.

        :raises NoSpace: when the quota does not allow it.
        """
        await self._reserve(size)
        if self._size is not None:
            self._size += size

    @property
    def size(self) -> int:
        """The number of reserved bytes."""
        return self._size or 0

    async def discard(self) -> None:
        """Remove it, and return its reservation. Idempotent."""
        size, self._size = self._size, None
        if size is not None:
            await self._discard(self.directory, size)
