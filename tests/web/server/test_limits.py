"""The limits for one client: time for a head, silence, connections."""

from __future__ import annotations

import socket
from ipaddress import ip_network
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
from twisted.internet import ssl
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from blobserve.config import BlobSpaceRules, Config, Limits, RepositoryRules
from blobserve.metrics import Metrics
from blobserve.testing import InlineThreads
from blobserve.web.site import make_site
from tests.oci.http.test_tls import Authority
from tests.support.sites import REPOSITORY, TAG, Client, MemoryLog, Response, serving
from tests.support.source_fixtures import until
from tests.support.within import within

HEAD = b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n"
"""A request that is answered without an image."""
ANSWER = b"HTTP/1.1 204 No Content\r\n"
PATH = f"/{TAG}/a.txt".encode()
GOOD = b"GET " + PATH + b" HTTP/1.1\r\nHost: x\r\n\r\n"
FILES = {"a.txt": b"content"}


class Wire(StringTransport):
    """The server's end of a connection; with `stuck` its client takes nothing and never closes."""

    def __init__(self, stand: Stand, peer: IAddress, stuck: bool) -> None:
        super().__init__(peerAddress=peer, lenient=True)
        self.channel: Any = stand.site.buildProtocol(peer)
        self.is_half_closed = self.is_lost = False
        self._clock = stand.clock
        self._stuck = stuck
        self.channel.makeConnection(self)

    def send(self, content: bytes) -> bytes:
        """Deliver bytes from the client; return the answer."""
        self.clear()
        self.channel.dataReceived(content)
        return self.value()

    def loseWriteConnection(self) -> None:
        self.is_half_closed = True

    def unregisterProducer(self) -> None:
        self.producer = None

    def loseConnection(self) -> None:
        super().loseConnection()
        if not self._stuck:
            self._clock.callLater(0, self.lose, Failure(ConnectionDone()))

    def abortConnection(self) -> None:
        self.disconnecting = self.disconnected = True
        self._clock.callLater(0, self.lose, Failure(ConnectionAborted()))

    def lose(self, why: Failure) -> None:
        """End, once."""
        if not self.is_lost:
            self.is_lost = True
            self.channel.connectionLost(why)


