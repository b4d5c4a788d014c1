"""Sending: an answer's bytes onto a connection, at the pace of whoever reads.

Large files go from the disk's cache to the socket where that can be done, and are never in memory
of ours. Else a response holds one piece of its body, and what the transport has not sent yet: at
most two pieces. Where a body cannot be read to its end the connection is aborted: never is a part
shown as the whole. Knows nothing of why an answer is what it is.
"""

from __future__ import annotations

from typing import cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, ITCPTransport
from twisted.web.http import NO_BODY_CODES, datetimeToString
from twisted.web.server import Request
from zope.interface import implementer

from blobserve.web.http.conditional import Range
from blobserve.web.http.response import Answer, Body
from blobserve.web.http.serialize import PHRASES, ResponseHead, framed
from blobserve.web.server.sendfile import is_plain, send_stored
from blobserve.web.server.slow_clients import SendWatch, SlowClients

PIECE = 64 * 1024
"""Bytes read and written at a time; also what a transport holds before it asks for a pause."""


def whole(answer: Answer, method: bytes) -> list[bytes]:
    """A refusal as it goes over the wire when no request can carry it; the connection ends."""
    head = ResponseHead.of(answer, (b"Connection", b"close"))
    body = b"" if method == b"HEAD" else answer.body.read_cached(0, answer.body.size)
    return [head.before, datetimeToString(), head.after, body or b""]


async def send(request: Request, answer: Answer, pace: SlowClients) -> None:
    """Write `answer`, and wait until the transport has taken it; the caller finishes the request.

    Closes the body. If the answer is recalled before, the connection is aborted. To be cancelled
    when the client leaves, as it is made to when it is too slow.

    :raises Exception: what reading the body raised; headers may have been sent by then.
    """
    headers = framed(answer)
    if answer.recallable is not None:
        answer.recallable.when_recalled(lambda: abort(request))
    try:
        request.setResponseCode(answer.status, PHRASES[answer.status])
        for name, value in headers:
            request.responseHeaders.setRawHeaders(name, [value])
        if request.method == b"HEAD" or answer.status in NO_BODY_CODES:
            request.write(b"")
        else:
            await _send_body(request, answer, pace)
    except BaseException:
        if not request.startedWriting:
            # Another answer will be sent instead, which may have fewer.
            for name, _ in headers:
                request.responseHeaders.removeHeader(name)
        raise
    finally:
        answer.body.close()


def abort(request: Request) -> None:
    """End the connection at once, so that nobody takes what was sent for all there is."""
    cast("ITCPTransport", request.transport).abortConnection()


async def _send_body(request: Request, answer: Answer, pace: SlowClients) -> None:
    watch, part = pace.watch(request.transport), answer.extent
    try:
        stored = answer.body.stored if part.length > PIECE and is_plain(request) else None
        if stored is not None:
            sent = await send_stored(request, stored, part, watch)
            part = Range(part.start + sent, part.length - sent)
        if part.length or stored is None:
            await _send_pieces(request, answer.body, part, watch)
    finally:
        watch.end()


async def _send_pieces(request: Request, body: Body, part: Range, watch: SendWatch) -> None:
    valve = _Valve(watch)
    # Also for a body of one piece: a client that sends requests and reads nothing is held up here.
    request.registerProducer(valve, True)
    try:
        at, left = part.start, part.length
        # All of the first, since as long as the head has not gone, another answer can be given.
        piece = await _piece(body, at, min(left, PIECE), is_whole=True)
        while left:
            request.write(piece)
            at, left = at + len(piece), left - len(piece)
            # After the last one too: a response that is finished while much of it is unsent can be
            # cut by the idle timeout (https://github.com/twisted/twisted/issues/12498).
            await valve.opened()
            watch.passed_on += len(piece)
            piece = await _piece(body, at, min(left, PIECE))
        if not part.length:
            request.write(b"")
    finally:
        # Also where nothing could be read: a refusal is sent instead. Unless the client has left.
        if request.channel is not None:
            request.unregisterProducer()


async def _piece(body: Body, at: int, length: int, is_whole: bool = False) -> bytes:
    """Some of the next `length` bytes of a body, or all of them."""
    pieces, left = [], length
    while left and (is_whole or left == length):
        piece = body.read_cached(at, left) or await body.read(at, left)
        if not piece:
            raise EOFError("the content of a file has been lost")
        pieces.append(piece)
        at, left = at + len(piece), left - len(piece)
    return b"".join(pieces)


@implementer(IPushProducer)
class _Valve:
    """Lets a loop wait while a transport has enough."""

    def __init__(self, watch: SendWatch) -> None:
        self._watch = watch
        self._shut = False
        self._waiting: Deferred[None] | None = None

    async def opened(self) -> None:
        """Return when the transport wants more."""
        while self._shut:
            self._waiting = Deferred()
            self._watch.wait()
            await self._waiting

    def pauseProducing(self) -> None:
        """See `IPushProducer.pauseProducing`."""
        self._shut = True

    def resumeProducing(self) -> None:
        """See `IPushProducer.resumeProducing`."""
        self._shut = False
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._watch.go_on()
            waiting.callback(None)

    def stopProducing(self) -> None:
        """See `IProducer.stopProducing`: whoever waits is cancelled by the end of the request."""
