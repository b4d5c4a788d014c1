"""A proxy that adds network faults to the answers of a real server.

It stands before any server on 127.0.0.1 and can delay, slow down, truncate, silence or change each
answer. It understands HTTP up to the end of a head, and carries one request a connection. With
`speaks_http` false it passes all bytes on alike.
"""

from __future__ import annotations

import fcntl
import re
import struct
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.interfaces import IPullProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.support.scripted_registry import Asked

_TICK = 0.02


@attrs.frozen
class Fault:
    """The fault of one answer, with offsets from the start of the body.

    The first byte is `latency` seconds late. `bandwidth` is in bytes per second, None for no limit.
    After `after` bytes the answer ends by FIN, by RST, or in silence. Byte `corrupt` is changed,
    and `edit` changes the head. Without HTTP offsets count all bytes of the answer.
    """

    latency: float = 0.0
    bandwidth: float | None = None
    after: int | None = None
    end: Literal["fin", "rst", "silence"] = "fin"
    corrupt: int | None = None
    edit: Callable[[bytes], bytes] = attrs.field(default=lambda head: head)


NONE = Fault()
"""An unchanged answer."""


def having(**fields: str | None) -> Fault:
    """Replace header fields of an answer, ``_`` for ``-``; None removes one."""
    names = {name.replace("_", "-").lower(): value for name, value in fields.items()}

    def edit(head: bytes) -> bytes:
        status, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        kept = [each for each in lines if each.partition(":")[0].lower() not in names]
        added = [f"{name}: {value}" for name, value in names.items() if value is not None]
        return "\r\n".join([status, *kept, *added, "", ""]).encode("latin-1")

    return Fault(edit=edit)


class FaultProxy:
    """A proxy that listens on `host`, made by `faulty`; `requests` have gone through it."""

    def __init__(self, port: int, speaks_http: bool) -> None:
        self.port = port
        self.speaks_http = speaks_http
        self.host = ""
        self.requests: list[Asked] = []
        self.connections: list[_Front] = []
        """The open connections of clients."""
        self.accepted = 0
        """The number of connections so far."""
        self._script: list[tuple[re.Pattern[str], list[Fault]]] = []
        self._lasting: list[tuple[re.Pattern[str], Fault]] = []

    def script(self, pattern: str, *faults: Fault) -> None:
        """Queue one fault each for the next requests with `pattern` in their ``METHOD /target``."""
        self._script.append((re.compile(pattern), list(faults)))

    def always(self, pattern: str, fault: Fault) -> None:
        """Use this fault for every request without a queued one."""
        self._lasting.append((re.compile(pattern), fault))

    def asked(self, pattern: str) -> list[Asked]:
        """Return all requests so far with `pattern` in their ``METHOD /target``."""
        return [
            each for each in self.requests if re.search(pattern, f"{each.method} {each.target}")
        ]

    def fault(self, line: str) -> Fault:
        """Return the fault of this request."""
        for pattern, faults in self._script:
            if faults and pattern.search(line):
                return faults.pop(0)
        return next((fault for pattern, fault in self._lasting if pattern.search(line)), NONE)


