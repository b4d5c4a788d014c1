"""Tunnels: endpoints for connections through a proxy.

CONNECT asks the proxy for a tunnel to the host, RFC 9110 §9.3.6. TLS then runs between us and the
host. The response of the proxy has a size limit, and its text is not passed on.
"""

from __future__ import annotations

import base64
import re
from typing import Any

from OpenSSL import SSL
from service_identity import VerificationError
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.interfaces import (
    IAddress,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from blobserve.names.proxy import Proxy

_HEAD_SIZE = 64 << 10
_STATUS = re.compile(rb"HTTP/1\.[0-9] ([1-9][0-9]{2})(?: |\r|$)")
_BUSY = (408, 425, 429)


class TunnelError(ConnectError):
    """A proxy did not connect us; `may_pass` says whether a retry may help."""

    def __init__(self, problem: str, may_pass: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.problem = problem
        self.may_pass = may_pass


def authorization(proxy: Proxy) -> str | None:
    """Return the Basic authorization for a proxy, RFC 7617; None if its URL has no user."""
    if proxy.user is None:
        return None
    return "Basic " + base64.b64encode(f"{proxy.user}:{proxy.password}".encode()).decode()


def refusal(proxy: Proxy, status: int, authority: str) -> TunnelError:
    """Return the error for the status with which a proxy refused a tunnel."""
    if status in (401, 407):  # Some proxies answer 401 to a wrong password.
        wants = "asks for a user and a password" if proxy.user is None else "refuses its user"
        return TunnelError(f"its proxy ({proxy.setting}) {wants}", may_pass=False)
    may_pass = status >= 500 or status in _BUSY
    does = "could not connect" if may_pass else "refuses to connect"
    problem = f"its proxy ({proxy.setting}) {does} to {authority}: it answered {status}"
    return TunnelError(problem, may_pass)


@implementer(IStreamClientEndpoint)
class ProxyEndpoint:
    """The endpoint of a proxy, with errors that name the proxy."""

    def __init__(self, proxy: Proxy, endpoint: IStreamClientEndpoint) -> None:
        self._proxy = proxy
        self._endpoint = endpoint

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """See `IStreamClientEndpoint.connect`."""
        return self._endpoint.connect(protocolFactory).addErrback(self._failed)

    def _failed(self, failure: Failure) -> Failure:
        if not failure.check(ConnectError, DNSLookupError):
            return failure
        is_name = failure.check(DNSLookupError)
        problem = "has a name that does not resolve" if is_name else "does not accept connections"
        return Failure(TunnelError(f"its proxy ({self._proxy.setting}) {problem}", True))


@implementer(IStreamClientEndpoint)
class Tunnel:
    """The endpoint of a host behind a proxy. `authority` is `host:port`, as in a URL."""

    def __init__(self, proxy: Proxy, endpoint: IStreamClientEndpoint, authority: str) -> None:
        self._proxy = proxy
        self._endpoint = endpoint
        self._authority = authority

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """See `IStreamClientEndpoint.connect`. Cancelling closes the connection to the proxy."""
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, protocolFactory: IProtocolFactory) -> IProtocol:
        lines = [f"CONNECT {self._authority} HTTP/1.1", f"Host: {self._authority}"]
        shown = authorization(self._proxy)
        if shown is not None:
            lines.append(f"Proxy-Authorization: {shown}")
        opening: Any = await self._endpoint.connect(Factory.forProtocol(_ConnectProtocol))
        status = await opening.ask("\r\n".join([*lines, "", ""]).encode("latin-1"))
        if status is None:
            raise TunnelError(f"its proxy ({self._proxy.setting}) {opening.problem}", True)
        if not 200 <= status < 300:
            opening.transport.abortConnection()
            raise refusal(self._proxy, status, self._authority)
        inner: IProtocol = opening.relay(protocolFactory)
        return inner


class _ConnectProtocol(Protocol):
    """A connection to a proxy that becomes a connection to a host."""

    transport: Any

    def __init__(self) -> None:
        self.problem = "did not answer in HTTP"
        """The reason for a missing response."""
        self._received = b""
        self._inner: Any = None
        self._answer: Deferred[int | None] | None = None

    def ask(self, request: bytes) -> Deferred[int | None]:
        """Send a request; return a Deferred with the status, or None if there is no response."""
        self._answer = Deferred(lambda _: self.transport.abortConnection())
        self.transport.write(request)
        return self._answer

    def relay(self, factory: IProtocolFactory) -> Any:
        """Give the connection to a protocol of `factory`, once it leads to the host."""
        peer: IAddress = self.transport.getPeer()
        self._inner = factory.buildProtocol(peer)
        self._inner.makeConnection(self.transport)
        if self._received:
            self._inner.dataReceived(self._received)
        return self._inner

    def dataReceived(self, data: bytes) -> None:
        """See `Protocol.dataReceived`."""
        if self._inner is not None:
            self._inner.dataReceived(data)
            return
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        while end and head.startswith((b"HTTP/1.0 1", b"HTTP/1.1 1")):
            self._received = rest  # An interim response, RFC 9110 §15.2.
            head, end, rest = rest.partition(b"\r\n\r\n")
        if end:
            found = _STATUS.match(head)
            self._received = rest
            self._answered(int(found[1]) if found else None)
        elif len(self._received) > _HEAD_SIZE:
            self._answered(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `Protocol.connectionLost`."""
        if self._inner is not None:
            self._inner.connectionLost(reason)
            return
        if reason.check(SSL.Error, VerificationError):
            self.problem = "does not speak TLS, or its certificate is not trusted"
        elif self._answer is not None:
            self.problem = "closed the connection without a response"
        self._answered(None)

    def _answered(self, status: int | None) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            if status is None:
                self.transport.abortConnection()
            answer.callback(status)
