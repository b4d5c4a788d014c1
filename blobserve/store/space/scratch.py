"""Scratch: a directory of a blob space for what is never kept, within its bound.

What is in it when a process ends is wiped at the next start. Knows nothing of what it is for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from blobserve.concurrency.threads import Threads


class Scratch:
    """Made by `BlobSpace.scratch`; whoever asked for it discards it."""

    def __init__(
        self,
        directory: Path,
        threads: Threads,
        reserve: Callable[[int], Awaitable[None]],
        discard: Callable[[Path, int], Awaitable[None]],
    ) -> None:
        self.directory = directory
        self.threads = threads
        """Where to compute."""
        self._reserve = reserve
        self._discard = discard
        self._size: int | None = 0

    async def reserve(self, size: int) -> None:
        """Count bytes that are about to be written there.

        :raises NoSpace: when there is no room for them.
        """
        await self._reserve(size)
        if self._size is not None:
            self._size += size

    async def discard(self) -> None:
        """Remove it, and give its bytes back. Idempotent."""
        size, self._size = self._size, None
        if size is not None:
            await self._discard(self.directory, size)
