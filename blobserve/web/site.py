"""The site: HTTP/1 connections with limits, in front of the resource.

Bad heads are refused here, before Twisted's parser sees them, and are counted and logged as any
request is. HTTP/2 is never offered, whatever happens to be importable.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

from blobserve.config import Config, Limits
from blobserve.errors import BadRequest, BlobserveError, HeadTooSlow, TooManyConnections
from blobserve.metrics import Metrics
from blobserve.store.refstore import RefStore
from blobserve.threads import Threads
from blobserve.web.accounts import Accounts, Log, peer_of
from blobserve.web.connections import Connections
from blobserve.web.deadline import Patience
from blobserve.web.head import MAX_FIELDS, MAX_LINE, MAX_SIZE, HeadCheck
from blobserve.web.paths import origin_form
from blobserve.web.refused import Refused
from blobserve.web.resource import ImageResource
from blobserve.web.response import whole
from blobserve.web.status import refusal


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


class ImageRequest(Request):
    """A request whose target may be in absolute form, or ``*``."""

    def process(self) -> None:
        """See `Request.process`."""
        self.uri = origin_form(self.method, self.uri)
        self.path = self.uri.partition(b"?")[0]
        super().process()


class ImageChannel(http.HTTPChannel):
    """A connection that looks at each line of a head before its parser does."""

    site: ImageSite
    transport: Any
    # Ours come first; these are only what is left if they do not.
    MAX_LENGTH = max(MAX_LINE, MAX_SIZE)
    totalHeadersSize = 2 * MAX_SIZE  # noqa: N815
    maxHeaders = 2 * MAX_FIELDS  # noqa: N815

    def __init__(self) -> None:
        super().__init__()
        self._check = HeadCheck()
        self._is_refused = False
        self.since = self.active_at = 0.0
        self.lost: Deferred[None] = Deferred()
        """Fires when the connection has ended."""

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        return not self.requests

    @property
    def is_busy(self) -> bool:
        """See `Awaited.is_busy`: lines are not read from the end of a head on."""
        return bool(self.requests) and not self.line_mode

    @property
    def is_spare(self) -> bool:
        """See `Member.is_spare`."""
        return not (self.requests or self._is_ending or self._patience.is_in_head)

    @property
    def peer(self) -> str:
        """See `Member.peer`."""
        return peer_of(self.getPeer())

    def connectionMade(self) -> None:
        """See `IProtocol.connectionMade`."""
        super().connectionMade()
        site = self.site
        self._patience = Patience(self, site.limits, site.reactor)
        self._patience.begin()
        self.since = self.active_at
        try:
            site.connections.admit(self)
        except TooManyConnections as error:
            self._refuse(error)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `IProtocol.connectionLost`."""
        self._patience.end()
        self.site.connections.lost(self)
        super().connectionLost(reason)
        self.lost.callback(None)

    def resetTimeout(self) -> None:
        """See `TimeoutMixin.resetTimeout`: a sign of life, which moves no timer."""
        self.active_at = self.site.reactor.seconds()

    def review(self) -> None:
        """Apply limits that have changed."""
        self._patience.review()

    def dataReceived(self, data: bytes) -> None:
        """See `IProtocol.dataReceived`."""
        if not self._is_refused:
            super().dataReceived(data)
            self._look_at_rest()

    def _look_at_rest(self) -> None:
        """Watch over what has come of a head that is not complete."""
        if self.is_busy or self._is_ending:
            self._patience.head_ended()
        elif b"\n" in self._buffer:
            # All lines that ended as they should have been taken out.
            self._refuse(BadRequest("a line of a request head ends with CR LF"))
        elif self._buffer or self._check.is_open:
            self._patience.head_begun()
        else:
            self._patience.head_ended()

    @property
    def _is_ending(self) -> bool:
        return self._is_refused or self.transport.disconnecting

    def lineReceived(self, line: bytes) -> None:
        """See `LineReceiver.lineReceived`."""
        if self._is_refused:
            return
        try:
            self._check.line(line)
        except BadRequest as error:
            self._refuse(error)
            return
        if not line and self._check.has_begun:
            self._check = HeadCheck()
            self._patience.head_ended()
        super().lineReceived(line)

    def lineLengthExceeded(self, line: bytes) -> None:
        """See `LineReceiver.lineLengthExceeded`."""
        self._refuse(self._check.too_long())

    def _respondToBadRequestAndDisconnect(self) -> None:
        # What Twisted refuses although we did not.
        self._refuse(BadRequest("malformed request"))

    def checkPersistence(self, request: Request, version: bytes) -> bool:
        """See `HTTPChannel.checkPersistence`: a site that drains keeps no connection."""
        return super().checkPersistence(request, version) and not self.site.is_draining

    def requestDone(self, request: Request) -> None:
        """See `HTTPChannel.requestDone`."""
        self.resetTimeout()
        super().requestDone(request)

    def head_missed(self) -> None:
        """See `Awaited.head_missed`."""
        self._refuse(HeadTooSlow("the request head took too long"))

    def close(self) -> None:
        """See `Member.close`."""
        self._patience.leave()
        self.loseConnection()

    def abort(self) -> None:
        """See `Member.abort`."""
        self.transport.abortConnection()

    def _refuse(self, error: BlobserveError) -> None:
        self._is_refused = True
        accounts, check = self.site.accounts, self._check
        request_id = accounts.new_id()
        answer = refusal(error, request_id)
        self.transport.writeSequence(whole(answer))
        accounts.refused(peer_of(self.getPeer()), check, answer, request_id)
        self._close_softly()

    def _close_softly(self) -> None:
        """End our half at once and the rest a moment later.

        A socket that is closed with unread data in it resets the connection, which can take away
        what the client has not read yet.
        """
        is_crowded = self.site.connections.is_crowded
        if is_crowded or self.isSecure() or not hasattr(self.transport, "loseWriteConnection"):
            self.close()
            return
        self._patience.linger()
        self.transport.unregisterProducer()
        self.transport.loseWriteConnection()


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
        self.is_draining = False
        self._config = config

    @property
    def channels(self) -> Collection[ImageChannel]:
        """The open connections."""
        return self.connections.open.keys()

    def limits(self) -> Limits:
        """The limits that are in force."""
        return self._config().limits

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
        self.is_draining = True
        for channel in list(self.channels):
            if channel.is_idle:
                channel.loseConnection()
            else:
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
