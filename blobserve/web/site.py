"""The site of the images: all connections of one server, in front of the resource."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.web.resource import IResource, Resource
from twisted.web.server import Request

from blobserve.concurrency.threads import Threads
from blobserve.config import Config
from blobserve.errors import BlobserveError, TooManyConnections
from blobserve.metrics import Metrics
from blobserve.store.refstore import RefStore
from blobserve.web.http.request_head import HeadCheck, RequestContext
from blobserve.web.http.response import Answer
from blobserve.web.resource import ImageResource
from blobserve.web.server.bounded_site import BoundedSite
from blobserve.web.server.connection_limits import ConnectionLimits
from blobserve.web.server.fast_path import FastPath
from blobserve.web.server.request_log import LogWriter
from blobserve.web.server.send import finish_after, send
from blobserve.web.webhooks.resource import WebhookResource, refused_head


def make_site(
    store: RefStore,
    config: Callable[[], Config],
    reactor: IReactorTime,
    disk: Threads,
    metrics: Metrics,
    access_log: LogWriter,
    wall: Callable[[], float] | None = None,
) -> ImageSite:
    """Return a site that serves the images of `store` and nothing else.

    `wall` returns the time of day, in seconds since 1970. The default is the reactor's clock.
    """
    wall = wall or reactor.seconds
    images = ImageResource(store, config, reactor, disk, metrics, access_log, wall)
    return ImageSite(images, reactor, config, metrics)


class ImageSite(BoundedSite):
    """The site of the images of one server."""

    def __init__(
        self,
        resource: ImageResource,
        reactor: IReactorTime,
        config: Callable[[], Config],
        metrics: Metrics,
    ) -> None:
        super().__init__(resource, reactor, config, ConnectionLimits(config, reactor, metrics))
        self._hooks: WebhookResource | None = None
        self.images = resource
        metrics.connections.set_function(lambda: len(self.connections.open))
        self.request_log = resource.request_log
        """The log of requests and of refused heads."""
        self.fast_path = FastPath(
            resource.responder, resource.router, self.request_log, config, reactor, resource.wall
        )

    def refused(self, peer: str, head: HeadCheck, error: BlobserveError) -> Answer:
        """See `ServedSite.refused`."""
        if self._hooks is not None:
            return refused_head(self.request_log, self._hooks.gate, peer, head, error)
        return self.request_log.refuse(peer, head, error)

    def take_webhooks(self, hooks: WebhookResource) -> None:
        """Let `hooks` answer the requests at its place, before all sites."""
        self._hooks = hooks
        self.body_gate = hooks.gate

    def getResourceFor(self, request: Request) -> IResource:
        """See `Site.getResourceFor`."""
        try:
            self.connections.enter(request)
        except TooManyConnections as error:
            return RefusedRequest(self.images, error, self._hooks)
        if self._hooks is not None and self._hooks.gate.below(request.path) is not None:
            return self._hooks
        return self.images

    def flush(self) -> None:
        """Clear the caches and apply the new limits, after the configuration has changed."""
        self.images.flush()
        super().flush()

    def drain(self, timeout: float) -> Deferred[None]:
        """Close all connections; the Deferred fires when all responses under way have been sent.

        The caller stops accepting connections before. Idle connections are closed at once, the
        others after their response. New requests on them get 503. Responses that are not finished
        after `timeout` seconds are aborted.
        """
        self.is_draining = self.fast_path.is_shut = True
        for channel in list(self.channels):
            if channel.is_idle:
                channel.loseConnection()
            elif channel.is_in_body:
                channel.abort()  # The sender of a notification repeats it.
            elif channel.requests:  # not if received data has not been parsed yet
                channel.persistent = False
        return Deferred.fromCoroutine(self._drain(timeout))

    async def _drain(self, timeout: float) -> None:
        abort_later = self.reactor.callLater(timeout, self._abort)
        await self.images.drain(timeout)
        # When a request ends, the transport may still hold a part of its response.
        await DeferredList([channel.lost for channel in self.channels if channel.is_idle])
        if abort_later.active():
            abort_later.cancel()

    def _abort(self) -> None:
        for channel in list(self.channels):
            channel.transport.abortConnection()


class RefusedRequest(Resource):
    """The resource for one request that is refused before any image is looked up.

    The request is counted and logged like any other.
    """

    isLeaf = True  # noqa: N815

    def __init__(
        self,
        images: ImageResource,
        reason: BlobserveError,
        hooks: WebhookResource | None = None,
    ) -> None:
        super().__init__()
        self._images = images
        self._reason = reason
        self._hooks = hooks

    def render(self, request: Request) -> int:
        """See `IResource.render`."""
        asked = RequestContext(self._images.routed(request))
        if self._hooks is not None:
            asked.head.target = self._hooks.gate.masked(asked.head.target)
        record = self._images.request_log.begin(request, asked)
        answer = self._images.refusal(self._reason, record.request_id, asked.head)
        answer = self._images.responder.with_rules(answer, asked)
        return finish_after(request, send(request, answer, self._images.pace))
