"""The access log: one line for each request, with any content."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import math
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThreadPool
from twisted.logger import LogEvent, formatEvent

from blobserve.concurrency.threads import OwnThreads, Threads
from blobserve.config import AccessLogRules
from blobserve.metrics import Metrics
from blobserve.testing import InlineThreads, make_image
from blobserve.web.server.access_log import AccessLog, LogRecord, client_address
from blobserve.web.server.request_log import peer_of
from tests.conftest import observed
from tests.support.scripted_registry import listening
from tests.support.services import allowing, configured, running
from tests.support.source_fixtures import until
from tests.support.twisted_answers import the_reactor
from tests.support.within import within

SERVED = LogRecord(
    time=1_700_000_000.25,
    address="192.0.2.1",
    method=b"GET",
    target=b"/r.example/x:v1/a?b=c",
    version=b"HTTP/1.1",
    status=200,
    sent=1234,
    duration=0.0125,
    cache="hit",
    digest="sha256:" + "0" * 64,
    request_id="id-1",
    referer=None,
    agent=b"curl/8",
    host=b"app.example.com",
)


def access_log(
    path: str,
    clock: Any,
    form: Literal["text", "json", "off"] = "text",
    threads: Threads | None = None,
    metrics: Metrics | None = None,
) -> AccessLog:
    """An access log that is not open yet, without threads unless they are given."""
    lost = (metrics or Metrics()).lost_lines
    return AccessLog(AccessLogRules(form, path), clock, threads or InlineThreads(), lost)


class Stand:
    """An access log in a directory, and its clock."""

    def __init__(self, directory: Path, form: Literal["text", "json", "off"] = "text") -> None:
        self.clock = Clock()
        self.file = directory / "access.log"
        self.log = access_log(str(self.file), self.clock, form)
        self.log.open()

    def lines(self) -> list[str]:
        """Return the lines written so far."""
        return self.file.read_text("ascii").splitlines()


def test_a_line_of_text(tmp_path: Path) -> None:
    """A line has the common fields, and duration, cache result, digest and id."""
    stand = Stand(tmp_path)
    stand.log.write(SERVED)
    stand.log.close()
    assert stand.lines() == [
        '192.0.2.1 - - [14/Nov/2023:22:13:20 +0000] "GET /r.example/x:v1/a?b=c HTTP/1.1" 200 1234'
        f' "-" "curl/8" 0.012500 hit sha256:{"0" * 64} id-1'
    ]


def test_a_line_of_json(tmp_path: Path) -> None:
    """A JSON line is one object with a member for every field."""
    stand = Stand(tmp_path, "json")
    stand.log.write(attrs.evolve(SERVED, agent=b'"\xff\n', digest=None))
    stand.log.close()
    [line] = stand.lines()
    expected = attrs.asdict(SERVED) | {"agent": '"\\xff\n', "digest": None}
    expected |= {"method": "GET", "target": "/r.example/x:v1/a?b=c", "version": "HTTP/1.1"}
    assert json.loads(line) == expected | {"host": "app.example.com"}


def test_hosts_in_json(tmp_path: Path) -> None:
    """The host in a JSON line has the form in which sites are compared."""
    stand = Stand(tmp_path, "json")
    hosts = (b"APP.example.com.:80", b"[::1]:80", b"127.0.0.1", b"", None, b":80", b"\xff", b"a b")
    for host in hosts:
        stand.log.write(attrs.evolve(SERVED, host=host))
    stand.log.close()
    assert [json.loads(line)["host"] for line in stand.lines()] == [
        "app.example.com",
        "[::1]",
        "127.0.0.1",
        None,
        None,
        None,
        None,
        "a b",
    ]


def test_a_log_that_is_off(tmp_path: Path) -> None:
    """An access log that is off creates no file."""
    stand = Stand(tmp_path, "off")
    stand.log.write(SERVED)
    stand.log.reopen()
    stand.log.close()
    assert not stand.file.exists()


WORD = r"(?:[!#-\[\]-~]|\\x[0-9a-f]{2})+"
QUOTED = r"(?:[ !#-\[\]-~]|\\x[0-9a-f]{2})*"
TEXT_LINE = re.compile(
    rf"{WORD} - - \[[0-9]{{2}}/[A-Z][a-z]{{2}}/[0-9]{{4}}(?::[0-9]{{2}}){{3}} \+0000\]"
    rf' "{WORD} {WORD} {WORD}" [0-9]{{3}} [0-9]+ "{QUOTED}" "{QUOTED}"'
    rf" [0-9]+\.[0-9]{{6}} {WORD} {WORD} {WORD}\n"
)
JSON_STRING = r'"(?:[ !#-\[\]-~]|\\(?:["\\/bfnrt]|u[0-9a-f]{4}))*"'
JSON_LINE = re.compile(
    r"\{"
    + ",".join(
        f'"{field.name}":(?:{JSON_STRING}|[0-9.]+(?:e-[0-9]+)?|null)'
        for field in attrs.fields(LogRecord)
    )
    + r"\}\n"
)

blanks = st.sampled_from(
    [b" ", b'"', b"\\", b"\n", b"\r\n", b"\x85", b"\xe2\x80\xa8", b"%\xd9\xa1"]
)
odd = st.lists(blanks | st.binary(max_size=20), max_size=6).map(b"".join)
odd_text = odd.map(lambda each: each.decode("utf-8", "surrogateescape")) | st.text(max_size=20)


@given(
    fields=st.fixed_dictionaries(
        {
            "method": odd,
            "target": odd,
            "version": odd,
            "referer": st.none() | odd,
            "agent": st.none() | odd,
            "host": st.none() | odd,
            "address": odd_text,
            "cache": st.none() | odd_text,
            "digest": st.none() | odd_text,
            "request_id": odd_text,
        }
    )
)
def test_nothing_that_is_logged_ends_a_line_or_a_field(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, bytes | str | None]
) -> None:
    """For any bytes in a field each line matches one expression with the escaped field in it."""
    for form, expression in (("text", TEXT_LINE), ("json", JSON_LINE)):
        stand = Stand(tmp_path_factory.mktemp("log"), form)  # type: ignore[arg-type]
        served = attrs.evolve(SERVED, **fields)
        stand.log.write(served)
        stand.log.write(SERVED)
        stand.log.close()
        first, second = stand.file.read_bytes().decode("ascii").splitlines(keepends=True)
        assert expression.fullmatch(first)
        assert expression.fullmatch(second)
        if form == "json":
            assert list(json.loads(first)) == [field.name for field in attrs.fields(LogRecord)]
        else:
            agent = first.split('"')[5].encode().decode("unicode_escape").encode("latin-1")
            assert agent == (b"-" if served.agent is None else served.agent)


forwarded_hops = st.lists(
    st.sampled_from(
        [b"10.0.0.9", b"198.51.100.1", b"2001:DB8:0::1", b"::ffff:192.0.2.1", b"fe80::1%eth0"]
    )
    | st.tuples(st.sampled_from([b"fe80::1%", b"10.0.0.1%", b"::1%", b""]), odd).map(b"".join),
    max_size=5,
)


@given(hops=forwarded_hops)
def test_an_address_is_written_as_one(hops: list[bytes]) -> None:
    """The client is an address in canonical form, for any X-Forwarded-For."""
    address = client_address("10.0.0.1", [b",".join(hops)], TRUSTED)
    assert address == str(ipaddress.ip_address(address))
    assert re.fullmatch("[0-9a-f.:]+", address)


def test_lines_are_written_within_a_second(tmp_path: Path) -> None:
    """Lines are written in batches, within a second of the first."""
    stand = Stand(tmp_path)
    stand.log.write(SERVED)
    stand.clock.advance(0.9)
    stand.log.write(SERVED)
    assert stand.lines() == []
    stand.clock.advance(0.1)
    assert len(stand.lines()) == 2
    assert stand.clock.getDelayedCalls() == []


def test_a_full_buffer_is_written_at_once(tmp_path: Path) -> None:
    """At most 256 KiB are buffered."""
    stand = Stand(tmp_path)
    for _ in range(10):
        stand.log.write(attrs.evolve(SERVED, target=b"x" * 40_000))
    assert stand.file.stat().st_size > 262_144
    stand.log.close()
    assert len(stand.lines()) == 10
    assert stand.clock.getDelayedCalls() == []


def test_reopening_follows_a_rotation(tmp_path: Path) -> None:
    """A log that is reopened after a rotation goes on in a new file, without losing a line."""
    stand = Stand(tmp_path)
    stand.log.write(SERVED)
    moved = stand.file.rename(tmp_path / "access.log.1")
    stand.log.reopen()
    stand.log.write(SERVED)
    stand.log.close()
    assert len(moved.read_text().splitlines()) == 1
    assert len(stand.lines()) == 1


def test_a_log_that_cannot_be_reopened_goes_on(tmp_path: Path) -> None:
    """A log that cannot create its new file goes on in the old one."""
    (tmp_path / "d").mkdir()
    stand = Stand(tmp_path / "d")
    moved = (tmp_path / "d").rename(tmp_path / "e")
    stand.log.reopen()
    stand.log.write(SERVED)
    stand.log.close()
    assert len((moved / "access.log").read_text().splitlines()) == 1


def test_a_log_that_cannot_be_opened(tmp_path: Path) -> None:
    """A log that cannot be opened is an error before the server starts."""
    log = access_log(str(tmp_path / "none" / "a.log"), Clock())
    with pytest.raises(OSError, match="No such file"):
        log.open()


@pytest.fixture
def said() -> Iterator[list[str]]:
    """The messages about the access log."""
    events: list[str] = []

    def observe(event: LogEvent) -> None:
        if "access log" in (event.get("log_format") or ""):
            events.append(formatEvent(event))

    with observed(observe):
        yield events


def test_a_disk_that_is_full_loses_lines_and_nothing_else(said: list[str]) -> None:
    """On a full disk lines are lost, do not fill the memory, and are reported once."""
    clock = Clock()
    metrics = Metrics()
    log = access_log("/dev/full", clock, metrics=metrics)
    log.open()
    for _ in range(5):
        for _ in range(1000):
            log.write(attrs.evolve(SERVED, target=b"x" * 1000))
        clock.advance(1)
    assert log._lines == []
    log.close()
    assert said == ["access log: lines are lost: [Errno 28] No space left on device"]
    assert lost_lines(metrics) == 5000


def test_a_line_that_an_error_has_cut_is_completed(tmp_path: Path, said: list[str]) -> None:
    """A line that was written in part is completed later."""
    stand = Stand(tmp_path)
    stand.log.write(attrs.evolve(SERVED, request_id="first"))
    stand.clock.advance(1)
    size = stand.file.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # One and a half lines fit, then a quarter more, then nothing.
        for limit in (size * 5 // 2, size * 11 // 4, size * 11 // 4):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            for name in ("second", "third", "lost"):
                stand.log.write(attrs.evolve(SERVED, request_id=name))
            stand.clock.advance(1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    stand.log.write(attrs.evolve(SERVED, request_id="last"))
    stand.log.close()
    lines = stand.file.read_text("ascii").splitlines(keepends=True)
    assert all(map(TEXT_LINE.fullmatch, lines))
    assert [line.split()[-1] for line in lines] == ["first", "second", "third", "last"]
    assert said == [
        "access log: lines are lost: [Errno 27] File too large",
        "access log: writing again, 7 lines were lost",
    ]


def test_a_line_that_cannot_be_made_is_lost_alone(tmp_path: Path, said: list[str]) -> None:
    """An error in formatting a line loses that line alone."""
    stand = Stand(tmp_path)
    stand.log.write(SERVED)
    stand.log.write(attrs.evolve(SERVED, time=math.inf))
    stand.log.write(SERVED)
    stand.log.close()
    assert len(stand.lines()) == 2
    assert len(said) == 2


def test_a_log_with_a_descriptor_that_takes_nothing(tmp_path: Path, said: list[str]) -> None:
    """A log that cannot write raises no error, and goes on in the next file."""
    stand = Stand(tmp_path)
    assert stand.log._output is not None
    fd = stand.log._output.descriptor
    for_reading = os.open(stand.file, os.O_RDONLY)
    os.dup2(for_reading, fd)
    os.close(for_reading)
    stand.log.write(SERVED)
    stand.clock.advance(1)
    stand.log.write(attrs.evolve(SERVED, target=b"x" * 270_000))
    stand.log.reopen()
    stand.log.write(SERVED)
    stand.log.close()
    assert len(stand.lines()) == 1
    assert said[0] == "access log: lines are lost: [Errno 9] Bad file descriptor"
    assert said[-1] == "access log: writing again, 2 lines were lost"


class NoThreads:
    """Threads that run no job."""

    def run(self, f: Any, *args: Any, **kwargs: Any) -> Any:
        """See `Threads.run`."""
        raise AssertionError("a job for a thread")

    def soon(self, f: Any) -> None:
        """See `Threads.soon`."""
        raise AssertionError("a job of a thread")


def test_a_file_is_written_without_threads(tmp_path: Path, said: list[str]) -> None:
    """A regular file gets its lines in the reactor's thread, in pieces of 64 KiB."""
    clock, path = Clock(), tmp_path / "access.log"
    log = access_log(str(path), clock, threads=NoThreads())
    log.open()
    log.write(attrs.evolve(SERVED, target=b"x" * 65_536))
    assert path.stat().st_size > 65_536
    log.write(SERVED)
    log.reopen()
    log.write(SERVED)
    assert log.close().called
    assert len(path.read_text().splitlines()) == 3
    assert said == []


