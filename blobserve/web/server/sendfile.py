"""Sending files with `sendfile`, without copying them through the process.

Each call sends bytes that are in the page cache, so that it does not block on the disk, and returns
to the reactor after that. Only this module depends on how Twisted's transports treat producers.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPullProducer
from twisted.internet.tcp import Server
from twisted.web.server import Request
from zope.interface import implementer

from blobserve.store.disk.disk_errors import is_lost
from blobserve.web.http.conditional import Range
from blobserve.web.http.response import StoredBody
from blobserve.web.server.slow_clients import SendWatch

TURN = 2 * 1024 * 1024
"""The most bytes sent in one reactor iteration, about 0.2 ms; also the bytes read ahead."""

_IMPOSSIBLE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_GONE = (
    errno.EPIPE,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ENETDOWN,
)


def is_plain(request: Request) -> bool:
    """Return whether the response goes to a TCP socket without TLS."""
    transport: Any = request.transport
    # After startTLS a transport is still a Server, but its producer is the TLS protocol.
    return isinstance(transport, Server) and transport.producer is request.channel


async def send_stored(request: Request, body: StoredBody, part: Range, watch: SendWatch) -> int:
    """Send the head of a response and then a part of its body. `is_plain` must be true.

    Return the number of bytes sent: all, or fewer if the file does not support `sendfile`. The
    caller cancels this when the client leaves.

    :raises BlobDamaged: when the disk has lost bytes; before the head, if they are the first ones.
    :raises OSError: when bytes cannot be read for another reason.
    """
    # Before the head, so that an error response can be sent if the disk has lost the bytes.
    await _at_hand(body, part.start, min(part.length, TURN))
    request.write(b"")
    descriptor, sent, is_first = body.descriptor, 0, True
    with _turns(request, watch) as turns:
        while sent < part.length:
            await turns.next()
            at, length = part.start + sent, min(part.length - sent, TURN)
            if not is_first:
                await _at_hand(body, at, length)
            is_first = False
            try:
                taken = os.sendfile(turns.fileno(), descriptor, body.start + at, length)
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno in _IMPOSSIBLE:
                    break
                if is_lost(error):
                    raise body.lost(f"it cannot be read: {error.strerror}") from error
                if error.errno not in _GONE:
                    raise
                turns.transport.abortConnection()
                # The end of the connection cancels this.
                await Deferred()
            if not taken:
                raise body.lost("its content is cut short")
            sent += taken
            request.sentLength += taken
            watch.passed_on += taken
    return sent


async def _at_hand(body: StoredBody, at: int, length: int) -> None:
    """Wait until these bytes can be sent without blocking on the disk."""
    if not body.is_cached(at, length):
        await body.read_ahead(at, length)


@contextmanager
def _turns(request: Request, watch: SendWatch) -> Iterator[_Turns]:
    """Replace the HTTP channel as the transport's producer, during the context."""
    transport: Any = request.transport
    channel: Any = request.channel
    turns = _Turns(transport, watch)
    transport.unregisterProducer()
    # If the channel was paused, nothing else would resume it.
    channel.resumeProducing()
    transport.registerProducer(turns, False)
    try:
        yield turns
    finally:
        transport.unregisterProducer()
        transport.registerProducer(channel, True)


@implementer(IPullProducer)
class _Turns:
    """A pull producer for which a loop waits until the socket accepts more data."""

    def __init__(self, transport: Any, watch: SendWatch) -> None:
        self.transport = transport
        self.fileno = transport.fileno
        self._watch = watch
        self._waiting: Deferred[None] | None = None

    def next(self) -> Deferred[None]:
        """Return a Deferred that fires when the head is sent and the socket accepts more data."""
        waiting: Deferred[None] = Deferred()
        self._waiting = waiting
        self._watch.wait()
        # A transport with an empty buffer calls its pull producer when the socket is writable.
        self.transport.startWriting()
        return waiting

    def resumeProducing(self) -> None:
        """See `IPullProducer.resumeProducing`. Registration calls it too, before any wait."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._watch.go_on()
            waiting.callback(None)

    def stopProducing(self) -> None:
        """See `IProducer.stopProducing`. The end of the request cancels the waiting coroutine."""
