"""TLS connections of which one side has ended, RFC 8446 §6.1.

Twisted closes a TLS connection as soon as the other side has sent its close_notify. Here the
protocol above is told instead, as `IHalfCloseableProtocol` has it for TCP, and closes when it has
said what it had to say. A TCP connection that ends without a close_notify ends at once, as ever:
what came may have been cut. Knows private names of Twisted's TLS transport.
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


def keep_half_open(transport: object, read_ended: Callable[[], object]) -> None:
    """Have `read_ended` called when the client of a TLS transport sends no more.

    Without an effect on any other transport. To be called before anything is read.
    """
    if isinstance(transport, TLSMemoryBIOProtocol):
        _HalfCloseTransport(transport, read_ended)


class _HalfCloseTransport:
    """Stands between a TLS transport and OpenSSL, and below it in place of its own end of TCP."""

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
        """See `OpenSSL.SSL.Connection.recv`; the end is nothing to read for the moment."""
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