def lost_lines(metrics: Metrics) -> float:
    """How many lines were lost."""
    name = "blobserve_access_log_lost_lines_total"
    return metrics.registry.get_sample_value(name) or 0.0


class Reader:
    """The other end of a pipe, which takes what is there when it is told to."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.taken = b""

    def take(self) -> bytes:
        """Everything that has been taken."""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self._fd, 1 << 16):
                self.taken += piece
        return self.taken

    def leave(self) -> list[bytes]:
        """Close this end; returns the lines that were taken."""
        os.close(self._fd)
        return self.taken.splitlines(keepends=True)


def ids(lines: list[bytes]) -> list[int]:
    """The ids of these lines, which are numbers; each must be whole."""
    texts = [line.decode("ascii") for line in lines]
    assert all(map(TEXT_LINE.fullmatch, texts))
    return [int(text.split()[-1]) for text in texts]


@within(60)
async def test_a_pipe_and_its_readers(tmp_path: Path, said: list[str]) -> None:
    """A pipe that nobody reads loses lines beyond a bound; its next reader gets whole lines."""
    reactor, metrics, path = the_reactor(), Metrics(), tmp_path / "pipe"
    os.mkfifo(path)
    threads = OwnThreads(reactor, 1, "log")
    threads.start()
    log = access_log(str(path), reactor, threads=threads, metrics=metrics)
    log.open()
    for number in range(3000):
        log.write(attrs.evolve(SERVED, target=b"x" * 3000, request_id=str(number)))
    lost = lost_lines(metrics)
    assert 3000 * 3 / 9 < lost < 3000 * 2 / 3
    assert said == ["access log: lines are lost: the output is too slow"]
    first = Reader(path)
    await until(lambda: first.take().count(b"\n") == 3000 - lost)
    log.write(attrs.evolve(SERVED, request_id="3000"))
    await until(lambda: b" 3000\n" in first.take())
    assert said[1:] == [f"access log: writing again, {lost:.0f} lines were lost"]
    numbers = ids(first.leave())
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 3001 - lost
    for number in (3001, 3002):
        log.write(attrs.evolve(SERVED, request_id=str(number)))
    second = Reader(path)
    await until(lambda: b" 3002\n" in second.take())
    log.write(attrs.evolve(SERVED, request_id="3003"))
    await log.close()
    second.take()
    assert ids(second.leave()) == [3001, 3002, 3003]
    assert lost_lines(metrics) == lost
    assert len(said) == 2
    await deferToThreadPool(reactor, reactor.getThreadPool(), threads.stop)


@within(60)
async def test_a_pipe_that_is_never_read(tmp_path: Path, said: list[str]) -> None:
    """A log that is stuck can be reopened elsewhere, and closed, and loses what was stuck alone."""
    reactor, metrics, path = the_reactor(), Metrics(), tmp_path / "log"
    os.mkfifo(path)
    threads = OwnThreads(reactor, 1, "log")
    threads.start()
    log = access_log(str(path), reactor, threads=threads, metrics=metrics)
    log.open()
    for _ in range(100):
        log.write(attrs.evolve(SERVED, target=b"x" * 3000))
    path.rename(tmp_path / "moved")
    log.reopen()
    log.write(attrs.evolve(SERVED, request_id="1"))
    await until(lambda: path.exists() and path.stat().st_size > 0)
    assert ids(path.read_bytes().splitlines(keepends=True)) == [1]
    await until(lambda: lost_lines(metrics) >= 70)
    assert lost_lines(metrics) <= 90
    path.unlink()
    os.mkfifo(path)
    log.reopen()
    for _ in range(100):
        log.write(attrs.evolve(SERVED, target=b"x" * 3000))
    await log.close()
    await log.close()
    assert 150 <= lost_lines(metrics) <= 170
    await deferToThreadPool(reactor, reactor.getThreadPool(), threads.stop)


@within(60)
async def test_a_server_with_a_pipe_that_nobody_reads(tmp_path: Path) -> None:
    """A server whose access log is an unread pipe starts, answers and ends as any other."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    async with listening() as registry:
        site = registry.push("team/site:v1", make_image({"a": b"content"}))
        log = {"file": str(path)}
        config = configured(tmp_path / "space", allowing(registry.host), accessLog=log)
        async with running(config) as server:
            long = "x" * 7000
            for _ in range(250):
                headers = {"User-Agent": long, "Referer": long}
                assert (await server.fetch(f"{site}/a?{long}", headers=headers)).body == b"content"
            assert 0 < server.counted("blobserve_access_log_lost_lines_total") < 100


