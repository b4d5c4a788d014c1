"""What tests of sources need beside them: images, a client of the scripted registry, a consumer."""

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
from blobserve.oci.http.name_lookup import Names
from blobserve.oci.registry.registry import Registry
from blobserve.testing import InlineThreads, MadeImage

QUICK = Limits(connect_timeout=2.0, header_timeout=0.4, silence_timeout=0.4)
"""Limits under which a test that is about a time-out ends soon."""


@attrs.frozen
class FixedKeychain:
    """One credential for everybody, and a list of who asked."""

    credential: Credential | None = None
    asked: list[Repository] = attrs.field(factory=list)

    async def for_repository(self, repository: Repository) -> Credential | None:
        """See `Credentials.for_repository`."""
        self.asked.append(repository)
        return self.credential


@attrs.frozen
class RigImage:
    """An image as `tests.support.parts` has it, and as its registries and layouts take it."""

    manifest: bytes
    blobs: tuple[bytes, ...]
    media_type: str
    digest: str

    @classmethod
    def of(cls, image: MadeImage) -> RigImage:
        """The same image."""
        top = image.documents[0]
        return cls(top.content, tuple(image.blobs.values()), top.media_type, str(top.digest))


class Ahead:
    """A reactor with a clock that is some seconds ahead of that of the real one."""

    def __init__(self) -> None:
        self.by = 0.0
        self._reactor: Any = None

    def of(self, reactor: Any) -> Ahead:
        """The same, now standing for this reactor."""
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
    """A client of the registry `host`: named, in clear and anonymous unless told otherwise."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    before = set(reactor.getDelayedCalls())
    registry = Registry(
        reactor if ahead is None else ahead.of(reactor),
        host,
        rules or RegistryRules(insecure=True),
        FixedKeychain(credential),
        may_be_private,
        InlineThreads(),
        Names(reactor, InlineThreads()),
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
    """Takes what is written to it; pauses its producer whenever it has `pause_at` bytes."""

    def __init__(self, pause_at: int | None = None) -> None:
        self.chunks: list[bytes] = []
        self.producer: IPushProducer | None = None
        self.registered = 0
        self._pause_at = pause_at
        self._waiting: list[tuple[int, Deferred[None]]] = []

    @property
    def content(self) -> bytes:
        """Everything so far."""
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
        """Fires when `size` bytes have been written."""
        waiter: Deferred[None] = Deferred()
        if len(self.content) >= size:
            waiter.callback(None)
        else:
            self._waiting.append((size, waiter))
        return waiter

    def flow(self) -> None:
        """Pause no more."""
        self._pause_at = None
        if self.producer is not None:
            self.producer.resumeProducing()


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Return when `condition` holds; looks every few milliseconds."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs
    from twisted.internet.task import deferLater

    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        await deferLater(reactor, 0.01)
    raise AssertionError("it never came true")
