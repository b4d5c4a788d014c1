"""Writing responses to connections, as fast as the client reads.

If possible, large files go from the page cache to the socket by `sendfile`. Otherwise a response
has at most two pieces of its body in memory: one read, and one that the transport has not sent yet.
If a body cannot be read to its end the connection is aborted, so that the client does not take a
part for the whole.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IPushProducer, ITCPTransport
from twisted.python.failure import Failure
from twisted.web.http import NO_BODY_CODES, datetimeToString
from twisted.web.server import NOT_DONE_YET, Request
from zope.interface import implementer

from blobserve.web.http.conditional import Range
from blobserve.web.http.response import PHRASES, Answer, Body, ResponseHead, framed
from blobserve.web.server.sendfile import is_plain, send_stored
from blobserve.web.server.slow_clients import SendWatch, SlowClients

PIECE = 64 * 1024
"""Bytes read and written at a time. A transport pauses its producer above as many bytes."""


def whole(answer: Answer, method: bytes) -> list[bytes]:
    """Return an error response as bytes, for a connection that is closed after it."""
    head = ResponseHead.of(answer, (b"Connection", b"close"))
    body = b"" if method == b"HEAD" else answer.body.read_cached(0, answer.body.size)
    return [head.before, datetimeToString(), head.after, body or b""]


async def send(request: Request, answer: Answer, pace: SlowClients) -> None:
    """Write `answer` until the transport has all of it. The caller finishes the request.

    Closes the body. If the answer is recalled meanwhile, the connection is aborted. The caller
    cancels this when the connection is lost; a client that is too slow loses its connection.

    :raises Exception: the error of reading the body; headers may have been sent before.
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
            # An error response follows, which may have fewer fields.
            for name, _ in headers:
                request.responseHeaders.removeHeader(name)
        raise
    finally:
        answer.body.close()


def finish_after(request: Request, work: Coroutine[Deferred[Any], Any, None]) -> int:
    """Finish the request when `work` has sent its response; for `IResource.render`.

    A lost connection cancels `work`.
    """
    sending = Deferred.fromCoroutine(work)
    request.notifyFinish().addErrback(lambda _: sending.cancel())
    sending.addCallbacks(lambda _: request.finish(), _client_left)
    return NOT_DONE_YET


def _client_left(why: Failure) -> None:
    why.trap(CancelledError)


def abort(request: Request) -> None:
    """Abort the connection, so that the client does not take a part of a response for the whole."""
    cast("ITCPTransport", request.transport).abortConnection()


async def _send_body(request: Request, answer: Answer, pace: SlowClients) -> None:
    watch, part = SendWatch(pace, request.transport), answer.extent
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
    # Also for a body of one piece, to stop a client that sends requests and reads no responses.
    request.registerProducer(valve, True)
    try:
        at, left = part.start, part.length
        # The first piece is read completely before the head is sent: until then, an error can still
        # become an error response.
        piece = await _piece(body, at, min(left, PIECE), is_whole=True)
        while left:
            request.write(piece)
            at, left = at + len(piece), left - len(piece)
            # After the last piece too: the idle timeout can cut a response that is finished while
            # much of it is unsent (https://github.com/twisted/twisted/issues/12498).
            await valve.opened()
            watch.passed_on += len(piece)
            piece = await _piece(body, at, min(left, PIECE))
        if not part.length:
            request.write(b"")
    finally:
        # Also after an error, because an error response follows. The channel is None if the client
        # has left.
        if request.channel is not None:
            request.unregisterProducer()


async def _piece(body: Body, at: int, length: int, is_whole: bool = False) -> bytes:
    """Read some of the next `length` bytes of a body, or all of them if `is_whole`."""
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
    """A producer for which a loop waits while the transport's buffer is full."""

    def __init__(self, watch: SendWatch) -> None:
        self._watch = watch
        self._shut = False
        self._waiting: Deferred[None] | None = None

    async def opened(self) -> None:
        """Wait until the transport accepts more data."""
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
        """See `IProducer.stopProducing`. The end of the request cancels the waiting coroutine."""
