"""Large files on plain TCP by sendfile, and on other transports."""

from __future__ import annotations

import os
import random
import resource
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    UNIXClientEndpoint,
    connectProtocol,
    wrapClientTLS,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import LoopingCall
from twisted.internet.tcp import Server
from twisted.protocols.policies import WrappingFactory
from twisted.web.http import HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from blobserve.concurrency.threads import OwnThreads
from blobserve.config import Config
from blobserve.errors import BlobDamaged
from blobserve.metrics import Metrics
from blobserve.web.http.conditional import Range
from blobserve.web.http.response import Answer, BytesBody
from blobserve.web.server.bounded_site import BoundedSite
from blobserve.web.server.channel import ImageChannel
from blobserve.web.server.connection_limits import ConnectionLimits
from blobserve.web.server.send import PIECE
from blobserve.web.server.sendfile import TURN
from blobserve.web.server.slow_clients import unacknowledged
from tests.oci.http.test_tls import Authority
from tests.support.sites import TAG, Client, serving
from tests.support.twisted_answers import (
    GET,
    FileBody,
    ReadableBody,
    Sends,
    SlowReader,
    on_tcp,
    sending,
    stored,
    the_reactor,
    turns,
    until,
)
from tests.support.within import within

LAST = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
BIG = 5_000_001
NOISE = random.Random(1).randbytes(BIG)


async def connected(port: Any) -> Client:
    """Connect to a port."""
    endpoint = TCP4ClientEndpoint(the_reactor(), "127.0.0.1", port.getHost().port)
    return await connectProtocol(endpoint, Client())


def parted(raw: bytes) -> list[bytes]:
    """Return the bodies of consecutive answers, each by its length."""
    bodies = []
    while raw:
        head, _, rest = raw.partition(b"\r\n\r\n")
        [length] = [line for line in head.split(b"\r\n") if line.startswith(b"Content-Length: ")]
        size = int(length[16:])
        bodies.append(rest[:size])
        raw = rest[size:]
    return bodies


# --- The bytes ------------------------------------------------------------------------------------


@within(30)
@pytest.mark.parametrize("size", [PIECE + 1, TURN - 1, TURN, TURN + 1, BIG])
@pytest.mark.parametrize("start", [0, 513, 4096])
async def test_whole_files(tmp_path: Path, size: int, start: int) -> None:
    """A file larger than a piece is sent with exactly its bytes."""
    with stored(tmp_path, NOISE[:size], start) as body:
        async with sending(Answer(200, (), body)) as (site, port):
            client = await connected(port)
            client.send(LAST)
            assert parted(await client.all()) == [NOISE[:size]]
            assert (site.outcomes, body.closed) == ([None], 1)
            assert site.requests[0].sentLength == size


@within(30)
@pytest.mark.parametrize("length", [PIECE + 1, TURN, 2 * TURN + 5])
async def test_parts(tmp_path: Path, length: int) -> None:
    """A range of a file is sent with exactly its bytes."""
    with stored(tmp_path, NOISE, 512) as body:
        async with sending(Answer(206, (), body, Range(77_777, length))) as (site, port):
            client = await connected(port)
            client.send(LAST)
            assert parted(await client.all()) == [NOISE[77_777 : 77_777 + length]]
            assert site.requests[0].sentLength == length


@within(30)
async def test_no_more_than_a_turn(tmp_path: Path) -> None:
    """Between the steps of a large response the reactor does other work."""
    seen: list[int] = []
    with stored(tmp_path, NOISE * 3) as body:
        rounds = LoopingCall(lambda: seen.append(len(body.asked)))
        rounds.start(0)
        async with sending(Answer(200, (), body)) as (_, port):
            client = await connected(port)
            client.send(LAST)
            assert parted(await client.all()) == [NOISE * 3]
        rounds.stop()
    assert all(length <= TURN for _, length in body.asked)
    assert len(body.asked) >= 5
    assert all(after - before <= 1 for before, after in pairwise(seen))


@within(30)
async def test_nothing_is_kept_in_memory(tmp_path: Path) -> None:
    """A file that its client does not read takes no memory."""
    with stored(tmp_path, NOISE * 8) as body:
        async with sending(Answer(200, (), body)) as (site, port):
            with SlowReader(port.getHost().port) as reader:
                tracemalloc.start()
                try:
                    await reader.send(GET)
                    await until(lambda: site.requests and site.requests[0].sentLength > 100_000)
                    await turns(20)
                    kept, _ = tracemalloc.get_traced_memory()
                finally:
                    tracemalloc.stop()
                assert kept < PIECE / 4
                assert site.outcomes == []
            await until(lambda: site.outcomes)


