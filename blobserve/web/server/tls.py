"""Half-closed TLS connections, RFC 8446 §6.1.

Twisted closes a TLS connection as soon as the client has sent its close_notify. With this module,
the protocol is notified instead, as with `IHalfCloseableProtocol` for TCP, and closes after its
last response. A TCP connection that ends without a close_notify still ends at once, because data
may be missing. This module uses private names of Twisted's TLS transport.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from OpenSSL.SSL import WantReadError, ZeroReturnError
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import alsoProvides


def keep_half_open(transport: TLSMemoryBIOProtocol, read_ended: Callable[[], object]) -> None:
    """Arrange a call of `read_ended` when the client of a TLS transport sends no more.

    Call this before anything is read.
    """
    _HalfCloseTransport(transport, read_ended)


class _HalfCloseTransport:
    """A wrapper of OpenSSL's connection that hides the client's close_notify from Twisted.

    It also replaces the transport's handlers for half-closed TCP.
    """

    def __init__(self, transport: Any, read_ended: Callable[[], object]) -> None:
        self._transport = transport
        self._tcp = transport.transport
        self._connection = transport._tlsConnection
        self._read_ended = read_ended
        self._has_ended = False
        transport._tlsConnection = self
        transport.readConnectionLost = self._tcp_ended
        transport.writeConnectionLost = lambda: None
        alsoProvides(transport, IHalfCloseableProtocol)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def recv(self, size: int) -> bytes:
        """See `OpenSSL.SSL.Connection.recv`. After the close_notify there is nothing to read."""
        try:
            received: bytes = self._connection.recv(size)
        except ZeroReturnError:
            if self._transport.disconnecting:
                raise  # both sides have ended
            if not self._has_ended:
                self._has_ended = True
                self._read_ended()
            raise WantReadError from None
        return received

    def _tcp_ended(self) -> None:
        if not self._has_ended:
            self._tcp.connectionLost(Failure(ConnectionDone()))
