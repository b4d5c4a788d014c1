"""Hostile clients, by the thousand, against a whole server process.

During each attack ordinary clients are answered correctly. After it the process holds no more
descriptors than before. Cases S01 to S05, S09, S11 and S13.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import selectors
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread
from urllib.request import urlopen

import pytest

from blobserve.web.http.request_head import MAX_FIELDS, MAX_LINE, MAX_SIZE
from tests.faults.scale import sized
from tests.faults.test_bad_input import eventually
from tests.support.parts.images import Image, write_layout
from tests.support.parts.programs import free_port
from tests.support.parts.server import Response, Server
from tests.support.parts.slowhttp import attack

BASE = "/x.example/site:v1"
FILES = {"index.html": b"<h1>good</h1>", "large": random.Random(1).randbytes(4 << 20)}
GOOD = f"GET {BASE}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode()
LAST = GOOD[:-2] + b"Connection: close\r\n\r\n"
ABORT = struct.pack("ii", 1, 0)
"""The value of SO_LINGER with which closing a connection resets it."""


@pytest.fixture(autouse=True)
def _many_files() -> Iterator[None]:
    """Allow this process, and the server it starts, thousands of open connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 16_384)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Target:
    """A server with an image, and its number of descriptors at rest."""

    def __init__(self, server: Server, own: dict[str, object], top: dict[str, object]) -> None:
        self.server = server
        self._own = own
        self._top = top
        assert server.fetch(f"{BASE}/").body == FILES["index.html"]
        self.before = self._at_rest()

    @property
    def descriptors(self) -> int:
        """Return the number of files and sockets that the process has open."""
        return len(os.listdir(f"/proc/{self.server.pid}/fd"))

    def _at_rest(self) -> int:
        # The server goes on releasing resources of its first request for a moment.
        seen: list[int] = []

        def is_steady() -> bool:
            seen.append(self.descriptors)
            return seen[-5:] == [seen[-1]] * 5

        assert eventually(is_steady)
        return seen[-1]

    @property
    def url(self) -> str:
        """Return the URL of the image."""
        return self.server.url + BASE

    @property
    def log(self) -> str:
        """Return the access log so far; its last second may be missing."""
        return (self.server.directory / "access.log").read_text("ascii")

    def metric(self, name: str) -> float:
        """Return the value of one of the metrics."""
        address = self._top["prometheusAddr"]
        with urlopen(f"http://{address}/metrics", timeout=20) as answer:
            shown = answer.read().decode()
        [value] = re.findall(rf"^{re.escape(name)} (\S+)$", shown, re.MULTILINE)
        return float(value)

    def reload(self, **own: object) -> None:
        """Reload the configuration with other values."""
        self.server.configure({**self._own, **own}, self._top)
        self.server.reload()

    def connect(self) -> socket.socket:
        """Open a connection."""
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=20)

    def recovers(self) -> bool:
        """Return whether the server has released everything and serves."""
        return (
            eventually(lambda: self.descriptors <= self.before)
            and self.metric("blobserve_requests_in_flight") == 0
            and self.metric("blobserve_connections") == 0
            and self.server.fetch(f"{BASE}/large").body == FILES["large"]
        )

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Send ordinary requests on new connections inside the context, and check every answer."""
        enough = Event()
        wrong: list[object] = []
        right: list[str] = []

        def ask() -> None:
            while not enough.is_set():
                for name, content in (("", FILES["index.html"]), ("large", FILES["large"])):
                    try:
                        answer: Response | OSError = self.server.fetch(f"{BASE}/{name}")
                    except OSError as error:
                        answer = error
                    if not isinstance(answer, Response) or answer.body != content:
                        wrong.append(answer)
                    right.append(name)

        asking = Thread(target=ask)
        asking.start()
        try:
            yield
        finally:
            enough.set()
            asking.join(60)
        assert not asking.is_alive()
        assert wrong == []
        assert len(right) > 1


@pytest.fixture
def target(serve: Callable[..., Server], tmp_path: Path) -> Callable[..., Target]:
    """Return a function that starts a server with these limits."""

    def start(*, log: str = "text", **limits: object) -> Target:
        layout = write_layout(tmp_path / "layout", {"v1": Image.of(FILES)})
        source = {"source": f"oci:{layout}", "tagMaxAge": "1h"}
        own: dict[str, object] = {"repos": {"x.example/site": source}, "limits": limits}
        top: dict[str, object] = {
            "accessLog": {"format": log, "file": str(tmp_path / "access.log")},
            "prometheusAddr": f"127.0.0.1:{free_port()}",
        }
        return Target(serve(own, top), own, top)

    return start


def everything(connection: socket.socket) -> bytes:
    """Receive everything until the server closes or resets the connection."""
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionError:
        pass
    return received


def answers(
    connections: Iterable[socket.socket], tick: Callable[[socket.socket], None]
) -> list[bytes]:
    """Receive everything on each connection until the server closes it.

    `tick` is called with each open connection after 0.2 seconds without data. The function returns
    early when nothing has arrived for five seconds.
    """
    received = dict.fromkeys(connections, b"")
    with selectors.DefaultSelector() as selector:
        for connection in received:
            selector.register(connection, selectors.EVENT_READ)
        idle = 0
        while selector.get_map() and idle < 25:
            ready = selector.select(0.2)
            idle = 0 if ready else idle + 1
            for key, _ in ready:
                connection: socket.socket = key.fileobj  # type: ignore[assignment]
                piece = connection.recv(65536)
                received[connection] += piece
                if not piece:
                    selector.unregister(connection)
            if not ready:
                for key in list(selector.get_map().values()):
                    tick(key.fileobj)  # type: ignore[arg-type]
    return list(received.values())


# --- With slowhttptest ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "path"),
    [
        (["-H", "-i", "1", "-x", "10"], "/"),
        (["-B", "-i", "1", "-x", "10"], "/"),
        (["-B", "-i", "1", "-x", "10", "-t", "GET"], "/"),
        (["-R", "-a", "1", "-b", "1000"], "/large"),
    ],
    ids=["S01 slow heads", "S02 slow bodies", "S02 slow bodies of GET", "S04 many ranges"],
)
def test_slow_attacks(
    target: Callable[..., Target], tmp_path: Path, options: list[str], path: str
) -> None:
    """An attack by slowhttptest ends long before its time, and other clients are served."""
    it = target(clientHeadTimeout="1s")
    with it.answering():
        seen = attack(tmp_path, it.url + path, 10, *options)
    assert (seen.was_repelled, seen.was_served) == (True, True)
    assert it.recovers()


def test_s03_slow_reading(target: Callable[..., Target], tmp_path: Path) -> None:
    """While 500 clients read a large file a few bytes at a time, others read it at full speed."""
    it = target()
    window = ["-w", "8", "-y", "64", "-n", "1", "-z", "8"]
    with it.answering():
        seen = attack(tmp_path, it.url + "/large", 3, "-X", *window)
    assert seen.was_served
    assert it.recovers()


# --- With sockets ---------------------------------------------------------------------------------


def test_s01_two_thousand_heads_that_trickle(target: Callable[..., Target]) -> None:
    """Each of 2,000 heads that arrive byte by byte gets a 408 at its deadline and is logged."""
    it = target(clientHeadTimeout="1s")
    with it.answering(), ExitStack() as stack:
        slow = [stack.enter_context(it.connect()) for _ in range(2000)]
        for connection in slow:
            connection.sendall(GOOD[:-4] + b"\r\nX: ")
        said = answers(slow, lambda connection: connection.sendall(b"x"))
    assert {answer.partition(b"\r\n")[0] for answer in said} == {b"HTTP/1.1 408 Request Timeout"}
    assert {answer.rpartition(b"\r\n\r\n")[2] for answer in said} == {
        b"the request head took too long\n"
    }
    assert it.recovers()
    assert eventually(lambda: it.log.count('/ HTTP/1.1" 408 ') == 2000)


def test_s02_bodies_are_refused_with_the_head(target: Callable[..., Target]) -> None:
    """A request with a body is refused with its head: 400 for GET and 405 for POST."""
    it = target()
    for method, status in ((b"GET", b"400"), (b"POST", b"405")):
        with it.connect() as connection:
            connection.sendall(GOOD.replace(b"GET", method)[:-2] + b"Content-Length: 9\r\n\r\n")
            assert everything(connection).startswith(b"HTTP/1.1 " + status)


def test_s05_silent_connections(target: Callable[..., Target]) -> None:
    """9,000 silent connections harm no other client, and a reload with a timeout closes them."""
    it, count = target(), sized(2500, 9000)
    with ExitStack() as stack:
        with it.answering():
            silent = [stack.enter_context(it.connect()) for _ in range(count)]
            assert eventually(lambda: it.descriptors >= it.before + count)
        it.reload(limits={"clientIdleTimeout": "500ms"})
        assert answers(silent, lambda _: None) == [b""] * count
        assert it.recovers()


def test_s05_connections_that_are_reset(target: Callable[..., Target]) -> None:
    """10,000 connections reset before, within and after a request leave nothing behind."""
    it = target()
    with it.answering():
        for number in range(sized(2000, 10_000)):
            with it.connect() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
                connection.sendall((b"", GOOD[:20], GOOD, GOOD * 20)[number % 4])
    assert it.recovers()


def test_s05_half_open_connections(target: Callable[..., Target]) -> None:
    """1,000 half-closed connections are closed by the server, with or without a request."""
    it = target()
    with it.answering(), ExitStack() as stack:
        half = [stack.enter_context(it.connect()) for _ in range(1000)]
        for number, connection in enumerate(half):
            connection.sendall((b"", GOOD[:20], GOOD[:-1], GOOD)[number % 4])
            connection.shutdown(socket.SHUT_WR)
        said = answers(half, lambda _: None)
    assert {answer.partition(b"\r\n")[0] for answer in said} <= {b"", b"HTTP/1.1 200 OK"}
    assert it.recovers()


def test_s05_few_descriptors(target: Callable[..., Target]) -> None:
    """With 256 descriptors, 192 connections are served, and some of the others get a 503."""
    it = target()
    resource.prlimit(it.server.pid, resource.RLIMIT_NOFILE, (256, 256))
    with ExitStack() as stack:
        begun = []
        for _ in range(400):
            connection = stack.enter_context(it.connect())
            connection.sendall(GOOD[:20])
            begun.append(connection)
        refused = [everything(connection) for connection in begun[192:]]
        # The server does not wait for all of the refused clients to read the answer.
        told = [answer for answer in refused if answer.endswith(b"\r\n\r\ntimeout")]
        assert len(told) >= 24
        assert len(told) + refused.count(b"") == len(refused)
        assert it.descriptors <= it.before + 192 + 24
        counted = it.metric('blobserve_refused_connections_total{reason="total"}')
        assert len(told) <= counted <= len(refused)
        assert eventually(lambda: it.log.count('"- - -" 503 ') == counted)
        begun[0].sendall(GOOD[20:])
        assert begun[0].recv(100).startswith(b"HTTP/1.1 200")
    assert it.recovers()


def test_s05_no_descriptors(target: Callable[..., Target]) -> None:
    """Without free descriptors open connections are served; with some, new ones are."""
    it = target()
    soft, hard = resource.prlimit(it.server.pid, resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        old = [stack.enter_context(it.connect()) for _ in range(20)]
        for connection in old:
            connection.sendall(GOOD)
            assert connection.recv(65536).endswith(FILES["index.html"])
        assert eventually(lambda: it.descriptors == it.before + 20)
        resource.prlimit(it.server.pid, resource.RLIMIT_NOFILE, (it.descriptors, hard))
        flood = [stack.enter_context(it.connect()) for _ in range(200)]
        # Closed without an answer: no descriptor is left for one.
        assert {everything(connection) for connection in flood} == {b""}
        for connection in old:
            connection.sendall(GOOD)
            assert connection.recv(65536).endswith(FILES["index.html"])
        resource.prlimit(it.server.pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert it.server.fetch(f"{BASE}/large").body == FILES["large"]
    assert it.recovers()


def test_s09_clients_that_leave(target: Callable[..., Target]) -> None:
    """10,000 clients that leave at any point of a request leave no descriptor and no lease."""
    it = target()
    chance = random.Random(9)
    with it.answering(), ExitStack() as stack:
        for _ in range(sized(2000, 10_000)):
            request = GOOD.replace(b"/ HTTP", b"/large HTTP") if chance.random() < 0.5 else GOOD
            request *= chance.choice((1, 1, 1, 3))
            connection = stack.enter_context(it.connect())
            if chance.random() < 0.5:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
            connection.sendall(request[: chance.randrange(len(request) + 1)])
            if chance.random() < 0.5:
                connection.settimeout(chance.random() / 100)
                with contextlib.suppress(OSError):
                    connection.recv(chance.randrange(1, 300_000))
            if chance.random() < 0.1:
                connection.shutdown(socket.SHUT_WR)
            if chance.random() < 0.9:
                connection.close()
    assert it.recovers()
    # The layer can be removed, since no lease on it is left.
    contents = it.server.space / "blobs"
    assert list(contents.rglob("content"))
    it.reload(blobSpace={"maxSizeBytes": 1, "gcInterval": "1s"})
    assert eventually(lambda: not list(contents.rglob("content")))


BOMBS = {
    "one long field": (431, GOOD[:-2] + b"X: " + b"x" * MAX_SIZE + b"\r\n\r\n"),
    "an endless field": (431, GOOD[:-2] + b"X: " + b"x" * (8 << 20)),
    "many fields": (431, GOOD[:-2] + b"X: x\r\n" * (MAX_FIELDS + 1) + b"\r\n"),
    "endless fields": (431, GOOD[:-2] + b"X: x\r\n" * (1 << 20)),
    "one large cookie": (431, GOOD[:-2] + b"Cookie: a=" + b"x" * MAX_SIZE + b"\r\n\r\n"),
    "many cookies": (431, GOOD[:-2] + (b"Cookie: a=" + b"x" * 4000 + b"\r\n") * 10 + b"\r\n"),
    "a long target": (414, b"GET /" + b"x" * MAX_LINE + b" HTTP/1.1\r\nHost: x\r\n\r\n"),
    "a long query": (414, b"GET /?" + b"%00" * MAX_LINE + b" HTTP/1.1\r\nHost: x\r\n\r\n"),
    "an endless target": (414, b"GET /" + b"x" * (8 << 20)),
    "an endless method": (414, b"G" * (8 << 20)),
}


def test_s11_heads_that_are_too_large(target: Callable[..., Target]) -> None:
    """A head that is too large gets a 431, or 414 for its target, and is not kept in memory."""
    it = target()
    before = it.server.peak_memory()
    with it.answering():
        for name, (status, bomb) in BOMBS.items():
            for _ in range(5):
                with it.connect() as connection:
                    with contextlib.suppress(ConnectionError):
                        connection.sendall(bomb)
                    first = everything(connection).partition(b"\r\n")[0]
                    # The rest of an endless head may meet a connection that was reset.
                    endless = (b"",) if len(bomb) > 1 << 20 else ()
                    assert first[:12] in (b"HTTP/1.1 %d" % status, *endless), name
    assert eventually(lambda: it.log.count('" 431 ') == 30 and it.log.count('" 414 ') == 20)
    assert it.server.peak_memory() - before < 32 << 20
    assert it.recovers()


LINE = re.compile(
    r'\S+ - - \[[^\]]+\] "[!-~]+ [!-~]+ [!-~]+" \d{3} \d+ "[ -!#-~]*" "[ -!#-~]*"'
    r" \d+\.\d+ \S+ \S+ \S+"
)
FORGED = '127.0.0.1 - - [01/Jan/2030:00:00:00 +0000] "GET /forged HTTP/1.1" 200 1 "-" "-"'


@pytest.mark.parametrize("log", ["text", "json"])
def test_s13_lines_that_are_injected(target: Callable[..., Target], log: str) -> None:
    """A request is one line of the log, for any bytes that the client puts into logged fields."""
    it = target(log=log)
    poison = [
        b"\n" + FORGED.encode(),
        b"\r\n" + FORGED.encode(),
        b'" 200 1 "',
        b"\x1b[2J",
        b"\xe2\x80\xa8",
    ]
    poison += [
        b"%0a" + FORGED.replace(" ", "%20").encode(),
        b"\\",
        b"\x85",
        b"\0",
        b"\x7f",
        b"\x9b2J",
    ]
    heads = []
    for text in poison:
        heads += [
            LAST.replace(b"/ HTTP", text + b" HTTP"),
            LAST.replace(b":v1/", b":v1" + text + b"/"),
            LAST[:-2] + b"User-Agent: x" + text + b"\r\n\r\n",
            LAST[:-2] + b"Referer: x" + text + b"\r\n\r\n",
            LAST[:-2] + b"X-Forwarded-For: 192.0.2.1" + text + b"\r\n\r\n",
            text + LAST,
        ]
    for head in heads:
        with it.connect() as connection:
            connection.sendall(head)
            assert everything(connection).startswith(b"HTTP/1.1 ")
    assert it.server.fetch(f"{BASE}/last").status == 404
    assert eventually(lambda: "/last" in it.log)
    lines = it.log.splitlines()
    # The first line is the request that warmed the target.
    assert len(lines) == 1 + len(heads) + 1
    for line in lines:
        if log == "text":
            assert LINE.fullmatch(line), line
        else:
            assert json.loads(line)["status"] in (200, 400, 404)
    assert "forged" not in it.server.output.read_text()
