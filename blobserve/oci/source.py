"""The interface of all sources of images, and its two values."""

from __future__ import annotations

from typing import Protocol

import attrs
from twisted.internet.interfaces import IConsumer

from blobserve.names.digest import Digest
from blobserve.names.reference import Reference, Repository
from blobserve.oci.manifest import Descriptor


@attrs.frozen
class Document:
    """A manifest or an index in its stored form; `content` is checked against `digest`."""

    digest: Digest
    media_type: str
    content: bytes


@attrs.frozen
class RefreshResult:
    """The current digest of a tag; the source wants no further request for `pause` seconds."""

    digest: Digest
    pause: float = 0.0


class Source(Protocol):
    """A source of images. Any number of calls may run at the same time.

    The methods raise only these errors: `ImageNotFound` or `BlobNotFound`, an `UpstreamError`, or a
    `TemporarilyUnavailable`. Cancelling a call closes its connection.
    """

    async def resolve(self, reference: Reference) -> Document:
        """Fetch the manifest or index of a reference; a digest takes precedence over a tag.

        :raises ContentMismatch: when the content does not match the digest.
        """
        ...

    async def refresh(self, reference: Reference, known: Digest) -> RefreshResult:
        """Return the current digest of a tag, as cheaply as the source allows."""
        ...

    async def holds(self, repository: Repository, descriptor: Descriptor) -> bool:
        """Return whether this source would give the blob to this repository."""
        ...

    async def fetch(
        self, repository: Repository, descriptor: Descriptor, consumer: IConsumer
    ) -> None:
        """Write a blob's bytes, as stored, to `consumer`, in order and each once.

        On return, exactly `descriptor.size` bytes were written. The consumer checks their digest.
        While bytes flow, a push producer is registered with the consumer. The source resumes after
        interruptions if it can. After an error, the caller starts again with another consumer.

        :raises BlobNotFound: when the source does not have the blob.
        """
        ...

    async def read(
        self, repository: Repository, descriptor: Descriptor, start: int, length: int
    ) -> bytes:
        """Return exactly `length` bytes of a blob as stored, from `start` on.

        The range must lie within the blob. The bytes are not verified. They are in memory, so this
        is not for whole layers.

        :raises BlobNotFound: when the source does not have the blob.
        :raises RegistryFailed: also when this source cannot send parts of a blob of this size.
        """
        ...
