"""Connections of Twisted's HTTP client, with limits that it lacks.

This module uses private names of that client, so that no other module has to.
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
    """The peer closed the connection during the TLS handshake, without a TLS alert."""


class SpeaksTls(ConnectionLost):
    """The peer answered plain HTTP with a TLS record."""


@implementer(IHandshakeListener)
class Connection(HTTP11ClientProtocol):
    """A connection that limits the size of response heads, and never waits for the peer to close.

    It is not reused if bytes follow a response.
    """

    transport: Any  # TCP's or TLS's, which share no interface with all used methods.

    def __init__(self, quiescent: Callable[[HTTP11ClientProtocol], None]) -> None:
        HTTP11ClientProtocol.__init__(self, quiescent)
        self._head = 0
        self._is_handshaking = False
        self._fate: Exception | None = None

    def connectionMade(self) -> None:
        """See `Protocol.connectionMade`."""
        super().connectionMade()
        self._is_handshaking = ISSLTransport.providedBy(self.transport)
        # A TLS connection closes only when the peer agrees, so a stalled one would stay for ever.
        # Aborting loses nothing, since our requests are complete by then.
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
        """Finish a response; do not reuse the connection if more bytes came: RFC 9112 §9.2.

        `HTTP11ClientProtocol` ignores `rest`. It could take the bytes after that as the response to
        the next request.
        """
        if rest and self._currentRequest is not None:
            self._currentRequest.persistent = False
        super()._finishResponse_WAITING(rest)


class ConnectionFactory(Factory):
    """The factory of connections for an `HTTPConnectionPool`."""

    noisy = False

    def __init__(self, quiescent: Callable[[HTTP11ClientProtocol], None], _: str) -> None:
        self._quiescent = quiescent

    def buildProtocol(self, addr: IAddress | None) -> Connection:
        """See `IProtocolFactory.buildProtocol`."""
        return Connection(self._quiescent)
