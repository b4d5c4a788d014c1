"""The resource: images in a tree of Twisted resources, at its root or anywhere below.

Klein routes by method alone, and only here is it known. Which path was asked for is read from the
raw request target: routers decode it, join slashes and resolve dots, and none of that is for them.
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
from blobserve.errors import BadRequest, BlobDamaged, MethodNotAllowed, NoWebSocket, StoreClosed
from blobserve.metrics import Metrics
from blobserve.store.refstore import RefStore
from blobserve.web.content.responder import Responder
from blobserve.web.http.request import RequestContext, RequestHead, selector
from blobserve.web.http.response import Answer
from blobserve.web.http.status import is_unexpected, refusal
from blobserve.web.server.request_log import LogWriter, RequestLog
from blobserve.web.server.send import abort, send
from blobserve.web.server.slow_clients import SlowClients

_log = Logger()

_TRIES = 3
"""How often an image is leased for a request that meets damage in it each time."""


class ImageResource(Resource):
    """Files of images, below wherever it is mounted. Every request is counted and logged."""

    isLeaf = True  # noqa: N815

    def __init__(
        self,
        store: RefStore,
        config: Callable[[], Config],
        reactor: IReactorTime,
        disk: Threads,
        metrics: Metrics,
        access_log: LogWriter,
    ) -> None:
        super().__init__()
        self.request_log = RequestLog(config, reactor, metrics, access_log)
        self.responder = Responder(store, config, reactor, disk)
        self.pace = SlowClients(
            lambda: config().limits.client_minimum_rate, reactor, metrics.slow_clients
        )
        self._reactor = reactor
        self._is_draining = False
        self._routes = self._routed()

    def flush(self) -> None:
        """Forget what was computed under an older configuration."""
        self.responder.flush()

    def drain(self, timeout: float) -> Deferred[None]:
        """Answer new requests with 503, and fire when those under way have ended.

        What is not finished after `timeout` seconds is aborted.
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
        self.request_log.begin(request, RequestContext(head_of(request)))
        # Klein routes what is left of the path and trips over bad hosts; neither concerns it.
        request.postpath = [b""]
        request.requestHeaders.setRawHeaders(b"Host", [b"localhost"])
        rendered: int = self._routes.render(request)
        return rendered

    def _routed(self) -> IResource:
        from klein import Klein  # installs the reactor

        app = Klein()

        # For all methods: Klein knows no difference between GET and get.
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
        asked = self.request_log.of(request).asked
        if request.method not in (b"GET", b"HEAD", b"OPTIONS"):
            raise MethodNotAllowed(f"not allowed: {request.method.decode()}")
        if request.content is not None and request.content.read(1):
            raise BadRequest(f"a {request.method.decode()} request has no body here")
        # RFC 9110 §7.8: HTTP/1.0 knows no upgrade.
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
        """Send what `answer` says; anew where the disk has lost what it was to be made of."""
        for tries in range(_TRIES):
            try:
                await self._send(request, await answer(asked))
                return
            except BlobDamaged:
                # By now the image is not leased as it is: asking for it means waiting for a pull.
                if request.startedWriting or tries == _TRIES - 1:
                    raise

    async def _send(self, request: Request, answer: Answer) -> None:
        answer = self.responder.with_rules(answer, self.request_log.of(request).asked)
        if self._is_draining:
            answer = attrs.evolve(answer, headers=(*answer.headers, (b"Connection", b"close")))
        await send(request, answer, self.pace)

    async def _refuse(self, request: Request, error: Exception) -> None:
        account = self.request_log.of(request)
        request_id = account.request_id
        if is_unexpected(error):
            _log.failure("request {request_id} failed", Failure(error), request_id=request_id)
        elif request.startedWriting:
            _log.warn(
                "request {request_id} is cut off: {error}", request_id=request_id, error=error
            )
        if request.startedWriting:
            abort(request)
            # Returning would finish the response; the end of the connection cancels this.
            await Deferred()
        is_navigation = account.asked.head.is_navigation
        await self._send(request, refusal(error, request_id, is_navigation))


def head_of(request: Request) -> RequestHead:
    """The head of a request to a resource, relative to where that is mounted."""
    raw = request.path.split(b"/")[1 + len(request.prepath or ()) :]
    _, mark, query = request.uri.partition(b"?")
    fields = {
        name.lower(): b", ".join(values)
        for name, values in request.requestHeaders.getAllRawHeaders()
    }
    path = b"/".join(raw)
    return RequestHead(
        request.method, request.uri, path, query if mark else None, fields, selector(fields)
    )
