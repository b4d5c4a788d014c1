"""Connections: bad heads, limits, pipelining, the end."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from OpenSSL import SSL
from twisted.internet import ssl
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock

from blobserve.config import Limits
from blobserve.errors import BadRequest
from blobserve.metrics import Metrics
from blobserve.web.http.request_head import MAX_FIELDS, MAX_LINE, MAX_SIZE, HeadCheck
from blobserve.web.site import make_site
from tests.oci.http.test_tls import Authority
from tests.support.sites import TAG, Client, Response, serving
from tests.support.within import within

PATH = f"/{TAG}/a.txt".encode()
GOOD = b"GET " + PATH + b" HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET " + PATH + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
FILES = {"a.txt": b"content"}
LARGE = bytes(index % 251 for index in range(3_000_000))


def with_field(field: bytes, request: bytes = b"GET / HTTP/1.1") -> bytes:
    """Return a head with a Host and one more field."""
    return request + b"\r\nHost: x\r\n" + field + b"\r\n\r\n"


MARKER = b"marker\r\n\r\n"
"""A request after the point at which the server must stop reading; read, it gets an answer."""

BAD = {
    "body by length": (400, with_field(b"Content-Length: 1")),
    "body by chunks": (400, with_field(b"Transfer-Encoding: chunked")),
    "body of HEAD": (400, with_field(b"Content-Length: 1", b"HEAD / HTTP/1.1")),
    "body of OPTIONS": (400, with_field(b"Content-Length: 1", b"OPTIONS / HTTP/1.1")),
    "body of POST": (405, with_field(b"Content-Length: 1", b"POST / HTTP/1.1")),
    "chunks of POST": (405, with_field(b"Transfer-Encoding: chunked", b"POST / HTTP/1.1")),
    "bare LF in the request line": (400, b"GET / HTTP/1.1\nHost: x\r\n\r\n"),
    "bare LF in a field": (400, with_field(b"A: b\nC: d")),
    "bare CR in a field": (400, with_field(b"A: b\rC: d")),
    "folded line": (400, with_field(b"A: b\r\n c")),
    "folded first line": (400, b"GET / HTTP/1.1\r\n A: b\r\nHost: x\r\n\r\n"),
    "space before colon": (400, with_field(b"A : b")),
    "no colon": (400, with_field(b"A")),
    "no name": (400, with_field(b": b")),
    "NUL in a value": (400, with_field(b"A: b\0c")),
    "control character in a value": (400, with_field(b"A: b\x1fc")),
    "DEL in a value": (400, with_field(b"A: b\x7f")),
    "control character in the target": (400, b"GET /\x01 HTTP/1.1\r\nHost: x\r\n\r\n"),
    "NUL in the target": (400, b"GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n"),
    "high byte in the target": (400, b"GET /\xe9 HTTP/1.1\r\nHost: x\r\n\r\n"),
    "high byte in a name": (400, with_field(b"A\xe9: b")),
    "tab for space": (400, b"GET\t/\tHTTP/1.1\r\nHost: x\r\n\r\n"),
    "two spaces": (400, b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n"),
    "bad method": (400, b"G@T / HTTP/1.1\r\nHost: x\r\n\r\n"),
    "no version": (400, b"GET /\r\nHost: x\r\n\r\n"),
    "version 0.9": (505, b"GET / HTTP/0.9\r\nHost: x\r\n\r\n"),
    "version 1.10": (400, b"GET / HTTP/1.10\r\nHost: x\r\n\r\n"),
    "version 1.2 without Host": (400, b"GET / HTTP/1.2\r\n\r\n"),
    "version 2.0": (505, b"GET / HTTP/2.0\r\nHost: x\r\n\r\n"),
    "version 3.1": (505, b"GET * HTTP/3.1\r\n\r\n"),
    "HTTP/2 preface": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "lower-case version": (400, b"GET / http/1.1\r\nHost: x\r\n\r\n"),
    "no Host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two Hosts": (400, with_field(b"Host: x")),
    "two Hosts in 1.0": (400, with_field(b"Host: x", b"GET / HTTP/1.0")),
    "malformed Host": (400, b"GET / HTTP/1.1\r\nHost: x y\r\n\r\n"),
    "Host with path": (400, b"GET / HTTP/1.1\r\nHost: x/y\r\n\r\n"),
    "Host with user": (400, b"GET / HTTP/1.1\r\nHost: u@x\r\n\r\n"),
    "list of Hosts": (400, b"GET / HTTP/1.1\r\nHost: x, y:1\r\n\r\n"),
    "length and chunks": (
        400,
        with_field(b"Content-Length: 0\r\nTransfer-Encoding: chunked", b"POST / HTTP/1.1"),
    ),
    "two lengths": (400, with_field(b"Content-Length: 0\r\nContent-Length: 0")),
    "list of lengths": (400, with_field(b"Content-Length: 0, 0")),
    "signed length": (400, with_field(b"Content-Length: +1")),
    "empty length": (400, with_field(b"Content-Length:")),
    "hex length": (400, with_field(b"Content-Length: 0x0")),
    "length with underscore": (400, with_field(b"Content-Length: 0_0")),
    "unknown coding": (400, with_field(b"Transfer-Encoding: xchunked")),
    "identity coding": (400, with_field(b"Transfer-Encoding: identity")),
    "a target that is no path": (400, b"GET x HTTP/1.1\r\nHost: x\r\n\r\n"),
    "star for GET": (400, b"GET * HTTP/1.1\r\nHost: x\r\n\r\n"),
    "CONNECT": (400, b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n"),
    "fragment": (400, b"GET /#x HTTP/1.1\r\nHost: x\r\n\r\n"),
    "fragment of a query": (400, b"GET /?x#y HTTP/1.1\r\nHost: x\r\n\r\n"),
    "fragment of OPTIONS": (400, b"OPTIONS *# HTTP/1.1\r\nHost: x\r\n\r\n"),
    **{
        f"the authority {authority}": (
            400,
            f"GET http://{authority}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        )
        for authority in (
            *(
                "",
                ":80",
                "x:y",
                "x:1:2",
                "u@",
                "u@:80",
                "u@v@x",
                "u[@x",
                "x#y",
                "x\\y",
                "%zz",
                "a<b",
            ),
            *("[::1", "::1", "[::1]x", "[1.2.3.4]", "[:::]", "[::1]:x", "[x]", '"x"', "x^", "{x}"),
        )
    },
    "another scheme": (400, b"GET ftp://x/y HTTP/1.1\r\nHost: x\r\n\r\n"),
    "two empty lines": (400, b"\r\n\r\n" + GOOD),
    "long target": (414, b"GET /" + b"x" * MAX_LINE + b" HTTP/1.1\r\nHost: x\r\n\r\n"),
    "endless target": (414, b"GET /" + b"x" * (3 * MAX_SIZE)),
    "long field": (431, with_field(b"A: " + b"x" * MAX_SIZE)),
    "endless field": (431, b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * (3 * MAX_SIZE)),
    "many fields": (431, with_field(b"\r\n".join([b"A: b"] * (MAX_FIELDS + 1)))),
    "many bytes": (431, with_field(b"\r\n".join([b"A: " + b"x" * 1000] * 40))),
}


@pytest.mark.parametrize("second", [b"0", b"1", b""])
def test_one_content_length(second: bytes) -> None:
    """A repeated Content-Length is refused, even with the same value."""
    head = HeadCheck()
    for line in (b"POST / HTTP/1.1", b"Host: x", b"Content-Length: 0"):
        head.line(line)
    with pytest.raises(BadRequest, match="malformed Content-Length"):
        head.line(b"content-length: " + second)


@within(60)
async def test_bad_heads(tmp_path: Path) -> None:
    """A malformed head is refused once, and nothing after it is read."""
    async with serving(tmp_path, FILES) as site:
        for name, (status, raw) in BAD.items():
            answers = await site.exchange(raw + MARKER)
            assert answers.count(b"HTTP/1.1 ") == 1, name
            response = Response.parse(answers)
            assert response.status == status, name
            assert response.headers["content-type"] == "text/plain; charset=utf-8", name
            assert response.headers["cache-control"] == "no-store", name
            assert response.headers["connection"] == "close", name
            expected = 0 if raw.startswith(b"HEAD") else int(response.headers["content-length"])
            assert len(response.body) == expected, name
            assert site.log[-1].status == status, name
        assert len(site.log) == len(BAD)
        count = site.metrics.registry.get_sample_value
        labels = {"method": "get", "code": "431"}
        assert count("http_server_requests_total", labels) == 4
        assert (await site.fetch(PATH.decode())).status == 200


@within(20)
async def test_second_head_is_bad(tmp_path: Path) -> None:
    """A good and a bad head in one segment are answered in order."""
    async with serving(tmp_path, FILES) as site:
        answers = await site.exchange(GOOD + BAD["two Hosts"][1] + GOOD)
        first, second = answers.index(b" 200 OK"), answers.index(b" 400 Bad Request")
        assert first < second
        assert answers.count(b"HTTP/1.1 ") == 2


@within(20)
async def test_good_heads(tmp_path: Path) -> None:
    """Heads that RFC 9112 allows are understood."""
    heads = [
        LAST,
        b"\r\n" + LAST,
        LAST.replace(b"Host: x", b"hOST:x:80 \t"),
        LAST.replace(b"Host: x", b"Host:"),
        LAST.replace(b"Host: x", b"Host: [::1]:80"),
        LAST.replace(b"Host: x", b"Host: x\r\nX: \xe9\r\nContent-Length: 0"),
        LAST.replace(b"GET /", b"GET http://other:81/"),
        LAST.replace(b"GET /", b"GET HTTPS://other/"),
        LAST.replace(b"GET /", b"GET http://u:p@[::1]:81/"),
        LAST.replace(b"GET /", b"GET http://x.y-z_%41!:/"),
        LAST.replace(b"a.txt", b"a.txt?x=%00&/../%23"),
        LAST.replace(b"1.1", b"1.2"),
        LAST.replace(b"1.1", b"1.9").replace(b"GET /", b"GET http://x/"),
        b"GET " + PATH + b" HTTP/1.2\r\nHost: x\r\n\r\n" + LAST,
        LAST.replace(b"Connection", b"Expect: 100-continue\r\nConnection").replace(b"1.1", b"1.0"),
        b"GET " + PATH + b" HTTP/1.0\r\n\r\n",
    ]
    async with serving(tmp_path, FILES) as site:
        for head in heads:
            answer = await site.exchange(head)
            version = b"1.0" if b"HTTP/1.0" in head else b"1.1"
            assert answer.startswith(b"HTTP/%b 200 OK\r\n" % version), head
            assert answer.endswith(b"\r\n\r\ncontent"), head


@within(20)
async def test_options_star(tmp_path: Path) -> None:
    """``OPTIONS *`` gets the list of methods."""
    async with serving(tmp_path) as site:
        response = await site.fetch("*", "OPTIONS")
        assert (response.status, response.headers["allow"]) == (204, "GET, HEAD, OPTIONS")


@pytest.mark.parametrize("hot_path", [True, False], ids=["hot", "parsed"])
@pytest.mark.parametrize(
    ("asked", "statuses", "end"),
    [
        (GOOD, [200], b"content"),
        (LAST, [200], b"content"),
        (GOOD.replace(b"GET", b"HEAD"), [200], b"\r\n\r\n"),
        (GOOD.replace(b"1.1", b"1.0"), [200], b"content"),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", [204], b"\r\n\r\n"),
        (GOOD.replace(b"/a.txt", b""), [301], b"\r\n\r\n"),
        (GOOD.replace(b"a.txt", b"none"), [404], b"\n"),
        (GOOD.replace(b"GET", b"POST"), [405], b"\n"),
        (BAD["body of POST"][1] + b"x", [405], b"\n"),
        (BAD["two Hosts"][1], [400], b"\n"),
        (BAD["version 2.0"][1], [505], b"\n"),
        (BAD["endless field"][1], [431], b"\n"),
        (GOOD.replace(b"a.txt", b"large"), [200], LARGE),
        (GOOD * 3, [200] * 3, b"content"),
        (
            GOOD + GOOD.replace(b"a.txt", b"large") + GOOD.replace(b"a.txt", b"b"),
            [200, 200, 404],
            b"\n",
        ),
        (GOOD + LAST + GOOD, [200, 200], b"content"),
        (GOOD + BAD["two Hosts"][1] + GOOD, [200, 400], b"\n"),
        (GOOD * 1000, [200] * 1000, b"content"),
        (GOOD + GOOD[:-2], [200], b"content"),
        (GOOD + b"\r\n", [200], b"content"),
        (GOOD[:-2], [], b""),
        (GOOD[:9], [], b""),
        (b"", [], b""),
    ],
    ids=lambda value: value[:24].decode("latin-1") if isinstance(value, bytes) else None,
)
@within(60)
async def test_clients_that_half_close(
    tmp_path: Path, hot_path: bool, asked: bytes, statuses: list[int], end: bytes
) -> None:
    """A client that sends no more gets every answer, and the connection ends after the last."""
    async with serving(tmp_path, {**FILES, "large": LARGE}, hot_path=hot_path) as site:
        for is_warm in (False, True):
            client = await site.connect()
            if is_warm:
                client.send(GOOD)
                before = len(await client.some(1))
            client.send(asked)
            client.transport.loseWriteConnection()
            answers = (await client.all())[before if is_warm else 0 :]
            assert client.ended.check(ConnectionDone)
            found = [int(each) for each in re.findall(rb"HTTP/1\.[01] (\d+) ", answers)]
            assert found == statuses
            assert answers.endswith(end)
        assert not site.site.channels


@within(30)
async def test_half_closed_while_the_image_is_pulled(tmp_path: Path) -> None:
    """A client that says no more is waited with for an image, as long as any other."""
    async with serving(tmp_path, FILES, timeout=1.0) as site:
        for is_late in (False, True):
            gate = site.source.hold("resolve")
            site.push({"a.txt": b"late"}, reference=f"{TAG}-{is_late}")
            client = await site.connect()
            cold = GOOD.replace(b"/a.txt", f"-{is_late}/a.txt".encode())
            client.send(GOOD + cold + GOOD)
            client.transport.loseWriteConnection()
            while not gate.waiting:
                await site.turn()
            for _ in range(20):
                await site.turn()
            if not is_late:
                gate.open()
            answers = await client.all()
            gate.open()
            found = [int(each) for each in re.findall(rb"HTTP/1\.1 (\d+) ", answers)]
            assert found == [200, 503 if is_late else 200, 200]
            assert answers.count(b"\r\n\r\nlate") == (not is_late)
            assert not site.site.channels


@within(30)
async def test_half_closed_and_gone(tmp_path: Path) -> None:
    """A client that says no more and takes nothing keeps its response, until it is reset."""
    limits = Limits(client_idle_timeout=0.2)
    async with serving(tmp_path, {**FILES, "large": LARGE * 8}, limits=limits) as site:
        client = await site.connect()
        client.send(GOOD.replace(b"a.txt", b"large"))
        client.transport.loseWriteConnection()
        client.transport.pauseProducing()
        while not site.site.channels:
            await site.turn()
        for _ in range(50):
            await site.turn()
        assert site.site.channels
        client.transport.abortConnection()
        while site.site.channels:
            await site.turn()
        [served] = site.log
        assert served.sent < 8 * len(LARGE)


@within(30)
async def test_pipelining(tmp_path: Path) -> None:
    """A hundred requests sent at once are answered in order."""
    names = [f"{number}.txt" for number in range(100)]
    async with serving(tmp_path, {name: name.encode() for name in names}) as site:
        heads = [GOOD.replace(b"a.txt", name.encode()) for name in names[:-1]]
        answers = await site.exchange(b"".join(heads) + LAST.replace(b"a.txt", b"99.txt"))
        bodies = [part.partition(b"HTTP/1.1")[0] for part in answers.split(b"\r\n\r\n")[1:]]
        assert bodies == [name.encode() for name in names]


@within(30)
async def test_split_heads(tmp_path: Path) -> None:
    """A head gets the same answer in segments of any size."""
    async with serving(tmp_path, FILES) as site:
        for cut in range(1, len(LAST)):
            channel = await site.connect()
            channel.transport.setTcpNoDelay(True)
            channel.send(LAST[:cut])
            await site.turn()
            channel.send(LAST[cut:])
            assert (await channel.all()).endswith(b"\r\n\r\ncontent")


@within(20)
async def test_drain(tmp_path: Path) -> None:
    """A draining site finishes responses, refuses new requests, and closes idle connections."""
    async with serving(tmp_path, FILES) as site:
        idle, busy = await site.connect(), await site.connect()
        idle.send(GOOD)
        await idle.some(1)
        gate = site.source.hold("resolve")
        site.push({"a.txt": b"late"}, reference=f"{TAG}-late")
        busy.send(GOOD.replace(b"/a.txt", b"-late/a.txt") + GOOD)
        while not gate.waiting:
            await site.turn()
        drained = site.site.drain(10)
        assert (await idle.all()).endswith(b"\r\n\r\ncontent")
        assert not drained.called
        gate.open()
        answers = await busy.all()
        assert answers.count(b"HTTP/1.1 ") == 1
        assert answers.endswith(b"\r\n\r\nlate")
        await drained


@within(20)
async def test_new_request_while_draining(tmp_path: Path) -> None:
    """A new request on an open connection of a draining site gets a 503 and is the last."""
    async with serving(tmp_path, FILES) as site:
        client = await site.connect()
        client.send(GOOD + GOOD[:-2])
        await client.some(1)
        await site.site.drain(10)
        client.send(b"\r\n")
        response = Response.parse((await client.all()).partition(b"content")[2])
        assert (response.status, response.body) == (503, b"timeout")
        assert response.headers["connection"] == "close"


@within(20)
async def test_drain_ends_after_the_work_for_its_requests(
    tmp_path: Path, failures: list[type[BaseException]]
) -> None:
    """When a drain ends, the work for aborted requests has ended too, and answers none of them."""
    async with serving(tmp_path, FILES) as site:
        gate = site.source.hold("resolve")
        client = await site.connect()
        client.send(GOOD)
        while not gate.waiting:
            await site.turn()
        await site.site.drain(0)
        await site.store.close()
        assert await client.all() == b""
        assert [served.status for served in site.log] == [499]
        assert failures == []


@within(240)
async def test_drain_has_an_end(tmp_path: Path) -> None:
    """A response that does not finish in time is aborted and logged."""
    async with serving(tmp_path, {"a.txt": b"x" * (64 << 20)}) as site:
        client = await site.connect()
        client.send(GOOD)
        await client.some(1)
        client.transport.pauseProducing()
        await site.site.drain(0.05)
        [served] = site.log
        assert (served.status, served.sent < 64 << 20) == (200, True)
        client.transport.loseConnection()


@within(30)
async def test_tls(tmp_path: Path) -> None:
    """Over TLS too a large file arrives whole, and a bad head is refused."""
    content = bytes(index % 251 for index in range(1_000_000))
    authority = Authority.make(tmp_path)
    root = ssl.Certificate.loadPEM(authority.write(tmp_path / "ca.pem").read_text())
    trusted = ssl.optionsForClientTLS("localhost", ssl.trustRootFromCertificates([root]))
    async with serving(tmp_path, {"a.txt": content}) as site:
        context = authority.issue("localhost")
        port = site.reactor.listenSSL(0, site.site, context, interface="127.0.0.1")
        try:
            endpoint = TCP4ClientEndpoint(site.reactor, "127.0.0.1", port.getHost().port)
            for sent, end in ((LAST, content), (BAD["two Hosts"][1], b"one Host\n")):
                client = await connectProtocol(wrapClientTLS(trusted, endpoint), Client())
                client.send(sent)
                assert (await client.all()).endswith(end)
        finally:
            await port.stopListening()


class SecureClient:
    """The client's end of a TLS connection, which can send its close_notify and read on."""

    def __init__(self, wire: Client) -> None:
        self._wire = wire
        self._fed = 0
        self._tls = SSL.Connection(ssl.CertificateOptions().getContext())
        self._tls.set_connect_state()

    async def do(self, act: Callable[[], Any]) -> Any:
        """Return what `act` does, as soon as enough has come for that."""
        while True:
            try:
                return act()
            except SSL.WantReadError:
                self.flush()
                size = len(await self._wire.some(self._fed + 1))
                assert size > self._fed, "the connection has ended without a close_notify"
                self._tls.bio_write(self._wire.received[self._fed :])
                self._fed = size

    def flush(self) -> None:
        """Send what is to be sent."""
        with contextlib.suppress(SSL.WantReadError):
            while True:
                self._wire.send(self._tls.bio_read(1 << 16))

    async def last_words(self, asked: bytes, ends_tcp: bool) -> None:
        """Send a request, and that nothing will follow."""
        await self.do(self._tls.do_handshake)
        self._tls.send(asked)
        self._tls.shutdown()
        self.flush()
        if ends_tcp:
            self._wire.transport.loseWriteConnection()

    async def all(self) -> bytes:
        """Everything that comes, up to the close_notify of the server."""
        pieces = []
        with contextlib.suppress(SSL.ZeroReturnError):
            while True:
                pieces.append(await self.do(lambda: self._tls.recv(1 << 16)))
        return b"".join(pieces)


