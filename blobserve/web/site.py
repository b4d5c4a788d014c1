"""The site: HTTP/1 connections with limits, in front of the resource.

Bad heads are refused here, before Twisted's parser sees them, and are counted and logged as any
request is. HTTP/2 is never offered, whatever happens to be importable.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.server import Request, Site

from blobserve.config import Config
from blobserve.errors import BadRequest
from blobserve.metrics import Metrics
from blobserve.store.refstore import RefStore
from blobserve.threads import Threads
from blobserve.web.accounts import Accounts, Log, peer_of
from blobserve.web.head import MAX_FIELDS, MAX_LINE, MAX_SIZE, HeadCheck
from blobserve.web.hot import HotPath
from blobserve.web.paths import origin_form
from blobserve.web.resource import ImageResource
from blobserve.web.response import whole
from blobserve.web.status import refusal

_LINGER = 2
"""Seconds in which a client that is still sending may read why it was refused."""


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
    return ImageSite(images, reactor, config)


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
        self.lost: Deferred[None] = Deferred()
        """Fires when the connection has ended."""

    @cached_property
    def peer(self) -> str:
        """The host of the client."""
        return peer_of(self.getPeer())

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        return not self.requests

    def connectionMade(self) -> None:
        """See `IProtocol.connectionMade`."""
        super().connectionMade()
        self.site.channels.add(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `IProtocol.connectionLost`."""
        self.site.channels.discard(self)
        super().connectionLost(reason)
        self.lost.callback(None)

    def dataReceived(self, data: bytes) -> None:
        """See `IProtocol.dataReceived`."""
        if self.site.is_hot and self.site.hot.answer(self, data):
            self.resetTimeout()
        elif not self._is_refused:
            super().dataReceived(data)

    def lineReceived(self, line: bytes) -> None:
        """See `LineReceiver.lineReceived`."""
        if self._is_refused:
            return
        try:
            # RFC 9112 §2.2: an empty line before a request is no part of it.
            if line or self._check.has_begun:
                self._check.line(line)
        except BadRequest as error:
            self._refuse(error)
            return
        if not line:
            self._check = HeadCheck()
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

    def _refuse(self, error: BadRequest) -> None:
        self._is_refused = True
        accounts, check = self.site.accounts, self._check
        request_id = accounts.new_id()
        answer = refusal(error, request_id)
        self.transport.writeSequence(whole(answer))
        accounts.refused(self.peer, check, answer, request_id)
        self._close_softly()

    def _close_softly(self) -> None:
        """End our half at once and the rest a moment later.

        A socket that is closed with unread data in it resets the connection, which can take away
        what the client has not read yet.
        """
        if self.isSecure() or not hasattr(self.transport, "loseWriteConnection"):
            self.loseConnection()
            return
        self.setTimeout(_LINGER)
        self.transport.unregisterProducer()
        self.transport.loseWriteConnection()


class ImageSite(Site):
    """The connections of one server."""

    protocol = ImageChannel  # type: ignore[assignment]  # one that never becomes HTTP/2
    requestFactory = ImageRequest  # noqa: N815
    noisy = False

    def __init__(
        self, resource: ImageResource, reactor: IReactorTime, config: Callable[[], Config]
    ) -> None:
        super().__init__(resource, reactor=reactor, parsePOSTFormSubmission=False)
        self.images = resource
        self._config = config
        self.channels: set[ImageChannel] = set()
        self.is_draining = False

    @cached_property
    def hot(self) -> HotPath:
        """The short way for requests whose answer is ready."""
        return HotPath(self.images.files, self.accounts, self.reactor)

    @property
    def is_hot(self) -> bool:
        """Whether the short way is open."""
        return self._config().hot_path and not self.is_draining

    @property
    def accounts(self) -> Accounts:
        """Where heads that are refused are accounted for."""
        return self.images.accounts

    def acceptableProtocols(self) -> list[bytes]:
        """See `IProtocolNegotiationFactory.acceptableProtocols`."""
        return [b"http/1.1"]

    def log(self, request: http.Request) -> None:
        """See `HTTPFactory.log`: the accounts do this, for aborted requests too."""

    def flush(self) -> None:
        """Forget what was computed under an older configuration."""
        self.images.flush()

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
