"""The fast path: its answers differ from those of the parser in time alone."""

from __future__ import annotations

import errno
import random
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from socket import socketpair
from typing import Any

import attrs
import brotli
import pytest
import pytest_twisted
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone
from twisted.internet.tcp import Server
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure

from blobserve.concurrency.fair_queue import PORTION
from blobserve.config import Config, RepositoryRules
from blobserve.errors import RegistryFailed
from blobserve.names.reference import Reference
from blobserve.store.blobspace import BlobState
from blobserve.testing import InlineThreads
from blobserve.web.server.channel import ImageChannel
from blobserve.web.server.fast_path import is_between_requests
from blobserve.web.site import ImageSite, make_site
from tests.support.examples import more
from tests.support.sites import REPOSITORY, MemoryLog, made
from tests.support.stores import SITE, Stand, standing

TEXT = b"".join(b"let line%d = %d;\n" % (number, number * number) for number in range(300))
FILES = {
    "index.html": b"<h1>page</h1>" + TEXT,
    "app.js": TEXT,
    "app.js.br": brotli.compress(TEXT),
    "small.txt": b"0123456789",
    "empty.bin": b"",
    "large.bin": bytes(range(256)) * 300,
    "docs/index.html": b"docs",
}
_DATE = re.compile(rb"\r\nDate: [^\r]+\r\n")
_ETAG = re.compile(rb"\r\nETag: ([^\r]+)\r\n")


class Socket:
    """One end of a connection that accepts a limited number of bytes at a time."""

    def __init__(self, takes: Iterable[int] = ()) -> None:
        self._takes = list(takes)
        self._here, self._there = socketpair()
        self._there.setblocking(False)
        self._received = b""
        for name in ("setblocking", "fileno", "shutdown"):
            setattr(self, name, getattr(self._here, name))

    @property
    def sent(self) -> bytes:
        """Return all bytes sent so far."""
        with suppress(OSError):
            while piece := self._there.recv(1 << 20):
                self._received += piece
        return self._received

    def send(self, content: bytes) -> int:
        """Accept some of the bytes, or none as with a full buffer."""
        most = self._takes.pop(0) if self._takes else len(content)
        if not most and content:
            raise BlockingIOError(errno.EWOULDBLOCK, "full")
        return self._here.send(content[:most])

    def getsockname(self) -> tuple[str, int]:
        """Return the address."""
        return ("127.0.0.1", 80)

    def setsockopt(self, *_: object) -> None:
        """Accept any option."""

    def close(self) -> None:
        """Close, and keep the bytes that were sent."""
        self._here.close()
        assert self.sent is not None
        self._there.close()


class Connection:
    """A client of a site, on Twisted's own transport over our socket."""

    def __init__(self, reactor: Any, site: ImageSite, takes: Iterable[int] = ()) -> None:
        self.socket = Socket(takes)
        self.channel = site.buildProtocol(None)
        self.is_over = False
        self._reactor = reactor
        address = ("127.0.0.1", 4000)
        socket: Any = self.socket
        server: Any = None
        self.transport = Server(socket, self.channel, address, server, 1, reactor)
        self.channel.makeConnection(self.transport)

    def receive(self, content: bytes) -> None:
        """Let the channel read these bytes, and write its answers."""
        if self.is_over:
            return
        self.channel.dataReceived(content)
        self.write()

    def write(self) -> None:
        """Let it write everything."""
        while not self.is_over and self.transport in self._reactor.writers:
            self._end(self.transport.doWrite())
            assert self.socket.sent is not None  # makes space for more

    def leave(self) -> None:
        """Close the connection."""
        if not self.is_over:
            self._end(ConnectionResetError())

    def _end(self, reason: Any) -> None:
        if reason is not None:
            self.is_over = True
            self._reactor.removeReader(self.transport)
            self.transport.connectionLost(Failure(reason))


