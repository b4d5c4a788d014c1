"""Sending: an answer's bytes onto a connection, at the pace of whoever reads.

One response holds one piece of its body, and what the transport has not sent yet: at most two
pieces. Where a body cannot be read to its end the connection is aborted: never is a part shown as
the whole. Knows nothing of why an answer is what it is.
"""

from __future__ import annotations

from typing import cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, ITCPTransport
from twisted.web.http import NO_BODY_CODES, datetimeToString
from twisted.web.server import Request
from zope.interface import implementer

from blobserve.web.answer import Answer
from blobserve.web.wire import PHRASES, Head, framed

PIECE = 64 * 1024
"""Bytes read and written at a time; also what a transport holds before it asks for a pause."""


def whole(answer: Answer, method: bytes) -> list[bytes]:
    """A refusal as it goes over the wire when no request can carry it; the connection ends."""
    head = Head.of(answer, (b"Connection", b"close"))
    body = b"" if method == b"HEAD" else answer.body.read_cached(0, answer.body.size)
    return [head.before, datetimeToString(), head.after, body or b""]


async def send(request: Request, answer: Answer) -> None:
    """Write `answer`, and wait until the transport has taken it; the caller finishes the request.

    Closes the body. Cancelled when the client leaves.

    :raises Exception: what reading the body raised; headers have been sent by then.
    """
    try:
        request.setResponseCode(answer.status, PHRASES[answer.status])
        for name, value in framed(answer):
            request.responseHeaders.setRawHeaders(name, [value])
        if request.method == b"HEAD" or answer.status in NO_BODY_CODES:
            request.write(b"")
        else:
            await _send_body(request, answer)
    finally:
        answer.body.close()


def abort(request: Request) -> None:
    """End the connection at once, so that nobody takes what was sent for all there is."""
    cast("ITCPTransport", request.transport).abortConnection()


async def _send_body(request: Request, answer: Answer) -> None:
    valve = _Valve()
    # Also for a body of one piece: a client that sends requests and reads nothing is held up here.
    request.registerProducer(valve, True)
    at, left = answer.extent.start, answer.extent.length
    while left:
        piece = answer.body.read_cached(at, min(left, PIECE))
        if not piece:
            piece = await answer.body.read(at, min(left, PIECE))
        if not piece:
            raise EOFError("the content of a file has been lost")
        request.write(piece)
        at, left = at + len(piece), left - len(piece)
        # After the last one too: a response that is finished while much of it is unsent can be cut
        # by the idle timeout (https://github.com/twisted/twisted/issues/12498).
        await valve.opened()
    if not answer.extent.length:
        request.write(b"")
    request.unregisterProducer()


@implementer(IPushProducer)
class _Valve:
    """Lets a loop wait while a transport has enough."""

    def __init__(self) -> None:
        self._shut = False
        self._waiting: Deferred[None] | None = None

    async def opened(self) -> None:
        """Return when the transport wants more."""
        while self._shut:
            self._waiting = Deferred()
            await self._waiting

    def pauseProducing(self) -> None:
        """See `IPushProducer.pauseProducing`."""
        self._shut = True

    def resumeProducing(self) -> None:
        """See `IPushProducer.resumeProducing`."""
        self._shut = False
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)

    def stopProducing(self) -> None:
        """See `IProducer.stopProducing`: whoever waits is cancelled by the end of the request."""
