"""The pages for operators and monitoring: /metrics, /live and /ready.

They are served on separate addresses, by connections with the timeouts and limits of the main
port. They never wait for a registry, because a server can answer from its blob space while the
registry is down.

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
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from twisted.internet import defer
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import Request

from blobserve.concurrency.fair_queue import a_later_turn
from blobserve.concurrency.threads import Threads
from blobserve.config import Config
from blobserve.metrics import Metrics
from blobserve.web.http.caching import NO_SNIFF
from blobserve.web.http.response import Answer, BytesBody
from blobserve.web.http.status import plain
from blobserve.web.server.bounded_site import BoundedSite
from blobserve.web.server.channel import ImageChannel
from blobserve.web.server.connection_limits import ConnectionLimits
from blobserve.web.server.send import finish_after, send
from blobserve.web.server.slow_clients import SlowClients

PRE_PULLS_WITHIN = 60.0
_DISK_WITHIN = 2.0

_MOST_CONNECTIONS = 256
"""The most connections of one such port; ``limits.clientConnections`` may be lower."""

_TEXT = b"text/plain; charset=utf-8"

_log = Logger()


@attrs.frozen
class Health:
    """The health of a service. It is ready if there are no `problems`."""

    problems: tuple[str, ...]
    details: Mapping[str, object]
    """Further values that ``?full=1`` shows, for JSON."""


def metrics_site(
    metrics: Metrics, config: Callable[[], Config], reactor: IReactorTime
) -> OperatorSite:
    """Return a site with ``/metrics``: all metrics in Prometheus' text format."""

    async def show(_request: Request) -> Answer:
        return _page(200, CONTENT_TYPE_PLAIN_0_0_4.encode(), generate_latest(metrics.registry))

    return OperatorSite({b"metrics": show}, config, reactor, metrics)


def probe_site(
    health: Callable[[], Awaitable[Health]],
    metrics: Metrics,
    config: Callable[[], Config],
    reactor: IReactorTime,
) -> OperatorSite:
    """Return a site with ``/live`` and ``/ready``.

    ``/live`` answers as long as the reactor runs. ``/ready`` answers 503 with the problems if the
    service is not ready.
    """

    async def live(_request: Request) -> Answer:
        return _page(200, _TEXT, b"ok\n")

    async def ready(request: Request) -> Answer:
        now = await health()
        status = 503 if now.problems else 200
        if request.args.get(b"full") != [b"1"]:
            return _page(status, _TEXT, ("\n".join(now.problems) or "ok").encode() + b"\n")
        whole = {"ready": not now.problems, "problems": now.problems, **now.details}
        return _page(status, b"application/json", json.dumps(whole, indent=2).encode() + b"\n")

    return OperatorSite({b"live": live, b"ready": ready}, config, reactor, metrics)


_Render = Callable[[Request], Coroutine[Deferred[Any], Any, Answer]]


class OperatorSite(BoundedSite):
    """A site of a few pages, each at exactly one path.

    Its requests are neither logged nor counted, because probes may come every second.
    """

    def __init__(
        self,
        pages: Mapping[bytes, _Render],
        config: Callable[[], Config],
        reactor: IReactorTime,
        metrics: Metrics,
    ) -> None:
        connections: ConnectionLimits[ImageChannel] = ConnectionLimits(
            config, reactor, metrics, _MOST_CONNECTIONS
        )
        self._pace = SlowClients(
            lambda: config().limits.client_minimum_rate, reactor, metrics.slow_clients
        )
        super().__init__(_Pages(pages, reactor, self._pace), reactor, config, connections)

    def close(self) -> None:
        """Close all connections. The caller stops listening before."""
        self._pace.stop()
        for channel in list(self.channels):
            channel.close()


class _Pages(Resource):
    """The pages of one site, by name, for GET and HEAD."""

    isLeaf = True  # noqa: N815

    def __init__(
        self, pages: Mapping[bytes, _Render], reactor: IReactorTime, pace: SlowClients
    ) -> None:
        super().__init__()
        self._pages = pages
        self._reactor = reactor
        self._pace = pace

    def render(self, request: Request) -> int:
        """See `IResource.render`."""
        return finish_after(request, self._answer(request))

    async def _answer(self, request: Request) -> None:
        # A page takes milliseconds, so pipelined requests must not share a reactor iteration.
        await a_later_turn(self._reactor)
        try:
            answer = await self._page(request)
        except CancelledError:
            raise
        except Exception:  # noqa: BLE001 - the client gets 500
            _log.failure("cannot answer {path}", Failure(), path=request.path.decode("latin-1"))
            answer = plain(500, "internal error; see the server log\n")
        await send(request, answer, self._pace)

    async def _page(self, request: Request) -> Answer:
        [name, *below] = request.postpath or [b""]
        page = None if below else self._pages.get(name)
        if page is None:
            return plain(404, "no such page\n")
        if request.method not in (b"GET", b"HEAD"):
            return plain(405, "only GET and HEAD are answered\n", (b"Allow", b"GET, HEAD"))
        return await page(request)


def _page(status: int, content_type: bytes, body: bytes) -> Answer:
    headers = ((b"Content-Type", content_type), NO_SNIFF, (b"Cache-Control", b"no-store"))
    return Answer(status, headers, BytesBody(body))


class Readiness:
    """The readiness of one service, for ``/ready``.

    :param registries: returns the last result of each registry, for the details.
    :param pins: returns the pinned digest of each pinned name, for the details.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        location: Path,
        disk: Threads,
        registries: Callable[[], Mapping[str, object]],
        pins: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._reactor = reactor
        self._location = location
        self._disk = disk
        self._registries = registries
        self._pins = pins
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
        details: dict[str, object] = {"registries": self._registries(), "pins": self._pins()}
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
