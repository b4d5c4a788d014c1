"""The pages for operators and monitoring: /metrics, /live and /ready.

They are served on separate addresses. They never wait for a registry, because a server can answer
from its blob space while the registry is down.

The service is ready when it listens, is not draining, and can read its disk. Images that are pulled
at the start delay that by at most a minute.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from twisted.internet import defer
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.web.http import Request as HTTPRequest
from twisted.web.pages import notFound
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from blobserve.concurrency.threads import Threads

PRE_PULLS_WITHIN = 60.0
_DISK_WITHIN = 2.0


@attrs.frozen
class Health:
    """The health of a service. It is ready if there are no `problems`."""

    problems: tuple[str, ...]
    details: Mapping[str, object]
    """Further values that ``?full=1`` shows, for JSON."""


def metrics_site(registry: CollectorRegistry) -> Site:
    """Return a site with ``/metrics``: all metrics in Prometheus' text format."""

    async def metrics(request: Request) -> bytes:
        request.setHeader("Content-Type", CONTENT_TYPE_PLAIN_0_0_4)
        return generate_latest(registry)

    return _site({b"metrics": metrics})


def probe_site(health: Callable[[], Awaitable[Health]]) -> Site:
    """Return a site with ``/live`` and ``/ready``.

    ``/live`` answers as long as the reactor runs. ``/ready`` answers 503 with the problems if the
    service is not ready.
    """

    async def live(_request: Request) -> bytes:
        return b"ok\n"

    async def ready(request: Request) -> bytes:
        now = await health()
        request.setResponseCode(503 if now.problems else 200)
        if request.args.get(b"full") != [b"1"]:
            return ("\n".join(now.problems) or "ok").encode() + b"\n"
        request.setHeader("Content-Type", "application/json")
        whole = {"ready": not now.problems, "problems": now.problems, **now.details}
        return json.dumps(whole, indent=2).encode() + b"\n"

    return _site({b"live": live, b"ready": ready})


_Render = Callable[[Request], Coroutine[Deferred[Any], Any, bytes]]


class _Nothing(Resource):
    """A path that has no children except the added ones."""

    def getChild(self, path: bytes, request: Request) -> IResource:
        """See `Resource.getChild`."""
        return notFound()


class _Page(_Nothing):
    """A page at exactly one path, for GET and HEAD."""

    def __init__(self, render: _Render) -> None:
        super().__init__()
        self._render = render

    def render_GET(self, request: Request) -> object:
        request.setHeader("Content-Type", "text/plain; charset=utf-8")
        request.setHeader("Cache-Control", "no-store")
        rendering = Deferred.fromCoroutine(self._render(request))
        gone = request.notifyFinish()
        gone.addErrback(lambda _: rendering.cancel())
        rendering.addCallback(lambda body: (request.write(body), request.finish()))
        rendering.addErrback(lambda failure: failure.trap(CancelledError))
        return NOT_DONE_YET


class _QuietSite(Site):
    """A site that logs nothing, because probes may come every second."""

    noisy = False

    def log(self, request: HTTPRequest) -> None:
        """Log nothing."""


def _site(pages: Mapping[bytes, _Render]) -> Site:
    root = _Nothing()
    for name, render in pages.items():
        root.putChild(name, _Page(render))
    site = _QuietSite(root, timeout=30)
    site.displayTracebacks = False
    return site


class Readiness:
    """The readiness of one service, for ``/ready``.

    :param registries: returns the last result of each registry, for the details.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        location: Path,
        disk: Threads,
        registries: Callable[[], Mapping[str, object]],
    ) -> None:
        self._reactor = reactor
        self._location = location
        self._disk = disk
        self._registries = registries
        self._phase: Literal["starting", "pre-pulling", "ready", "draining"] = "starting"
        self._patience: IDelayedCall | None = None

    def listening(self, pre_pulls: defer.Deferred[None]) -> None:
        """Note that the service listens; `pre_pulls` fires when all pulls have been tried."""
        self._phase = "pre-pulling"
        self._patience = self._reactor.callLater(PRE_PULLS_WITHIN, self._tried)
        pre_pulls.addCallback(lambda _: self._tried())

    def draining(self) -> None:
        """Note that the service is draining, and should get no more requests."""
        self._phase = "draining"
        self._end_patience()

    async def health(self) -> Health:
        """Return the current health. Waits for the disk for at most two seconds."""
        problems: list[str] = [] if self._phase == "ready" else [self._phase]
        details: dict[str, object] = {"registries": self._registries()}
        if self._phase != "starting":
            try:
                usage = self._disk.run(_disk_usage, self._location)
                details["disk"] = await usage.addTimeout(_DISK_WITHIN, self._reactor)
            except (OSError, defer.TimeoutError):
                problems.append("the blob space cannot be read")
        return Health(tuple(problems), details)

    def _tried(self) -> None:
        self._end_patience()
        if self._phase == "pre-pulling":
            self._phase = "ready"

    def _end_patience(self) -> None:
        if self._patience is not None and self._patience.active():
            self._patience.cancel()


def _disk_usage(location: Path) -> Mapping[str, int]:
    # A read is needed, because a broken disk still has its mount point.
    (location / "VERSION").read_bytes()
    usage = shutil.disk_usage(location)
    return {"totalBytes": usage.total, "freeBytes": usage.free}
