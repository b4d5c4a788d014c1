"""What operators and their machines ask: /metrics, /live and /ready.

Served apart from images, on addresses of their own. Neither answer ever waits for a registry: a
server whose registry is down can still answer from its blob space.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

import attrs
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from twisted.internet.defer import CancelledError, Deferred
from twisted.web.http import Request as HTTPRequest
from twisted.web.pages import notFound
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET, Request, Site


@attrs.frozen
class Health:
    """How a service is; `problems` name what keeps it from being ready."""

    problems: tuple[str, ...]
    details: Mapping[str, object]
    """What ``?full=1`` shows besides, as JSON has it."""


def metrics_site(registry: CollectorRegistry) -> Site:
    """``/metrics``: everything that is counted, in Prometheus' text format."""

    async def metrics(request: Request) -> bytes:
        request.setHeader("Content-Type", CONTENT_TYPE_PLAIN_0_0_4)
        return generate_latest(registry)

    return _site({b"metrics": metrics})


def probe_site(health: Callable[[], Awaitable[Health]]) -> Site:
    """``/live``: the reactor turns. ``/ready``: requests are welcome here, else 503 and why."""

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
    """A path below which nothing is but what was put there."""

    def getChild(self, path: bytes, request: Request) -> IResource:
        """See `Resource.getChild`."""
        return notFound()


class _Page(_Nothing):
    """A GET or HEAD of exactly one path."""

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
    """Somebody probes every second: nothing of this belongs in a log."""

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
