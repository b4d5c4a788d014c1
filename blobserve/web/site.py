"""The site: all the connections of one server, with what bounds them, in front of the resource.

HTTP/2 is never offered, whatever happens to be importable.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cached_property

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.web import http
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

from blobserve.config import Config, Limits
from blobserve.errors import TooManyConnections
from blobserve.metrics import Metrics
from blobserve.portions import Portions
from blobserve.store.refstore import RefStore
from blobserve.threads import Threads
from blobserve.web.accounts import Accounts, Log
from blobserve.web.channel import ImageChannel, ImageRequest
from blobserve.web.connections import Connections
from blobserve.web.hot import HotPath
from blobserve.web.refused import Refused
from blobserve.web.resource import ImageResource


def make_site(
    store: RefStore,
    config: Callable[[], Config],
    reactor: IReactorTime,
    disk: Threads,
    metrics: Metrics,
    access_log: Log,
) -> ImageSite:
    """A site that serves the images of `store` and nothing else."""
    images = ImageResource(store, config, reactor, disk, metrics, access_log)
    return ImageSite(images, reactor, config, metrics)


class ImageSite(Site):
    """The connections of one server."""

    protocol = ImageChannel  # type: ignore[assignment]  # one that never becomes HTTP/2
    requestFactory = ImageRequest  # noqa: N815
    noisy = False

    def __init__(
        self,
        resource: ImageResource,
        reactor: IReactorTime,
        config: Callable[[], Config],
        metrics: Metrics,
    ) -> None:
        # Twisted's own timer begins anew with every byte; see `blobserve.web.deadline`.
        super().__init__(resource, timeout=None, reactor=reactor, parsePOSTFormSubmission=False)
        self.images = resource
        self.connections: Connections[ImageChannel] = Connections(config, reactor, metrics)
        self.portions = Portions(reactor)
        """In which what is not answered at once is read."""
        self.is_draining = False
        self._config = config

    @property
    def channels(self) -> Collection[ImageChannel]:
        """The open connections."""
        return self.connections.open.keys()

    def limits(self) -> Limits:
        """The limits that are in force."""
        return self._config().limits

    @cached_property
    def hot(self) -> HotPath:
        """The short way for requests whose answer is ready."""
        return HotPath(self.images.files, self.accounts, self._config, self.reactor)

    @property
    def accounts(self) -> Accounts:
        """Where heads that are refused are accounted for."""
        return self.images.accounts

    def acceptableProtocols(self) -> list[bytes]:
        """See `IProtocolNegotiationFactory.acceptableProtocols`."""
        return [b"http/1.1"]

    def getResourceFor(self, request: Request) -> IResource:
        """See `Site.getResourceFor`."""
        try:
            self.connections.enter(request)
        except TooManyConnections as error:
            return Refused(self.images, error)
        return self.images

    def log(self, request: http.Request) -> None:
        """See `HTTPFactory.log`: the accounts do this, for aborted requests too."""

    def flush(self) -> None:
        """Forget what was computed under an older configuration, and apply the limits of this."""
        self.images.flush()
        for channel in list(self.channels):
            channel.review()

    def drain(self, timeout: float) -> Deferred[None]:
        """Close idle connections, keep none, and fire when what is under way has been sent.

        Who accepts connections stops that first. New requests on connections that are still open
        get 503; what is not finished after `timeout` seconds is aborted.
        """
        self.is_draining = self.hot.is_shut = True
        for channel in list(self.channels):
            if channel.is_idle:
                channel.loseConnection()
            elif channel.requests:  # and not before one that has not been read
                channel.persistent = False
        return Deferred.fromCoroutine(self._drain(timeout))

    async def _drain(self, timeout: float) -> None:
        impatience = self.reactor.callLater(timeout, self._abort)
        await self.images.drain(timeout)
        # A request ends when the transport has all of its response, which is not yet sent then.
        await DeferredList([channel.lost for channel in self.channels if channel.is_idle])
        if impatience.active():
            impatience.cancel()

    def _abort(self) -> None:
        for channel in list(self.channels):
            channel.transport.abortConnection()
