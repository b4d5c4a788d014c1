"""Where blocking code runs: pools of threads that blobserve owns.

The reactor's own ten threads resolve names; work of ours there would stop every look-up. No thread
of ours keeps a process from ending: an application may fail before it stops what it has started.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import ParamSpec, Protocol, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

_LAST_WAIT = 1.0
"""Seconds that a process which ends without `OwnThreads.stop` gives to the work that has begun."""

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
    """A pool of at most `size` threads, of our own. See `Threads`."""

    def __init__(self, reactor: IReactorFromThreads, size: int, name: str) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(0, size, name)
        # The interpreter would wait at its end for threads that are no daemons, and they for work.
        self._pool.threadFactory = partial(Thread, daemon=True)  # type: ignore[assignment]

    def start(self) -> None:
        """Accept work. Threads are made as they are needed."""
        self._pool.start()
        atexit.register(self._abandon)

    def stop(self) -> None:
        """Wait for the work that has begun, and end every thread. Blocks."""
        self._pool.stop()
        atexit.unregister(self._abandon)

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
