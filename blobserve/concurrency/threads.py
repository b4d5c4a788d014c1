"""Thread pools for blocking code, and calls with an outcome for several waiters.

blobserve does not use the reactor's pool, which resolves host names: long jobs would delay every
look-up. The threads are daemons, so that they do not keep a process alive if an application fails
to stop the pool.
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
"""Seconds that an ending process waits for running jobs if `OwnThreads.stop` was not called."""

K = TypeVar("K", bound=Hashable)
P = ParamSpec("P")
T = TypeVar("T")


class Threads(Protocol):
    """A pool that runs blocking functions outside the reactor's thread."""

    def run(self, f: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Call `f` in a thread; fires with its result. A job that has begun is not cancelled."""
        ...

    def soon(self, f: Callable[[], None]) -> None:
        """Schedule `f` in the reactor's thread; call it from any other thread."""
        ...


class OwnThreads:
    """A pool of at most `size` threads. See `Threads`.

    :param is_awaited: whether `stop` waits for jobs. It should not if they only wait for other
        hosts, such as name servers, which may take minutes to answer.
    """

    def __init__(
        self, reactor: IReactorFromThreads, size: int, name: str, is_awaited: bool = True
    ) -> None:
        self._reactor = reactor
        self._is_awaited = is_awaited
        self._pool = ThreadPool(0, size, name)
        # At its end the interpreter would wait for ever for idle threads that are no daemons.
        self._pool.threadFactory = partial(Thread, daemon=True)  # type: ignore[assignment]

    def start(self) -> None:
        """Accept jobs. Threads are started when needed."""
        self._pool.start()
        if self._is_awaited:
            atexit.register(self._abandon)

    def stop(self) -> None:
        """Stop accepting jobs, and block until the accepted jobs and all threads have ended.

        If the pool is not `is_awaited`, return at once instead; idle threads end.
        """
        if not self._is_awaited:
            self._pool.adjustPoolsize(0, 0)
            return
        self._pool.stop()
        atexit.unregister(self._abandon)

    def stopped(self) -> Deferred[None]:
        """Call `stop` in a new thread; fires when it has returned."""
        ended: Deferred[None] = Deferred()

        def stop() -> None:
            self.stop()
            self._reactor.callFromThread(ended.callback, None)

        Thread(target=stop, daemon=True).start()
        return ended

    def _abandon(self) -> None:
        """Start no more threads, and block until all have ended, at most `_LAST_WAIT` seconds.

        The interpreter halts daemon threads at any instruction, so it is better if they are idle.
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
    """At most one call for each key at a time, with its outcome shared by all waiters.

    The call goes on even if no caller waits: cancelling a wait ends that wait alone.
    """

    def __init__(self) -> None:
        self._waiting: dict[K, list[Deferred[T]]] = {}

    def __len__(self) -> int:
        """Return the number of calls in progress."""
        return len(self._waiting)

    def __contains__(self, key: K) -> bool:
        """Return whether a call for `key` is in progress."""
        return key in self._waiting

    def is_wanted(self, key: K) -> bool:
        """Return whether a caller waits for the call for `key`; for any thread."""
        return bool(self._waiting.get(key))

    def wait(self, key: K, call: Callable[[], Deferred[T]]) -> Deferred[T]:
        """Return the outcome of the call for `key`; `call` starts it if none is in progress."""
        is_new = key not in self._waiting
        waiters = self._waiting.setdefault(key, [])
        waiter: Deferred[T] = Deferred(waiters.remove)
        waiters.append(waiter)
        if is_new:
            call().addBoth(self._notify, key)
        return waiter

    def _notify(self, outcome: Any, key: K) -> None:
        waiters = self._waiting.pop(key)
        while waiters:  # a waiter may cancel another one
            waiters.pop(0).callback(outcome)
