"""The layout: images in files, as OCI image-spec image-layout.md has it.

A `Source` that reads files in threads. Whatever repository it is asked for, it is this one. The
only names that it asks its files for are digests. Knows nothing of registries, nor where the files
are.
"""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IConsumer, IPushProducer
from zope.interface import implementer

from blobserve.config import Limits
from blobserve.errors import (
    BadImage,
    BlobNotFound,
    ContentMismatch,
    ImageNotFound,
    RegistryFailed,
)
from blobserve.oci import manifest
from blobserve.oci.digest import Digest
from blobserve.oci.files import Files
from blobserve.oci.manifest import INDEX_TYPES, Descriptor, Index
from blobserve.oci.reference import Reference, Repository
from blobserve.oci.source import Document, Refreshed
from blobserve.threads import Threads

_USUAL = Limits()
NAME_ANNOTATION = "org.opencontainers.image.ref.name"
"""What an image is called in an index: a tag, or all of a reference."""

_CHUNK = 256 << 10


class Layout:
    """One OCI image layout. See `Source` for what the methods do.

    A tag is an annotation `NAME_ANNOTATION` in its index, or what that ends with after a colon; of
    several, the last counts, one that is the whole reference before all others. Nothing is kept
    open, so the files may be replaced at any time.
    """

    def __init__(self, files: Files, threads: Threads, limits: Limits = _USUAL) -> None:
        self._files = files
        self._threads = threads
        self._limits = limits

    async def resolve(self, reference: Reference) -> Document:
        """See `Source.resolve`."""
        await self._files.ready()
        return await self._threads.run(self._document, reference)

    async def refresh(self, reference: Reference, known: Digest) -> Refreshed:
        """See `Source.refresh`."""
        await self._files.ready()
        listed = await self._threads.run(self._listed, reference)
        return Refreshed(listed.digest)

    async def holds(self, repository: Repository, descriptor: Descriptor) -> bool:
        """See `Source.holds`."""
        await self._files.ready()
        return await self._threads.run(self._files.has, _blob(descriptor.digest))

    async def fetch(
        self, repository: Repository, descriptor: Descriptor, consumer: IConsumer
    ) -> None:
        """See `Source.fetch`."""
        await self._files.ready()
        flow = _Flow()
        consumer.registerProducer(flow, True)
        try:
            written = 0
            while written < descriptor.size:
                chunk = await self._threads.run(self._chunk, descriptor, written)
                await flow.running()
                consumer.write(chunk)
                written += len(chunk)
        finally:
            consumer.unregisterProducer()

    async def read(
        self, repository: Repository, descriptor: Descriptor, start: int, length: int
    ) -> bytes:
        """See `Source.read`."""
        await self._files.ready()
        return await self._threads.run(self._part, descriptor, start, length)

    def _document(self, reference: Reference) -> Document:
        listed = self._listed(reference)
        limit = self._limits.manifest_size
        try:
            content, _ = self._files.read(_blob(listed.digest), 0, limit + 1)
        except FileNotFoundError as error:
            raise ImageNotFound(str(reference)) from error
        except OSError as error:
            raise self._failed("a manifest cannot be read") from error
        if len(content) > limit:
            raise BadImage(str(reference), f"its manifest exceeds {limit} bytes")
        if Digest.of(content, listed.digest.algorithm) != listed.digest:
            raise ContentMismatch(str(listed.digest), "its manifest has another digest")
        return Document(listed.digest, listed.media_type, content)

    def _listed(self, reference: Reference) -> Descriptor:
        """What the index says of a reference; of a digest that it does not list, nothing at all."""
        digest, listed = reference.digest, self._index().manifests
        if digest is not None:
            found = [each for each in listed if each.digest == digest]
            return found[-1] if found else Descriptor("", digest, 0)
        tagged = [each for each in listed if _name(each).rpartition(":")[2] == reference.tag]
        named = [each for each in tagged if _name(each) == str(reference)]
        if not tagged:
            raise ImageNotFound(str(reference))
        return (named or tagged)[-1]

    def _index(self) -> Index:
        try:
            content, _ = self._files.read("index.json", 0, self._limits.manifest_size)
            index = manifest.parse(content, INDEX_TYPES[0], self._limits)
        except (OSError, BadImage) as error:
            raise self._failed("it has no index.json that can be used") from error
        if not isinstance(index, Index):
            raise self._failed("its index.json is no index")
        return index

    def _chunk(self, descriptor: Descriptor, offset: int) -> bytes:
        return self._part(descriptor, offset, min(_CHUNK, descriptor.size - offset))

    def _part(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        digest = str(descriptor.digest)
        try:
            content, size = self._files.read(_blob(descriptor.digest), offset, length)
        except FileNotFoundError as error:
            raise BlobNotFound(digest) from error
        except OSError as error:
            raise self._failed("a blob cannot be read") from error
        if size != descriptor.size:
            raise ContentMismatch(digest, f"it has {size} bytes, not {descriptor.size}")
        return content

    def _failed(self, problem: str) -> RegistryFailed:
        return RegistryFailed(self._files.name, problem)


def _name(listed: Descriptor) -> str:
    return listed.annotations.get(NAME_ANNOTATION, "")


def _blob(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


@implementer(IPushProducer)
class _Flow:
    """Whether a consumer wants bytes."""

    def __init__(self) -> None:
        self._resumed: Deferred[None] | None = None
        self._is_stopped = False

    async def running(self) -> None:
        """Wait until the consumer wants bytes. CancelledError: it wants none any more."""
        while self._resumed is not None:
            await self._resumed
        if self._is_stopped:
            raise CancelledError

    def pauseProducing(self) -> None:
        """See `IPushProducer.pauseProducing`."""
        if self._resumed is None:
            self._resumed = Deferred()

    def resumeProducing(self) -> None:
        """See `IPushProducer.resumeProducing`."""
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            resumed.callback(None)

    def stopProducing(self) -> None:
        """See `IProducer.stopProducing`."""
        self._is_stopped = True
        self.resumeProducing()
