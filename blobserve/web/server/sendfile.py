"""Sending by `sendfile`: from a file into a connection, through no memory of ours.

The kernel takes what fits at the moment, in turns with whatever else the reactor has to do, and
nothing that is not in memory, so that no turn waits for a disk. All that is assumed of how
Twisted's transports treat their producers is assumed here.
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
"""Bytes sent at most before the reactor has its turn, some 0.2 ms; also read ahead at a time."""

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
    """Whether the bytes of its response go into a socket as they are."""
    transport: Any = request.transport
    # A transport that TLS was started on is still a Server, but its producer is TLS.
    return isinstance(transport, Server) and transport.producer is request.channel


async def send_stored(request: Request, body: StoredBody, part: Range, watch: SendWatch) -> int:
    """Send the head of a response whose transport `is_plain`, and then a part of its body.

    Returns how much the kernel has taken: all of it, or less where this file cannot be sent so. To
    be cancelled when the client leaves.

    :raises BlobDamaged: when the disk has lost them; before the head, if it is the first.
    :raises OSError: when they cannot be read for another reason.
    """
    # Before the head, so that something else can be sent where the disk has lost them.
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
    """Return when those bytes can be sent without waiting for a disk."""
    if not body.is_cached(at, length):
        await body.read_ahead(at, length)


@contextmanager
def _turns(request: Request, watch: SendWatch) -> Iterator[_Turns]:
    """Be the producer that the transport asks for more, in place of the HTTP channel."""
    transport: Any = request.transport
    channel: Any = request.channel
    turns = _Turns(transport, watch)
    transport.unregisterProducer()
    # If it has been told to pause, nobody else would tell it that this is over.
    channel.resumeProducing()
    transport.registerProducer(turns, False)
    try:
        yield turns
    finally:
        transport.unregisterProducer()
        transport.registerProducer(channel, True)


@implementer(IPullProducer)
class _Turns:
    """Lets a loop wait until a connection has sent what it was given, and takes more."""

    def __init__(self, transport: Any, watch: SendWatch) -> None:
        self.transport = transport
        self.fileno = transport.fileno
        self._watch = watch
        self._waiting: Deferred[None] | None = None

    def next(self) -> Deferred[None]:
        """Fires when it is our turn: the head has been sent, and there is room."""
        waiting: Deferred[None] = Deferred()
        self._waiting = waiting
        self._watch.wait()
        # A transport with nothing to write asks its pull producer as soon as it could.
        self.transport.startWriting()
        return waiting

    def resumeProducing(self) -> None:
        """See `IPullProducer.resumeProducing`; registering calls it too, when it is no turn yet."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._watch.go_on()
            waiting.callback(None)

    def stopProducing(self) -> None:
        """See `IProducer.stopProducing`: whoever waits is cancelled by the end of the request."""
