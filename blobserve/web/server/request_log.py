"""The log of requests: the open requests, and for each that ends a log line and its metrics.

Aborted requests and refused heads are included.
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
from blobserve.errors import BlobserveError
from blobserve.metrics import Metrics
from blobserve.web.content.response_cache import CachedResponse
from blobserve.web.http.conditional import Fields
from blobserve.web.http.request_head import FieldBlock, HeadCheck, RequestContext, RequestLine
from blobserve.web.http.response import Answer
from blobserve.web.http.status import refusal
from blobserve.web.server.access_log import (
    LogRecord,
    client_address,
    parse_address,
)
from blobserve.web.server.send import abort

ABORTED = 499
"""The status that is logged if the client left before the response began."""

_METHODS = {
    name.upper().encode(): name
    for name in ("get", "head", "options", "post", "put", "patch", "delete", "trace", "connect")
}


class LogWriter(Protocol):
    """A destination of log records, such as `AccessLog`."""

    def write(self, served: LogRecord) -> None:
        """Write a record."""
        ...


@attrs.frozen(eq=False)
class RequestRecord:
    """A request that has not ended."""

    request: Request
    asked: RequestContext
    request_id: str
    started: float
    """The time by the reactor's clock."""


class RequestLog:
    """The log and the metrics of all requests of one server."""

    def __init__(
        self,
        config: Callable[[], Config],
        reactor: IReactorTime,
        metrics: Metrics,
        log: LogWriter,
        wall: Callable[[], float],
    ) -> None:
        """`wall` returns the time of day, in seconds since 1970."""
        self._wall = wall
        self._config = config
        self._reactor = reactor
        self._metrics = metrics
        self._log = log
        self.open: dict[Request, RequestRecord] = {}
        """The requests that have not ended."""
        self._idle: list[Deferred[None]] = []
        process = os.urandom(4).hex()
        self.ids = (f"{process}-{number:x}" for number in count(1))
        """The ids of requests in the logs, different in every process."""

    def begin(self, request: Request, asked: RequestContext) -> RequestRecord:
        """Open the record of a request. It is closed and logged when the request ends."""
        record = RequestRecord(request, asked, next(self.ids), self._reactor.seconds())
        self.open[request] = record
        self._metrics.requests_in_flight.inc()
        request.notifyFinish().addCallbacks(
            lambda _: self._end(record, request.code),
            # A response that has begun keeps its status; the bytes sent show that it was cut off.
            lambda _: self._end(record, request.code if request.startedWriting else ABORTED),
        )
        return record

    def idle(self) -> Deferred[None]:
        """Return a Deferred that fires when no request is open.

        The work for the last request has then been cancelled if its client has left.
        """
        waiter: Deferred[None] = Deferred(lambda cancelled: self._idle.remove(cancelled))
        self._idle.append(waiter)
        self._tell()
        return waiter

    def abort(self) -> None:
        """Abort the connections of all open requests."""
        for request in list(self.open):
            abort(request)

    def refuse(self, peer: str, head: HeadCheck, error: BlobserveError) -> Answer:
        """Log and count a refused head, which never became a request; return the answer to it."""
        request_id = next(self.ids)
        answer = refusal(error, request_id)
        self._write(
            LogRecord(
                time=self._wall(),
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
        return answer

    def answered(
        self,
        peer: str,
        line: RequestLine,
        block: FieldBlock,
        cached: CachedResponse,
        status: int,
        sent: int,
        started: float,
        received: float,
        host: bytes | None,
        config: Config,
    ) -> None:
        """Log and count a request of HTTP/1.1 that the fast path has answered.

        :param started: its start by the reactor's clock.
        :param received: its start as time of day, in seconds since 1970.
        :param host: the result of the function `asked_host`.
        """
        if block.forwarded and config.trusted_proxies:
            peer = client_address(peer, [block.forwarded], config.trusted_proxies)
        method, duration = line.method, self._reactor.seconds() - started
        self._metrics.requests.count(_METHODS[method], status, duration)
        self._log.write(
            # By position: with keywords, creating the record takes half a microsecond more.
            LogRecord(
                received,
                peer,
                method,
                line.target,
                b"HTTP/1.1",
                status,
                sent,
                duration,
                cached.result,
                cached.digest,
                next(self.ids),
                block.referer,
                block.agent,
                host,
            )
        )

    def _end(self, record: RequestRecord, status: int) -> None:
        request, asked = record.request, record.asked
        head, fields = asked.head, asked.head.fields
        duration = self._reactor.seconds() - record.started
        del self.open[request]
        self._metrics.requests_in_flight.dec()
        self._write(
            LogRecord(
                time=self._wall() - duration,
                address=self._client(peer_of(request.client), fields),
                method=head.method,
                target=head.target,
                version=request.clientproto,
                status=status,
                sent=request.sentLength,
                duration=duration,
                cache=asked.cache,
                digest=None if asked.digest is None else str(asked.digest),
                request_id=record.request_id,
                referer=fields.get(b"referer"),
                agent=fields.get(b"user-agent"),
                host=head.asked_host,
            )
        )
        if not self.open and self._idle:
            # The handler of the request is notified of its end after this log. A waiter that closes
            # the store at once would fail that handler, which would answer a lost connection.
            self._reactor.callLater(0, self._tell)

    def _client(self, peer: str, fields: Fields) -> str:
        """Return the address of the client, which a trusted proxy may have forwarded."""
        trusted = self._config().trusted_proxies
        forwarded = fields.get(b"x-forwarded-for") if trusted else None
        return client_address(peer, [forwarded], trusted) if forwarded else peer

    def _write(self, served: LogRecord) -> None:
        """Count a request and write its record."""
        self._count(served.method, served.status, served.duration)
        self._log.write(served)

    def _count(self, method: bytes, status: int, duration: float) -> None:
        # Only known methods become labels, because clients could invent any number of others.
        self._metrics.requests.count(_METHODS.get(method, "unknown"), status, duration)

    def _tell(self) -> None:
        if not self.open:
            waiting, self._idle = self._idle, []
            for waiter in waiting:
                waiter.callback(None)


def peer_of(address: object) -> str:
    """Return the host of a Twisted address; a dash if there is none, as for a Unix socket.

    The zone of a link-local address is removed, because clients and trusted proxies are compared
    by address.
    """
    host = getattr(address, "host", None)
    return _peer(host) if isinstance(host, str) else "-"


@lru_cache(maxsize=512)
def _peer(host: str) -> str:
    parsed = parse_address(host.partition("%")[0])
    return "-" if parsed is None else str(parsed)