@pytest.mark.parametrize("ends_tcp", [False, True])
@within(60)
async def test_tls_that_half_closes(tmp_path: Path, ends_tcp: bool) -> None:
    """Over TLS, too, a client that sends no more gets its answers, and the connection ends."""
    context = Authority.make(tmp_path).issue("localhost")
    large = GOOD.replace(b"a.txt", b"large")
    async with serving(tmp_path, {**FILES, "large": LARGE}) as site:
        port = site.reactor.listenSSL(0, site.site, context, interface="127.0.0.1")
        tcp = TCP4ClientEndpoint(site.reactor, "127.0.0.1", port.getHost().port)
        try:
            for asked, statuses, end in (
                (GOOD * 3, [200] * 3, b"content"),
                (GOOD + large.replace(b"/large", b"-cold/large"), [200, 200], LARGE),
                (large + GOOD, [200, 200], b"content"),
                (BAD["two Hosts"][1], [400], b"one Host\n"),
                (GOOD.replace(b"a.txt", b"none"), [404], b"\n"),
                (GOOD[:-2], [], b""),
            ):
                gate = site.source.hold("resolve")
                site.push({"large": LARGE}, reference=f"{TAG}-cold")
                wire = await connectProtocol(tcp, Client())
                client = SecureClient(wire)
                await client.last_words(asked, ends_tcp)
                answers = client.all()
                if b"cold" in asked:
                    while not gate.waiting:
                        await site.turn()
                    for _ in range(20):
                        await site.turn()
                gate.open()
                raw = await answers
                assert [int(each) for each in re.findall(rb"HTTP/1\.1 (\d+) ", raw)] == statuses
                assert raw.endswith(end)
                await wire.all()
            while site.site.channels:
                await site.turn()
        finally:
            await port.stopListening()