@attrs.define
class Pair:
    """Two sites on one store, one of them with the fast path."""

    reactor: Any
    stand: Stand
    repos: dict[str, RepositoryRules]
    hot: ImageSite
    parsed: ImageSite
    hot_log: MemoryLog
    parsed_log: MemoryLog
    paths: list[str] = attrs.field(factory=list)
    etags: list[bytes] = attrs.field(factory=list)

    def exchange(
        self, segments: Iterable[bytes], takes: Iterable[int] = ()
    ) -> list[tuple[bytes, bool]]:
        """Send the same segments to both; return the answers, and whether each closed."""
        found = []
        for site in (self.hot, self.parsed):
            connection = Connection(self.reactor, site, list(takes))
            for segment in segments:
                connection.receive(segment)
            sent = _DATE.sub(b"\r\nDate: now\r\n", connection.socket.sent)
            found.append((sent, connection.is_over))
            connection.leave()
        return found


def a_site(stand: Stand, reactor: Any, config: Config, log: MemoryLog) -> ImageSite:
    """Return a site on the store of `stand`."""
    return make_site(stand.store, lambda: config, reactor, InlineThreads(), stand.metrics, log)


@pytest_twisted.async_yield_fixture(scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    """Run both sites, with every answer cached."""
    reactor: Any = MemoryReactorClock()
    reactor.advance(1_790_000_000)
    directory = tmp_path_factory.mktemp("hot") / "space"
    async with standing(directory, clock=reactor) as stand:
        digest = stand.source.push(SITE, made(FILES))
        rules = RepositoryRules(
            REPOSITORY, precompressed=True, headers=(("X-Xss-Protection", "0"),)
        )
        repos = {REPOSITORY: rules}
        logs = MemoryLog(), MemoryLog()
        hot = a_site(stand, reactor, Config(repos=repos), logs[0])
        parsed = a_site(stand, reactor, Config(repos=repos, hot_path=False), logs[1])
        pair = Pair(reactor, stand, repos, hot, parsed, *logs)
        pair.paths = paths(str(digest))
        pair.etags = sorted({each for path in pair.paths for each in tags(pair, path)})
        yield pair


def paths(digest: str) -> list[str]:
    """Return every existing path and some missing ones."""
    names = [*FILES, "", "docs/", "docs", "none.txt", "none/"]
    return [f"{image}/{name}" for image in (str(SITE), digest) for name in names] + [str(SITE)]


def tags(pair: Pair, path: str) -> set[bytes]:
    """Make every variant of a file; return their ETags."""
    found = set()
    for coding in ("", "gzip", "zstd", "br", "gzip, br", "zstd, gzip"):
        head = f"GET /{path} HTTP/1.1\r\nHost: x\r\nAccept-Encoding: {coding}\r\n\r\n"
        for _ in range(3):
            for sent, _over in pair.exchange([head.encode()]):
                found |= set(_ETAG.findall(sent))
    return found


@pytest.mark.parametrize("received", [b"", b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"])
async def test_a_client_that_closes_between_requests(pair: Pair, received: bytes) -> None:
    """A connection is released as soon as its client closes it, if no request is under way."""
    connection = Connection(pair.reactor, pair.hot)
    if received:
        connection.receive(received)
    connection.transport.readConnectionLost(Failure(ConnectionDone()))
    assert connection.channel.lost.called
    assert connection.channel not in pair.hot.channels


def spelled(name: str) -> st.SearchStrategy[str]:
    """Draw a spelling of a field's name."""
    return st.sampled_from([name, name.lower(), name.upper()])


@st.composite
def field(draw: st.DrawFn, name: str, values: st.SearchStrategy[str]) -> str:
    """Draw a header field with allowed blanks around its value."""
    blank = st.sampled_from(["", " ", "\t", "  "])
    return f"{draw(spelled(name))}:{draw(blank)}{draw(values)}{draw(blank)}"


def fields(etags: list[bytes]) -> st.SearchStrategy[list[str]]:
    """Draw header fields, significant and others, in any order."""
    tag = st.sampled_from([each.decode() for each in etags] + ['"none"', "*", 'W/"none"', "x"])
    tag = st.one_of(tag, tag.map("W/{}".format), st.lists(tag, max_size=3).map(", ".join))
    date = st.sampled_from(
        ["Sun, 13 Sep 2020 12:26:40 GMT", "Tue, 01 Jan 2030 00:00:00 GMT", "yesterday"]
    )
    some = st.sampled_from
    known = {
        "Accept-Encoding": some(["gzip, deflate, br, zstd", "gzip", "gzip;q=0.5, zstd", "br", "*"]),
        "If-None-Match": tag,
        "If-Match": tag,
        "If-Modified-Since": date,
        "If-Unmodified-Since": date,
        "Range": some(["bytes=0-4", "bytes=2-", "bytes=-3", "bytes=900-", "bytes=0-0,2-2", "x"]),
        "If-Range": st.one_of(tag, date),
        "Connection": some(["keep-alive", "close", "Keep-Alive", "close, TE", "upgrade"]),
        "Cookie": some(["a=b", "a=b; c=d"]),
        "User-Agent": some(["Mozilla/5.0", 'a"b']),
        "X-BlobServe-InlineVars": some(["{}", "junk"]),
        "X-BlobServe-ReadOnly": some(["true", "false"]),
        "Content-Length": some(["0", "1", "x"]),
        "Transfer-Encoding": some(["chunked", "identity"]),
        "Expect": st.just("100-continue"),
        "Upgrade": st.just("h2c"),
        "Authorization": st.just("Basic eDp5"),
        "X-Forwarded-For": st.just("192.0.2.1"),
        "Host": st.just("y"),
        "Bad Name": st.just("x"),
        "X-Bad": some(["a\x01b", "a\nb"]),
    }
    # Fields that end the conversation or cause an error are rarer.
    often = [field(name, known[name]) for name in [*list(known)[:8], "Cookie", "User-Agent"]]
    rarely = [field(name, values) for name, values in known.items()]
    return st.lists(st.one_of(*often * 3, *rarely), max_size=5, unique_by=lambda each: each.lower())


@st.composite
def request(draw: st.DrawFn, pair: Pair) -> bytes:
    """Draw a request, which is sometimes slightly wrong."""
    method = draw(st.sampled_from(["GET"] * 6 + ["HEAD"] * 3 + ["POST", "OPTIONS", "get"]))
    target = "/" + draw(st.sampled_from(pair.paths))
    target = draw(
        st.sampled_from(
            [target] * 8
            + [f"{target}?a=b", f"http://x{target}", target.replace("a", "%61"), f"/{target}", "*"]
        )
    )
    version = draw(st.sampled_from(["HTTP/1.1"] * 9 + ["HTTP/1.0", "HTTP/1.2"]))
    lines = draw(fields(pair.etags)) + draw(st.sampled_from([["Host: x"]] * 9 + [[]]))
    lines = draw(st.permutations(lines))
    return "\r\n".join([f"{method} {target} {version}", *lines, "", ""]).encode()


def cut(stream: bytes, places: list[float]) -> list[bytes]:
    """Draw the segments of the stream."""
    at = sorted({round(place * len(stream)) for place in places} - {0, len(stream)})
    return [stream[start:end] for start, end in zip([0, *at], [*at, len(stream)], strict=True)]


@settings(max_examples=more(600))
@given(data=st.data())
def test_both_ways_say_the_same(pair: Pair, data: st.DataObject) -> None:
    """For any heads in any segments the fast path and the parser write the same bytes.

    The lines of the log are the same as well.
    """
    requests = data.draw(st.lists(request(pair), min_size=1, max_size=4))
    if data.draw(st.booleans()):
        segments = requests  # each alone, as from clients that wait for replies
    else:
        places = st.lists(st.floats(0, 1), max_size=4)
        segments = cut(b"".join(requests), data.draw(places))
    takes = data.draw(st.lists(st.integers(0, 3000), max_size=4))
    pair.hot_log.clear()
    pair.parsed_log.clear()
    hot, parsed = pair.exchange(segments, takes)
    assert hot == parsed
    own = {"time": 0.0, "duration": 0.0, "request_id": ""}
    lines, parsed_lines = (
        [attrs.evolve(line, **own) for line in log] for log in (pair.hot_log, pair.parsed_log)
    )
    assert lines == parsed_lines


def test_heads_split_at_every_byte(pair: Pair) -> None:
    """A head in two segments, divided anywhere, is answered as one in one segment."""
    head = f"GET /{SITE}/app.js HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n".encode()
    [whole, _] = pair.exchange([head])
    for at in range(1, len(head)):
        assert pair.exchange([head[:at], head[at:]]) == [whole, whole]


def asked(name: str, *lines: str, version: str = "HTTP/1.1", image: Reference = SITE) -> bytes:
    """Return a request with a Host and these lines."""
    return "\r\n".join([f"GET /{image}/{name} {version}", "Host: x", *lines, "", ""]).encode()


SECOND = attrs.evolve(SITE, tag="v2")


ODD = [
    asked("app.js").replace(b"HTTP/1.1", b"HTTP/1.1 "),
    asked("app.js").replace(b"HTTP/1.1", b"HTTP/1.12"),
    asked("app.js").replace(b"GET /", b"GET  /"),
    asked("app.js").replace(b"Host: x", b"Host: x\r\n y"),
    asked("app.js").replace(b"Host: x", b"Host: x, y"),
    asked("app.js").replace(b"Host: x", b"Host:"),
    asked("app.js", "Host: x"),
    asked("app.js", "If-None-Match: x", 'If-None-Match: "{}"'),
    asked("app.js", 'If-None-Match: "{}"', "If-None-Match: x"),
    asked("app.js", "Accept-Encoding: br", "Accept-Encoding: gzip"),
    asked("app.js", "Range: bytes=0-1", "Range: bytes=2-3"),
    asked("app.js", "Range: bytes=0-1", "Accept-Encoding: gzip"),
    asked("app.js", "Range: bytes=0-1", "If-Range: {}", "Accept-Encoding: gzip"),
    asked("app.js", "Connection: keep-alive", "Connection: close"),
    asked("app.js", "Cookie: " + "x" * 3000),
    asked("app.js", "Cookie: " + "x" * 33000),
    asked("app.js?" + "x" * 3000),
    asked("app.js?" + "x" * 9000),
    asked("app.js", "A: \xe9"),
    asked("../app.js"),
    asked("%00"),
]


@pytest.mark.parametrize("head", ODD, ids=[str(number) for number in range(len(ODD))])
def test_odd_heads(pair: Pair, head: bytes) -> None:
    """Unusual and ambiguous heads are read in the same way on both paths."""
    for etag in pair.etags:
        hot, parsed = pair.exchange([head.replace(b"{}", etag)])
        assert hot == parsed


@pytest.mark.parametrize(
    ("head", "is_hot"),
    [
        (asked("app.js"), True),
        (asked("app.js", "Connection: keep-alive", "Cookie: a=b"), True),
        (asked("app.js", "Range: bytes=0-4"), True),
        (asked("app.js", "If-None-Match: x"), True),
        (asked("app.js?query"), True),
        (asked("large.bin"), False),
        (asked("none.txt"), False),
        (asked("docs"), False),
        (asked("app.js", "Connection: close"), False),
        (asked("app.js", "Connection: upgrade"), False),
        (asked("app.js", "Authorization: Basic eDp5"), False),
        (asked("app.js", "Content-Length: 0"), False),
        (asked("app.js", "Expect: 100-continue"), False),
        (asked("app.js", "X-BlobServe-InlineVars: {}"), False),
        (asked("app.js", "Host: y"), False),
        (asked("app.js", "A b: c"), False),
        (asked("app.js", *["A: b"] * 100), False),
        (asked("app.js", version="HTTP/1.0"), False),
        (asked("app.js") * 2, False),
        (asked("app.js")[:-1], False),
        (b"\r\n" + asked("app.js"), False),
    ],
)
def test_what_is_answered_at_once(pair: Pair, head: bytes, is_hot: bool) -> None:
    """The fast path answers a plain request with a cached answer, and no other."""
    connection = Connection(pair.reactor, pair.hot)
    connection.receive(asked("app.js"))
    assert pair.hot.fast_path.answer(connection.channel, head) is is_hot
    other = Connection(pair.reactor, pair.parsed)
    assert not pair.parsed.fast_path.answer(other.channel, head)
    connection.leave()
    other.leave()


def test_when_a_connection_is_between_requests(pair: Pair) -> None:
    """The private names of Twisted that detect a pause between requests have kept their meaning."""
    connection = Connection(pair.reactor, pair.parsed)
    channel: ImageChannel = connection.channel

    def between() -> bool:
        return is_between_requests(channel)

    assert between()
    head = asked("app.js")
    connection.receive(head[:5])
    assert not between()
    connection.receive(head[5:-2])
    assert not between()
    connection.receive(head[-2:])
    assert between()
    connection.receive(b"\r\n")
    assert not between()
    connection.receive(head)
    assert between()
    connection.transport.write(b"x")
    assert not between()
    connection.transport.doWrite()
    assert between()
    channel.registerProducer(channel, True)
    assert not between()
    channel.unregisterProducer()
    assert between()
    connection.receive(asked("app.js", "Connection: close"))
    assert not between()


def test_a_request_under_way_is_not_overtaken(pair: Pair) -> None:
    """The next request waits until the client has taken the previous answer."""
    connection = Connection(pair.reactor, pair.hot, takes=[1000] + [0] * 50)
    channel = connection.channel
    channel.dataReceived(asked("large.bin"))
    assert not is_between_requests(channel)
    channel.dataReceived(asked("small.txt"))
    connection.write()
    replies = connection.socket.sent
    assert replies.count(b"HTTP/1.1 200 OK") == 2
    assert replies.endswith(b"\r\n\r\n0123456789")
    connection.leave()


def test_what_is_too_large_is_looked_for_once(pair: Pair) -> None:
    """A file too large for the cache is looked up once, until its tag may have moved."""
    ready = pair.hot.images.responder._responses
    key = ("", f"/{SITE}/large.bin".encode(), ())
    pair.hot.flush()
    assert not ready.is_too_large(key)
    first = pair.exchange([asked("large.bin")])
    assert ready.is_too_large(key)
    assert pair.exchange([asked("large.bin")]) == first
    pair.hot.flush()
    assert not ready.is_too_large(key)


@asynccontextmanager
async def moving(directory: Path, timeout: float = 5) -> AsyncIterator[tuple[Stand, ImageSite]]:
    """Run a site of two tags with cached app.js that have moved in the registry."""
    reactor: Any = MemoryReactorClock()
    async with standing(directory, clock=reactor) as stand:
        config = Config(repos={REPOSITORY: RepositoryRules(REPOSITORY)}, timeout=timeout)
        site = a_site(stand, reactor, config, MemoryLog())
        for tag in (SITE, SECOND):
            stand.source.push(tag, made({"app.js": str(tag).encode()}))
            for _ in range(2):  # pulled, and cached
                assert answered(site, asked("app.js", image=tag)) == str(tag).encode()
        for tag in (SITE, SECOND):
            stand.source.push(tag, made({"app.js": b"new"}))
        yield stand, site


def answered(site: ImageSite, request: bytes) -> bytes:
    """Return the body for a new client."""
    connection = Connection(site.reactor, site)
    connection.receive(request)
    sent = connection.socket.sent
    connection.leave()
    return sent.partition(b"\r\n\r\n")[2]


@pytest_twisted.ensureDeferred
async def test_a_tag_that_is_looked_up_stays_hot(tmp_path: Path) -> None:
    """A tag stays on the fast path while it is ageing and looked up."""
    async with moving(tmp_path) as (stand, site):
        stand.clock.advance(61)
        gate = stand.source.hold("refresh")
        connection = Connection(site.reactor, site)
        for _ in range(10):
            assert site.fast_path.answer(connection.channel, asked("app.js"))
        assert stand.source.count("refresh") == 1
        gate.open()
        assert answered(site, asked("app.js")) == b"new"
        connection.leave()


@pytest_twisted.ensureDeferred
async def test_an_old_tag_is_not_answered_from_memory(tmp_path: Path) -> None:
    """The cached answer of an old tag is not sent before the tag is looked up."""
    async with moving(tmp_path) as (stand, site):
        stand.clock.advance(1000)
        gates = [stand.source.hold("refresh"), stand.source.hold("fetch")]
        connections = [Connection(site.reactor, site) for _ in range(3)]
        for connection in connections:
            connection.receive(asked("app.js"))
        for gate in gates:
            stand.clock.advance(0.5)
            assert [connection.socket.sent for connection in connections] == [b""] * 3
            gate.open()
        for connection in connections:
            connection.write()
            assert connection.socket.sent.endswith(b"\r\n\r\nnew")
            connection.leave()
        assert (stand.source.count("refresh"), stand.source.count("fetch")) == (1, 3)


@pytest_twisted.ensureDeferred
async def test_an_old_tag_and_a_short_timeout(tmp_path: Path) -> None:
    """The old image is sent in time if the timeout ends before the pull does."""
    async with moving(tmp_path, timeout=1) as (stand, site):
        stand.clock.advance(1000)
        stand.source.hold("fetch")
        connection = Connection(site.reactor, site)
        connection.receive(asked("app.js"))
        for seconds, has_come in ((0.7, False), (0.2, True)):
            stand.clock.advance(seconds)
            connection.write()
            assert bool(connection.socket.sent) is has_come
        assert connection.socket.sent.endswith(b"\r\n\r\n" + str(SITE).encode())
        connection.leave()


@pytest_twisted.ensureDeferred
async def test_a_switch_elsewhere_costs_nothing(tmp_path: Path) -> None:
    """A tag that moves keeps the cached answers of others, and loses its own."""
    async with moving(tmp_path) as (stand, site):
        kept = site.images.responder._responses._entries
        before = dict(kept)
        assert len(before) == 2
        stand.clock.advance(61)
        answered(site, asked("app.js", image=SECOND))
        assert answered(site, asked("app.js", image=SECOND)) == b"new"
        stand.source.fail("refresh", RegistryFailed("x", "down"))
        assert answered(site, asked("app.js")) == str(SITE).encode()
        assert [key for key in before if kept.get(key) is before[key]] == [
            ("", f"/{SITE}/app.js".encode(), ())
        ]


@pytest_twisted.ensureDeferred
async def test_what_is_hot_is_kept(tmp_path: Path) -> None:
    """An image served only from memory outlives those that are pulled meanwhile."""
    reactor: Any = MemoryReactorClock()
    async with standing(tmp_path, clock=reactor, max_size=16 << 20) as stand:
        config = Config(repos={REPOSITORY: RepositoryRules(REPOSITORY)})
        site = a_site(stand, reactor, config, MemoryLog())
        hot, request = made({"app.js": b"hot"}), asked("app.js")
        stand.source.push(SITE, hot)
        answered(site, request)
        for n in range(2, 9):
            other = attrs.evolve(SITE, tag=f"v{n}")
            files = {"app.js": b"other", "junk": random.Random(n).randbytes(4 << 20)}
            stand.source.push(other, made(files))
            assert answered(site, request) == b"hot"
            assert answered(site, asked("app.js", image=other)) == b"other"
        assert stand.space.state_of(hot.layers[0].digest) is BlobState.READY


def test_a_client_that_takes_little_gets_all(pair: Pair) -> None:
    """Bytes that the socket does not accept at once are sent later."""
    [(whole, _), _] = pair.exchange([asked("app.js")])
    assert pair.exchange([asked("app.js")], [0, 7, 0, 100]) == [(whole, False), (whole, False)]


def test_a_lost_connection_is_noticed(pair: Pair) -> None:
    """A client that is lost during a fast answer is lost for the parser too."""
    connection = Connection(pair.reactor, pair.hot)

    def lost(_: bytes) -> int:
        raise BrokenPipeError(errno.EPIPE, "gone")

    connection.socket.send = lost  # type: ignore[method-assign]
    connection.receive(asked("app.js"))
    assert connection.is_over
    assert connection.channel not in pair.hot.channels


def test_a_site_that_drains_takes_no_short_way(pair: Pair) -> None:
    """A draining server closes each connection, even after a cached answer."""
    site = a_site(pair.stand, pair.reactor, Config(repos=pair.repos), MemoryLog())
    connection = Connection(pair.reactor, site)
    connection.receive(asked("app.js"))
    assert not connection.is_over
    site.drain(1)
    other = Connection(pair.reactor, site)
    other.receive(asked("app.js"))
    assert b"503" in other.socket.sent
    assert other.is_over
    connection.leave()


# --- Under load -----------------------------------------------------------------------------------


@pytest.fixture
def busy(pair: Pair) -> Iterator[ImageSite]:
    """Make a site so busy that reads wait for the next iteration."""
    site = a_site(pair.stand, pair.reactor, Config(repos=pair.repos), MemoryLog())
    site.fair_queue.do(lambda: pair.reactor.advance(2 * PORTION))
    yield site
    pair.reactor.advance(1)


def test_what_is_hot_does_not_wait(pair: Pair, busy: ImageSite) -> None:
    """A busy site answers cached requests at once, and others an iteration later."""
    cold, hot = Connection(pair.reactor, busy), Connection(pair.reactor, busy)
    pair.reactor.rightNow += PORTION / 2
    cold.receive(asked("large.bin"))
    hot.receive(asked("app.js"))
    assert hot.socket.sent.endswith(TEXT)
    assert not cold.socket.sent
    assert cold.transport not in pair.reactor.readers
    assert not cold.channel.is_idle
    assert not cold.channel.is_spare
    assert cold.channel.active_at == pair.reactor.seconds()
    pair.reactor.advance(0)
    assert cold.transport in pair.reactor.readers
    cold.write()
    assert cold.socket.sent.endswith(FILES["large.bin"])
    assert cold.channel.is_spare
    for connection in (cold, hot):
        connection.leave()


def test_what_comes_meanwhile_is_read_after_it(pair: Pair, busy: ImageSite) -> None:
    """A transport that delivers more after a pause loses nothing."""
    connection = Connection(pair.reactor, busy)
    stream = asked("large.bin") + asked("small.txt") + asked("empty.bin", "Connection: close")
    for at in range(0, len(stream), 50):
        connection.receive(stream[at : at + 50])
    assert not connection.socket.sent
    pair.reactor.advance(0)
    connection.write()
    assert connection.socket.sent.count(b"HTTP/1.1 200 OK") == 3
    assert connection.is_over


def test_who_left_meanwhile_is_forgotten(
    pair: Pair, busy: ImageSite, failures: list[type[BaseException]]
) -> None:
    """A client that left before its request was read is not answered, and leaves nothing."""
    connection = Connection(pair.reactor, busy)
    connection.receive(asked("app.js", "Connection: close"))
    connection.leave()
    pair.reactor.advance(0)
    assert not busy.channels
    assert failures == []


def test_a_site_that_drains_answers_what_was_not_read_yet(pair: Pair, busy: ImageSite) -> None:
    """A request that was not read before a drain gets a 503."""
    connection = Connection(pair.reactor, busy)
    connection.receive(asked("app.js", "Connection: close"))
    busy.drain(1)
    assert not connection.is_over
    pair.reactor.advance(0)
    connection.write()
    assert connection.socket.sent.startswith(b"HTTP/1.1 503 ")
    assert connection.is_over
