"""Metrics and probes over real sockets."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from blobserve.config import BlobSpaceRules, Config, Limits
from blobserve.metrics import Metrics
from blobserve.testing import InlineThreads
from blobserve.web.health import Health, OperatorSite, Readiness, metrics_site, probe_site
from tests.support.services import Door
from tests.support.sites import Client, Response
from tests.support.source_fixtures import until
from tests.support.twisted_answers import the_reactor
from tests.support.within import within


def metrics_of(metrics: Metrics, **limits: Any) -> OperatorSite:
    """Return a site of these metrics, with these limits."""
    config = Config(blob_space=BlobSpaceRules(Path("nowhere")), limits=Limits(**limits))
    return metrics_site(metrics, lambda: config, the_reactor())


def probes_of(health: Callable[[], Awaitable[Health]], **limits: Any) -> OperatorSite:
    """Return a site of the probes of a service with this health, with these limits."""
    config = Config(blob_space=BlobSpaceRules(Path("nowhere")), limits=Limits(**limits))
    return probe_site(health, Metrics(), lambda: config, the_reactor())


@asynccontextmanager
async def listening(site: OperatorSite) -> AsyncIterator[Door]:
    """Run a site on a free port."""
    port = the_reactor().listenTCP(0, site, interface="127.0.0.1")
    try:
        yield Door(port.getHost().port)
    finally:
        await port.stopListening()
        site.close()


async def asked(site: OperatorSite, target: str, method: str = "GET") -> tuple[int, bytes]:
    """Send one request to a site; return status and body."""
    async with listening(site) as door:
        response = await door.fetch(target[1:], method)
        return response.status, response.body


def healthy(*problems: str) -> Callable[[], Awaitable[Health]]:
    """Return a service with these problems."""

    async def health() -> Health:
        return Health(problems, {"disk": {"freeBytes": 7}})

    return health


@within(20)
async def test_metrics_are_there_in_the_originals_names() -> None:
    """/metrics shows the counts under the names of the original server, and process metrics."""
    metrics = Metrics()
    metrics.requests.count("get", 200, 0.5)
    metrics.client_requests.labels("head", "404").inc()
    metrics.client_duration.labels("head", "404").observe(0.5)
    status, body = await asked(metrics_of(metrics), "/metrics")
    assert status == 200
    for line in (
        b'http_server_requests_total{code="200",method="get"} 1.0',
        b'http_server_requests_duration_seconds_count{code="200",method="get"} 1.0',
        b'http_client_requests_total{code="404",method="head"} 1.0',
        b'http_client_requests_duration_seconds_count{code="404",method="head"} 1.0',
        b"process_resident_memory_bytes ",
        b"blobserve_size_bytes ",
        b'blobserve_published_indexes_total{outcome="wrong"} 0.0',
        b"blobserve_evictions_total ",
        b"blobserve_stale_serves_total ",
    ):
        assert b"\n" + line in body


@within(20)
async def test_two_services_count_apart() -> None:
    """Two services in one process have separate metrics."""
    one, other = Metrics(), Metrics()
    one.stale_serves.inc()
    assert other.registry.get_sample_value("blobserve_stale_serves_total") == 0


@within(20)
async def test_probes() -> None:
    """/live is always 200; /ready is 503 with the reason for any problem."""
    assert await asked(probes_of(healthy()), "/ready") == (200, b"ok\n")
    assert await asked(probes_of(healthy("draining")), "/ready") == (503, b"draining\n")
    assert await asked(probes_of(healthy("draining")), "/live") == (200, b"ok\n")
    status, body = await asked(probes_of(healthy()), "/ready", "HEAD")
    assert (status, body) == (200, b"")


@within(20)
async def test_the_full_report() -> None:
    """/ready?full=1 has more facts, as JSON, with the same status."""
    status, body = await asked(probes_of(healthy("draining")), "/ready?full=1")
    assert status == 503
    expected = {"ready": False, "problems": ["draining"], "disk": {"freeBytes": 7}}
    assert json.loads(body) == expected


@within(20)
@pytest.mark.parametrize("target", ["/", "/metrics", "/live/x/..", "/none"])
async def test_nothing_else_is_there(target: str) -> None:
    """The address of the probes serves nothing else."""
    assert (await asked(probes_of(healthy()), target))[0] in (404, 405)


GET = b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n"
FORM = b"Content-Type: application/x-www-form-urlencoded\r\n"
PARTS = b"Content-Type: multipart/form-data; boundary=x\r\n"


async def whole(client: Client) -> Response:
    """Return the only answer of a connection, which the server closes."""
    return Response.parse(await client.all())


@pytest.mark.parametrize("path", [b"live", b"ready", b"metrics", b"none"])
@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST", b"PUT"])
@pytest.mark.parametrize("fields", [b"", FORM, PARTS])
@within(20)
async def test_bodies_are_refused(path: bytes, method: bytes, fields: bytes) -> None:
    """The server refuses a request with a body after its head, and parses no form."""
    site = metrics_of(Metrics()) if path == b"metrics" else probes_of(healthy())
    async with listening(site) as door:
        for length in (b"Content-Length: 20000000", b"Transfer-Encoding: chunked"):
            client = await door.connect()
            head = b"%b /%b HTTP/1.1\r\nHost: x\r\n%b%b\r\n\r\n" % (method, path, fields, length)
            client.send(head)
            answer = await whole(client)
            assert answer.status == (400 if method in (b"GET", b"HEAD") else 405)


@within(20)
async def test_other_methods_and_targets() -> None:
    """The pages answer only GET and HEAD; bad heads are refused as on the main port."""
    async with listening(probes_of(healthy())) as door:
        for method, target, status in (
            ("POST", "live", 405),
            ("OPTIONS", "live", 405),
            ("GET", "live/", 404),
            ("GET", "l%69ve", 200),
            ("GET", "live?x=1&full=2", 200),
            ("GET", "", 404),
            ("GET", "live#x", 400),
        ):
            assert (await door.fetch(target, method)).status == status, target
        client = await door.connect()
        client.send(GET.replace(b"1.1", b"2.0") % b"live")
        assert (await whole(client)).status == 505


@within(20)
async def test_clients_that_wait() -> None:
    """The timeouts of the main port apply: 408 for a slow head, the end for a silent client."""
    for name in (b"live", b"metrics"):
        limits = {"client_head_timeout": 0.2, "client_idle_timeout": 0.3}
        site = (
            metrics_of(Metrics(), **limits)
            if name == b"metrics"
            else probes_of(healthy(), **limits)
        )
        async with listening(site) as door:
            slow, silent, used = [await door.connect() for _ in range(3)]
            slow.send((GET % name)[:-2])
            used.send(GET % name)
            assert (await whole(slow)).status == 408
            assert await silent.all() == b""
            assert (await used.all()).startswith(b"HTTP/1.1 200 OK\r\n")


@within(30)
async def test_too_many_connections() -> None:
    """A port has 256 connections, or `clientConnections` if that is less; idle ones make room."""
    for most, limits in ((256, {}), (20, {"client_connections": 20})):
        async with listening(probes_of(healthy(), **limits)) as door:
            begun = [await door.connect() for _ in range(most)]
            for client in begun:
                client.send((GET % b"live")[:-2])
            late = await door.connect()
            assert (await whole(late)).status == 503
            begun[0].send(b"\r\n")
            assert (await begun[0].some(1)).startswith(b"HTTP/1.1 200")
            assert (await door.fetch("live")).status == 200


@within(20)
async def test_pipelined_requests() -> None:
    """Many requests on one connection are answered in order, and do not delay other clients."""
    async with listening(metrics_of(Metrics())) as door:
        client = await door.connect()
        client.send(GET % b"metrics" * 100)
        client.transport.loseWriteConnection()
        await client.some(1)
        other = await door.fetch("metrics")
        assert other.status == 200
        assert client.ended is None
        answers = await client.all()
        assert len(re.findall(rb"HTTP/1\.1 200 OK\r\n", answers)) == 100
        assert answers.endswith(b"\n")


@within(20)
async def test_a_client_that_does_not_read() -> None:
    """The server makes no further pages for a client that does not read the first."""
    made = 0

    async def health() -> Health:
        nonlocal made
        made += 1
        return Health(("x" * 1_000_000,), {})

    async with listening(probes_of(health)) as door:
        client = await door.connect()
        client.transport.pauseProducing()
        client.send(GET % b"ready" * 100)
        await until(lambda: made > 0)
        assert (await door.fetch("live")).status == 200
        before = made
        assert (await door.fetch("live")).status == 200
        assert made <= before + 1 < 50
        client.transport.abortConnection()


@within(20)
async def test_a_page_that_fails(failures: list[type[BaseException]]) -> None:
    """A page that fails is 500, and the cause is only in the log."""

    async def health() -> Health:
        raise RuntimeError("secret")

    status, body = await asked(probes_of(health), "/ready")
    assert (status, b"secret" in body) == (500, False)
    assert failures == [RuntimeError]


@within(20)
async def test_closing() -> None:
    """A closed site has no connections."""
    site = probes_of(healthy())
    async with listening(site) as door:
        client = await door.connect()
        client.send(GET % b"live")
        await client.some(1)
    await client.all()
    await until(lambda: not site.channels)


class Stand:
    """Readiness over a location with only a VERSION file."""

    def __init__(self, location: Path, disk: Any = None) -> None:
        self.clock = Clock()
        self.location = location
        (location / "VERSION").write_text("1")
        registries = {"r.example": {"last": "down"}}
        self.readiness = Readiness(
            self.clock, location, disk or InlineThreads(), lambda: registries
        )
        self.pre_pulls: Deferred[None] = Deferred()

    def problems(self) -> tuple[str, ...]:
        """Return the reasons against readiness."""
        found: list[Health] = []
        Deferred.fromCoroutine(self.readiness.health()).addCallback(found.append)
        [health] = found
        return health.problems


def test_ready_after_listening(tmp_path: Path) -> None:
    """A server is ready when it listens and every prePull was tried, until it drains."""
    stand = Stand(tmp_path)
    assert stand.problems() == ("starting",)
    stand.readiness.listening(stand.pre_pulls)
    assert stand.problems() == ("pre-pulling",)
    stand.pre_pulls.callback(None)
    assert stand.problems() == ()
    stand.readiness.draining()
    assert stand.problems() == ("draining",)
    assert stand.clock.getDelayedCalls() == []


def test_prepull_is_waited_for_a_minute_at_most(tmp_path: Path) -> None:
    """A prePull without a result counts as tried after 60 seconds."""
    stand = Stand(tmp_path)
    stand.readiness.listening(stand.pre_pulls)
    stand.clock.advance(59.9)
    assert stand.problems() == ("pre-pulling",)
    stand.clock.advance(0.1)
    assert stand.problems() == ()
    stand.pre_pulls.callback(None)
    assert stand.problems() == ()


def test_draining_is_never_undone(tmp_path: Path) -> None:
    """A prePull that ends during a drain does not make the server ready again."""
    stand = Stand(tmp_path)
    stand.readiness.listening(stand.pre_pulls)
    stand.readiness.draining()
    stand.pre_pulls.callback(None)
    assert stand.problems() == ("draining",)


def test_not_ready_without_a_disk(tmp_path: Path) -> None:
    """A blob space that cannot be read makes a server unready until it can."""
    stand = Stand(tmp_path)
    stand.readiness.listening(stand.pre_pulls)
    stand.pre_pulls.callback(None)
    (tmp_path / "VERSION").rename(tmp_path / "away")
    assert stand.problems() == ("the blob space cannot be read",)
    (tmp_path / "away").rename(tmp_path / "VERSION")
    assert stand.problems() == ()


def test_a_disk_that_does_not_answer(tmp_path: Path) -> None:
    """A disk that hangs makes a server unready after two seconds, and the probe answers."""

    class Hanging:
        def run(self, *_: object) -> Deferred[None]:
            return Deferred()

    stand = Stand(tmp_path, Hanging())
    stand.readiness.listening(stand.pre_pulls)
    found: list[Health] = []
    Deferred.fromCoroutine(stand.readiness.health()).addCallback(found.append)
    stand.clock.advance(2)
    assert [health.problems for health in found] == [
        ("pre-pulling", "the blob space cannot be read")
    ]


def test_registries_are_shown_and_do_not_count(tmp_path: Path) -> None:
    """A registry that is down appears in the full report, and the server is ready."""
    stand = Stand(tmp_path)
    stand.readiness.listening(stand.pre_pulls)
    stand.pre_pulls.callback(None)
    found: list[Health] = []
    Deferred.fromCoroutine(stand.readiness.health()).addCallback(found.append)
    assert found[0].problems == ()
    assert found[0].details["registries"] == {"r.example": {"last": "down"}}
    assert "freeBytes" in str(found[0].details["disk"])
