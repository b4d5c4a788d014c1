"""The resources with all images or one, at the root of a tree of Twisted resources or below.

Klein is required; we use it only to turn a coroutine and its errors into a response. The path is
parsed from the raw request target, because routers decode paths, join slashes and resolve dots.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, cast

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource, Resource
from twisted.web.server import Request

from blobserve.concurrency.threads import Threads
from blobserve.config import Config
from blobserve.errors import (
    BadRequest,
    BlobDamaged,
    Forbidden,
    MethodNotAllowed,
    NoWebSocket,
    StoreClosed,
    UpstreamError,
)
from blobserve.metrics import Metrics
from blobserve.store.refstore import RefStore
from blobserve.web.content.responder import Responder
from blobserve.web.content.site_errors import refusal_on_site
from blobserve.web.http.mount import BY_PATH, Mount
from blobserve.web.http.request_head import RequestContext, RequestHead, forwarded_host, selector
from blobserve.web.http.response import Answer
from blobserve.web.http.status import is_unexpected, refusal
from blobserve.web.server.request_log import LogWriter, RequestLog, peer_of
from blobserve.web.server.router import Router, asked_host
from blobserve.web.server.send import abort, send
from blobserve.web.server.slow_clients import SlowClients

_log = Logger()

_TRIES = 3
"""The number of leases for one request, if each leased image turns out to be damaged."""


class ImageResource(Resource):
    """The files of images below the place of this resource. Every request is logged."""

    isLeaf = True  # noqa: N815

    def __init__(
        self,
        store: RefStore,
        config: Callable[[], Config],
        reactor: IReactorTime,
        disk: Threads,
        metrics: Metrics,
        access_log: LogWriter,
        wall: Callable[[], float],
    ) -> None:
        """`wall` returns the time of day, in seconds since 1970."""
        super().__init__()
        self.wall = wall
        self.request_log = RequestLog(config, reactor, metrics, access_log, wall)
        self.responder = Responder(store, config, reactor, disk, wall)
        self.router = Router(config)
        self._config = config
        self.pace = SlowClients(
            lambda: config().limits.client_minimum_rate, reactor, metrics.slow_clients
        )
        self._reactor = reactor
        self._is_draining = False
        self._routes = self._routed()

    def flush(self) -> None:
        """Clear all caches, after the configuration has changed."""
        self.responder.flush()

    def drain(self, timeout: float) -> Deferred[None]:
        """Answer new requests with 503; the Deferred fires when all other requests have ended.

        Requests that have not ended after `timeout` seconds are aborted.
        """
        self._is_draining = True
        abort_later = self._reactor.callLater(timeout, self.request_log.abort)

        def ended(_: None) -> None:
            if abort_later.active():
                abort_later.cancel()
            self.pace.stop()

        return self.request_log.idle().addCallback(ended)

    def render(self, request: Request) -> int:
        """See `IResource.render`."""
        return self._render(request, self.routed(request))

    def render_below(self, mount: Mount, request: Request) -> int:
        """Render a request; its `prepath` is the place of `mount`. See `IResource.render`."""
        return self._render(request, head_of(request, mount))

    def routed(self, request: Request) -> RequestHead:
        """Return the head of a request, with the mount that its host and path lead to."""
        head, config = head_of(request), self._config()
        host = getattr(request, "authority", None) or head.fields.get(b"host")
        forwarded = forwarded_host(head.fields)
        head.authority = asked_host(host, forwarded, peer_of(request.client), config)
        if config.sites:
            head.mount, head.path = self.router.route(head.authority, head.path)
        return head

    def _render(self, request: Request, head: RequestHead) -> int:
        self.request_log.begin(request, RequestContext(head))
        # Klein matches the rest of the path, and fails on some hosts. Its one route needs neither.
        request.postpath = [b""]
        request.requestHeaders.setRawHeaders(b"Host", [b"localhost"])
        rendered: int = self._routes.render(request)
        return rendered

    def _routed(self) -> IResource:
        from klein import Klein  # installs the reactor

        app = Klein()

        # For all methods, because Klein does not distinguish GET from get.
        @app.route("/")
        def serve(request: Request) -> Deferred[None]:
            return Deferred.fromCoroutine(self._serve(request))

        @app.handle_errors(Exception)
        def refuse(request: Any, failure: Failure) -> Deferred[None]:
            error = cast("Exception", failure.value)
            return Deferred.fromCoroutine(self._refuse(request, error))

        return app.resource()

    async def _serve(self, request: Request) -> None:
        if self._is_draining:
            raise StoreClosed
        asked = self.request_log.open[request].asked
        if request.method not in (b"GET", b"HEAD", b"OPTIONS"):
            raise MethodNotAllowed(f"not allowed: {request.method.decode()}")
        if request.content is not None and request.content.read(1):
            raise BadRequest(f"a {request.method.decode()} request must not have a body")
        # RFC 9110 §7.8: Upgrade is ignored in HTTP/1.0.
        if asked.head.is_websocket and request.clientproto != b"HTTP/1.0":
            raise NoWebSocket
        answer = self.responder.options if request.method == b"OPTIONS" else self.responder.get
        await self._send_file(request, asked, answer)

    async def _send_file(
        self,
        request: Request,
        asked: RequestContext,
        answer: Callable[[RequestContext], Coroutine[Deferred[Any], Any, Answer]],
    ) -> None:
        """Send the result of `answer`. If an image is damaged, try again with a new lease."""
        for tries in range(_TRIES):
            try:
                await self._send(request, await answer(asked))
                return
            except BlobDamaged:
                # The damage is reported, so the next lease waits until the image is pulled again.
                if request.startedWriting or tries == _TRIES - 1:
                    raise

    async def _send(self, request: Request, answer: Answer) -> None:
        answer = self.responder.with_rules(answer, self.request_log.open[request].asked)
        if self._is_draining:
            answer = attrs.evolve(answer, headers=(*answer.headers, (b"Connection", b"close")))
        await send(request, answer, self.pace)

    async def _refuse(self, request: Request, error: Exception) -> None:
        record = self.request_log.open[request]
        request_id = record.request_id
        if record.asked.head.mount.site and isinstance(error, Forbidden | UpstreamError):
            # The response does not say it.
            _log.warn("request {request_id}: {error}", request_id=request_id, error=error)
        if is_unexpected(error):
            _log.failure("request {request_id} failed", Failure(error), request_id=request_id)
        elif request.startedWriting:
            _log.warn(
                "request {request_id} is cut off: {error}", request_id=request_id, error=error
            )
        if request.startedWriting:
            abort(request)
            # Returning would finish the response. The end of the connection cancels this.
            await Deferred()
        await self._send(request, self.refusal(error, request_id, record.asked.head))

    def refusal(self, error: Exception, request_id: str, head: RequestHead) -> Answer:
        """Return the answer to a request that failed with `error`."""
        if head.mount.site is None:
            return refusal(error, request_id, head.is_navigation)
        return refusal_on_site(error, request_id, head)


class MountedImage(Resource):
    """One image or site, with its root at the place of this resource. See `ImageResource`."""

    isLeaf = True  # noqa: N815

    def __init__(self, images: ImageResource, mount: Callable[[], Mount]) -> None:
        """`mount` is asked at each request."""
        super().__init__()
        self._images = images
        self._mount = mount

    def render(self, request: Request) -> int:
        """See `IResource.render`."""
        return self._images.render_below(self._mount(), request)


def head_of(request: Request, mount: Mount = BY_PATH) -> RequestHead:
    """Return the head of a request, with the path relative to the resource that handles it."""
    raw = request.path.split(b"/")[1 + len(request.prepath or ()) :]
    path = b"".join(b"/" + segment for segment in raw)
    if not path and request.path.endswith(b"/"):  # the child "" of another resource
        path = b"/"
    _, mark, query = request.uri.partition(b"?")
    fields = {
        name.lower(): b", ".join(values)
        for name, values in request.requestHeaders.getAllRawHeaders()
    }
    return RequestHead(
        request.method, request.uri, path, query if mark else None, fields, selector(fields), mount
    )
