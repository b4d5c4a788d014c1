"""Leases while threads read: an image is given up when nobody reads it, not a moment before.

A wait for a thread can be cancelled, the thread cannot; it must not find its file closed, or its
number taken by another. Knows nothing of what is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from blobserve.errors import BlobDamaged
from blobserve.store.lease import Lease
from blobserve.store.tree import Entry
from blobserve.threads import Threads

P = ParamSpec("P")
T = TypeVar("T")


class Hold:
    """A lease with a count of those who need it, at first one. The last to leave releases it."""

    def __init__(self, lease: Lease, disk: Threads) -> None:
        self.lease = lease
        self._disk = disk
        self._needed_by = 1

    def keep(self) -> None:
        """One more needs it."""
        self._needed_by += 1

    def leave(self) -> None:
        """One who needed it does so no longer."""
        self._needed_by -= 1
        if not self._needed_by:
            self.lease.release()

    def run(self, f: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Call `f`, which reads the image, in a thread. Cancelling ends the wait alone.

        Damage that it meets is reported.
        """
        waiter: Deferred[T] = Deferred()
        self.keep()

        def leave(outcome: object) -> object:
            if isinstance(outcome, Failure) and isinstance(outcome.value, BlobDamaged):
                self.lease.report(outcome.value)
            self.leave()
            return outcome

        # A Deferred that was cancelled swallows the one result that comes too late.
        job = self._disk.run(f, *args, **kwargs)
        job.addBoth(leave).addCallbacks(waiter.callback, waiter.errback)
        return waiter


class EntryBody:
    """A file of an image, read where it lies. See `Body` and `Stored` of `blobserve.web.answer`."""

    def __init__(self, hold: Hold, entry: Entry) -> None:
        hold.keep()
        self._hold: Hold = hold
        self._entry = entry

    @property
    def size(self) -> int:
        """See `Body.size`."""
        return self._entry.size

    def read_cached(self, offset: int, length: int) -> bytes | None:
        """See `Body.read_cached`."""
        return self._hold.lease.filesystem.read_cached(self._entry, offset, length)

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        """See `Body.read`."""
        return self._hold.run(self._hold.lease.filesystem.read, self._entry, offset, length)

    @property
    def stored(self) -> EntryBody:
        """See `Body.stored`."""
        return self

    @property
    def descriptor(self) -> int:
        """See `Stored.descriptor`."""
        return self._hold.lease.filesystem.descriptor_of(self._entry)

    @property
    def start(self) -> int:
        """See `Stored.start`."""
        return self._entry.offset

    def is_cached(self, offset: int, length: int) -> bool:
        """See `Stored.is_cached`."""
        return self._hold.lease.filesystem.is_cached(self._entry, offset, length)

    def read_ahead(self, offset: int, length: int) -> Deferred[None]:
        """See `Stored.read_ahead`."""
        return self._hold.run(self._hold.lease.filesystem.read_ahead, self._entry, offset, length)

    def lost(self, problem: str) -> BlobDamaged:
        """See `Stored.lost`."""
        damage = self._hold.lease.filesystem.damage(self._entry, problem)
        self._hold.lease.report(damage)
        return damage

    def close(self) -> None:
        """See `Body.close`; once only."""
        self._hold.leave()
