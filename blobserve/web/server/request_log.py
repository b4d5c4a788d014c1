"""Accounts: what is open, and for every request that ends a line in the log and its metrics.

Also for those that were aborted, and for heads too bad to become a request.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from itertools import count
from typing import Protocol

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.web.server import Request

from blobserve.config import Config
from blobserve.metrics import Metrics
from blobserve.web.content.response_cache import CachedResponse
from blobserve.web.http.request import RequestContext, RequestHead
from blobserve.web.http.request_head import HeadCheck
from blobserve.web.http.response import Answer
from blobserve.web.server.access_log import LogRecord, client_address, parse_address
from blobserve.web.server.send import abort

ABORTED = 499
"""What is counted for a client that left before there was an answer."""

_METHODS = {
    name.upper().encode(): name
    for name in ("get", "head", "options", "post", "put", "patch", "delete", "trace", "connect")
}


class LogWriter(Protocol):
    """Where lines go."""

    def write(self, served: LogRecord) -> None:
        """Add a line."""
        ...


@attrs.frozen(eq=False)
class RequestRecord:
    """One request, from its head to its end."""

    request: Request
    asked: RequestContext
    request_id: str
    started: float


class RequestLog:
    """All requests of one server."""

    def __init__(
        self,
        config: Callable[[], Config],
        reactor: IReactorTime,
        metrics: Metrics,
        log: LogWriter,
    ) -> None:
        self._config = config
        self._reactor = reactor
        self._metrics = metrics
        self._log = log
        self._open: dict[Request, RequestRecord] = {}
        self._idle: list[Deferred[None]] = []
        process = os.urandom(4).hex()
        self._ids = (f"{process}-{number:x}" for number in count(1))

    def begin(self, request: Request, asked: RequestContext) -> RequestRecord:
        """Open the account of a request; it is closed when the request ends, whichever way."""
        account = RequestRecord(request, asked, self.new_id(), self._reactor.seconds())
        self._open[request] = account
        self._metrics.requests_in_flight.inc()
        request.notifyFinish().addCallbacks(
            lambda _: self._end(account, request.code),
            # What was begun keeps its status: the bytes sent tell that it was not ended.
            lambda _: self._end(account, request.code if request.startedWriting else ABORTED),
        )
        return account

    def of(self, request: Request) -> RequestRecord:
        """The account of a request that has not ended."""
        return self._open[request]

    def idle(self) -> Deferred[None]:
        """Fires when nothing is open."""
        waiter: Deferred[None] = Deferred(lambda cancelled: self._idle.remove(cancelled))
        self._idle.append(waiter)
        self._tell()
        return waiter

    def abort(self) -> None:
        """End the connections of all that is open."""
        for request in list(self._open):
            abort(request)

    def new_id(self) -> str:
        """An id under which a request is found in the logs; different in every process."""
        return next(self._ids)

    def refused(self, peer: str, head: HeadCheck, answer: Answer, request_id: str) -> None:
        """Account for a head that never became a request."""
        self._count(head.method, answer.status, 0.0)
        self._log.write(
            LogRecord(
                time=self._reactor.seconds(),
                address=peer,
                method=head.method or b"-",
                target=head.target or b"-",
                version=head.version or b"-",
                status=answer.status,
                sent=answer.body.size,
                duration=0.0,
                cache=None,
                digest=None,
                request_id=request_id,
                referer=None,
                agent=None,
            )
        )

    def at_once(
        self,
        peer: str,
        head: RequestHead,
        ready: CachedResponse,
        status: int,
        sent: int,
        started: float,
    ) -> None:
        """Account for a request of HTTP/1.1 that was answered as soon as it had come."""
        duration = self._reactor.seconds() - started
        cache, digest = ready.result, str(ready.image)
        self._write(
            head, peer, b"HTTP/1.1", status, sent, started, duration, cache, digest, self.new_id()
        )

    def _end(self, account: RequestRecord, status: int) -> None:
        request, asked, started = account.request, account.asked, account.started
        del self._open[request]
        self._metrics.requests_in_flight.dec()
        self._write(
            asked.head,
            peer_of(request.client),
            request.clientproto,
            status,
            request.sentLength,
            started,
            self._reactor.seconds() - started,
            asked.cache,
            None if asked.digest is None else str(asked.digest),
            account.request_id,
        )
        self._tell()

    def _write(
        self,
        head: RequestHead,
        peer: str,
        version: bytes,
        status: int,
        sent: int,
        started: float,
        duration: float,
        cache: str | None,
        digest: str | None,
        request_id: str,
    ) -> None:
        """Count a request and write its line."""
        self._count(head.method, status, duration)
        fields, trusted = head.fields, self._config().trusted_proxies
        if trusted and (forwarded := fields.get(b"x-forwarded-for")):
            peer = client_address(peer, [forwarded], trusted)
        self._log.write(
            LogRecord(
                started,
                peer,
                head.method,
                head.target,
                version,
                status,
                sent,
                duration,
                cache,
                digest,
                request_id,
                fields.get(b"referer"),
                fields.get(b"user-agent"),
            )
        )

    def _count(self, method: bytes, status: int, duration: float) -> None:
        # Only methods that exist become labels, or clients could make any number of them.
        self._metrics.requests.count(_METHODS.get(method, "unknown"), status, duration)

    def _tell(self) -> None:
        if not self._open:
            waiting, self._idle = self._idle, []
            for waiter in waiting:
                waiter.callback(None)


def peer_of(address: object) -> str:
    """Return the host of a Twisted address; a dash where there is none, as for a Unix socket.

    A link-local peer has a zone, the name of an interface of this host. It is left out: what is
    one client, and what is a trusted proxy, is decided by addresses.
    """
    host = getattr(address, "host", None)
    return _peer(host) if isinstance(host, str) else "-"


@lru_cache(maxsize=512)
def _peer(host: str) -> str:
    parsed = parse_address(host.partition("%")[0])
    return "-" if parsed is None else str(parsed)
