"""Single flight: one piece of work that is shared by all callers that ask for it at the same time.

The work goes on even if no caller waits: cancelling a wait ends that wait alone. Each waiter gets
its own Deferred and, on failure, its own copy of the error.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any, Generic, TypeVar, cast

from twisted.internet.defer import CancelledError, Deferred, DeferredList, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from blobserve.errors import BlobserveError

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

Do = Callable[[Callable[[], object]], object]
"""A function that calls its argument once, now or later, in the order of the arguments."""

_log = Logger()


def do_now(work: Callable[[], object]) -> None:
    """Call `work` now. See `Do`."""
    work()


class Call(Generic[T]):
    """The outcome of one piece of work, for all its waiters."""

    def __init__(self, do: Do = do_now) -> None:
        """`do` schedules the notification of each waiter, in their order."""
        self.urgent = False
        """Whether a request waits or has waited for it: such work has priority."""
        self._do = do
        self._waiting: dict[Deferred[T], None] = {}
        self._outcome: tuple[T] | Exception | None = None

    def wait(self, urgent: bool = True) -> Deferred[T]:
        """Return a new Deferred of the outcome; cancelling it ends this wait alone."""
        self.urgent = self.urgent or urgent
        waiter: Deferred[T] = Deferred(self._waiting.pop)
        self._waiting[waiter] = None
        self._notify(waiter)
        return waiter

    def succeed(self, outcome: T) -> None:
        """Give the outcome to all present and later waiters, in their order.

        Does nothing if there is an outcome already.
        """
        if self._outcome is None:
            self._outcome = (outcome,)
            self._notify_all()

    def fail(self, error: Exception) -> None:
        """Give an error to all present and later waiters; do nothing if there is an outcome."""
        if self._outcome is None:
            self._outcome = error
            self._notify_all()

    def _notify_all(self) -> None:
        for waiter in list(self._waiting):
            self._do(partial(self._notify, waiter))

    def _notify(self, waiter: Deferred[T]) -> None:
        # A waiter before it may have cancelled it.
        if self._outcome is None or waiter not in self._waiting:
            return
        del self._waiting[waiter]
        if isinstance(self._outcome, Exception):
            waiter.errback(own(self._outcome))
        else:
            waiter.callback(self._outcome[0])


def own(error: Exception) -> Exception:
    """Return a copy of an error for one waiter: a shared one would collect all tracebacks."""
    if not isinstance(error, BlobserveError):
        return error
    copied = copy.copy(error)
    copied.__cause__ = error
    return copied


def reason_of(failure: Failure) -> Exception:
    """Return the error of a failure; log it with its traceback if it is unexpected."""
    error = cast("Exception", failure.value)
    if not isinstance(error, (BlobserveError, CancelledError)):
        _log.failure("a pull failed unexpectedly", failure=failure)
    return error


class SingleFlight(Generic[K, T]):
    """At most one `Call` for each key at a time."""

    def __init__(self, doing: Callable[[], Do] = lambda: do_now) -> None:
        """`doing` makes a `Do` for each call, so that many waiters of one delay no other call."""
        self._doing = doing
        self._calls: dict[K, tuple[Call[T], Deferred[None]]] = {}
        self._ends: dict[K, Call[None]] = {}
        self._closed_by: BlobserveError | None = None

    def get(self, key: K) -> Call[T] | None:
        """Return the call in progress for `key`."""
        found = self._calls.get(key)
        return found[0] if found else None

    def ended(self, key: K) -> Deferred[None]:
        """Return a Deferred that fires when no work for `key` is in progress.

        The work may go on after its call has an outcome.
        """
        if key not in self._calls:
            return succeed(None)
        return self._ends.setdefault(key, Call()).wait()

    def start(
        self,
        key: K,
        work: Callable[[Call[T]], Coroutine[Deferred[Any], Any, T]],
        after: Callable[[T], object] = lambda outcome: None,
    ) -> Call[T]:
        """Start `work` as the call for `key`; none may be in progress.

        `work` gets its call, and may give it an outcome before it ends. The waiters then go on, and
        the key stays taken. `after` is called with the result of `work` when all waiters have been
        notified. After `close`, its error is raised and no work is started.
        """
        if self._closed_by is not None:
            raise own(self._closed_by)
        if key in self._calls:
            raise RuntimeError(f"{key} is in progress already")
        do = self._doing()
        call: Call[T] = Call(do)

        def end(outcome: T | Failure) -> None:
            del self._calls[key]  # first, so that a notified waiter can start it again
            if isinstance(outcome, Failure):
                call.fail(reason_of(outcome))
            else:
                call.succeed(outcome)
                do(lambda: after(outcome))
            if key in self._ends:
                self._ends.pop(key).succeed(None)

        work_ended = Deferred.fromCoroutine(work(call))
        self._calls[key] = call, cast("Deferred[None]", work_ended)
        work_ended.addBoth(end)
        return call

    async def close(self, error: BlobserveError) -> None:
        """Fail every wait with `error`, cancel all work, and return when it has ended."""
        self._closed_by = error
        calls = list(self._calls.values())
        for call, _ in calls:
            call.fail(error)
        for _, work_ended in calls:
            work_ended.cancel()
        await DeferredList([work_ended for _, work_ended in calls])
