"""Answers from a plain Twisted site, over an in-memory transport or real connections."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from blobserve.errors import BlobDamaged
from blobserve.metrics import Metrics
from blobserve.web.http.response import Answer, StoredBody
from blobserve.web.server.send import PIECE, send
from blobserve.web.server.slow_clients import SlowClients

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
Listen = Callable[[Any, Site], Any]


def the_reactor() -> Any:
    """Return the reactor of the tests."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    return reactor


def a_pace(minimum: int = 1024, clock: IReactorTime | None = None) -> tuple[SlowClients, Metrics]:
    """Return a limit on slow clients, by default with a clock that stands still, and metrics."""
    metrics = Metrics()
    return SlowClients(lambda: minimum, clock or Clock(), metrics.slow_clients), metrics


@attrs.define(eq=False)
class FileBody:
    """A body in a file for `sendfile` only; reading it is an error."""

    content: bytes = attrs.field(repr=False)
    descriptor: int
    start: int = 0
    cached: bool = True
    """Whether the page cache has the bytes."""
    closed: int = 0
    asked: list[tuple[int, int]] = attrs.field(factory=list)
    """The ranges that were asked about, one in each iteration."""
    waiting: list[Deferred[None]] = attrs.field(factory=list)
    """The pending reads from the disk."""

    @property
    def size(self) -> int:
        return len(self.content)

    @property
    def stored(self) -> StoredBody | None:
        return self

    def read_cached(self, offset: int, length: int) -> bytes | None:
        raise AssertionError("it was to be sent by sendfile")

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        raise AssertionError("it was to be sent by sendfile")

    def is_cached(self, offset: int, length: int) -> bool:
        self.asked.append((offset, length))
        return self.cached

    def read_ahead(self, offset: int, length: int) -> Deferred[None]:
        self.waiting.append(Deferred())
        return self.waiting[-1]

    def lost(self, problem: str) -> BlobDamaged:
        return BlobDamaged("sha256:00", problem)

    def close(self) -> None:
        self.closed += 1


class ReadableBody(FileBody):
    """A body in a file that can also be read; `reads` counts this."""

    reads = 0

    def read_cached(self, offset: int, length: int) -> bytes | None:
        self.reads += 1
        return self.content[offset : offset + length]

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        return succeed(self.content[offset : offset + length])


@contextmanager
def stored(
    directory: Path, content: bytes, start: int = 0, kind: type[FileBody] = FileBody
) -> Iterator[FileBody]:
    """Make a file with a body at offset `start`, between other bytes."""
    path = directory / "content"
    path.write_bytes(b"<" * start + content + b">" * 1000)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield kind(content, descriptor, start)
    finally:
        os.close(descriptor)


class Wire(StringTransport):
    """A transport that pauses its producer as TCP does, and sends only when the test drains it."""

    disconnecting = False

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self.sent = b""

    def write(self, data: bytes) -> None:
        super().write(data)
        self.most = max(self.most, len(self.value()))
        if self.producer is not None and len(self.value()) > PIECE:
            self.producer.pauseProducing()

    def drain(self) -> bool:
        """Send the buffered bytes and resume the producer; return whether there were any."""
        waiting = self.value()
        self.clear()
        self.sent += waiting
        if self.producer is not None:
            self.producer.resumeProducing()
        return bool(waiting)


@attrs.define
class SlowBody:
    """A body that is never cached; each read waits until the test answers it."""

    content: bytes
    closed: int = 0
    reads: list[tuple[int, int, Deferred[bytes]]] = attrs.field(factory=list)

    @property
    def size(self) -> int:
        return len(self.content)

    def read_cached(self, offset: int, length: int) -> bytes | None:
        return None

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        wanted: Deferred[bytes] = Deferred()
        self.reads.append((offset, length, wanted))
        return wanted

    @property
    def stored(self) -> None:
        return None

    def close(self) -> None:
        self.closed += 1

    def answer(self, at_most: int = PIECE) -> None:
        """Answer the oldest read."""
        offset, length, wanted = self.reads.pop(0)
        wanted.callback(self.content[offset : offset + min(length, at_most)])


class Sends(Resource):
    """A resource that sends its answers in order and keeps the outcomes."""

    isLeaf = True  # noqa: N815

    def __init__(self, answers: Iterable[Answer], pace: SlowClients) -> None:
        super().__init__()
        self.answers = iter(answers)
        self.pace = pace
        self.requests: list[Request] = []
        self.outcomes: list[Any] = []

    def render(self, request: Request) -> int:
        self.requests.append(request)
        sending = Deferred.fromCoroutine(send(request, next(self.answers), self.pace))
        request.notifyFinish().addErrback(lambda _: sending.cancel())
        sending.addCallback(lambda _: request.finish()).addBoth(self.outcomes.append)
        return cast("int", NOT_DONE_YET)


def connected(*answers: Answer, pace: SlowClients | None = None) -> tuple[Any, Wire, Sends]:
    """Return a channel of a site with these answers, its transport and its resource."""
    resource = Sends(answers, pace or a_pace()[0])
    channel = Site(resource, reactor=Clock()).buildProtocol(None)
    wire = Wire()
    channel.makeConnection(wire)
    return channel, wire, resource


def on_tcp(reactor: Any, site: Site) -> Any:
    """Listen on a loopback port."""
    return reactor.listenTCP(0, site, interface="127.0.0.1")


@asynccontextmanager
async def sending(
    *answers: Answer, listen: Listen = on_tcp, pace: SlowClients | None = None
) -> AsyncIterator[tuple[Sends, Any]]:
    """Run a plain Twisted site that sends these answers; yield its resource and port."""
    reactor = the_reactor()
    resource = Sends(answers, pace or a_pace()[0])
    port = listen(reactor, Site(resource, reactor=reactor))
    try:
        yield resource, port
    finally:
        await port.stopListening()
        for request in resource.requests:
            if getattr(request.transport, "connected", True):
                request.transport.abortConnection()
        await turns(2)


async def turns(count: int = 1) -> None:
    """Let the reactor run this number of iterations."""
    for _ in range(count):
        await deferLater(the_reactor(), 0)


async def until(condition: Callable[[], object]) -> None:
    """Let the reactor run until a condition holds; the time limit of the test bounds it."""
    while not condition():
        await deferLater(the_reactor(), 0.001)


class SlowReader:
    """A client that reads only on request, from a socket with a small buffer."""

    def __init__(self, port: int) -> None:
        self.received = b""
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.setblocking(False)
        self._socket.connect_ex(("127.0.0.1", port))

    async def send(self, content: bytes) -> None:
        """Send bytes once the connection is open."""
        while True:
            try:
                self._socket.sendall(content)
            except (BlockingIOError, OSError):
                await deferLater(the_reactor(), 0.001)
            else:
                return

    async def take(self, size: int) -> int:
        """Read up to `size` bytes; fewer if no more arrive for a while, or at the end."""
        taken = idle = 0
        while taken < size and idle < 50:
            try:
                piece = self._socket.recv(size - taken)
            except BlockingIOError:
                idle += 1
                await deferLater(the_reactor(), 0.001)
            else:
                if not piece:
                    break
                idle = 0
                taken += len(piece)
                self.received += piece
        return taken

    def reset(self) -> None:
        """Reset the connection."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._socket.close()

    def close(self) -> None:
        """Close the connection; it may be called again."""
        self._socket.close()

    def __enter__(self) -> SlowReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
