"""Portions: work of the reactor's thread that waits for later turns where there is much of it.

A turn ends when all is done that was ready when it began. A thousand requests that come at once, or
that have waited for one image, would make a single turn of it, and whoever comes meanwhile would
wait for all of them, however quickly he is served himself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

PORTION = 0.005
"""Seconds of work after which the rest is left to later turns."""

_log = Logger()


def put_off(reactor: IReactorTime, work: Callable[[], object]) -> None:
    """Have `work` done in a later turn, after all that comes until then has been seen to."""
    # What a socket's event puts off is done before sockets are looked at again; what that puts
    # off is not.
    reactor.callLater(0, reactor.callLater, 0, work)


def a_later_turn(reactor: IReactorTime) -> Deferred[None]:
    """Fires in a later turn, see `put_off`: others are seen to before whoever waits goes on."""
    turn: Deferred[None] = Deferred()
    put_off(reactor, partial(turn.callback, None))
    return turn


class FairQueue:
    """Does work at once as long as there is little of it, and in order, a portion a turn, else.

    How much is told by the reactor's clock: time that nothing was done in makes up for as much of
    work. A piece of work is never cut.
    """

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._waiting: deque[Callable[[], object]] = deque()
        self._spent = 0.0
        self._ended = reactor.seconds()

    def do(self, work: Callable[[], object]) -> bool:
        """Do `work`, now or in a later turn, after all that was put off before; whether now.

        What it raises is raised here if it is done now, and else logged.
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
        # Work may do other work, which is then counted once.
        before = self._spent = self._spent_by(begun)
        try:
            work()
        finally:
            self._ended = self._reactor.seconds()
            # A clock that was set is no measure.
            self._spent = before + max(0.0, self._ended - begun)

    def _spent_by(self, now: float) -> float:
        return max(0.0, self._spent - max(0.0, now - self._ended))

    def _go_on(self) -> None:
        """A portion of what was put off, and at least one piece."""
        self._spent = 0.0
        while self._waiting and self._spent <= PORTION:
            # Left where it is meanwhile: whatever comes is put behind it.
            try:
                self._do(self._waiting[0])
            except Exception:  # noqa: BLE001 - nobody is there to be told, and the rest goes on
                _log.failure("a piece of work that was put off")
            self._waiting.popleft()
        if self._waiting:
            self._reactor.callLater(0, self._go_on)
