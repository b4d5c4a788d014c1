"""Metrics and probes over real sockets."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import treq
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.web.server import Site

from blobserve.metrics import Metrics
from blobserve.testing import InlineThreads
from blobserve.web.health import Health, Readiness, metrics_site, probe_site
from tests.support.within import within


async def asked(site: Site, target: str, method: str = "GET") -> tuple[int, bytes]:
    """Send one request to a site; return status and body."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    port = reactor.listenTCP(0, site, interface="127.0.0.1")  # type: ignore[attr-defined]
    try:
        url = f"http://127.0.0.1:{port.getHost().port}{target}"
        response = await treq.request(method, url, persistent=False)
        return response.code, await response.content()
    finally:
        await port.stopListening()


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
    status, body = await asked(metrics_site(metrics.registry), "/metrics")
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
    assert await asked(probe_site(healthy()), "/ready") == (200, b"ok\n")
    assert await asked(probe_site(healthy("draining")), "/ready") == (503, b"draining\n")
    assert await asked(probe_site(healthy("draining")), "/live") == (200, b"ok\n")
    status, body = await asked(probe_site(healthy()), "/ready", "HEAD")
    assert (status, body) == (200, b"")


@within(20)
async def test_the_full_report() -> None:
    """/ready?full=1 has more facts, as JSON, with the same status."""
    status, body = await asked(probe_site(healthy("draining")), "/ready?full=1")
    assert status == 503
    expected = {"ready": False, "problems": ["draining"], "disk": {"freeBytes": 7}}
    assert json.loads(body) == expected


@within(20)
@pytest.mark.parametrize("target", ["/", "/metrics", "/live/x/..", "/none"])
async def test_nothing_else_is_there(target: str) -> None:
    """The address of the probes serves nothing else."""
    assert (await asked(probe_site(healthy()), target))[0] in (404, 405)


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
