"""Proof: a consumer that verifies content and keeps none of it.

A repository must show content that the blob space already has. It is read to the end, and not
written to the disk a second time.
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
        """Verify the content, which is complete.

        :raises ContentMismatch: when it is not what the descriptor names.
        """
        if self._missing or self._hash.hexdigest() != self._digest.hex:
            raise ContentMismatch(str(self._digest), "its digest is another one")
