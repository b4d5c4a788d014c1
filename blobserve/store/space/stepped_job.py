"""A piece of work in steps: each step runs in a thread, and reservations are made between steps.

It is a `ReservationOwner`: `give_up` may be called at any time, and ends it after the current step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from twisted.internet.defer import CancelledError, Deferred

from blobserve.concurrency.singleflight import Call
from blobserve.concurrency.steps import Result, Steps, drive
from blobserve.concurrency.threads import Threads
from blobserve.errors import BlobserveError
from blobserve.names.digest import Digest
from blobserve.store.space.quota import Allocator

T = TypeVar("T")
R = TypeVar("R")


class SteppedJob:
    """A piece of work for one blob. See `ReservationOwner`."""

    def __init__(self, digest: Digest, allocator: Allocator, threads: Threads) -> None:
        self.digest = digest
        self.held = 0
        """See `ReservationOwner.held`."""
        self.grown = 0
        """Bytes by which its blob has grown, set at the end."""
        self.ended: Call[None] = Call()
        """Succeeds when its reservations have been returned."""
        self._allocator = allocator
        self._threads = threads
        self._reservation: Deferred[int] | None = None
        self._stopped: BlobserveError | None = None

    async def give_up(self, error: BlobserveError) -> None:
        """See `ReservationOwner.give_up`."""
        self._stopped = self._stopped or error
        if self._reservation is not None:
            self._reservation.cancel()
        await self.ended.wait()

    async def run(self, steps: Steps[T], extent: int = 0) -> T:
        """Run all steps, and return their result.

        If a step lacks bytes, at least these are reserved, and `extent` bytes if they are free or
        can be evicted. At the end the generator is closed in a thread.

        :raises BlobserveError: when the reservation fails, or the error passed to `give_up`.
        """
        try:
            return await drive(steps, self._step, partial(self._reserve, extent))
        finally:
            await self._threads.run(steps.close)

    async def _step(self, step: Callable[[], R]) -> R:
        outcome = await self._threads.run(step)
        if self._stopped is not None and not isinstance(outcome, Result):
            raise self._stopped
        return outcome

    async def _reserve(self, preferred: int, minimum: int) -> None:
        self._reservation = self._allocator.reserve(self, minimum, preferred)
        try:
            await self._reservation
        except CancelledError:
            raise self._stopped or CancelledError from None
        finally:
            self._reservation = None
