"""A source of images in memory, with faults that a test sets."""

from __future__ import annotations

from typing import Literal

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IPushProducer
from zope.interface import implementer

from blobserve.errors import BlobNotFound, BlobserveError, ContentMismatch, ImageNotFound
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference, Repository
from blobserve.oci.manifest import Descriptor
from blobserve.oci.source import Document, RefreshResult
from blobserve.testing.images import MadeImage

Method = Literal["resolve", "refresh", "holds", "fetch", "read"]

_CHUNK = 1 << 16


class Gate:
    """A gate that holds requests until it is opened. A held request can be cancelled."""

    def __init__(self, after: int) -> None:
        self.after = after
        self._is_open = False
        self._waiting: dict[Deferred[None], None] = {}

    @property
    def waiting(self) -> int:
        """The number of requests that the gate holds."""
        return len(self._waiting)

    def open(self) -> None:
        """Release all requests, and hold no later one."""
        self._is_open = True
        while self._waiting:
            waiter = next(iter(self._waiting))
            del self._waiting[waiter]
            waiter.callback(None)

    async def wait(self) -> None:
        """Wait until the gate is open."""
        if not self._is_open:
            waiter: Deferred[None] = Deferred(self._waiting.pop)
            self._waiting[waiter] = None
            await waiter


