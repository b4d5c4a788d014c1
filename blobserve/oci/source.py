"""What every source of images offers, whether a registry or a directory.

Pure: a Protocol and the two values it speaks in.
"""

from __future__ import annotations

from typing import Protocol

import attrs
from twisted.internet.interfaces import IConsumer

from blobserve.names.digest import Digest
from blobserve.names.reference import Reference, Repository
from blobserve.oci.manifest import Descriptor


@attrs.frozen
class Document:
    """A manifest or an index as its source holds it; `content` is checked against `digest`."""

    digest: Digest
    media_type: str
    content: bytes


@attrs.frozen
class RefreshResult:
    """Where a tag points now; `pause` is how many seconds the source asks not to be asked again."""

    digest: Digest
    pause: float = 0.0


class Source(Protocol):
    """A place images come from. Methods may be called at once, any number of times.

    Every method raises the errors of `blobserve.errors` and no others: `ImageNotFound` or
    `BlobNotFound`, an `UpstreamError`, or a `TemporarilyUnavailable`. Cancelling one closes its
    connection.
    """

    async def resolve(self, reference: Reference) -> Document:
        """Fetch the manifest or index a reference names; of tag and digest, the digest counts.

        :raises ContentMismatch: when the bytes are not those of the digest asked for.
        """
        ...

    async def refresh(self, reference: Reference, known: Digest) -> RefreshResult:
        """Ask where a tag points now, as cheaply as the source allows."""
        ...

    async def holds(self, repository: Repository, descriptor: Descriptor) -> bool:
        """Whether this source, asked as this repository, would give out that blob."""
        ...

    async def fetch(
        self, repository: Repository, descriptor: Descriptor, consumer: IConsumer
    ) -> None:
        """Write a blob's bytes, as stored, to `consumer`, in order and each once.

        Exactly `descriptor.size` bytes have been written when this returns; they are not checked
        against the digest, the consumer does that. A producer is registered with the consumer for
        as long as bytes flow, and obeys it. Interruptions are mended here; what cannot be mended
        raises, and the caller begins anew with another consumer.

        :raises BlobNotFound: when the source does not have the blob.
        """
        ...

    async def read(
        self, repository: Repository, descriptor: Descriptor, start: int, length: int
    ) -> bytes:
        """Exactly `length` bytes of a blob as stored, from `start` on, all of them within it.

        They are not checked against anything. Not for whole layers: they are held in memory.

        :raises BlobNotFound: when the source does not have the blob.
        :raises RegistryFailed: also when this source cannot give out parts of so large a blob.
        """
        ...
