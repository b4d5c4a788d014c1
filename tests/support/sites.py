"""A site on a loopback port over a real ref store and blob space, with images in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from blobserve.concurrency.threads import Threads
from blobserve.config import BlobSpaceRules, Config, Limits, RepositoryRules
from blobserve.metrics import Metrics
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference
from blobserve.oci.manifest import Descriptor
from blobserve.oci.source import Document
from blobserve.store.blobspace import BlobSpace
from blobserve.store.refstore import RefStore
from blobserve.testing import InlineThreads, MadeImage, MemorySource
from blobserve.web.server.access_log import LogRecord
from blobserve.web.site import ImageSite, make_site
from tests.support.layers import MEDIA_TYPES
from tests.support.parts.images import Files, Image, Layer, digest_of

REPOSITORY = "registry.example/team/site"
TAG = f"{REPOSITORY}:v1"
LOCATED = {REPOSITORY: RepositoryRules(REPOSITORY, content_location=True)}
"""Rules under which a response says which digest it is of."""


@attrs.frozen
class Response:
    """An answer, as received."""

    status: int
    headers: dict[str, str]
    """Fields by lower-case name; no field comes twice."""
    body: bytes = attrs.field(repr=False)

    @classmethod
    def parse(cls, raw: bytes) -> Response:
        """Parse the only answer of a connection."""
        head, _, body = raw.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        assert len(headers) == len(lines), "a field came twice"
        named = {name.lower(): value for name, value in headers.items()}
        return cls(int(first.split(" ")[1]), named, body)


class Client(Protocol):
    """A connection on which a test can send any bytes."""

    def __init__(self) -> None:
        self.received = b""
        self.ended: Failure | None = None
        self._waiting: list[tuple[int | None, Deferred[bytes]]] = []

    def send(self, content: bytes) -> None:
        """Send bytes."""
        self.transport.write(content)

    def all(self) -> Deferred[bytes]:
        """Return a Deferred of all bytes, which fires when the server has closed."""
        return self._wait(None)

    def some(self, size: int) -> Deferred[bytes]:
        """Return a Deferred of the bytes, which fires when there are `size` bytes."""
        return self._wait(size)

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self._tell()

    def connectionLost(self, reason: Failure) -> None:
        self.ended = reason
        self._tell()

    def _wait(self, size: int | None) -> Deferred[bytes]:
        waiter: Deferred[bytes] = Deferred()
        self._waiting.append((size, waiter))
        self._tell()
        return waiter

    def _tell(self) -> None:
        for wait in list(self._waiting):
            size, waiter = wait
            if self.ended or (size is not None and len(self.received) >= size):
                self._waiting.remove(wait)
                waiter.callback(self.received)


class MemoryLog(list[LogRecord]):
    """An access log in memory."""

    def write(self, served: LogRecord) -> None:
        """See `AccessLog.write`."""
        self.append(served)


def made(*layers: Files) -> MadeImage:
    """Return an image of these layers, which may have links."""
    return packed(Image(tuple(Layer.of(files) for files in layers)))


def packed(image: Image) -> MadeImage:
    """Return an image as a source has it."""
    descriptors = [
        Descriptor(MEDIA_TYPES[layer.compression], Digest.parse(layer.digest), len(layer.blob))
        for layer in image.layers
    ]
    document = Document(Digest.parse(image.digest), image.media_type, image.manifest)
    blobs = {Digest.parse(digest_of(blob)): blob for blob in image.blobs}
    return MadeImage((document,), tuple(descriptors), blobs)


@attrs.define
class Serving:
    """A listening site and everything below it."""

    reactor: Any
    source: MemorySource
    space: BlobSpace
    store: RefStore
    site: ImageSite
    metrics: Metrics
    log: MemoryLog
    config: Config
    """May be replaced at any time; the test then calls `site.flush`."""
    port: int = 0

    def rule(self, repository: str = REPOSITORY, **rules: Any) -> None:
        """Set the rules of the repository."""
        repos = {**self.config.repos, repository: RepositoryRules(repository, **rules)}
        self.config = attrs.evolve(self.config, repos=repos)

    def push(self, *layers: Files, reference: str = TAG) -> str:
        """Push an image of these layers into the registry; return the reference by digest."""
        return str(self.source.push(Reference.parse(reference), made(*layers)))

    async def connect(self) -> Client:
        """Connect to the site."""
        endpoint = TCP4ClientEndpoint(self.reactor, "127.0.0.1", self.port)
        return await connectProtocol(endpoint, Client())

    async def turn(self) -> None:
        """Let the reactor run the calls that are due."""
        await deferLater(self.reactor, 0.001)

    async def exchange(self, raw: bytes) -> bytes:
        """Send these bytes; return everything up to the end of the connection."""
        client = await self.connect()
        client.send(raw)
        return await client.all()

    async def fetch(
        self,
        target: str = f"/{TAG}/",
        method: str = "GET",
        headers: Mapping[str, str] = {},
        host: str = "localhost",
    ) -> Response:
        """Send one request on its own connection."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return Response.parse(await self.exchange("\r\n".join([*lines, "", ""]).encode("latin-1")))


@asynccontextmanager
async def serving(
    directory: Path, *layers: Files, disk: Threads | None = None, **config: Any
) -> AsyncIterator[Serving]:
    """Run a site; `layers`, if given, are those of the image `TAG`."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    source, metrics, log = MemorySource(), Metrics(), MemoryLog()
    rules = BlobSpaceRules(directory / "space")
    space = BlobSpace(reactor, rules, Limits, InlineThreads(), metrics)
    await space.open()
    config.setdefault("repos", {REPOSITORY: RepositoryRules(REPOSITORY)})
    store = RefStore(
        space,
        lambda repository: source,
        lambda repository: it.config.pull_rules_for(repository),
        reactor,
        metrics,
        Limits,
        tags_named=lambda name: it.config.tags_named(name),
    )
    site = make_site(store, lambda: it.config, reactor, disk or InlineThreads(), metrics, log)
    store.references.on_versions(site.images.responder.versions_changed)
    whole = Config(blob_space=rules, **config)
    it = Serving(reactor, source, space, store, site, metrics, log, whole)
    await store.open()
    port = reactor.listenTCP(0, site, interface="127.0.0.1")
    address = port.getHost()
    assert isinstance(address, IPv4Address)
    it.port = address.port
    if layers:
        it.push(*layers)
    try:
        yield it
    finally:
        await port.stopListening()
        await site.drain(0)
        await store.close()
        await space.close()
