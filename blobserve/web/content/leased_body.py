"""Leases while threads read: an image is given up when nobody reads it, not a moment before.

A wait for a thread can be cancelled, the thread cannot; it must not find its file closed, or its
number taken by another. Knows nothing of what is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeAlias, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from blobserve.concurrency.refcount import RefCounted
from blobserve.concurrency.singleflight import SingleFlight
from blobserve.concurrency.threads import Threads
from blobserve.errors import BlobDamaged, PullTimeout
from blobserve.store.blobs.filesystem import ImageFilesystem
from blobserve.store.disk.codings_file import CodingsFile
from blobserve.store.index.entry import Entry
from blobserve.store.lazy.lazy_layer import LazyRead
from blobserve.store.lease import Lease

P = ParamSpec("P")
T = TypeVar("T")


Checks: TypeAlias = SingleFlight[tuple[ImageFilesystem, int, int, bytes, CodingsFile | None], None]
"""The files that are being checked, each once however many wait to have it."""


class SharedResource(RefCounted):
    """What is read by threads too, each of which needs it."""

    def __init__(
        self,
        end: Callable[[], None],
        disk: Threads,
        damaged: Callable[[BlobDamaged], None] = lambda damage: None,
    ) -> None:
        """`damaged` is told of damage that is met."""
        super().__init__(end)
        self._damaged = damaged
        self._disk = disk

    def run(self, f: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Call `f`, which reads it, in a thread. Cancelling ends the wait alone."""
        waiter: Deferred[T] = Deferred()
        self.acquire()

        def leave(outcome: object) -> object:
            if isinstance(outcome, Failure) and isinstance(outcome.value, BlobDamaged):
                self._damaged(outcome.value)
            self.release()
            return outcome

        # A Deferred that was cancelled swallows the one result that comes too late.
        job = self._disk.run(f, *args, **kwargs)
        job.addBoth(leave).addCallbacks(waiter.callback, waiter.errback)
        return waiter


def _has_more(steps: Iterator[None]) -> bool:
    """Go one step; whether there may be another."""
    return next(steps, _END) is not _END


_END = object()


class SharedLease(SharedResource):
    """A lease that is released when nobody needs it."""

    def __init__(self, lease: Lease, disk: Threads, checks: Checks | None = None) -> None:
        super().__init__(lease.release, disk, lease.report)
        self.lease = lease
        self._checks: Checks = SingleFlight() if checks is None else checks

    async def checked(self, entry: Entry) -> None:
        """Return when a file that is to be checked before it is given away has been.

        :raises BlobDamaged: when it is not what it should be, which is reported.
        """
        filesystem = self.lease.filesystem
        if filesystem.is_checked(entry):
            return
        key = filesystem, entry.layer, entry.offset, entry.coding, entry.codings
        check = self._checks.get(key) or self._checks.start(key, lambda _: self._check(entry))
        await check.wait()

    async def _check(self, entry: Entry) -> None:
        """Slice by slice, so that others have the threads in between."""
        self.acquire()
        try:
            steps = self.lease.filesystem.check(entry)
            while await self.run(_has_more, steps):
                pass
        finally:
            self.release()


class EntryBody:
    """A file of an image, read where it lies.

    See `Body` and `StoredBody` of `blobserve.web.http.response`.
    """

    def __init__(self, hold: SharedLease, entry: Entry) -> None:
        hold.acquire()
        self._hold: SharedLease = hold
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
        return self._run(self._hold.lease.filesystem.read, offset, length)

    @property
    def stored(self) -> EntryBody:
        """See `Body.stored`."""
        return self

    @property
    def descriptor(self) -> int:
        """See `StoredBody.descriptor`."""
        return self._hold.lease.filesystem.descriptor_of(self._entry)

    @property
    def start(self) -> int:
        """See `StoredBody.start`."""
        return self._entry.offset

    def is_cached(self, offset: int, length: int) -> bool:
        """See `StoredBody.is_cached`."""
        return self._hold.lease.filesystem.is_cached(self._entry, offset, length)

    def read_ahead(self, offset: int, length: int) -> Deferred[None]:
        """See `StoredBody.read_ahead`."""
        return self._run(self._hold.lease.filesystem.read_ahead, offset, length)

    def lost(self, problem: str) -> BlobDamaged:
        """See `StoredBody.lost`."""
        damage = self._hold.lease.filesystem.damage(self._entry, problem)
        self._hold.lease.report(damage)
        return damage

    def close(self) -> None:
        """See `Body.close`; once only."""
        self._hold.release()

    def _run(self, read: Callable[[Entry, int, int], T], offset: int, length: int) -> Deferred[T]:
        if self._hold.lease.filesystem.is_checked(self._entry):
            return self._hold.run(read, self._entry, offset, length)
        return Deferred.fromCoroutine(self._run_checked(read, offset, length))

    async def _run_checked(
        self, read: Callable[[Entry, int, int], T], offset: int, length: int
    ) -> T:
        await self._hold.checked(self._entry)
        return await self._hold.run(read, self._entry, offset, length)


_PIECES_AT_ONCE = 16


class LazyBody:
    """A file of an image that is not here yet, read from afar. See `Body`.

    Until its first bytes have come, `patience` seconds are waited for them.
    """

    def __init__(
        self,
        hold: SharedLease,
        entry: Entry,
        reading: LazyRead,
        patience: float,
        clock: IReactorTime,
    ) -> None:
        hold.acquire()
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
        self._hold.release()


def too_slow(outcome: T | Failure, seconds: float) -> T | Failure:
    """What becomes of a wait that was cancelled because its time was over."""
    is_cancelled = isinstance(outcome, Failure) and outcome.check(CancelledError)
    return Failure(PullTimeout()) if is_cancelled else outcome
