"""Background work: jobs without a waiting caller, which must end before resources are closed."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.logger import Logger
from twisted.python.failure import Failure

from blobserve.concurrency.threads import Threads

T = TypeVar("T")

_log = Logger()


class Background:
    """The background work of one blob space."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._running: set[Deferred[Any]] = set()

    def to_the_end(self, job: Callable[[], T]) -> Deferred[T]:
        """Run a job in a thread; `quiet` waits for it even if the result is cancelled."""
        waiter: Deferred[T] = Deferred()
        running = self._threads.run(job)
        self._running.add(running)

        def ended(outcome: T | Failure) -> T | Failure:
            self._running.discard(running)
            return outcome

        running.addBoth(ended).addCallbacks(waiter.callback, waiter.errback)
        return waiter

    def do(self, work: Coroutine[Deferred[Any], Any, None]) -> Deferred[None]:
        """Run a coroutine that only `quiet` waits for; log its failure."""
        running = Deferred.fromCoroutine(work)
        if not running.called:
            self._running.add(running)
            running.addBoth(lambda _: self._running.discard(running))
        running.addErrback(_log_failure)
        return running

    async def quiet(self) -> None:
        """Wait until all work has ended; cancelling ends this wait alone."""
        while self._running:
            await DeferredList(list(self._running), consumeErrors=True)


def _log_failure(failure: Failure) -> None:
    if failure.check(OSError):  # The disk fails, and the next pass may succeed.
        _log.warn("background work failed: {error}", error=failure.value)
    elif not failure.check(CancelledError):
        _log.failure("background work failed", failure)