class MemorySource:
    """A `Source` of images in memory, for any number of repositories; it answers at once.

    It serves a repository in each scope alike.

    Tests set its faults, for later requests. A request sees the images of the time when it began,
    even if a gate holds it.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[Method, str]] = []
        """All requests: the method, and the reference or the blob's digest."""
        self.parts: list[tuple[int, int]] = []
        """The offset and length of each `read`."""
        self.pause = 0.0
        """The `pause` in each result of `refresh`, in seconds."""
        self._tags: dict[Reference, Digest] = {}
        self._documents: dict[Reference, Document] = {}
        self._blobs: dict[tuple[Repository, Digest], bytes] = {}
        self._errors: dict[Method, list[BlobserveError]] = {}
        self._gates: dict[Method, Gate] = {}
        self._corrupt: dict[Digest, tuple[int, int]] = {}

    def push(self, reference: Reference, image: MadeImage) -> Reference:
        """Add an image, point the tag at it, and return the reference by digest."""
        reference = reference.within("")
        for document in image.documents:
            self._documents[reference.at(document.digest)] = document
        for digest, blob in image.blobs.items():
            self._blobs[reference.repository, digest] = blob
        if reference.tag is not None:
            self._tags[reference] = image.digest
        return reference.at(image.digest)

    def remove(self, reference: Reference) -> None:
        """Remove a tag, or the manifest or the blob with that digest."""
        reference = reference.within("")
        self._tags.pop(reference, None)
        self._documents.pop(reference, None)
        if reference.digest is not None:
            self._blobs.pop((reference.repository, reference.digest), None)

    def fail(self, method: Method, *errors: BlobserveError) -> None:
        """Raise these errors in the next calls of `method`, one in each call."""
        self._errors.setdefault(method, []).extend(errors)

    def corrupt(self, digest: Digest, times: int, at: int = 4) -> None:
        """Change the byte `at` that offset, the next `times` that this blob is fetched or read.

        The byte at 4 is part of a gzip stream's date: the stream stays valid, its digest does not.
        """
        self._corrupt[digest] = times, at

    def hold(self, method: Method, after: int = 0) -> Gate:
        """Hold the calls of `method` at a gate; `fetch` stops after it wrote `after` bytes."""
        gate = self._gates[method] = Gate(after)
        return gate

    def count(self, method: Method) -> int:
        """Return the number of calls of `method`."""
        return sum(asked == method for asked, _ in self.requests)

    async def resolve(self, reference: Reference) -> Document:
        """See `Source.resolve`."""
        errors = self._begin("resolve", str(reference))
        digest = self._digest_of(reference)
        exact = reference.at(digest).within("") if digest else None
        document = self._documents.get(exact) if exact else None
        await self._pass("resolve", errors)
        if document is None:
            raise ImageNotFound(str(reference))
        return document

    async def refresh(self, reference: Reference, known: Digest) -> RefreshResult:
        """See `Source.refresh`."""
        errors = self._begin("refresh", str(reference))
        digest, pause = self._digest_of(reference), self.pause
        await self._pass("refresh", errors)
        if digest is None:
            raise ImageNotFound(str(reference))
        return RefreshResult(digest, pause)

    async def holds(self, repository: Repository, descriptor: Descriptor) -> bool:
        """See `Source.holds`."""
        errors = self._begin("holds", str(descriptor.digest))
        answer = (repository.within(""), descriptor.digest) in self._blobs
        await self._pass("holds", errors)
        return answer

    async def fetch(
        self, repository: Repository, descriptor: Descriptor, consumer: IConsumer
    ) -> None:
        """See `Source.fetch`."""
        digest = descriptor.digest
        errors = self._begin("fetch", str(digest))
        blob = self._blobs.get((repository.within(""), digest))
        if blob is None:
            await self._pass("fetch", errors)
            raise BlobNotFound(str(digest))
        if len(blob) != descriptor.size:
            raise ContentMismatch(str(digest), f"it has {len(blob)} bytes, not {descriptor.size}")
        blob = self._corrupted(digest, blob)
        producer = _Producer(consumer)
        consumer.registerProducer(producer, True)
        try:
            after = self._gates["fetch"].after if "fetch" in self._gates else 0
            await producer.write(blob[:after])
            await self._pass("fetch", errors)
            await producer.write(blob[after:])
        finally:
            consumer.unregisterProducer()

    async def read(
        self, repository: Repository, descriptor: Descriptor, start: int, length: int
    ) -> bytes:
        """See `Source.read`."""
        digest = descriptor.digest
        errors = self._begin("read", str(digest))
        self.parts.append((start, length))
        blob = self._blobs.get((repository.within(""), digest))
        await self._pass("read", errors)
        if blob is None:
            raise BlobNotFound(str(digest))
        if len(blob) != descriptor.size:
            raise ContentMismatch(str(digest), f"it has {len(blob)} bytes, not {descriptor.size}")
        return self._corrupted(digest, blob)[start : start + length]

    def _corrupted(self, digest: Digest, blob: bytes) -> bytes:
        times, at = self._corrupt.get(digest, (0, 0))
        if not times:
            return blob
        self._corrupt[digest] = times - 1, at
        return blob[:at] + bytes([blob[at] ^ 0xFF]) + blob[at + 1 :]

    def _begin(self, method: Method, subject: str) -> list[BlobserveError]:
        self.requests.append((method, subject))
        scripted = self._errors.get(method, [])
        taken, scripted[:1] = scripted[:1], []
        return taken

    async def _pass(self, method: Method, errors: list[BlobserveError]) -> None:
        gate = self._gates.get(method)
        if gate is not None:
            await gate.wait()
        for error in errors:
            raise error

    def _digest_of(self, reference: Reference) -> Digest | None:
        return reference.digest or self._tags.get(reference.within(""))


@implementer(IPushProducer)
class _Producer:
    """A producer that writes to a consumer, except while it is paused."""

    def __init__(self, consumer: IConsumer) -> None:
        self._consumer = consumer
        self._is_paused = False
        self._resumed: Deferred[None] = Deferred()

    async def write(self, content: bytes) -> None:
        for start in range(0, len(content), _CHUNK):
            while self._is_paused:
                await self._resumed
            self._consumer.write(content[start : start + _CHUNK])

    def pauseProducing(self) -> None:
        """See `IPushProducer.pauseProducing`."""
        if not self._is_paused:
            self._is_paused, self._resumed = True, Deferred()

    def resumeProducing(self) -> None:
        """See `IPushProducer.resumeProducing`."""
        if self._is_paused:
            self._is_paused = False
            self._resumed.callback(None)

    def stopProducing(self) -> None:
        """See `IProducer.stopProducing`. Writes no more; the fetch then never returns."""
        self.pauseProducing()
        self._resumed = Deferred()
