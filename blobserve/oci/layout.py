"""The layout: images in a directory, as OCI image-spec image-layout.md has it.

A `Source` that reads files in threads. Whatever repository it is asked for, it is this one. The
only names that reach the file system are digests. Knows nothing of registries.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

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
from blobserve.oci.manifest import INDEX_TYPES, Descriptor, Index
from blobserve.oci.reference import Reference, Repository
from blobserve.oci.source import Document, Refreshed
from blobserve.threads import Threads

_NAME = "oci layout"
_USUAL = Limits()
_TAG = "org.opencontainers.image.ref.name"
_CHUNK = 256 << 10


class Layout:
    """One OCI image layout. See `Source` for what the methods do.

    A tag is an annotation ``org.opencontainers.image.ref.name`` in its index; of several, the last
    counts. Nothing is kept open, so the directory may be replaced at any time.
    """

    def __init__(self, directory: Path, threads: Threads, limits: Limits = _USUAL) -> None:
        self._directory = directory
        self._threads = threads
        self._limits = limits

    async def resolve(self, reference: Reference) -> Document:
        """See `Source.resolve`."""
        return await self._threads.run(self._document, reference)

    async def refresh(self, reference: Reference, known: Digest) -> Refreshed:
        """See `Source.refresh`."""
        listed = await self._threads.run(self._listed, reference)
        return Refreshed(listed.digest)

    async def holds(self, repository: Repository, descriptor: Descriptor) -> bool:
        """See `Source.holds`."""
        return await self._threads.run(self._blob(descriptor.digest).is_file)

    async def fetch(
        self, repository: Repository, descriptor: Descriptor, consumer: IConsumer
    ) -> None:
        """See `Source.fetch`."""
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
        return await self._threads.run(self._part, descriptor, start, length)

    def _document(self, reference: Reference) -> Document:
        listed = self._listed(reference)
        limit = self._limits.manifest_size
        try:
            content, _ = _read(self._blob(listed.digest), 0, limit + 1)
        except FileNotFoundError as error:
            raise ImageNotFound(str(reference)) from error
        except OSError as error:
            raise RegistryFailed(_NAME, "a manifest cannot be read") from error
        if len(content) > limit:
            raise BadImage(str(reference), f"its manifest exceeds {limit} bytes")
        if Digest.of(content, listed.digest.algorithm) != listed.digest:
            raise ContentMismatch(str(listed.digest), "its manifest has another digest")
        return Document(listed.digest, listed.media_type, content)

    def _listed(self, reference: Reference) -> Descriptor:
        """What the index says of a reference; of a digest that it does not list, nothing at all."""
        digest = reference.digest
        for each in reversed(self._index().manifests):
            is_tagged = digest is None and each.annotations.get(_TAG) == reference.tag
            if is_tagged or each.digest == digest:
                return each
        if digest is None:
            raise ImageNotFound(str(reference))
        return Descriptor("", digest, 0)

    def _index(self) -> Index:
        try:
            content, _ = _read(self._directory / "index.json", 0, self._limits.manifest_size)
            index = manifest.parse(content, INDEX_TYPES[0], self._limits)
        except (OSError, BadImage) as error:
            raise RegistryFailed(_NAME, "it has no index.json that can be used") from error
        if not isinstance(index, Index):
            raise RegistryFailed(_NAME, "its index.json is no index")
        return index

    def _chunk(self, descriptor: Descriptor, offset: int) -> bytes:
        return self._part(descriptor, offset, min(_CHUNK, descriptor.size - offset))

    def _part(self, descriptor: Descriptor, offset: int, length: int) -> bytes:
        digest = str(descriptor.digest)
        try:
            content, size = _read(self._blob(descriptor.digest), offset, length)
        except FileNotFoundError as error:
            raise BlobNotFound(digest) from error
        except OSError as error:
            raise RegistryFailed(_NAME, "a blob cannot be read") from error
        if size != descriptor.size:
            raise ContentMismatch(digest, f"it has {size} bytes, not {descriptor.size}")
        return content

    def _blob(self, digest: Digest) -> Path:
        return self._directory / "blobs" / digest.algorithm / digest.hex


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


def _read(path: Path, offset: int, length: int) -> tuple[bytes, int]:
    """Up to `length` bytes of a regular file, and how many it has in all.

    :raises OSError: when it cannot be read, or is no regular file.
    """
    # O_NONBLOCK: a FIFO in its place would hold this thread until somebody writes.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0):
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(path)
        chunks = []
        while length and (chunk := os.pread(descriptor, length, offset)):
            chunks.append(chunk)
            offset, length = offset + len(chunk), length - len(chunk)
        return b"".join(chunks), status.st_size
