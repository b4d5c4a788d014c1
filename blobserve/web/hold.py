"""Leases while threads read: an image is given up when nobody reads it, not a moment before.

A wait for a thread can be cancelled, the thread cannot; it must not find its file closed, or its
number taken by another. Knows nothing of what is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from blobserve.errors import PullTimeout
from blobserve.store.lease import Lease
from blobserve.store.published.layer import Reading
from blobserve.store.tree import Entry
from blobserve.threads import Threads

P = ParamSpec("P")
T = TypeVar("T")


class Shared:
    """What is read, with a count of those who need it, at first one. The last to leave ends it."""

    def __init__(self, end: Callable[[], None], disk: Threads) -> None:
        self._end = end
        self._disk = disk
        self._needed_by = 1

    def keep(self) -> None:
        """One more needs it."""
        self._needed_by += 1

    def leave(self) -> None:
        """One who needed it does so no longer."""
        self._needed_by -= 1
        if not self._needed_by:
            self._end()

    def run(self, f: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Call `f`, which reads it, in a thread. Cancelling ends the wait alone."""
        waiter: Deferred[T] = Deferred()
        self.keep()

        def leave(outcome: object) -> object:
            self.leave()
            return outcome

        # A Deferred that was cancelled swallows the one result that comes too late.
        job = self._disk.run(f, *args, **kwargs)
        job.addBoth(leave).addCallbacks(waiter.callback, waiter.errback)
        return waiter


class Hold(Shared):
    """A lease that is released when nobody needs it."""

    def __init__(self, lease: Lease, disk: Threads) -> None:
        super().__init__(lease.release, disk)
        self.lease = lease


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

    def close(self) -> None:
        """See `Body.close`; once only."""
        self._hold.leave()


_PIECES_AT_ONCE = 16


class FetchedBody:
    """A file of an image that is not here yet, read from afar. See `Body`.

    Until its first bytes have come, `patience` seconds are waited for them.
    """

    def __init__(
        self, hold: Hold, entry: Entry, reading: Reading, patience: float, clock: IReactorTime
    ) -> None:
        hold.keep()
        self._hold = hold
        self._entry = entry
        self._reading = reading
        self._patience: float | None = patience
        self._clock = clock
        self._at_once = 0

    @property
    def size(self) -> int:
        """See `Body.size`."""
        return self._entry.size

    def read_cached(self, offset: int, length: int) -> None:
        """See `Body.read_cached`: none can be read so."""

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        """See `Body.read`.

        :raises PullTimeout: when nothing has come in time.
        """
        read = Deferred.fromCoroutine(self._reading.read(offset, length))
        patience, self._patience = self._patience, None
        if not read.called:
            self._at_once = 0
            return read if patience is None else read.addTimeout(patience, self._clock, too_slow)
        self._at_once += 1
        if self._at_once < _PIECES_AT_ONCE:
            return read
        self._at_once = 0
        # Small chunks that are here already would keep the reactor from everything else.
        return read.addCallback(lambda piece: deferLater(self._clock, 0, lambda: piece))

    @property
    def stored(self) -> None:
        """See `Body.stored`."""

    def close(self) -> None:
        """See `Body.close`; once only."""
        self._reading.close()
        self._hold.leave()


def too_slow(outcome: T | Failure, seconds: float) -> T | Failure:
    """What becomes of a wait that was cancelled because its time was over."""
    is_cancelled = isinstance(outcome, Failure) and outcome.check(CancelledError)
    return Failure(PullTimeout()) if is_cancelled else outcome
