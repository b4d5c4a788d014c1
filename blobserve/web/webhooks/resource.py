"""The resource that takes notifications, and the site of a listener for them alone."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import parse_qs

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.resource import Resource
from twisted.web.server import Request

from blobserve.config import Config
from blobserve.errors import BlobserveError, PathNotFound, PostOnly
from blobserve.metrics import Metrics
from blobserve.names.reference import canonical_registry
from blobserve.store.refstore import RefStore
from blobserve.web.http.request_head import HeadCheck, RequestContext, RequestHead
from blobserve.web.http.response import Answer
from blobserve.web.http.status import is_unexpected, plain, refusal
from blobserve.web.resource import head_of
from blobserve.web.server.bounded_site import BoundedSite
from blobserve.web.server.channel import ImageChannel
from blobserve.web.server.connection_limits import ConnectionLimits
from blobserve.web.server.request_log import RequestLog, peer_of
from blobserve.web.server.send import finish_after, send
from blobserve.web.server.slow_clients import SlowClients
from blobserve.web.webhooks.admission import MOST_BYTES, HookGate, Result, last_of
from blobserve.web.webhooks.notification import Push, parse

_MOST_CONNECTIONS = 256
"""The most connections of a listener for notifications alone."""

_MOST_REGISTRIES = 10
"""The most registries that the URL of a notification may name."""

_log = Logger()


class PushReceiver:
    """The pushes of notifications, for the store."""

    def __init__(self, store: RefStore, config: Callable[[], Config]) -> None:
        self._store = store
        self._config = config

    def receive(self, pushes: tuple[Push, ...], registries: list[str]) -> Result:
        """Look up the tags that were pushed.

        :param registries: the registries that the notification may come from; empty: any.
        :raises StoreClosed: when the service stops.
        """
        config, count = self._config(), 0
        hosts: list[str | None] = [canonical_registry(each) or each for each in registries]
        hosts = hosts[:_MOST_REGISTRIES] or [None]
        for push in pushes:
            found = [config.repositories_at(push.path, each) for each in hosts]
            for repositories in found:
                expected = [
                    image for each in repositories for image in config.expected_images(each)
                ]
                if repositories:
                    count += self._store.announce(frozenset(repositories), push.tags, expected)
        if not pushes:
            return "ignored"
        return "accepted" if count else "unmatched"


class WebhookResource(Resource):
    """The place of notifications. Every request is logged, without the secret in its path."""

    isLeaf = True  # noqa: N815

    def __init__(
        self, receiver: PushReceiver, gate: HookGate, request_log: RequestLog, pace: SlowClients
    ) -> None:
        super().__init__()
        self._receiver = receiver
        self.gate = gate
        """The place of notifications."""
        self._admission = gate.admission
        self._request_log = request_log
        self._pace = pace

    def render(self, request: Request) -> int:
        """See `IResource.render`."""
        head = head_of(request)
        context = RequestContext(attrs.evolve(head, target=self.gate.masked(head.target)))
        record = self._request_log.begin(request, context)
        answer = self._answer(request, head, record.request_id)
        return finish_after(request, send(request, answer, self._pace))

    def _answer(self, request: Request, head: RequestHead, request_id: str) -> Answer:
        try:
            result = self._take(request, head)
        except Exception as error:  # noqa: BLE001 - the registry gets 500
            if is_unexpected(error):
                _log.failure("request {request_id} failed", request_id=request_id)
            elif isinstance(error, BlobserveError) and not isinstance(error, PathNotFound):
                self._admission.refused(error, peer_of(request.client))
            return refusal(error, request_id)
        self._admission.count(result)
        # One text for all: a registry need not know which repositories are served.
        return plain(202, "accepted\n")

    def _take(self, request: Request, head: RequestHead) -> Result:
        below = self.gate.below(head.path)
        if below is None:
            raise PathNotFound("there are no webhooks")
        if request.method != b"POST":
            raise PostOnly("only POST is answered here")
        last = last_of(below)
        self._admission.check(head.fields, last)
        body = b""
        if request.content is not None:
            self._admission.check_size(request.content.seek(0, 2))
            request.content.seek(0)
            body = request.content.read(MOST_BYTES)
        self._admission.check(head.fields, last, body)
        pushes = parse(body, head.fields)
        query = (head.query or b"").decode("latin-1")
        return self._receiver.receive(pushes, parse_qs(query).get("registry", []))


class WebhookSite(BoundedSite):
    """The site of a listener that takes notifications at any path."""

    def __init__(
        self,
        resource: WebhookResource,
        request_log: RequestLog,
        config: Callable[[], Config],
        reactor: IReactorTime,
        metrics: Metrics,
    ) -> None:
        connections: ConnectionLimits[ImageChannel] = ConnectionLimits(
            config, reactor, metrics, _MOST_CONNECTIONS
        )
        super().__init__(resource, reactor, config, connections)
        self.body_gate = self._gate = resource.gate
        self._request_log = request_log

    def refused(self, peer: str, head: HeadCheck, error: BlobserveError) -> Answer:
        """See `ServedSite.refused`."""
        return refused_head(self._request_log, self._gate, peer, head, error)

    def close(self) -> None:
        """Close all connections. The caller stops listening before."""
        for channel in list(self.channels):
            if channel.is_in_body:
                channel.abort()
            else:
                channel.close()


def refused_head(
    request_log: RequestLog, gate: HookGate, peer: str, head: HeadCheck, error: BlobserveError
) -> Answer:
    """Log a refused head, without the secret in its path; return the answer to it."""
    if gate.concerns(head.target):
        gate.admission.refused(error, peer)
    head.target = gate.masked(head.target)
    return request_log.refuse(peer, head, error)
