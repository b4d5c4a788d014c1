"""The timeouts of a connection.

There are three: the time between two requests, the time from the first to the last byte of a
head, and the time for closing. While a request is under way no timeout runs, because then the
client waits for the server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from blobserve.config import Limits

_LINGER = 2.0
"""Seconds that a refused client, which may still be sending, has to read the response."""

_LEAVE = 15.0
"""Seconds that a client has to read pending data when its connection is closed."""


class TimedConnection(Protocol):
    """A connection with timeouts."""

    active_at: float
    """The time of the last activity, by the reactor's clock."""

    @property
    def is_busy(self) -> bool:
        """Return whether a request with a complete head is under way."""
        ...

    def head_missed(self) -> None:
        """Handle a head that was not complete in time."""
        ...

    def close(self) -> None:
        """Close the connection after the idle timeout, or some time after a refusal."""
        ...

    def abort(self) -> None:
        """Abort the connection, because the client has not read the pending data."""
        ...


class ConnectionTimeouts:
    """The timeouts of one connection.

    A request changes no timer: the connection sets `active_at`, and the one idle timer compares
    that when it fires. A head that arrives in one piece needs no timer either.
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
        """Return whether an incomplete head has been received."""
        return self._head is not None

    def begin(self) -> None:
        """Start the idle timeout for a new connection."""
        self._connection.active_at = self._reactor.seconds()
        self._look()

    def review(self) -> None:
        """Apply changed limits. A head that has begun keeps its timeout."""
        if not self._is_leaving:
            self._look()

    def head_begun(self) -> None:
        """Start the head timeout, unless it already runs."""
        if self._head is None:
            seconds = self._limits().client_head_timeout
            self._head = self._reactor.callLater(seconds, self._miss)

    def head_ended(self) -> None:
        """Stop the head timeout if it runs."""
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def linger(self) -> None:
        """Call `TimedConnection.close` after the short time that a refused client has."""
        self._leave(_LINGER, self._connection.close)

    def leave(self) -> None:
        """Call `TimedConnection.abort` if the connection is not closed in time."""
        self._leave(_LEAVE, self._connection.abort)

    def end(self) -> None:
        """Stop all timers, because the connection has been lost."""
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
