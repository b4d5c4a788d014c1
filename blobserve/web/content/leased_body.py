"""Leases that are shared with threads, and bodies that read leased files.

A wait for a thread can be cancelled, but the thread goes on. So a lease is released only after the
last thread has finished: otherwise the thread could read from a closed or reused file descriptor.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import ParamSpec, TypeAlias, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from blobserve.concurrency.refcount import RefCounted
from blobserve.concurrency.singleflight import SingleFlight
from blobserve.concurrency.threads import Threads
from blobserve.errors import BlobDamaged, PullTimeout
from blobserve.store.blobs.content import StoredFile
from blobserve.store.blobs.filesystem import File
from blobserve.store.lease import Lease

P = ParamSpec("P")
T = TypeVar("T")


Checks: TypeAlias = SingleFlight[Hashable, None]
"""The files that are being checked, by `StoredFile.key`."""


class SharedResource(RefCounted):
    """A resource that threads use. It ends after the last thread has finished."""

    def __init__(
        self,
        end: Callable[[], None],
        disk: Threads,
        damaged: Callable[[BlobDamaged], None] = lambda damage: None,
    ) -> None:
        """Call `damaged` for each `BlobDamaged` that a thread raises."""
        super().__init__(end)
        self._damaged = damaged
        self._disk = disk

    def run(self, f: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Call `f`, which uses the resource, in a thread. Cancelling ends only the wait."""
        waiter: Deferred[T] = Deferred()
        self.acquire()

        def finish(outcome: object) -> object:
            if isinstance(outcome, Failure) and isinstance(outcome.value, BlobDamaged):
                self._damaged(outcome.value)
            self.release()
            return outcome

        # A cancelled Deferred ignores the one result that arrives after that.
        job = self._disk.run(f, *args, **kwargs)
        job.addBoth(finish).addCallbacks(waiter.callback, waiter.errback)
        return waiter


def _has_more(steps: Iterator[None]) -> bool:
    """Run one step; return whether there may be another one."""
    return next(steps, _END) is not _END


_END = object()


class SharedLease(SharedResource):
    """A lease that is released when its last user is done. See `Reader`."""

    def __init__(
        self,
        lease: Lease,
        disk: Threads,
        clock: IReactorTime,
        deadline: float,
        checks: Checks | None = None,
    ) -> None:
        """Take over `lease`. `deadline`, in time of `clock`, limits waits for the network."""
        super().__init__(lease.release, disk, lease.report)
        self.lease = lease
        self._clock = clock
        self._deadline = deadline
        self._checks: Checks = SingleFlight() if checks is None else checks

    def from_disk(
        self, file: StoredFile, read: Callable[[int, int], T], offset: int, length: int
    ) -> Deferred[T]:
        """See `Reader.from_disk`."""
        if file.is_checked:
            return self.run(read, offset, length)
        return Deferred.fromCoroutine(self._read_checked(file, read, offset, length))

    def from_network(self, read: Deferred[T]) -> Deferred[T]:
        """See `Reader.from_network`.

        :raises PullTimeout: when the read has not ended by the deadline.
        """
        if read.called:
            return read
        left = max(0.0, self._deadline - self._clock.seconds())
        return read.addTimeout(left, self._clock, too_slow)

    def later(self, outcome: T) -> Deferred[T]:
        """Return `outcome` in another reactor iteration."""
        return deferLater(self._clock, 0, lambda: outcome)

    async def _read_checked(
        self, file: StoredFile, read: Callable[[int, int], T], offset: int, length: int
    ) -> T:
        check = self._checks.get(file.key) or self._checks.start(
            file.key, lambda _: self._check(file)
        )
        await check.wait()
        return await self.run(read, offset, length)

    async def _check(self, file: StoredFile) -> None:
        """Check a file slice by slice, so that other work runs in the threads in between."""
        self.acquire()
        try:
            steps = file.check()
            while await self.run(_has_more, steps):
                pass
        finally:
            self.release()


_PIECES_AT_ONCE = 16


class FileBody:
    """A file of an image as a `Body`; also the `Reader` of the file.

    Only its first read has a deadline: after that the response has begun.
    """

    def __init__(self, shared: SharedLease, file: File) -> None:
        shared.acquire()
        self.size = file.size
        """See `Body.size`."""
        self.read_cached = file.read_cached
        """See `Body.read_cached`."""
        self.run = shared.run
        """See `Reader.run`."""
        self.from_disk = shared.from_disk
        """See `Reader.from_disk`."""
        self._shared = shared
        self._file = file
        self._is_begun = False
        self._at_once = 0

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        """See `Body.read`.

        :raises PullTimeout: when the first bytes do not come in time.
        """
        return self._file.fetch(offset, length, self)

    def from_network(self, read: Deferred[T]) -> Deferred[T]:
        """See `Reader.from_network`."""
        is_begun, self._is_begun = self._is_begun, True
        if not read.called:
            self._at_once = 0
            return read if is_begun else self._shared.from_network(read)
        self._at_once += 1
        if self._at_once < _PIECES_AT_ONCE:
            return read
        self._at_once = 0
        # Many small chunks that are in memory would delay everything else on the reactor.
        return read.addCallback(self._shared.later)

    @property
    def stored(self) -> StoredFileBody | None:
        """See `Body.stored`."""
        stored = self._file.stored
        return None if stored is None else StoredFileBody(self._shared, stored)

    def close(self) -> None:
        """See `Body.close`; to be called once."""
        self._file.close()
        self._shared.release()


class StoredFileBody:
    """A file on disk as a `StoredBody`."""

    def __init__(self, shared: SharedLease, file: StoredFile) -> None:
        self.start = file.start
        """See `StoredBody.start`."""
        self.is_cached = file.is_cached
        """See `StoredBody.is_cached`."""
        self._shared = shared
        self._file = file

    @property
    def descriptor(self) -> int:
        """See `StoredBody.descriptor`."""
        return self._file.descriptor

    def read_ahead(self, offset: int, length: int) -> Deferred[None]:
        """See `StoredBody.read_ahead`."""
        return self._shared.from_disk(self._file, self._file.read_ahead, offset, length)

    def lost(self, problem: str) -> BlobDamaged:
        """See `StoredBody.lost`."""
        damage = self._file.damage(problem)
        self._shared.lease.report(damage)
        return damage


def too_slow(outcome: T | Failure, seconds: float) -> T | Failure:
    """Turn the failure of a wait that timed out into `PullTimeout`; for `addTimeout`."""
    is_cancelled = isinstance(outcome, Failure) and outcome.check(CancelledError)
    return Failure(PullTimeout()) if is_cancelled else outcome
