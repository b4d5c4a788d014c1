"""The source for OCI image layouts: OCI image-spec image-layout.md.

It reads files in threads. A repository gets only images of its `ImageNames`, by tag or digest.
Paths of files are made of digests only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IConsumer, IPushProducer
from zope.interface import implementer

from blobserve.concurrency.threads import Threads
from blobserve.config import Limits
from blobserve.errors import BadImage, BlobNotFound, ContentMismatch, ImageNotFound, RegistryFailed
from blobserve.names.digest import Digest
from blobserve.names.platform import Platform
from blobserve.names.reference import Reference, Repository
from blobserve.oci import manifest
from blobserve.oci.local.directory import LayoutFiles
from blobserve.oci.local.image_names import ImageNames
from blobserve.oci.manifest import INDEX_TYPES, Descriptor, ImageIndex
from blobserve.oci.source import Document, RefreshResult

_USUAL = Limits()
_CHUNK = 256 << 10
_NESTED = 2
"""The depth of nested indexes below ``index.json``, the same as for serving an image."""


@attrs.frozen
class _Found:
    """An entry of the index, or an index that was made of several entries."""

    descriptor: Descriptor
    made: bytes | None = None


class Layout:
    """One OCI image layout. See `Source` for the methods.

    `ImageNames.find` gives the images of a tag. If there is one per platform, the tag names an
    index of them. No file stays open, so the files may be replaced at any time.
    """

    def __init__(self, files: LayoutFiles, threads: Threads, limits: Limits = _USUAL) -> None:
        self._files = files
        self._threads = threads
        self._limits = limits

    async def resolve(self, reference: Reference) -> Document:
        """See `Source.resolve`."""
        await self._files.ready()
        return await self._threads.run(self._document, reference)

    async def refresh(self, reference: Reference, known: Digest) -> RefreshResult:
        """See `Source.refresh`."""
        await self._files.ready()
        found = await self._threads.run(self._find, reference)
        return RefreshResult(found.descriptor.digest)

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
                length = min(_CHUNK, descriptor.size - written)
                chunk = await self._threads.run(self._part, descriptor, written, length)
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
        found = self._find(reference)
        listed = found.descriptor
        if found.made is not None:
            return Document(listed.digest, listed.media_type, found.made)
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

    def _find(self, reference: Reference) -> _Found:
        """Find the image that a reference names.

        :raises ImageNotFound: when its repository has no such image.
        """
        names = ImageNames(self._index(), reference.repository)
        if reference.digest is not None:
            found = self._by_digest(names, reference.digest)
        else:
            found = _one_of(names.find(reference.tag or ""))
        if found is None:
            raise ImageNotFound(str(reference), *names.described())
        return found

    def _by_digest(self, names: ImageNames, digest: Digest) -> _Found | None:
        """Find an image of a repository by digest, even one that the index does not list."""
        listed = [each for each in names.own if each.digest == digest]
        if listed:
            return _Found(listed[-1])
        if self._files.has(_blob(digest)):
            # It may belong to the nested index of another repository.
            is_own = names.are_all_own or self._reaches(names.own, digest, _NESTED)
            return _Found(Descriptor("", digest, 0)) if is_own else None
        made = (_one_of(images) for images in names.shared())
        return next((each for each in made if each and each.descriptor.digest == digest), None)

    def _reaches(self, images: Iterable[Descriptor], digest: Digest, depth: int) -> bool:
        """Return whether one of these images is `digest`, or an index that leads to it."""
        return any(
            each.digest == digest
            or (depth > 0 and self._reaches(self._children(each), digest, depth - 1))
            for each in images
        )

    def _children(self, image: Descriptor) -> tuple[Descriptor, ...]:
        """Return the images in an index; none if this is not a readable index."""
        if not image.is_index:
            return ()
        try:
            content, _ = self._files.read(_blob(image.digest), 0, self._limits.manifest_size)
            index = manifest.parse(content, image.media_type, self._limits)
        except (OSError, BadImage):
            return ()
        return index.manifests if isinstance(index, ImageIndex) else ()

    def _index(self) -> ImageIndex:
        try:
            content, _ = self._files.read("index.json", 0, self._limits.manifest_size)
            index = manifest.parse(content, INDEX_TYPES[0], self._limits)
        except (OSError, BadImage) as error:
            raise self._failed("its index.json is missing or cannot be used") from error
        if not isinstance(index, ImageIndex):
            raise self._failed("its index.json is not an index")
        return index

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


def _one_of(images: tuple[Descriptor, ...]) -> _Found | None:
    """Return one image, or an index of several; None for none.

    The same images always give the same index.
    """
    if not images:
        return None
    if len(images) == 1:
        return _Found(images[0])
    listed = [
        {
            "mediaType": each.media_type,
            "digest": str(each.digest),
            "size": each.size,
            "platform": _written(each.platform),
        }
        for each in images
    ]
    media_type = INDEX_TYPES[0]
    made = json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": listed}).encode()
    return _Found(Descriptor(media_type, Digest.of(made), len(made)), made)


def _written(platform: Platform | None) -> dict[str, str]:
    return {} if platform is None else attrs.asdict(platform, filter=lambda _, value: value)


def _blob(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


@implementer(IPushProducer)
@attrs.define(eq=False)
class _Flow:
    """A producer that lets a reader wait while its consumer is paused."""

    _resumed: Deferred[None] | None = None
    _is_stopped: bool = False

    async def running(self) -> None:
        """Wait while the consumer is paused.

        :raises CancelledError: when the consumer stopped the transfer.
        """
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
