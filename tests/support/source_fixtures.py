"""Helpers for tests of sources: images, a client of the scripted registry, a consumer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IPushProducer
from zope.interface import implementer

from blobserve.config import Limits, RegistryRules
from blobserve.metrics import Metrics
from blobserve.names.reference import Repository
from blobserve.oci.credentials.keychain import Credential
from blobserve.oci.http.endpoints import Routes
from blobserve.oci.http.name_lookup import Names
from blobserve.oci.registry.registry import Registry
from blobserve.testing import InlineThreads, MadeImage
from tests.support.slack import SLACK

QUICK = Limits(connect_timeout=2.0, header_timeout=0.4, silence_timeout=0.4)
"""Limits with short time-outs."""


@attrs.frozen
class FixedKeychain:
    """A keychain with one credential for all, and the list of requests for it."""

    credential: Credential | None = None
    asked: list[Repository] = attrs.field(factory=list)

    async def for_repository(self, repository: Repository) -> Credential | None:
        """See `Credentials.for_repository`."""
        self.asked.append(repository)
        return self.credential


@attrs.frozen
class RigImage:
    """An image in the form of `tests.support.parts` and in that of registries and layouts."""

    manifest: bytes
    blobs: tuple[bytes, ...]
    media_type: str
    digest: str

    @classmethod
    def of(cls, image: MadeImage) -> RigImage:
        """Return the same image in both forms."""
        top = image.documents[0]
        return cls(top.content, tuple(image.blobs.values()), top.media_type, str(top.digest))


class Ahead:
    """A reactor with a clock that is some seconds ahead of the real one."""

    def __init__(self) -> None:
        self.by = 0.0
        self._reactor: Any = None

    def of(self, reactor: Any) -> Ahead:
        """Return this clock for another reactor."""
        self._reactor = reactor
        return self

    def seconds(self) -> float:
        """See `IReactorTime.seconds`."""
        return float(self._reactor.seconds()) + self.by

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


@asynccontextmanager
async def registry_at(
    host: str,
    rules: RegistryRules | None = None,
    credential: Credential | None = None,
    may_be_private: bool = True,
    limits: Limits | None = None,
    metrics: Metrics | None = None,
    ahead: Ahead | None = None,
) -> AsyncIterator[Registry]:
    """Open a client of the registry `host`, by default configured, plain HTTP and anonymous."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    before = set(reactor.getDelayedCalls())
    registry = Registry(
        reactor if ahead is None else ahead.of(reactor),
        host,
        rules or RegistryRules(insecure=True),
        FixedKeychain(credential),
        may_be_private,
        InlineThreads(),
        Routes(Names(reactor, InlineThreads())),
        limits or Limits(),
        metrics or Metrics(),
    )
    try:
        yield registry
    finally:
        await registry.close()
        left = [call for call in reactor.getDelayedCalls() if _is_ours(call) and call not in before]
        assert not left, "a closed registry leaves nothing running"


def _is_ours(call: Any) -> bool:
    return "blobserve" in getattr(call.func, "__module__", "")


@implementer(IConsumer)
class Sink:
    """A consumer that pauses its producer at `pause_at` bytes."""

    def __init__(self, pause_at: int | None = None) -> None:
        self.chunks: list[bytes] = []
        self.producer: IPushProducer | None = None
        self.registered = 0
        self._pause_at = pause_at
        self._waiting: list[tuple[int, Deferred[None]]] = []

    @property
    def content(self) -> bytes:
        """The bytes so far."""
        return b"".join(self.chunks)

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:
        """See `IConsumer.registerProducer`."""
        assert self.producer is None
        assert streaming
        self.producer = producer
        self.registered += 1

    def unregisterProducer(self) -> None:
        """See `IConsumer.unregisterProducer`."""
        self.producer = None

    def write(self, data: bytes) -> None:
        """See `IConsumer.write`."""
        assert self.producer is not None
        self.chunks.append(data)
        if self._pause_at is not None and len(self.content) >= self._pause_at:
            self.producer.pauseProducing()
        for size, waiter in list(self._waiting):
            if len(self.content) >= size:
                self._waiting.remove((size, waiter))
                waiter.callback(None)

    def has(self, size: int) -> Deferred[None]:
        """Return a Deferred that fires when `size` bytes were written."""
        waiter: Deferred[None] = Deferred()
        if len(self.content) >= size:
            waiter.callback(None)
        else:
            self._waiting.append((size, waiter))
        return waiter

    def flow(self) -> None:
        """Resume the producer and pause no more."""
        self._pause_at = None
        if self.producer is not None:
            self.producer.resumeProducing()


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait until `condition` holds, at most `seconds` times `SLACK`."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs
    from twisted.internet.task import deferLater

    for _ in range(int(seconds * SLACK / 0.01)):
        if condition():
            return
        await deferLater(reactor, 0.01)
    raise AssertionError("it never came true")
