"""Pace: a client that takes its response too slowly is left, so that it keeps no file open.

What counts is what its TCP has acknowledged, not what our kernel has buffered for it: a socket may
hold megabytes, and accepts more of them only when a third of that is gone. A response is watched
from the moment when it first has to wait for its client, and costs next to nothing before.
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
"""Seconds that a client may take nothing at all, having taken enough before.

TCP that finds its way again after a lost link may be silent for 15 (four retransmissions), and over
loopback, where segments are large, one of 2 KiB/s acknowledges something every 32 seconds.
"""
_LOOK_EVERY = 5.0

_log = Logger()


class SlowClients:
    """The clients of one server that keep a response waiting.

    :param minimum: bytes a second that each must take; 0: any pace will do.
    """

    def __init__(self, minimum: Callable[[], int], reactor: IReactorTime, slow: Counter) -> None:
        self._minimum = minimum
        self._reactor = reactor
        self._slow = slow
        self._watched: set[SendWatch] = set()
        self._next_look: IDelayedCall | None = None

    def watch(self, transport: Any) -> SendWatch:
        """Watch over a response that is sent to `transport`, until `SendWatch.end`."""
        return SendWatch(self, transport)

    def stop(self) -> None:
        """Forget everybody."""
        self._watched.clear()
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None

    def add(self, watch: SendWatch) -> None:
        """Look at it from now on."""
        self._watched.add(watch)
        if self._next_look is None:
            self._next_look = self._reactor.callLater(_LOOK_EVERY, self._look)

    def discard(self, watch: SendWatch) -> None:
        """Look at it no longer."""
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
    """One response, and the patience that is left for its client."""

    def __init__(self, pace: SlowClients, transport: Any) -> None:
        self.transport = transport
        self.passed_on = 0
        """Bytes of the body that have left the process."""
        self._pace = pace
        self._waits = self._is_watched = False
        self._taken: int | None = None
        self._patience = PATIENCE

    def wait(self) -> None:
        """Nothing happens until the client takes something."""
        self._waits = True
        if not self._is_watched:
            self._is_watched = True
            self._pace.add(self)

    def go_on(self) -> None:
        """It is not the client who is waited for."""
        self._waits = False

    def end(self) -> None:
        """The response has come to its end."""
        if self._is_watched:
            self._pace.discard(self)

    def is_too_slow(self, minimum: int) -> bool:
        """Take the time since the last look off the patience, and add what has been taken since."""
        taken = self.passed_on - unacknowledged(self.transport)
        before, self._taken = self._taken, taken
        if before is None or not self._waits or not minimum:
            self._patience = PATIENCE
            return False
        gained = max(0, taken - before) / minimum
        # Not the time that went by: where we were busy ourselves, nobody was slow.
        self._patience = min(PATIENCE, self._patience + gained) - _LOOK_EVERY
        return self._patience <= 0


def unacknowledged(transport: Any) -> int:
    """Bytes that the kernel holds for the other side; 0 where there is no socket to ask."""
    # TLS, and whatever else wraps a transport, calls the one below so.
    while (below := getattr(transport, "transport", None)) is not None:
        transport = below
    handle = transport.getHandle() if hasattr(transport, "getHandle") else None
    if not isinstance(handle, socket.socket):
        return 0
    try:
        return int.from_bytes(fcntl.ioctl(handle, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except OSError:
        return 0