def test_the_file_is_not_for_everybody(tmp_path: Path) -> None:
    """An access log is readable by its owner and group alone."""
    previous = os.umask(0)
    try:
        assert Stand(tmp_path).file.stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(previous)


TRUSTED = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")]


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("192.0.2.1", [b"198.51.100.1"], "192.0.2.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [b"198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", [b"203.0.113.9, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", [b"198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", [b"198.51.100.1", b"10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", [b"203.0.113.9, evil\n, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", [b""], "10.0.0.1"),
        ("10.0.0.1", [b"10.0.0.3"], "10.0.0.3"),
        ("::ffff:10.0.0.1", [b"2001:db8::1"], "2001:db8::1"),
        ("fd00::1", [b"2001:db8::1"], "2001:db8::1"),
        ("-", [b"198.51.100.1"], "-"),
        ("10.0.0.1", [b"2001:DB8:0:0:0::1"], "2001:db8::1"),
        ("10.0.0.1", [b"::ffff:198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", [b"\t198.51.100.1 "], "198.51.100.1"),
        ("10.0.0.1", [b"198.51.100.1\xa0"], "10.0.0.1"),
        ("10.0.0.1", [b"2001:db8::1%eth0"], "10.0.0.1"),
        ("10.0.0.1", [b"2001:db8::1%"], "10.0.0.1"),
        ("10.0.0.1", [b"fd00::1%\xc3\xa9"], "10.0.0.1"),
        ("10.0.0.1", [b'198.51.100.1, fd00::1% - - [x] "GET / HTTP/1.1" 200 1'], "10.0.0.1"),
        ("fd00::1%x", [b"2001:db8::1"], "fd00::1%x"),
    ],
)
def test_who_asks(peer: str, forwarded: list[bytes], address: str) -> None:
    """X-Forwarded-For counts as far as trusted proxies have written it."""
    assert client_address(peer, forwarded, TRUSTED) == address