class Stand:
    """A site without images, and its clock."""

    def __init__(self, trusted: str | None = None, **limits: Any) -> None:
        self.clock = Clock()
        self.metrics, self.log = Metrics(), MemoryLog()
        self.config = Config(
            blob_space=BlobSpaceRules(Path("nowhere")),
            limits=Limits(**limits),
            trusted_proxies=(ip_network(trusted),) if trusted else (),
        )
        self.site = make_site(
            cast("Any", None),
            lambda: self.config,
            self.clock,
            InlineThreads(),
            self.metrics,
            self.log,
        )

    def limit(self, **limits: Any) -> None:
        """Reload with other limits."""
        self.config = attrs.evolve(self.config, limits=Limits(**limits))
        self.site.flush()

    def connect(self, peer: IAddress | None = None, stuck: bool = False) -> Wire:
        """Open a connection."""
        wire = Wire(self, peer or IPv4Address("TCP", "192.0.2.1", 1024), stuck)
        self.turn()
        return wire

    def used(self, peer: IAddress | None = None) -> Wire:
        """Open a connection on which a request has just been answered."""
        wire = self.connect(peer)
        assert wire.send(HEAD).startswith(ANSWER)
        return wire

    def turn(self, seconds: float = 0.0) -> None:
        """Let time pass, and the reactor run the calls that are due."""
        self.clock.advance(seconds)
        self.clock.advance(0)

    def counted(self, name: str, **labels: str) -> float:
        """Return the value of one of its metrics."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def is_come_again(raw: bytes) -> bool:
    """Return whether the bytes are a whole refusal of a connection."""
    response = Response.parse(raw)
    assert (response.status, response.body) == (503, b"timeout")
    assert response.headers["retry-after"] == "1"
    assert response.headers["cache-control"] == "no-store"
    return response.headers["connection"] == "close"


# --- The head -------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [b"", b"\r\n", HEAD, HEAD + b"\r\n"])
def test_a_head_that_trickles(before: bytes) -> None:
    """A head that is not complete 10 s after its first byte gets a 408, however it arrives."""
    stand = Stand()
    wire = stand.connect()
    stand.turn(30)
    assert wire.send(before + HEAD[:1]).count(ANSWER) == before.count(HEAD)
    for at in range(1, 10):
        stand.turn(1.1)
        assert wire.send(HEAD[at : at + 1]) == b""
    assert not wire.is_half_closed
    wire.clear()
    stand.turn(0.2)
    response = Response.parse(wire.value())
    assert response.status == 408
    assert response.body == b"the request head took too long\n"
    assert response.headers["connection"] == "close"
    assert wire.is_half_closed
    assert [served.status for served in stand.log][-1] == 408
    assert stand.counted("http_server_requests_total", method="unknown", code="408") == 1
    assert wire.send(HEAD[10:]) == b""


def test_a_blank_line_is_the_beginning_of_a_head() -> None:
    """An empty line before a request starts the deadline of its head."""
    stand = Stand()
    wire = stand.connect()
    wire.send(b"\r\n")
    stand.turn(10)
    assert Response.parse(wire.value()).status == 408


def test_every_head_has_its_own_deadline() -> None:
    """Each head has its own deadline of 10 s."""
    stand = Stand()
    wire = stand.connect()
    for _ in range(3):
        wire.send(HEAD[:3])
        stand.turn(6)
        # The end of one and the beginning of the next, in one piece.
        assert wire.send(HEAD[3:] + HEAD[:3]).count(ANSWER) == 1
        stand.turn(6)
        assert wire.send(HEAD[3:]).count(ANSWER) == 1
    stand.turn(50)
    assert not wire.disconnecting


def test_a_whole_head_costs_no_timer() -> None:
    """A request with a head in one piece starts no timer."""
    stand = Stand()
    wire = stand.connect()
    before = stand.clock.getDelayedCalls()
    times = [call.getTime() for call in before]
    made: list[object] = []
    call_later, stand.clock.callLater = stand.clock.callLater, made.append  # type: ignore[method-assign,assignment]
    assert wire.send(HEAD).count(ANSWER) == 1
    assert wire.send(HEAD * 5).count(ANSWER) == 5
    stand.clock.callLater = call_later  # type: ignore[method-assign]
    assert stand.clock.getDelayedCalls() == before
    assert [call.getTime() for call in before] == times
    assert made == []


def test_a_head_with_bare_line_ends() -> None:
    """A head with bare LF line ends is refused at once, before its deadline."""
    for head in (b"GET / HTTP/1.1\nHost: x\n\n", b"GET / HTTP/1.1\r\nHost: x\n\n", b"\n"):
        assert Response.parse(Stand().connect().send(head)).status == 400


@within(20)
async def test_a_head_behind_a_request_that_is_under_way(tmp_path: Path) -> None:
    """No deadline runs while the client waits for the server."""
    limits = Limits(client_head_timeout=0.1, client_idle_timeout=0.1)
    async with serving(tmp_path, FILES, limits=limits) as site:
        gate = site.source.hold("resolve")
        client = await site.connect()
        client.send(GOOD + GOOD[:9])
        await until(lambda: gate.waiting)
        await deferLater(site.reactor, 0.3)
        assert client.ended is None
        client.send(GOOD[9:])
        gate.open()
        answers = await client.all()
        assert (answers.count(b"HTTP/1.1 200 OK"), answers.count(b"HTTP/1.1")) == (2, 2)


# --- Silence --------------------------------------------------------------------------------------


def test_silence() -> None:
    """A connection without a request for 60 s is closed silently."""
    stand = Stand()
    silent, used = stand.connect(), stand.connect()
    stand.turn(30)
    used.send(HEAD)
    stand.turn(29.9)
    assert not silent.is_lost
    used.clear()
    stand.turn(0.2)
    assert (silent.is_lost, silent.value()) == (True, b"")
    stand.turn(29.7)
    assert not used.is_lost
    stand.turn(0.2)
    assert (used.is_lost, used.value()) == (True, b"")
    assert [served.status for served in stand.log] == [204]
    assert stand.counted("blobserve_connections") == 0
    assert stand.clock.getDelayedCalls() == []


@within(20)
async def test_silence_begins_with_the_end_of_a_response(tmp_path: Path) -> None:
    """The time for the next request starts at the end of a response."""
    async with serving(tmp_path, FILES) as site:
        gate = site.source.hold("resolve")
        client = await site.connect()
        client.send(GOOD)
        await until(lambda: gate.waiting)
        opened = site.reactor.seconds()
        gate.open()
        await client.some(200)
        [channel] = site.site.channels
        assert channel.active_at >= opened


def test_limits_follow_a_reload() -> None:
    """A reload changes the deadlines of open connections, except those of heads that have begun."""
    stand = Stand()
    silent, begun = stand.connect(), stand.connect()
    begun.send(HEAD[:5])
    stand.turn(5)
    stand.limit(client_idle_timeout=4, client_head_timeout=1)
    stand.turn()
    assert (silent.is_lost, begun.is_half_closed) == (True, False)
    stand.turn(5)
    assert begun.is_half_closed
    late = stand.used()
    late.send(HEAD[:5])
    stand.turn(1)
    assert late.is_half_closed
    stand.limit(client_idle_timeout=100)
    long = stand.connect()
    stand.turn(99)
    assert not long.is_lost


def test_who_is_refused_does_not_stay() -> None:
    """After a refusal the server reads for two seconds, and waits 15 s for the client to close."""
    stand = Stand()
    wire = stand.connect(stuck=True)
    assert Response.parse(wire.send(b"nonsense\r\n\r\n")).status == 400
    stand.turn(1.9)
    assert (wire.is_half_closed, wire.disconnecting) == (True, False)
    stand.turn(0.2)
    assert (wire.disconnecting, wire.disconnected) == (True, False)
    stand.turn(15)
    assert wire.is_lost
    assert stand.clock.getDelayedCalls() == []


def test_a_last_response_that_is_not_taken() -> None:
    """A client that does not take its last response is disconnected at the idle limit."""
    stand = Stand()
    wire = stand.connect(stuck=True)
    wire.send(HEAD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert wire.disconnecting
    stand.turn(74)
    stand.turn(0.9)
    assert not wire.is_lost
    stand.turn(0.2)
    stand.turn(15)
    assert wire.is_lost


# --- All connections ------------------------------------------------------------------------------


def test_the_longest_idle_makes_room() -> None:
    """At the limit the connection that has been idle longest is closed for a new one."""
    stand = Stand(client_connections=3)
    first, second, third = [stand.used() for _ in range(3) if stand.turn(1) is None]
    stand.turn(1)
    first.send(HEAD)
    fourth = stand.used()
    assert [wire.is_lost for wire in (first, second, third, fourth)] == [False, True, False, False]
    third.send(HEAD)
    fifth = stand.used()
    assert [wire.is_lost for wire in (first, third, fourth, fifth)] == [True, False, False, False]
    assert second.value().count(b"HTTP/1.1") == 1
    assert stand.counted("blobserve_connections") == 3
    assert stand.counted("blobserve_dismissed_connections_total") == 2
    assert stand.counted("blobserve_refused_connections_total", reason="total") == 0


def test_nobody_is_idle() -> None:
    """A new connection gets a 503 if all others are busy or have just been opened."""
    stand = Stand(client_connections=2)
    newcomer, reading = stand.connect(), stand.connect()
    reading.send(HEAD[:5])
    refused = stand.connect()
    assert is_come_again(refused.value())
    assert refused.is_half_closed
    assert refused.send(HEAD) == b""
    served = stand.log[-1]
    assert (served.status, served.method, served.target) == (503, b"-", b"-")
    assert served.address == "192.0.2.1"
    assert stand.counted("blobserve_refused_connections_total", reason="total") == 1
    assert stand.counted("http_server_requests_total", method="unknown", code="503") == 1
    assert newcomer.send(HEAD).startswith(ANSWER)
    assert reading.send(HEAD[5:]).startswith(ANSWER)


def test_silent_connections_make_room() -> None:
    """A silent connection can be replaced by a new one after a second."""
    stand = Stand(client_connections=2)
    silent = [stand.connect(), stand.connect()]
    stand.turn(1)
    assert stand.used().send(HEAD).startswith(ANSWER)
    assert [wire.is_lost for wire in silent] == [True, False]


def test_room_after_an_end() -> None:
    """A connection that ends makes space for another."""
    stand = Stand(client_connections=1)
    reading = stand.connect()
    reading.send(HEAD[:5])
    assert is_come_again(stand.connect().value())
    reading.lose(Failure(ConnectionDone()))
    assert stand.used()


def test_the_bound_follows_a_reload() -> None:
    """A lowered limit refuses connections until others end; a raised one applies at once."""
    stand = Stand(client_connections=5)
    for _ in range(5):
        stand.connect().send(HEAD[:5])
    stand.limit(client_connections=2)
    assert is_come_again(stand.connect().value())
    stand.limit(client_connections=7)
    assert stand.used()


def test_the_dismissed_are_bounded_too() -> None:
    """The number of refused clients that stay connected is bounded, and others are cut off."""
    stand = Stand(client_connections=1)
    stand.connect().send(HEAD[:5])
    lingering = [stand.connect(stuck=True) for _ in range(15)]
    assert all(wire.is_half_closed for wire in lingering)
    last = stand.connect(stuck=True)
    assert is_come_again(last.value())
    assert (last.is_half_closed, last.disconnecting) == (False, True)

    stand = Stand(client_connections=30)
    idle = [stand.connect(stuck=True) for _ in range(30)]
    stand.turn(1)
    for _ in range(30):
        stand.used()
    assert [wire.is_lost for wire in idle] == [False] * 15 + [True] * 15
    assert stand.counted("blobserve_connections") == 45


def test_a_search_for_idle_connections_is_not_repeated_at_once() -> None:
    """The search for idle connections runs once an iteration, not for each new connection."""
    stand = Stand(client_connections=3)
    wires = [stand.connect() for _ in range(3)]
    for wire in wires:
        wire.send(HEAD[:5])
    looked: list[object] = []

    class Watched(type(wires[0].channel)):  # type: ignore[misc]
        @property
        def is_spare(self) -> bool:
            looked.append(self)
            return bool(super().is_spare)

    for wire in wires:
        wire.channel.__class__ = Watched
    for _ in range(10):
        assert is_come_again(stand.connect().value())
    assert len(looked) == 3
    stand.turn(0.001)
    stand.connect()
    assert len(looked) == 6


@within(30)
async def test_tls_at_the_bound(tmp_path: Path) -> None:
    """Over TLS too a refused connection gets the reason."""
    authority = Authority.make(tmp_path)
    root = ssl.Certificate.loadPEM(authority.write(tmp_path / "ca.pem").read_text())
    trusted = ssl.optionsForClientTLS("localhost", ssl.trustRootFromCertificates([root]))
    async with serving(tmp_path, FILES, limits=Limits(client_connections=1)) as site:
        context = authority.issue("localhost")
        port = site.reactor.listenSSL(0, site.site, context, interface="127.0.0.1")
        try:
            begun = await site.connect()
            begun.send(GOOD[:5])
            await until(lambda: [each for each in site.site.channels if not each.is_spare])
            endpoint = TCP4ClientEndpoint(site.reactor, "127.0.0.1", port.getHost().port)
            client = await connectProtocol(wrapClientTLS(trusted, endpoint), Client())
            assert is_come_again(await client.all())
            begun.send(GOOD[5:])
            assert (await begun.some(200)).endswith(b"content")
        finally:
            await port.stopListening()


@within(30)
async def test_a_handshake_that_never_ends(tmp_path: Path) -> None:
    """A client that is silent or slow in its TLS handshake is closed like a silent one."""
    authority = Authority.make(tmp_path)
    async with serving(tmp_path, limits=Limits(client_idle_timeout=0.3)) as site:
        port = site.reactor.listenSSL(
            0, site.site, authority.issue("localhost"), interface="127.0.0.1"
        )
        try:
            endpoint = TCP4ClientEndpoint(site.reactor, "127.0.0.1", port.getHost().port)
            clients = [await connectProtocol(endpoint, Client()) for _ in range(2)]
            for byte in b"\x16\x03\x01\x7f":
                clients[0].send(bytes([byte]))
                await deferLater(site.reactor, 0.1)
            assert [await client.all() for client in clients] == [b"", b""]
        finally:
            await port.stopListening()


# --- Connections of one client --------------------------------------------------------------------


def v4(host: str) -> IPv4Address:
    """Return an IPv4 peer."""
    return IPv4Address("TCP", host, 1024)


def v6(host: str) -> IPv6Address:
    """Return an IPv6 peer."""
    return IPv6Address("TCP", host, 1024)


@pytest.mark.parametrize(
    ("first", "same", "other"),
    [
        (v4("192.0.2.1"), v4("192.0.2.1"), v4("192.0.2.2")),
        (v6("2001:db8::1"), v6("2001:db8::ffff:1"), v6("2001:db8:0:1::1")),
        (v4("192.0.2.1"), v6("::ffff:192.0.2.1"), v6("::ffff:192.0.2.2")),
        (v6("fe80::1%eth0"), v6("fe80::2%eth0"), v4("192.0.2.1")),
    ],
)
def test_connections_of_one_client(first: IAddress, same: IAddress, other: IAddress) -> None:
    """The limit applies to each IPv4 address and each IPv6 /64."""
    stand = Stand(client_connections_per_address=2)
    wires = [stand.used(first), stand.used(same)]
    refused = stand.connect(same)
    assert is_come_again(refused.value())
    assert stand.counted("blobserve_refused_connections_total", reason="address") == 1
    assert stand.log[-1].status == 503
    assert stand.used(other)
    # A refused connection that is still open does not count.
    wires[0].lose(Failure(ConnectionDone()))
    assert stand.used(first)
    for wire in (*wires, refused):
        wire.lose(Failure(ConnectionDone()))


def test_who_is_not_counted() -> None:
    """Trusted proxies and Unix sockets have no such limit, and without the key no client has."""
    stand = Stand("192.0.2.0/24", client_connections_per_address=1)
    for _ in range(5):
        stand.used(v4("192.0.2.1"))
        stand.used(UNIXAddress(b"/run/x"))
    stand.used(v4("198.51.100.1"))
    assert is_come_again(stand.connect(v4("198.51.100.1")).value())
    stand.limit()
    for _ in range(5):
        stand.used(v4("198.51.100.1"))
    # Connections opened without a limit count when there is one again.
    stand.limit(client_connections_per_address=6)
    assert is_come_again(stand.connect(v4("198.51.100.1")).value())


def test_link_local_clients_are_counted_without_their_zone() -> None:
    """Link-local clients are counted by their /64 on any interface, and a proxy may be one."""
    stand = Stand("fe80::aaaa/128", client_connections_per_address=1)
    stand.used(IPv6Address("TCP", "fe80::1%eth0", 1))
    refused = stand.connect(IPv6Address("TCP", "fe80::2%eth\u0661", 1))
    assert is_come_again(refused.value())
    for _ in range(3):
        stand.used(IPv6Address("TCP", "fe80::aaaa%eth0", 1))


def asking(client: str | None, path: bytes = PATH) -> bytes:
    """Return a request that a proxy passes on."""
    forwarded = b"" if client is None else b"X-Forwarded-For: " + client.encode() + b"\r\n"
    return b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n" + forwarded + b"\r\n"


@within(20)
async def test_requests_of_one_client_through_a_proxy(tmp_path: Path) -> None:
    """Through a trusted proxy a client's requests in flight are limited, not the proxy's."""
    limits = Limits(client_connections_per_address=2)
    trusted = (ip_network("127.0.0.0/8"),)
    async with serving(tmp_path, FILES, limits=limits, trusted_proxies=trusted) as site:
        site.rule(headers=(("Access-Control-Allow-Origin", "*"),))
        gate = site.source.hold("resolve")

        async def ask(client: str | None) -> Client:
            connection = await site.connect()
            connection.send(asking(client))
            return connection

        in_flight = "blobserve_requests_in_flight"
        held = [await ask("2001:db8::1"), await ask("192.0.2.9, 2001:db8::2")]
        await until(lambda: site.metrics.registry.get_sample_value(in_flight) == 2)
        proxy = await ask("2001:db8::3")
        refused = Response.parse(await proxy.some(200))
        assert (refused.status, refused.body) == (503, b"timeout")
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["access-control-allow-origin"] == "*"
        assert (site.log[-1].status, site.log[-1].address) == (503, "2001:db8::3")
        counted = site.metrics.registry.get_sample_value
        name = "blobserve_refused_connections_total"
        assert counted(name, {"reason": "address"}) == 1

        # A request of another client on the same connection of the proxy.
        others = [await ask(client) for client in (None, None, None, "127.0.0.9", "2001:db8:1::1")]
        proxy.received = b""
        proxy.send(asking("192.0.2.9"))
        # A client that leaves makes space for its next request.
        held.pop().transport.abortConnection()
        await until(lambda: len(site.log) == 2)
        held.append(await ask("2001:db8::4"))
        await until(lambda: site.metrics.registry.get_sample_value(in_flight) == 8)
        gate.open()
        for connection in (*held, *others, proxy):
            assert (await connection.some(200)).startswith(b"HTTP/1.1 200 OK")
        again = await ask("2001:db8::1")
        assert (await again.some(200)).startswith(b"HTTP/1.1 200 OK")


@within(60)
async def test_a_client_that_sends_requests_and_reads_nothing(tmp_path: Path) -> None:
    """While a client reads no response, the server reads few of its next requests into memory.

    When it reads, all of them are answered.
    """
    entries, count = {"d/" + f"{n:0200}": b"" for n in range(5_000)}, 200
    async with serving(tmp_path, {**FILES, **entries}) as site:
        site.rule(listing=True)
        client = await site.connect()
        client.transport.pauseProducing()
        client.send(f"GET /{TAG}/d/ HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await until(lambda: site.site.channels)
        [channel] = site.site.channels
        channel.transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        client.transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        await until(lambda: channel._waitingForTransport)
        pad = b"X-Pad: " + b"x" * 8000 + b"\r\n\r\n"
        client.send(GOOD.replace(b"\r\n\r\n", b"\r\n" + pad) * count)
        reading = lambda: channel.transport in site.reactor.getReaders()  # noqa: E731
        sent = lambda: not (client.transport.dataBuffer or client.transport._tempDataBuffer)  # noqa: E731
        await until(lambda: sent() or not reading())
        await deferLater(site.reactor, 0.1)
        assert sum(map(len, channel._dataBuffer)) < 200_000
        client.transport.resumeProducing()
        client.send(GOOD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert (await client.all()).count(b"\r\n\r\ncontent") == count + 1


@within(20)
async def test_a_client_leaves_before_its_refusal_is_sent(tmp_path: Path) -> None:
    """Refusals that a client no longer waits for leave nothing behind."""
    limits = Limits(client_connections_per_address=1)
    trusted = (ip_network("127.0.0.0/8"),)
    repos = {REPOSITORY: RepositoryRules(REPOSITORY)}
    async with serving(tmp_path, limits=limits, trusted_proxies=trusted, repos=repos) as site:
        gate = site.source.hold("resolve")
        holding = await site.connect()
        holding.send(asking("192.0.2.1"))
        await until(lambda: gate.waiting)
        client = await site.connect()
        await until(lambda: len(site.site.channels) == 2)
        [channel] = [each for each in site.site.channels if each.is_idle]
        channel.transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client.transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.transport.pauseProducing()
        client.send(asking("192.0.2.1") * 2000)
        # The connection is full, and the server waits to send one of the refusals.
        await until(lambda: channel._waitingForTransport)
        assert len(site.log) < 2000
        client.transport.abortConnection()
        await until(lambda: len(site.site.channels) == 1)
        holding.transport.abortConnection()
        await until(lambda: not site.site.channels)
        idle: Deferred[None] = site.site.request_log.idle()
        assert idle.called
