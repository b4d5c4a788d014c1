"""Connections: Twisted's, held to what it leaves open.

Touches private names of Twisted's HTTP client, so that no other room need. Knows nothing of what is
asked for and of who asks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress, IHandshakeListener, ISSLTransport
from twisted.internet.protocol import Factory, connectionDone
from twisted.python.failure import Failure
from twisted.web._newclient import HTTP11ClientProtocol
from twisted.web._newclient import Request as WireRequest
from twisted.web.iweb import IResponse
from zope.interface import implementer

_HEAD_SIZE = 64 << 10
_TLS_RECORD = re.compile(rb"[\x14-\x17]\x03")  # RFC 8446 §5.1


class HungUpOnTls(ConnectionLost):
    """The peer closed the connection before TLS was agreed on, without a word of TLS."""


class SpeaksTls(ConnectionLost):
    """The peer answered a request in clear with a record of TLS."""


@implementer(IHandshakeListener)
class Connection(HTTP11ClientProtocol):
    """A connection whose answers have heads of bounded size, and that ends when it is told to.

    One that has sent more than it was asked for is not used again.
    """

    transport: Any  # TCP's or TLS's, which share no interface that has all of what is used

    def __init__(self, quiescent: Callable[[HTTP11ClientProtocol], None]) -> None:
        HTTP11ClientProtocol.__init__(self, quiescent)
        self._head = 0
        self._is_handshaking = False
        self._fate: Exception | None = None

    def connectionMade(self) -> None:
        """See `Protocol.connectionMade`."""
        super().connectionMade()
        self._is_handshaking = ISSLTransport.providedBy(self.transport)
        # TLS closes only when the peer agrees, so a stalled one would be kept for ever. Nothing is
        # lost by being abrupt: our requests have been sent whole when we give up on them.
        self.transport.loseConnection = self.transport.abortConnection

    def request(self, request: WireRequest) -> Deferred[IResponse]:
        """See `HTTP11ClientProtocol.request`."""
        self._head = _HEAD_SIZE
        return super().request(request).addBoth(self._head_ended)

    def dataReceived(self, data: bytes) -> None:
        """See `Protocol.dataReceived`."""
        if self._head < 0:
            self.transport.abortConnection()
            return
        if self._head == _HEAD_SIZE and _TLS_RECORD.match(data):
            self._fate = SpeaksTls()
            self.transport.abortConnection()
            return
        if self._head:
            self._head = self._head - len(data) or -1
        HTTP11ClientProtocol.dataReceived(self, data)

    def handshakeCompleted(self) -> None:
        """See `IHandshakeListener.handshakeCompleted`."""
        self._is_handshaking = False

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `Protocol.connectionLost`."""
        if self._is_handshaking and reason.check(ConnectionDone, ConnectionLost):
            self._fate = HungUpOnTls()
        reason = reason if self._fate is None else Failure(self._fate)
        super().connectionLost(reason)  # type: ignore[no-untyped-call]

    def _head_ended(self, result: Any) -> Any:
        self._head = 0
        return result

    def _finishResponse_WAITING(self, rest: bytes) -> None:
        """See `HTTP11ClientProtocol._finishResponse`, which takes no notice of `rest`.

        What follows it would be the answer to the next request: RFC 9112 §9.2.
        """
        if rest and self._currentRequest is not None:
            self._currentRequest.persistent = False
        super()._finishResponse_WAITING(rest)


class ConnectionFactory(Factory):
    """What an `HTTPConnectionPool` makes its connections with."""

    noisy = False

    def __init__(self, quiescent: Callable[[HTTP11ClientProtocol], None], _: str) -> None:
        self._quiescent = quiescent

    def buildProtocol(self, addr: IAddress | None) -> Connection:
        """See `IProtocolFactory.buildProtocol`."""
        return Connection(self._quiescent)
