"""Proof: a consumer that verifies content without storing it.

If a repository must prove that it has content which is in the blob space already, the content is
downloaded and hashed, but not written to the disk again.
"""

from __future__ import annotations

from twisted.internet.interfaces import IConsumer, IProducer
from zope.interface import implementer

from blobserve.errors import ContentMismatch
from blobserve.oci.manifest import Descriptor


@implementer(IConsumer)
class Proof:
    """Hashes the content of one descriptor as it arrives."""

    def __init__(self, descriptor: Descriptor) -> None:
        self._digest = descriptor.digest
        self._missing = descriptor.size
        self._hash = descriptor.digest.hasher()

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """See `IConsumer.registerProducer`. Hashing is faster than the network: never pauses."""

    def unregisterProducer(self) -> None:
        """See `IConsumer.unregisterProducer`."""

    def write(self, data: bytes) -> None:
        """See `IConsumer.write`."""
        self._missing -= len(data)
        self._hash.update(data)

    def finish(self) -> None:
        """Verify the content after its last byte.

        :raises ContentMismatch: when its digest or size differs from the descriptor.
        """
        if self._missing or self._hash.hexdigest() != self._digest.hex:
            raise ContentMismatch(str(self._digest), "its digest or size differs")
