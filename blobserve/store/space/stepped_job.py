"""Work in steps that gives way: each step is a job for a thread, room comes between two of them.

As the room sees it, it is a pull that may be told to give up at any time; it ends at its next step.
Knows nothing of what is done.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Generic, TypeVar

import attrs
from twisted.internet.defer import CancelledError, Deferred

from blobserve.concurrency.singleflight import Call
from blobserve.concurrency.threads import Threads
from blobserve.errors import BlobserveError
from blobserve.names.digest import Digest
from blobserve.store.space.allocator import Allocator

T = TypeVar("T")


class SteppedJob:
    """One piece of work for a blob. See `blobserve.store.space.allocator.ReservationOwner`."""

    def __init__(self, digest: Digest, room: Allocator, threads: Threads) -> None:
        self.digest = digest
        self.held = 0
        """Bytes of room it was given."""
        self.grown = 0
        """Bytes that its blob takes more than before, when it ends."""
        self.ended: Call[None] = Call()
        """Lands when everything it held has been given back."""
        self._room = room
        self._threads = threads
        self._asking: Deferred[int] | None = None
        self._stopped: BlobserveError | None = None

    async def give_up(self, error: BlobserveError) -> None:
        """See `ReservationOwner.give_up`."""
        self._stopped = self._stopped or error
        if self._asking is not None:
            self._asking.cancel()
        await self.ended.wait()

    async def run(self, steps: Generator[int, None, T], extent: int = 0) -> T:
        """Do `steps`, each of which yields how many bytes it lacks to go on.

        They are asked for by `extent` bytes, or as few as are lacking. In the end the steps are
        closed, in a thread too.

        :raises BlobserveError: when there is no room, or what it was told to give up with.
        """
        try:
            while True:
                step = await self._threads.run(_next, steps)
                if isinstance(step, _End):
                    return step.outcome
                if self._stopped is not None:
                    raise self._stopped
                if step:
                    await self._ask(step, extent)
        finally:
            await self._threads.run(steps.close)

    async def _ask(self, least: int, wish: int) -> None:
        self._asking = self._room.reserve(self, least, wish)
        try:
            await self._asking
        except CancelledError:
            raise self._stopped or CancelledError from None
        finally:
            self._asking = None


@attrs.frozen
class _End(Generic[T]):
    outcome: T


def _next(steps: Generator[int, None, T]) -> int | _End[T]:
    try:
        return next(steps)
    except StopIteration as end:
        return _End(end.value)
