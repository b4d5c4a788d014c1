"""Deadlines: how long a client is waited for, one connection at a time.

Three things end: the silence between two requests, the head of a request from its first byte to its
last, and a connection that is being closed. While a request is under way we are the ones who are
waited for, and nothing here runs out. Knows nothing of what goes over the connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from blobserve.config import Limits

_LINGER = 2.0
"""Seconds in which a client that is still sending may read why it was refused."""

_LEAVE = 15.0
"""Seconds in which a client may take what is left for it when its connection is closed."""


class TimedConnection(Protocol):
    """A connection, as far as its client is waited for."""

    active_at: float
    """When there was the last sign of life, by the reactor's clock."""

    @property
    def is_busy(self) -> bool:
        """Whether a request is under way, from the end of its head on."""
        ...

    def head_missed(self) -> None:
        """The head that has begun did not come to its end in time."""
        ...

    def close(self) -> None:
        """The client has been silent, or has been read from after a refusal, for long enough."""
        ...

    def abort(self) -> None:
        """The client has not taken what was left for it."""
        ...


class ConnectionTimeouts:
    """The deadlines of one connection.

    A request that comes and is answered touches none of them: who is asked sets `active_at`, and
    the one timer looks there when it fires. A head that comes in one piece costs no timer either.
    """

    def __init__(
        self, connection: TimedConnection, limits: Callable[[], Limits], reactor: IReactorTime
    ) -> None:
        self._connection = connection
        self._limits = limits
        self._reactor = reactor
        self._is_leaving = False
        self._timer: IDelayedCall | None = None
        self._head: IDelayedCall | None = None

    @property
    def is_in_head(self) -> bool:
        """Whether a part of a head is here."""
        return self._head is not None

    def begin(self) -> None:
        """The client is connected. Saying nothing at all counts as silence between requests."""
        self._connection.active_at = self._reactor.seconds()
        self._look()

    def review(self) -> None:
        """Apply limits that have changed; a head that has begun keeps its deadline."""
        if not self._is_leaving:
            self._look()

    def head_begun(self) -> None:
        """A part of a head is here; its deadline is that of its first byte."""
        if self._head is None:
            seconds = self._limits().client_head_timeout
            self._head = self._reactor.callLater(seconds, self._miss)

    def head_ended(self) -> None:
        """No part of a head is here, or no longer."""
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def linger(self) -> None:
        """The client is being refused, and read from for a moment."""
        self._leave(_LINGER, self._connection.close)

    def leave(self) -> None:
        """The connection is being closed, once all is sent that is left."""
        self._leave(_LEAVE, self._connection.abort)

    def end(self) -> None:
        """The connection is lost."""
        self.head_ended()
        self._is_leaving = True
        self._stop()

    def _leave(self, seconds: float, then: Callable[[], None]) -> None:
        self.end()

        def overdue() -> None:
            self._timer = None
            then()

        self._timer = self._reactor.callLater(seconds, overdue)

    def _stop(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _look(self) -> None:
        self._stop()
        left = self._limits().client_idle_timeout
        if not (self._connection.is_busy or self.is_in_head):
            left -= self._reactor.seconds() - self._connection.active_at
        if left > 0:
            self._timer = self._reactor.callLater(left, self._look)
        else:
            self._connection.close()

    def _miss(self) -> None:
        self._head = None
        self._connection.head_missed()