@within(20)
async def test_tls_that_is_cut(tmp_path: Path) -> None:
    """A TLS connection that ends without a close_notify ends at once, whatever was asked."""
    context = Authority.make(tmp_path).issue("localhost")
    async with serving(tmp_path, FILES) as site:
        port = site.reactor.listenSSL(0, site.site, context, interface="127.0.0.1")
        tcp = TCP4ClientEndpoint(site.reactor, "127.0.0.1", port.getHost().port)
        try:
            gate = site.source.hold("resolve")
            site.push(FILES, reference=f"{TAG}-cold")
            wire = await connectProtocol(tcp, Client())
            client = SecureClient(wire)
            await client.do(client._tls.do_handshake)
            client._tls.send(GOOD.replace(b"/a.txt", b"-cold/a.txt"))
            client.flush()
            while not gate.waiting:
                await site.turn()
            wire.transport.loseWriteConnection()
            while site.site.channels:
                await site.turn()
            [served] = site.log
            assert served.status == 499
            gate.open()
        finally:
            await port.stopListening()


def test_protocols() -> None:
    """HTTP/2 is never offered."""
    nothing, metrics = cast("Any", None), Metrics()
    site = make_site(nothing, nothing, Clock(), nothing, metrics, nothing)
    assert site.acceptableProtocols() == [b"http/1.1"]
