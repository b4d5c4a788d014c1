"""A queue that spreads much work of the reactor's thread over several reactor iterations.

A reactor iteration does all work that was ready when it began. A thousand requests that arrive at
once, or that waited for one image, would be one long iteration, and later requests would wait for
all of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

PORTION = 0.005
"""Seconds of work after which the rest waits for later iterations."""

_log = Logger()


def put_off(reactor: IReactorTime, work: Callable[[], object]) -> None:
    """Do `work` in a later reactor iteration, after the events that are ready before it."""
    # A call scheduled by a socket's event runs before sockets are polled again. A call scheduled
    # by that call runs after.
    reactor.callLater(0, reactor.callLater, 0, work)


def a_later_turn(reactor: IReactorTime) -> Deferred[None]:
    """Return a Deferred that fires in a later reactor iteration: see `put_off`."""
    turn: Deferred[None] = Deferred()
    put_off(reactor, partial(turn.callback, None))
    return turn


class FairQueue:
    """Does a little work at once, and more work in order, one portion in each reactor iteration.

    The work is measured by the reactor's clock, and idle time is subtracted from it. A piece of
    work is never split.
    """

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._waiting: deque[Callable[[], object]] = deque()
        self._spent = 0.0
        self._ended = reactor.seconds()

    def do(self, work: Callable[[], object]) -> bool:
        """Do `work` now, or in a later iteration after all work queued before; return whether now.

        An exception of `work` is raised if it is done now, and logged otherwise.
        """
        if self._waiting or self._spent_by(self._reactor.seconds()) > PORTION:
            if not self._waiting:
                put_off(self._reactor, self._go_on)
            self._waiting.append(work)
            return False
        self._do(work)
        return True

    def _do(self, work: Callable[[], object]) -> None:
        begun = self._reactor.seconds()
        # Work may call `do` for other work, which must be counted once.
        before = self._spent = self._spent_by(begun)
        try:
            work()
        finally:
            self._ended = self._reactor.seconds()
            # The clock may have been set back.
            self._spent = before + max(0.0, self._ended - begun)

    def _spent_by(self, now: float) -> float:
        return max(0.0, self._spent - max(0.0, now - self._ended))

    def _go_on(self) -> None:
        """Do one portion of the queue, and at least one piece."""
        self._spent = 0.0
        while self._waiting and self._spent <= PORTION:
            # It stays in the queue meanwhile, so that new work goes behind it.
            try:
                self._do(self._waiting[0])
            except Exception:  # noqa: BLE001 - the rest of the queue must go on
                _log.failure("queued work failed")
            self._waiting.popleft()
        if self._waiting:
            self._reactor.callLater(0, self._go_on)