# --- The connection -------------------------------------------------------------------------------


@within(30)
async def test_kept_alive(tmp_path: Path) -> None:
    """A connection serves other requests, large or small, after a large file."""
    with stored(tmp_path, NOISE) as body:
        big, small = Answer(200, (), body), Answer(200, (), BytesBody(b"small"))
        async with sending(big, small, big, big, small) as (site, port):
            client = await connected(port)
            for number in range(1, 5):
                client.send(GET)
                await until(lambda number=number: len(site.outcomes) == number)
            client.send(LAST)
            bodies = parted(await client.all())
            assert bodies == [NOISE, b"small", NOISE, NOISE, b"small"]
            assert body.closed == 3


@within(30)
async def test_pipelined(tmp_path: Path) -> None:
    """Requests behind a large file are answered in order, even more than one read delivers."""
    count = 1000
    with stored(tmp_path, NOISE) as body:
        big, small = Answer(200, (), body), Answer(200, (), BytesBody(b"small"))
        async with sending(big, *[small] * count, big, big) as (site, port):
            client = await connected(port)
            client.send(GET * (count + 2) + LAST)
            bodies = parted(await client.all())
            assert bodies == [NOISE, *[b"small"] * count, NOISE, NOISE]
            assert len(site.outcomes) == count + 3


class Floods(Resource):
    """A resource that fills the transport at once, and then sends as `sends` does."""

    isLeaf = True  # noqa: N815

    def __init__(self, sends: Sends) -> None:
        super().__init__()
        self._sends = sends
        self._has_flooded = False

    def render(self, request: Request) -> Any:
        if self._has_flooded:
            return self._sends.render(request)
        self._has_flooded = True
        return b"f" * 300_000


@within(30)
async def test_behind_a_flood(tmp_path: Path) -> None:
    """After a response that filled the transport, reading from the client is still limited."""
    with stored(tmp_path, NOISE) as body:
        body.cached = False
        answers = [Answer(200, (), body), *[Answer(200, (), BytesBody(b"small"))] * 3_001]

        def listen(reactor: Any, site: Site) -> Any:
            floods = Floods(cast("Sends", site.resource))
            connections: ConnectionLimits[ImageChannel] = ConnectionLimits(
                Config, reactor, Metrics()
            )
            return on_tcp(reactor, BoundedSite(floods, reactor, Config, connections))

        async with sending(*answers, listen=listen) as (site, port):
            client = await connected(port)
            client.send(GET * 2)
            await until(lambda: body.waiting)
            client.send(GET * 3_000 + LAST)
            reactor = the_reactor()
            await until(lambda: site.requests[0].transport not in reactor.getReaders())
            body.cached = True
            body.waiting[0].callback(None)
            bodies = parted(await client.all())
            assert bodies == [b"f" * 300_000, NOISE, *[b"small"] * 3_001]


# --- Clients that leave, and files that are lost --------------------------------------------------


@within(30)
@pytest.mark.parametrize("leave", [SlowReader.reset, SlowReader.close])
@pytest.mark.parametrize("after", [0, 1, 2, 5, 30])
async def test_a_client_that_leaves(
    tmp_path: Path, leave: Callable[[SlowReader], None], after: int
) -> None:
    """A file is released once when its client leaves, at any time and in any way."""
    with stored(tmp_path, NOISE * 3) as body:
        async with sending(Answer(200, (), body)) as (site, port):
            with SlowReader(port.getHost().port) as reader:
                await reader.send(GET)
                await until(lambda: site.requests)
                await turns(after)
                leave(reader)
                await until(lambda: site.outcomes)
                assert site.outcomes[0].check(CancelledError)
                assert body.closed == 1
                assert site.requests[0].sentLength < body.size


@within(30)
async def test_a_client_that_leaves_while_the_disk_works(tmp_path: Path) -> None:
    """A client that leaves during read-ahead is sent nothing afterwards."""
    with stored(tmp_path, NOISE) as body:
        body.cached = False
        async with sending(Answer(200, (), body)) as (site, port):
            with SlowReader(port.getHost().port) as reader:
                await reader.send(GET)
                await until(lambda: body.waiting)
                reader.reset()
                await until(lambda: site.outcomes)
                body.waiting[0].callback(None)
                assert (body.closed, len(body.waiting), site.requests[0].sentLength) == (1, 1, 0)


