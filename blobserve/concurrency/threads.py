"""Where blocking code runs: pools of threads that blobserve owns.

The reactor's own ten threads resolve names; work of ours there would stop every look-up. No thread
of ours keeps a process from ending: an application may fail before it stops what it has started.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Hashable
from functools import partial
from threading import Thread
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

_LAST_WAIT = 1.0
"""Seconds that a process which ends without `OwnThreads.stop` gives to the work that has begun."""

K = TypeVar("K", bound=Hashable)
P = ParamSpec("P")
T = TypeVar("T")


class Threads(Protocol):
    """Runs plain blocking functions away from the reactor's thread."""

    def run(self, f: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Call `f` in a thread; fires with what it returns or raises. Once begun it goes on."""
        ...

    def soon(self, f: Callable[[], None]) -> None:
        """Have `f` called in the reactor's thread; for any other."""
        ...


class OwnThreads:
    """A pool of at most `size` threads, of our own. See `Threads`.

    :param is_awaited: whether work that has begun has to end before the pool does. Work that only
        asks others, as a name server, is left to itself: it may take them minutes to answer.
    """

    def __init__(
        self, reactor: IReactorFromThreads, size: int, name: str, is_awaited: bool = True
    ) -> None:
        self._reactor = reactor
        self._is_awaited = is_awaited
        self._pool = ThreadPool(0, size, name)
        # The interpreter would wait at its end for threads that are no daemons, and they for work.
        self._pool.threadFactory = partial(Thread, daemon=True)  # type: ignore[assignment]

    def start(self) -> None:
        """Accept work. Threads are made as they are needed."""
        self._pool.start()
        if self._is_awaited:
            atexit.register(self._abandon)

    def stop(self) -> None:
        """Begin nothing more, wait for the work that has begun, and end every thread. Blocks.

        Returns at once where work is not awaited.
        """
        if not self._is_awaited:
            self._pool.adjustPoolsize(0, 0)
            return
        self._pool.stop()
        atexit.unregister(self._abandon)

    def stopped(self) -> Deferred[None]:
        """Call `stop` in a thread of its own; fires when it has returned."""
        ended: Deferred[None] = Deferred()

        def stop() -> None:
            self.stop()
            self._reactor.callFromThread(ended.callback, None)

        Thread(target=stop, daemon=True).start()
        return ended

    def _abandon(self) -> None:
        """Begin nothing more, and wait a moment for the work that has begun. Blocks.

        The interpreter halts daemons wherever they are; it is better that they are nowhere.
        """
        self._pool.adjustPoolsize(0, 0)
        until = time.monotonic() + _LAST_WAIT
        for thread in list(self._pool.threads):
            thread.join(max(0.0, until - time.monotonic()))

    def run(self, f: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """See `Threads.run`."""
        return cast("Deferred[T]", deferToThreadPool(self._reactor, self._pool, f, *args, **kwargs))

    def soon(self, f: Callable[[], None]) -> None:
        """See `Threads.soon`."""
        self._reactor.callFromThread(f)


class SharedCalls(Generic[K, T]):
    """Calls that are made once at a time for each key, however many wait for the outcome.

    A call goes on whether anything waits for it or not: cancelling a wait ends that wait alone.
    """

    def __init__(self) -> None:
        self._waiting: dict[K, list[Deferred[T]]] = {}

    def __len__(self) -> int:
        """Return how many calls have not ended."""
        return len(self._waiting)

    def __contains__(self, key: K) -> bool:
        """Return whether a call for `key` has not ended."""
        return key in self._waiting

    def is_wanted(self, key: K) -> bool:
        """Return whether anything waits for the call for `key`. May be called in any thread."""
        return bool(self._waiting.get(key))

    def wait(self, key: K, call: Callable[[], Deferred[T]]) -> Deferred[T]:
        """Return the outcome of the call for `key`, which `call` makes if there is none yet."""
        is_new = key not in self._waiting
        waiters = self._waiting.setdefault(key, [])
        waiter: Deferred[T] = Deferred(waiters.remove)
        waiters.append(waiter)
        if is_new:
            call().addBoth(self._tell, key)
        return waiter

    def _tell(self, outcome: Any, key: K) -> None:
        waiters = self._waiting.pop(key)
        while waiters:  # one that is told may cancel another
            waiters.pop(0).callback(outcome)
