"""Connections: Twisted's, held to what it leaves open.

Touches private names of Twisted's HTTP client, so that no other room need. Knows nothing of what is
asked for and of who asks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory
from twisted.web._newclient import HTTP11ClientProtocol
from twisted.web._newclient import Request as WireRequest
from twisted.web.iweb import IResponse

_HEAD_SIZE = 64 << 10


class Connection(HTTP11ClientProtocol):
    """A connection whose answers have heads of bounded size, and that ends when it is told to.

    One that has sent more than it was asked for is not used again.
    """

    transport: Any  # TCP's or TLS's, which share no interface that has all of what is used

    def __init__(self, quiescent: Callable[[HTTP11ClientProtocol], None]) -> None:
        HTTP11ClientProtocol.__init__(self, quiescent)
        self._head = 0

    def connectionMade(self) -> None:
        """See `Protocol.connectionMade`."""
        super().connectionMade()
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
        if self._head:
            self._head = self._head - len(data) or -1
        HTTP11ClientProtocol.dataReceived(self, data)

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
