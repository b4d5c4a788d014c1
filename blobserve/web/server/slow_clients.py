"""Detection of clients that read too slowly, because each keeps a file open.

Progress is measured by the bytes that the client's TCP has acknowledged. The bytes that our kernel
has buffered would be no measure: a socket may hold megabytes, and accepts more only when a third of
that is free. A response is watched from its first wait for the client on.
"""

from __future__ import annotations

import fcntl
import socket
import sys
import termios
from collections.abc import Callable
from typing import Any

from prometheus_client import Counter
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

PATIENCE = 30.0
"""Seconds that a client may read nothing, after it has read fast enough.

After a lost link, TCP may be silent for 15 seconds (four retransmissions). Over loopback, where
segments are large, a client with 2 KiB/s acknowledges some only every 32 seconds.
"""
_LOOK_EVERY = 5.0

_log = Logger()


class SlowClients:
    """The responses of one server that wait for their clients.

    :param minimum: bytes per second that each client must read; 0 turns the check off.
    """

    def __init__(self, minimum: Callable[[], int], reactor: IReactorTime, slow: Counter) -> None:
        self._minimum = minimum
        self._reactor = reactor
        self._slow = slow
        self._watched: set[SendWatch] = set()
        self._next_look: IDelayedCall | None = None

    def stop(self) -> None:
        """Stop watching all responses."""
        self._watched.clear()
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None

    def add(self, watch: SendWatch) -> None:
        """Check this response from now on."""
        self._watched.add(watch)
        if self._next_look is None:
            self._next_look = self._reactor.callLater(_LOOK_EVERY, self._look)

    def discard(self, watch: SendWatch) -> None:
        """Stop checking this response."""
        self._watched.discard(watch)

    def _look(self) -> None:
        self._next_look = None
        minimum = self._minimum()
        for watch in [watch for watch in self._watched if watch.is_too_slow(minimum)]:
            self._watched.discard(watch)
            self._slow.inc()
            _log.debug("{peer} took its response too slowly", peer=watch.transport.getPeer())
            watch.transport.abortConnection()
        if self._watched:
            self._next_look = self._reactor.callLater(_LOOK_EVERY, self._look)


class SendWatch:
    """One response, and the time that its client has left."""

    def __init__(self, pace: SlowClients, transport: Any) -> None:
        self.transport = transport
        self.passed_on = 0
        """Bytes of the body that were passed to the kernel."""
        self._pace = pace
        self._waits = self._is_watched = False
        self._taken: int | None = None
        self._patience = PATIENCE

    def wait(self) -> None:
        """Note that the response now waits for its client."""
        self._waits = True
        if not self._is_watched:
            self._is_watched = True
            self._pace.add(self)

    def go_on(self) -> None:
        """Note that the response no longer waits for its client."""
        self._waits = False

    def end(self) -> None:
        """End the watch with the response."""
        if self._is_watched:
            self._pace.discard(self)

    def is_too_slow(self, minimum: int) -> bool:
        """Return whether the client has no time left; to be called at every check.

        Each check costs the client the interval of checks. Bytes that it has acknowledged since
        then give time back.
        """
        taken = self.passed_on - unacknowledged(self.transport)
        before, self._taken = self._taken, taken
        if before is None or not self._waits or not minimum:
            self._patience = PATIENCE
            return False
        gained = max(0, taken - before) / minimum
        # The elapsed time would be wrong: if the server was busy, the client was not slow.
        self._patience = min(PATIENCE, self._patience + gained) - _LOOK_EVERY
        return self._patience <= 0


def unacknowledged(transport: Any) -> int:
    """Return the bytes that the client has not acknowledged; 0 if there is no socket."""
    # TLS and other wrappers have the transport below in this attribute.
    while (below := getattr(transport, "transport", None)) is not None:
        transport = below
    handle = transport.getHandle() if hasattr(transport, "getHandle") else None
    if not isinstance(handle, socket.socket):
        return 0
    try:
        return int.from_bytes(fcntl.ioctl(handle, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except OSError:
        return 0