@asynccontextmanager
async def faulty(port: int, speaks_http: bool = True) -> AsyncIterator[FaultProxy]:
    """Run a proxy on another port before this port of 127.0.0.1."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    proxy = FaultProxy(port, speaks_http)
    factory = Factory.forProtocol(lambda: _Front(proxy, reactor))
    factory.noisy = False
    listening = reactor.listenTCP(0, factory, interface="127.0.0.1")
    proxy.host = f"127.0.0.1:{listening.getHost().port}"
    try:
        yield proxy
    finally:
        await listening.stopListening()
        for connection in list(proxy.connections):
            connection.transport.abortConnection()
        while proxy.connections:
            await proxy.connections[0].lost


class _Front(Protocol):
    """The connection from the client."""

    transport: Any

    def __init__(self, proxy: FaultProxy, reactor: Any) -> None:
        self._proxy = proxy
        self._reactor = reactor
        self._asked = bytearray()
        self._back: _Back | None = None
        self._way: _Way | None = None
        self.lost: Deferred[None] = Deferred()
        """Fires when this connection has ended."""

    def connectionMade(self) -> None:
        self._proxy.connections.append(self)
        self._proxy.accepted += 1
        if not self._proxy.speaks_http:
            self._pass_on(self._proxy.fault(""))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._proxy.connections.remove(self)
        if self._way is not None:
            self._way.close()
        self.drop_back()
        self.lost.callback(None)

    def dataReceived(self, data: bytes) -> None:
        self._asked += data
        if self._back is not None and self._way is not None:
            self._back.send(self._asked)
            self._way.asked()
        elif b"\r\n\r\n" in self._asked:
            self._pass_on(self._read_head())

    def drop_back(self) -> None:
        """Close the connection to the server."""
        if self._back is not None:
            self._back.drop()

    def _read_head(self) -> Fault:
        head, _, body = bytes(self._asked).partition(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        method, target, _ = line.split(" ")
        headers = {n.lower(): v.strip() for n, _, v in (each.partition(":") for each in fields)}
        self._proxy.requests.append(Asked(method, target, headers))
        kept = [each for each in fields if not each.lower().startswith("connection:")]
        lines = "\r\n".join([line, *kept, "Connection: close", "", ""])
        self._asked = bytearray(lines.encode("latin-1") + body)
        return self._proxy.fault(f"{method} {target}")

    def _pass_on(self, fault: Fault) -> None:
        self._way = _Way(self, fault, self._reactor, self._proxy.speaks_http)
        self._back = _Back(self._way)
        server = TCP4ClientEndpoint(self._reactor, "127.0.0.1", self._proxy.port)
        connected = connectProtocol(server, self._back)
        connected.addErrback(lambda _: self.transport.abortConnection())
        self._back.send(self._asked)


class _Back(Protocol):
    """The connection to the server."""

    transport: Any = None

    def __init__(self, way: _Way) -> None:
        self._way = way
        self._asked = bytearray()
        self._is_dropped = False

    def send(self, asked: bytearray) -> None:
        """Send these bytes once connected, and clear the buffer."""
        self._asked += asked
        asked.clear()
        if self.transport is not None:
            self.transport.write(bytes(self._asked))
            self._asked.clear()

    def drop(self) -> None:
        """Close the connection."""
        self._is_dropped = True
        if self.transport is not None:
            self.transport.abortConnection()

    def connectionMade(self) -> None:
        if self._is_dropped:
            self.transport.abortConnection()
        else:
            self.send(bytearray())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self._is_dropped:
            self._way.end("fin")

    def dataReceived(self, data: bytes) -> None:
        self._way.take(data)


class _Way:
    """The flow of one answer back to the client."""

    def __init__(self, front: _Front, fault: Fault, reactor: Any, has_head: bool) -> None:
        self._front = front
        self._fault = fault
        self._reactor = reactor
        self._head: bytearray | None = bytearray() if has_head else None
        self._count = 0
        self._queue = bytearray()
        self._at_once = 0
        """The number of bytes at the front of the queue that belong to the head and are not slowed.
        """
        self._end: str | None = None
        self._timer: Any = None
        self._is_late = fault.latency > 0

    def asked(self) -> None:
        """Apply a fault before the first byte, since the client has sent something."""
        if self._head is None:
            self.take(b"")

    def take(self, data: bytes) -> None:
        """Queue bytes from the server."""
        if self._head is not None:
            self._head += data
            head, found, data = bytes(self._head).partition(b"\r\n\r\n")
            if not found:
                return
            self._head = None
            self._queue += self._fault.edit(head + found)
            self._at_once = len(self._queue)
        self._take_body(bytearray(data))
        self._pump()

    def end(self, how: str) -> None:
        """End the answer, by FIN unless the fault says otherwise."""
        self._end = self._end or how
        self._pump()

    def close(self) -> None:
        """Drop the queue, since the client has left."""
        self._end = "gone"
        self._queue.clear()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _take_body(self, data: bytearray) -> None:
        fault, place = self._fault, -1
        if self._end is not None:
            return
        if fault.corrupt is not None:
            place = fault.corrupt - self._count
        if 0 <= place < len(data):
            data[place] ^= 1
        if fault.after is not None and self._count + len(data) >= fault.after:
            del data[fault.after - self._count :]
            self._end = fault.end
            self._front.drop_back()
        self._count += len(data)
        self._queue += data

    def _pump(self) -> None:
        if self._timer is not None and self._timer.active():
            return
        bandwidth = self._fault.bandwidth
        if self._is_late:
            self._is_late = False
            self._again(self._fault.latency)
            return
        tick = max(_TICK, 1 / (bandwidth or 1))
        size = len(self._queue) if bandwidth is None else self._at_once + int(bandwidth * tick)
        chunk, self._at_once = bytes(self._queue[:size]), 0
        del self._queue[:size]
        if self._queue:
            self._front.transport.write(chunk)
            self._again(tick)
        else:
            self._send_last(chunk)

    def _again(self, seconds: float) -> None:
        self._timer = self._reactor.callLater(seconds, self._pump)

    def _send_last(self, chunk: bytes) -> None:
        """Send the queued bytes, and end the answer if it is complete."""
        transport = self._front.transport
        if self._end == "rst" and chunk:
            transport.registerProducer(_Reset(transport, chunk, self._reactor), False)
            return
        if chunk:
            transport.write(chunk)
        if self._end == "fin":
            transport.loseConnection()
        elif self._end == "rst":
            transport.abortConnection()


@implementer(IPullProducer)
class _Reset:
    """A producer that resets a connection once the peer's kernel has all bytes."""

    def __init__(self, transport: Any, last: bytes, reactor: Any) -> None:
        self._transport = transport
        self._last = last
        self._reactor = reactor

    def resumeProducing(self) -> None:
        """See `IPullProducer.resumeProducing`: called first to write, then to reset."""
        if self._last:
            last, self._last = self._last, b""
            self._transport.write(last)
        else:
            self._transport.unregisterProducer()
            self._reset()

    def stopProducing(self) -> None:
        """See `IProducer.stopProducing`: there is no connection left to reset."""

    def _reset(self) -> None:
        if not self._transport.connected:
            return
        buffer = bytearray(4)
        fcntl.ioctl(self._transport.getHandle(), termios.TIOCOUTQ, buffer)
        if struct.unpack("i", buffer)[0]:
            self._reactor.callLater(0.005, self._reset)
        else:
            self._transport.abortConnection()