@within(30)
async def test_a_client_that_has_just_left(tmp_path: Path) -> None:
    """A socket that was reset counts as a client that left, not as an error."""
    with stored(tmp_path, NOISE) as body:
        body.cached = False
        async with sending(Answer(200, (), body)) as (site, port):
            with SlowReader(port.getHost().port) as reader:
                await reader.send(GET)
                await until(lambda: body.waiting)
                reader.reset()
                body.waiting[0].callback(None)
                assert (site.outcomes, site.requests[0].sentLength) == ([], 0)
            await until(lambda: site.outcomes)
            assert (bool(site.outcomes[0].check(CancelledError)), body.closed) == (True, 1)


@within(30)
async def test_reading_ahead(tmp_path: Path) -> None:
    """Uncached bytes are read ahead, a portion at a time, and then sent."""
    with stored(tmp_path, NOISE) as body:
        body.cached = False
        async with sending(Answer(200, (), body)) as (site, port):
            client = await connected(port)
            client.send(LAST)
            for number in range(-(-BIG // TURN)):
                await until(lambda number=number: len(body.waiting) > number)
                assert site.requests[0].sentLength <= number * TURN
                await turns(5)
                body.waiting[number].callback(None)
                if site.requests[0].sentLength < min((number + 1) * TURN, BIG):
                    body.cached = True
                    break
            assert parted(await client.all()) == [NOISE]


@within(30)
async def test_a_file_that_is_cut_short(tmp_path: Path) -> None:
    """A truncated file is an error after its last byte was sent."""
    with stored(tmp_path, NOISE) as body:
        os.truncate(tmp_path / "content", 3_000_000)
        async with sending(Answer(200, (), body)) as (site, port):
            client = await connected(port)
            client.send(GET)
            await until(lambda: site.outcomes)
            assert site.outcomes[0].check(BlobDamaged)
            assert (site.requests[0].sentLength, body.closed) == (3_000_000, 1)
            assert not site.requests[0].finished


@within(30)
async def test_a_disk_that_fails(tmp_path: Path) -> None:
    """An error of the disk is raised, in sending and in read-ahead."""
    with stored(tmp_path, NOISE) as body:
        broken = FileBody(NOISE, os.open(tmp_path / "new", os.O_WRONLY | os.O_CREAT))
        body.cached = False
        try:
            async with sending(Answer(200, (), broken), Answer(200, (), body)) as (site, port):
                for client in (await connected(port), await connected(port)):
                    client.send(GET)
                await until(lambda: body.waiting and site.outcomes)
                body.waiting[0].errback(OSError(5, "EIO"))
                assert [outcome.check(OSError) for outcome in site.outcomes] == [OSError, OSError]
                assert (broken.closed, body.closed) == (1, 1)
        finally:
            os.close(broken.descriptor)


@within(30)
async def test_a_connection_that_is_told_to_end(tmp_path: Path) -> None:
    """An application may close a connection during a response."""
    with stored(tmp_path, NOISE * 3) as body:
        async with sending(Answer(200, (), body)) as (site, port):
            client = await connected(port)
            client.send(GET)
            await client.some(1)
            client.transport.pauseProducing()
            await turns(20)
            site.requests[0].loseConnection()
            client.transport.resumeProducing()
            assert len(await client.all()) < body.size
            assert (bool(site.outcomes[0].check(CancelledError)), body.closed) == (True, 1)


# --- Without sendfile -----------------------------------------------------------------------------


@within(30)
async def test_a_file_that_cannot_be_sent_so(tmp_path: Path) -> None:
    """On a file system without sendfile the file is read."""
    descriptor = os.open("/proc/self/cmdline", os.O_RDONLY)
    try:
        body = ReadableBody(NOISE, descriptor)
        async with sending(Answer(206, (), body, Range(5, BIG - 5))) as (site, port):
            client = await connected(port)
            client.send(LAST)
            assert parted(await client.all()) == [NOISE[5:]]
            assert (site.requests[0].sentLength, len(body.asked)) == (BIG - 5, 1)
    finally:
        os.close(descriptor)


@within(30)
async def test_small_files(tmp_path: Path) -> None:
    """A file of at most one piece is read, and sent with its head."""
    with stored(tmp_path, NOISE[:PIECE], kind=ReadableBody) as body:
        async with sending(Answer(200, (), body)) as (_, port):
            client = await connected(port)
            client.send(LAST)
            assert parted(await client.all()) == [NOISE[:PIECE]]
            assert (body.asked, cast("ReadableBody", body).reads) == ([], 1)


@within(30)
async def test_unix_sockets(tmp_path: Path) -> None:
    """A site on a Unix socket sends files by sendfile too."""
    path = str(tmp_path / "socket")
    with stored(tmp_path, NOISE) as body:
        listen = lambda reactor, site: reactor.listenUNIX(path, site)  # noqa: E731
        async with sending(Answer(200, (), body), listen=listen):
            client = await connectProtocol(UNIXClientEndpoint(the_reactor(), path), Client())
            client.send(LAST)
            assert parted(await client.all()) == [NOISE]


@within(30)
async def test_wrapped_transports(tmp_path: Path) -> None:
    """A wrapper between a site and its socket gets every byte."""
    with stored(tmp_path, NOISE, kind=ReadableBody) as body:
        listen = lambda reactor, site: on_tcp(reactor, WrappingFactory(site))  # noqa: E731
        async with sending(Answer(200, (), body), listen=listen) as (_, port):
            client = await connected(port)
            client.send(LAST)
            assert parted(await client.all()) == [NOISE]
            assert body.asked == []


@within(30)
async def test_tls(tmp_path: Path) -> None:
    """Over TLS files are read and encrypted, and the unsent bytes of TCP are known."""
    context = Authority.make(tmp_path).issue("localhost")
    with stored(tmp_path, NOISE, kind=ReadableBody) as body:
        listen = lambda reactor, site: reactor.listenSSL(  # noqa: E731
            0, site, context, interface="127.0.0.1"
        )
        async with sending(Answer(200, (), body), listen=listen) as (site, port):
            tcp = TCP4ClientEndpoint(the_reactor(), "127.0.0.1", port.getHost().port)
            client = await connectProtocol(wrapClientTLS(CertificateOptions(), tcp), Client())
            client.send(LAST)
            await client.some(1)
            client.transport.pauseProducing()
            await until(lambda: unacknowledged(site.requests[0].transport) > 0)
            client.transport.resumeProducing()
            assert parted(await client.all()) == [NOISE]
            assert body.asked == []


class Upgrades(Protocol):
    """Starts TLS on a connection before the protocol above sees it."""

    def __init__(self, protocol: Any, context: Any) -> None:
        self._protocol = protocol
        self._context = context

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.protocol = self._protocol
        transport.startTLS(self._context)
        self._protocol.makeConnection(transport)


@within(30)
async def test_tls_that_was_started_later(tmp_path: Path) -> None:
    """After TLS was started on a TCP connection nothing is sent in the clear."""
    context = Authority.make(tmp_path).issue("localhost")

    def listen(reactor: Any, site: Site) -> Any:
        factory = Factory()
        factory.buildProtocol = lambda peer: Upgrades(site.buildProtocol(peer), context)
        return on_tcp(reactor, factory)

    with stored(tmp_path, NOISE, kind=ReadableBody) as body:
        async with sending(Answer(200, (), body), listen=listen) as (_, port):
            tcp = TCP4ClientEndpoint(the_reactor(), "127.0.0.1", port.getHost().port)
            client = await connectProtocol(wrapClientTLS(CertificateOptions(), tcp), Client())
            client.send(LAST)
            assert parted(await client.all()) == [NOISE]
            assert body.asked == []


# --- Assumptions about Twisted --------------------------------------------------------------------


@within(30)
async def test_what_twisted_does(tmp_path: Path) -> None:
    """Twisted's transports treat their producers as sendfile assumes."""

    class Pulls:
        count = 0

        def resumeProducing(self) -> None:
            self.count += 1

        def stopProducing(self) -> None:
            pass

    async with sending(Answer(200, (), BytesBody(b"x" * 10))) as (site, port):
        client = await connected(port)
        client.send(GET)
        await client.some(10)
        await until(lambda: site.outcomes)
        transport: Any = site.requests[0].transport
        assert isinstance(transport, Server)
        channel = transport.producer
        assert type(channel) is HTTPChannel
        pulls = Pulls()
        transport.unregisterProducer()
        assert transport.producer is None
        transport.registerProducer(pulls, False)
        assert (transport.producer, pulls.count) == (pulls, 1)
        await turns(3)
        assert pulls.count == 1
        transport.startWriting()
        await turns(3)
        assert pulls.count == 2
        transport.write(b"y" * 100_000)
        await until(lambda: pulls.count == 3)
        assert isinstance(transport.fileno(), int)
        transport.unregisterProducer()
        transport.registerProducer(channel, True)
        client.transport.loseConnection()
        await until(lambda: not transport.connected)
        assert transport.producer is None


# --- The whole ------------------------------------------------------------------------------------


def contents(space: Path) -> list[Path]:
    """Return the content files of a blob space."""
    return list(space.rglob("content"))


@within(60)
async def test_a_cold_file(tmp_path: Path) -> None:
    """An uncached file is served without disk reads in the reactor's thread."""

    def blocks() -> int:
        return resource.getrusage(resource.RUSAGE_THREAD).ru_inblock

    reactor = the_reactor()
    disk = OwnThreads(reactor, 2, "disk")
    disk.start()
    try:
        async with serving(tmp_path, {"a": b"a", "big": NOISE * 3}, disk=disk) as site:
            await site.fetch(f"/{TAG}/a")
            [content] = contents(tmp_path)
            descriptor = os.open(content, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            before = blocks()
            os.pread(descriptor, 1, os.fstat(descriptor).st_size - 1)
            if blocks() == before:
                pytest.skip("nobody counts here what a thread reads from the disk")
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
            before, faults = blocks(), resource.getrusage(resource.RUSAGE_THREAD).ru_majflt
            answer = await site.fetch(f"/{TAG}/big")
            assert blocks() - before == 0
            assert resource.getrusage(resource.RUSAGE_THREAD).ru_majflt == faults
            assert answer.body == NOISE * 3
    finally:
        disk.stop()


@within(60)
async def test_content_that_is_cut_short_under_the_server(tmp_path: Path) -> None:
    """A loss of content during a response resets the connection and is logged."""
    async with serving(tmp_path, {"big": NOISE * 3}) as site:
        client = await site.connect()
        client.send(f"GET /{TAG}/big HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await client.some(1)
        client.transport.pauseProducing()
        [content] = contents(tmp_path)
        os.truncate(content, 4096)
        client.transport.resumeProducing()
        assert len(await client.all()) < 3 * BIG
        await until(lambda: site.log)
        assert (site.log[0].status, site.log[0].sent < 3 * BIG) == (200, True)


@within(60)
async def test_a_drain_that_takes_too_long(tmp_path: Path) -> None:
    """A server that has drained long enough ends its connections and leases."""
    async with serving(tmp_path, {"big": NOISE * 3}) as site:
        with SlowReader(site.port) as reader:
            await reader.send(f"GET /{TAG}/big HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await until(
                lambda: site.metrics.registry.get_sample_value("blobserve_requests_in_flight")
            )
            assert await reader.take(1000) == 1000
            await site.site.drain(0.05)
            assert [served.status for served in site.log] == [200]
            assert 0 < site.log[0].sent < 3 * BIG


@within(60)
async def test_a_drain_that_a_client_is_in_time_for(tmp_path: Path) -> None:
    """A draining server sends a large file to its end and then closes."""
    async with serving(tmp_path, {"big": NOISE}) as site:
        client = await site.connect()
        client.send(f"GET /{TAG}/big HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await client.some(1)
        drained = site.site.drain(30)
        assert parted(await client.all()) == [NOISE]
        await drained
        assert [served.sent for served in site.log] == [BIG]


@within(120)
async def test_nothing_is_left_open(tmp_path: Path) -> None:
    """Clients that leave at any moment leave no descriptor and no lease."""
    chance = random.Random(2)
    async with serving(tmp_path, {"big": NOISE}) as site:
        await site.fetch(f"/{TAG}/big")
        await turns(5)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(60):
            with SlowReader(site.port) as reader:
                await reader.send(f"GET /{TAG}/big HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                await turns(chance.randrange(12))
                chance.choice([SlowReader.reset, SlowReader.close])(reader)
        in_flight = "blobserve_requests_in_flight"
        await until(lambda: not site.metrics.registry.get_sample_value(in_flight))
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before)
        assert (await site.fetch(f"/{TAG}/big")).body == NOISE