def test_nobody_is_trusted_unasked() -> None:
    """Without trustedProxies the header is ignored."""
    assert client_address("10.0.0.1", [b"198.51.100.1"], []) == "10.0.0.1"


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        (IPv4Address("TCP", "192.0.2.1", 1), "192.0.2.1"),
        (IPv6Address("TCP", "2001:DB8:0::1", 1), "2001:db8::1"),
        (IPv6Address("TCP", "::ffff:192.0.2.1", 1), "192.0.2.1"),
        (IPv6Address("TCP", "fe80::1%eth0", 1), "fe80::1"),
        (IPv6Address("TCP", "fe80::1%\u0661 - -", 1), "fe80::1"),
        # In the form that Twisted reads from a PROXY header.
        (IPv4Address("TCP", '"\u0661', 1), "-"),
        (UNIXAddress("/run/site.sock"), "-"),
        (UNIXAddress(None), "-"),
        (None, "-"),
    ],
)
def test_the_other_end_of_a_connection(address: object, peer: str) -> None:
    """A peer is logged by its address without a zone, or as a dash."""
    assert peer_of(address) == peer


@within(30)
@pytest.mark.parametrize("form", ["text", "json"])
async def test_zones_of_a_trusted_proxy(tmp_path: Path, form: str) -> None:
    """An address with a zone from a proxy does not end the connection or the log, on both paths."""
    async with listening() as registry:
        site = registry.push("team/site:v1", make_image({"a": b"content"}))
        file = tmp_path / "access.log"
        config = configured(
            tmp_path / "space",
            allowing(registry.host, trustedProxies=["127.0.0.0/8"]),
            accessLog={"format": form, "file": str(file)},
        )
        async with running(config) as server:
            client = await server.connect()
            odd = [b"fe80::1%\xd9\xa1", b"fe80::1%eth0 hit", b"2001:DB8::1", b"\xff"]
            for hop in odd * 2:
                for more in (b"", b"X-BlobServe-ReadOnly: true\r\n"):
                    client.received = b""
                    head = f"GET /{site}/a HTTP/1.1\r\nHost: x\r\n".encode()
                    client.send(head + more + b"X-Forwarded-For: " + hop + b"\r\n\r\n")
                    received = await client.some(100)
                    assert received.startswith(b"HTTP/1.1 200 OK")
                    assert received.endswith(b"content")
            client.transport.loseConnection()
        content = file.read_bytes().decode("ascii")
        expression = TEXT_LINE if form == "text" else JSON_LINE
        lines = content.splitlines(keepends=True)
        assert len(lines) == 16
        assert all(map(expression.fullmatch, lines))
        assert {address for address in ("127.0.0.1", "2001:db8::1") if address in content} == {
            "127.0.0.1",
            "2001:db8::1",
        }
        assert "fe80" not in content
