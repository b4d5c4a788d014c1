"""One piece of work, however many wait for it.

A flight goes on whether anybody waits or not: cancelling a wait cancels that wait alone. Each
waiter gets a Deferred, and of an error a copy, of its own. Knows nothing of what the work is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any, Generic, TypeVar, cast

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.logger import Logger
from twisted.python.failure import Failure

from blobserve.errors import BlobserveError

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

Do = Callable[[Callable[[], object]], object]
"""Calls what it is given once, now or later; whatever is given first, first."""

_log = Logger()


def do_now(work: Callable[[], object]) -> None:
    """Call it. See `Do`."""
    work()


class Call(Generic[T]):
    """The outcome of one piece of work, for all who wait for it."""

    def __init__(self, do: Do = do_now) -> None:
        """`do` is given what tells each who waits, in their order."""
        self.urgent = False
        """Whether somebody waits, or waited: such work goes before the rest."""
        self._do = do
        self._waiting: dict[Deferred[T], None] = {}
        self._outcome: tuple[T] | Exception | None = None

    def wait(self, urgent: bool = True) -> Deferred[T]:
        """A new Deferred of the outcome; cancelling it ends this wait and nothing else."""
        self.urgent = self.urgent or urgent
        waiter: Deferred[T] = Deferred(self._waiting.pop)
        self._waiting[waiter] = None
        self._tell(waiter)
        return waiter

    def succeed(self, outcome: T) -> None:
        """Tell the outcome to all who wait, in the order they came, and to all who will.

        Does nothing when it has landed before.
        """
        if self._outcome is None:
            self._outcome = (outcome,)
            self._tell_all()

    def fail(self, error: Exception) -> None:
        """Land with an error."""
        if self._outcome is None:
            self._outcome = error
            self._tell_all()

    def _tell_all(self) -> None:
        for waiter in list(self._waiting):
            self._do(partial(self._tell, waiter))

    def _tell(self, waiter: Deferred[T]) -> None:
        # One who was told before may have cancelled it.
        if self._outcome is None or waiter not in self._waiting:
            return
        del self._waiting[waiter]
        if isinstance(self._outcome, Exception):
            waiter.errback(own(self._outcome))
        else:
            waiter.callback(self._outcome[0])


def own(error: Exception) -> Exception:
    """The same error for one waiter alone: tracebacks grow with everyone through whom they pass."""
    if not isinstance(error, BlobserveError):
        return error
    copied = copy.copy(error)
    copied.__cause__ = error
    return copied


def reason_of(failure: Failure) -> Exception:
    """The error in a failure; logged with its traceback if nobody raised it on purpose."""
    error = cast("Exception", failure.value)
    if not isinstance(error, (BlobserveError, CancelledError)):
        _log.failure("a pull failed unexpectedly", failure=failure)
    return error


class SingleFlight(Generic[K, T]):
    """At most one flight for each key at a time, and an end to all of them."""

    def __init__(self, doing: Callable[[], Do] = lambda: do_now) -> None:
        """`doing` makes what each `Call` is given: no crowd waits for that of another."""
        self._doing = doing
        self._flights: dict[K, tuple[Call[T], Deferred[None]]] = {}
        self._closed_by: BlobserveError | None = None

    def get(self, key: K) -> Call[T] | None:
        """The flight that is under way for `key`."""
        found = self._flights.get(key)
        return found[0] if found else None

    def start(
        self,
        key: K,
        work: Callable[[Call[T]], Coroutine[Deferred[Any], Any, T]],
        after: Callable[[T], object] = lambda outcome: None,
    ) -> Call[T]:
        """Start `work` as the flight for `key`, of which there is none under way.

        `work` is given its flight, which it may land itself before it ends: those who wait then go
        on, and the key stays taken. `after` is called with what it returned, once all who waited
        have been told. After `close` nothing is started, and its error is raised.
        """
        if self._closed_by is not None:
            raise own(self._closed_by)
        if key in self._flights:
            raise RuntimeError(f"{key} is under way already")
        do = self._doing()
        flight: Call[T] = Call(do)

        def land(outcome: T | Failure) -> None:
            del self._flights[key]  # first: whoever asks again, having been told, starts anew
            if isinstance(outcome, Failure):
                flight.fail(reason_of(outcome))
            else:
                flight.succeed(outcome)
                do(lambda: after(outcome))

        work_ended = Deferred.fromCoroutine(work(flight))
        self._flights[key] = flight, cast("Deferred[None]", work_ended)
        work_ended.addBoth(land)
        return flight

    async def close(self, error: BlobserveError) -> None:
        """Fail every wait with `error` at once, cancel all work, and return when it has ended."""
        self._closed_by = error
        flights = list(self._flights.values())
        for flight, _ in flights:
            flight.fail(error)
        for _, work_ended in flights:
            work_ended.cancel()
        await DeferredList([work_ended for _, work_ended in flights])
