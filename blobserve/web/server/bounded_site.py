"""A site with timeouts and limits for its connections, for any resource.

HTTP/2 is never offered, even if Twisted's optional module for it is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from twisted.internet.interfaces import IReactorTime
from twisted.web import http
from twisted.web.resource import IResource
from twisted.web.server import Site

from blobserve.concurrency.fair_queue import FairQueue
from blobserve.config import Config, Limits
from blobserve.errors import BlobserveError
from blobserve.web.http.request_head import BodyGate, HeadCheck
from blobserve.web.http.response import Answer
from blobserve.web.http.status import refusal
from blobserve.web.server.channel import ImageChannel, ImageRequest, Shortcut
from blobserve.web.server.connection_limits import ConnectionLimits


class _NoShortcut:
    """A `Shortcut` that answers nothing, so that every request is parsed."""

    is_shut = False

    def answer(self, channel: object, data: bytes) -> bool:
        """See `Shortcut.answer`."""
        return False


class BoundedSite(Site):
    """A site with timeouts and limits for its connections. See `ServedSite`.

    It refuses requests with a body, unless `body_gate` permits it, and parses no forms.
    """

    protocol = ImageChannel  # type: ignore[assignment]  # it never switches to HTTP/2
    requestFactory = ImageRequest  # noqa: N815
    noisy = False

    def __init__(
        self,
        resource: IResource,
        reactor: IReactorTime,
        config: Callable[[], Config],
        connections: ConnectionLimits[ImageChannel],
    ) -> None:
        # Every byte restarts Twisted's own timer; `blobserve.web.server.timeouts` replaces it.
        super().__init__(resource, timeout=None, reactor=reactor, parsePOSTFormSubmission=False)
        self.connections = connections
        self.fair_queue = FairQueue(reactor)
        """The queue of received data that the fast path has not answered."""
        self.is_draining = False
        self.body_gate: BodyGate | None = None
        self.fast_path: Shortcut = _NoShortcut()
        self._config = config

    @property
    def channels(self) -> Collection[ImageChannel]:
        """The open connections."""
        return self.connections.open.keys()

    def limits(self) -> Limits:
        """Return the limits in force."""
        return self._config().limits

    def refused(self, peer: str, head: HeadCheck, error: BlobserveError) -> Answer:
        """See `ServedSite.refused`. The head is neither counted nor logged."""
        return refusal(error, "-")

    def acceptableProtocols(self) -> list[bytes]:
        """See `IProtocolNegotiationFactory.acceptableProtocols`."""
        return [b"http/1.1"]

    def log(self, request: http.Request) -> None:
        """See `HTTPFactory.log`. `RequestLog` logs the requests of images, aborted ones too."""

    def flush(self) -> None:
        """Apply the new limits, after the configuration has changed."""
        for channel in list(self.channels):
            channel.review()
