"""Connections: Twisted's HTTP/1 parser, behind our own check of every head.

Bad heads are refused before Twisted's parser sees them. They are counted and logged like any
request. The fast path answers plain requests before the parser too. State of all connections
together is in the site.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.server import Request
from zope.interface import implementer

from blobserve.concurrency.fair_queue import FairQueue
from blobserve.config import Limits
from blobserve.errors import BadRequest, BlobserveError, HeadTooSlow, TooManyConnections
from blobserve.web.http.request_head import MAX_FIELDS, MAX_LINE, MAX_SIZE, BodyGate, HeadCheck
from blobserve.web.http.response import Answer
from blobserve.web.http.target import WHOLE_SERVER, authority_of, origin_form
from blobserve.web.server.connection_limits import ConnectionLimits
from blobserve.web.server.fast_path import is_between_requests
from blobserve.web.server.request_log import peer_of
from blobserve.web.server.send import whole
from blobserve.web.server.timeouts import ConnectionTimeouts
from blobserve.web.server.tls import keep_half_open


class Shortcut(Protocol):
    """A faster way to answer some requests than the parser."""

    is_shut: bool
    """True once the server drains."""

    def answer(self, channel: Any, data: bytes) -> bool:
        """Answer `data` if that is possible at once; return whether it was."""
        ...


class ServedSite(Protocol):
    """The part of the site that its connections use."""

    reactor: IReactorTime
    fair_queue: FairQueue
    """The queue of received data that `fast_path` has not answered."""
    is_draining: bool
    body_gate: BodyGate | None
    """The decision which requests may have a body; None: none may."""

    @property
    def connections(self) -> ConnectionLimits[ImageChannel]:
        """The connections of the site, and their limits."""
        ...

    @property
    def fast_path(self) -> Shortcut:
        """The shortcut for received data, before it is parsed."""
        ...

    def limits(self) -> Limits:
        """Return the limits in force."""
        ...

    def refused(self, peer: str, head: HeadCheck, error: BlobserveError) -> Answer:
        """Return the answer to a refused head. A site may count and log it."""
        ...


class ImageRequest(Request):
    """A request that accepts a target in absolute form, or ``*``."""

    authority: bytes | None = None
    """The host and port of a target in absolute form."""

    channel: ImageChannel

    def process(self) -> None:
        """See `Request.process`. The body is complete."""
        self.channel.body_ended()
        self.authority = authority_of(self.uri)
        self.uri = origin_form(self.method, self.uri)
        # Twisted itself answers the path ``*``, and that would be neither counted nor logged.
        self.path = b"/" if self.uri == WHOLE_SERVER else self.uri.partition(b"?")[0]
        super().process()


@implementer(IHalfCloseableProtocol)
class ImageChannel(http.HTTPChannel):
    """A connection that checks each line of a head before Twisted parses it.

    A client that has closed its sending side still gets the responses to all its requests.
    """

    site: ServedSite
    transport: Any
    # Twisted's limits are above ours, so that ours apply first.
    MAX_LENGTH = max(MAX_LINE, MAX_SIZE)
    totalHeadersSize = 2 * MAX_SIZE  # noqa: N815
    maxHeaders = 2 * MAX_FIELDS  # noqa: N815

    def __init__(self) -> None:
        super().__init__()
        self._check = HeadCheck()
        self._body: HeadCheck | None = None
        """The head of the request that is being received with its body."""
        self._is_refused = False
        self._has_said_all = False
        self._held = b""
        self.since = self.active_at = 0.0
        self.lost: Deferred[None] = Deferred()
        """Fires when the connection has been lost."""

    @property
    def is_idle(self) -> bool:
        """Return whether no request is under way or waiting to be parsed."""
        return not (self.requests or self._held)

    @property
    def is_busy(self) -> bool:
        """See `TimedConnection.is_busy`. Line mode ends with the head."""
        return bool(self.requests) and not self.line_mode

    @property
    def is_spare(self) -> bool:
        """See `LimitedConnection.is_spare`."""
        return self.is_idle and not (self._is_ending or self._patience.is_in_head)

    @cached_property
    def peer(self) -> str:
        """See `LimitedConnection.peer`."""
        return peer_of(self.getPeer())

    def connectionMade(self) -> None:
        """See `IProtocol.connectionMade`."""
        super().connectionMade()
        if isinstance(self.transport, TLSMemoryBIOProtocol):
            keep_half_open(self.transport, self.readConnectionLost)
        site = self.site
        self._check = HeadCheck(site.body_gate)
        self._patience = ConnectionTimeouts(self, site.limits, site.reactor)
        self._patience.begin()
        self.since = self.active_at
        try:
            site.connections.admit(self)
        except TooManyConnections as error:
            self._refuse(error)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `IProtocol.connectionLost`."""
        self._patience.end()
        self.body_ended()
        self.site.connections.lost(self)
        super().connectionLost(reason)
        self.lost.callback(None)

    def readConnectionLost(self) -> None:
        """See `IHalfCloseableProtocol.readConnectionLost`; repeated when reading is resumed."""
        self._has_said_all = True
        if self._is_refused:
            self.close()
        elif not (self._held or self._busyReceiving) and is_between_requests(self):
            # As transports do for other protocols. Closing takes another reactor iteration.
            self.transport.connectionLost(connectionDone)
        else:
            self._end_if_answered()

    def writeConnectionLost(self) -> None:
        """See `IHalfCloseableProtocol.writeConnectionLost`."""

    def _end_if_answered(self) -> None:
        """Close the connection if its client sends no more and all requests are answered.

        An incomplete head is discarded.
        """
        # While received data is being split into lines, it may contain further requests.
        if self._has_said_all and not (self.is_busy or self._held or self._busyReceiving):
            self.loseConnection()

    def resetTimeout(self) -> None:
        """See `TimeoutMixin.resetTimeout`. Records the activity and moves no timer."""
        self.active_at = self.site.reactor.seconds()

    def review(self) -> None:
        """Apply changed limits."""
        self._patience.review()

    def dataReceived(self, data: bytes) -> None:
        """See `IProtocol.dataReceived`."""
        if self._held:  # TLS delivers buffered data even while paused
            self._held += data
        elif self._is_refused or self.site.fast_path.answer(self, data):
            return
        elif self.requests:
            self._read(data)
        else:
            self._held = data
            if not self.site.fair_queue.do(self._go_on):
                self.resetTimeout()
                # The end of the client's data is not noticed until then either.
                self.transport.pauseProducing()

    def _go_on(self) -> None:
        data, self._held = self._held, b""
        if not self.lost.called:
            self.transport.resumeProducing()
            self._read(data)

    def _read(self, data: bytes) -> None:
        super().dataReceived(data)
        if self._busyReceiving:
            return  # This is the data after a body: the outer call is still splitting it.
        self._look_at_rest()
        self._end_if_answered()

    def _look_at_rest(self) -> None:
        """Start or stop the head timeout, after received data has been parsed."""
        if self.is_busy or self._is_ending:
            self._patience.head_ended()
        elif b"\n" in self._buffer:
            # Lines with a correct end have already been removed from the buffer.
            self._refuse(BadRequest("a line of a request head must end with CR LF"))
        elif self._buffer or self._check.is_open:
            self._patience.head_begun()
        else:
            self._patience.head_ended()

    @property
    def _is_ending(self) -> bool:
        return self._is_refused or self.transport.disconnecting

    def lineReceived(self, line: bytes) -> None:
        """See `LineReceiver.lineReceived`."""
        if self._is_refused:
            return
        is_first = not self._check.has_begun
        try:
            self._check.line(line)
        except BlobserveError as error:
            self._refuse(error)
            return
        if line and is_first:
            line = self._check.first_line
        elif not line and not is_first:
            if self._check.permit is not None:
                self._body = self._check
                self._check.permit.begin(self._refuse)
            self._check = HeadCheck(self.site.body_gate)
            self._patience.head_ended()
        super().lineReceived(line)

    def lineLengthExceeded(self, line: bytes) -> None:
        """See `LineReceiver.lineLengthExceeded`."""
        self._refuse(self._check.too_long())

    def rawDataReceived(self, data: bytes) -> None:
        """See `LineReceiver.rawDataReceived`. Stop reading while much data waits to be parsed.

        Twisted does not stop while the transport is full. A client that sends requests and reads no
        response could then fill the memory.
        """
        super().rawDataReceived(data)
        if sum(map(len, self._dataBuffer)) > self._optimisticEagerReadSize:
            # The end of the current request resumes it.
            self._networkProducer.pauseProducing()

    def _respondToBadRequestAndDisconnect(self) -> None:
        # For requests that pass our check and that Twisted refuses.
        self._refuse(BadRequest("malformed request"))

    def checkPersistence(self, request: Request, version: bytes) -> bool:
        """See `HTTPChannel.checkPersistence`. A draining site keeps no connection.

        Twisted splits only the first Connection field, and at blanks. The field is a list with
        commas, RFC 9110 §7.6.1.
        """
        fields = request.requestHeaders.getRawHeaders(b"Connection", [])
        options = {option.strip(b" \t").lower() for option in b",".join(fields).split(b",")}
        if b"close" in options:
            request.requestHeaders.setRawHeaders(b"Connection", [b"close", *fields])
        return super().checkPersistence(request, version) and not self.site.is_draining

    def requestDone(self, request: Request) -> None:
        """See `HTTPChannel.requestDone`."""
        self.resetTimeout()
        super().requestDone(request)
        self._end_if_answered()

    def head_missed(self) -> None:
        """See `TimedConnection.head_missed`."""
        self._refuse(HeadTooSlow("the request head took too long"))

    @property
    def is_in_body(self) -> bool:
        """Return whether the body of a request is incomplete."""
        return self._body is not None

    def body_ended(self) -> None:
        """Note that the body of a request is complete, or that no more of it will come."""
        body, self._body = self._body, None
        if body is not None and body.permit is not None:
            body.permit.end()

    def close(self) -> None:
        """See `LimitedConnection.close`."""
        self._patience.leave()
        self.loseConnection()

    def abort(self) -> None:
        """See `LimitedConnection.abort`."""
        self.transport.abortConnection()

    def _refuse(self, error: BlobserveError) -> None:
        self._is_refused = True
        head = self._body or self._check
        self.body_ended()
        answer = self.site.refused(self.peer, head, error)
        self.transport.writeSequence(whole(answer, head.method))
        self._close_softly()

    def _close_softly(self) -> None:
        """Close our sending side at once, and the connection a moment later.

        Closing a socket with unread data resets the connection, and the client can lose a response
        that it has not read yet.
        """
        is_crowded = self.site.connections.is_crowded
        if (
            is_crowded
            or self._has_said_all
            or self.isSecure()
            or not hasattr(self.transport, "loseWriteConnection")
        ):
            self.close()
            return
        self._patience.linger()
        self.transport.unregisterProducer()
        self.transport.loseWriteConnection()
