"""The compressed bytes of one layer, checked against its descriptor, and what they unpack to.

Damage is remembered and told at the end: until all bytes are here, and are the promised ones, a
damaged layer cannot be told from a damaged transfer. Knows nothing of tar nor of disks.
"""

from __future__ import annotations

from collections.abc import Iterator

from blobserve.errors import BadLayer, ContentMismatch
from blobserve.oci.manifest import Descriptor
from blobserve.store.extract.decompress import Stage


class LayerVerifier:
    """Unpacks one layer: feed it chunks, and after each take the pieces until there are no more."""

    def __init__(self, descriptor: Descriptor, stage: Stage) -> None:
        self.is_dry = descriptor.size > 0  # An empty file has no bytes, and yet a name.
        """Whether all that was fed has been unpacked."""
        self._descriptor = descriptor
        self._received = 0
        self._hash = descriptor.digest.hasher()
        self._stage = stage
        self._problem: BadLayer | None = None
        self._is_given_up = False

    @property
    def is_bad(self) -> bool:
        """Whether something was found that `finish` will tell."""
        return self._problem is not None

    @property
    def is_whole(self) -> bool:
        """Whether all bytes of the blob were fed."""
        return self._received >= self._descriptor.size

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the blob.

        :raises ContentMismatch: when the blob is longer than promised.
        """
        self._hash.update(chunk)
        self._received += len(chunk)
        if self._received > self._descriptor.size:
            raise self._mismatch(f"it is longer than {self._descriptor.size} bytes")
        self._stage.feed(b"" if self._is_given_up else chunk)
        self.is_dry = False

    def pieces(self) -> Iterator[bytes]:
        """The pieces that what was fed unpacks to, each made when it is asked for."""
        while not self._is_given_up:
            try:
                piece = self._stage.read()
            except BadLayer as problem:
                self._problem = problem
                self._is_given_up = True
                break
            if not piece:
                break
            yield piece
        self.is_dry = True

    def give_up(self) -> None:
        """Unpack no more, and check only that the bytes are the promised ones. From any thread."""
        self._is_given_up = True

    def verify(self) -> None:
        """Say that the blob is complete.

        :raises ContentMismatch: when the bytes are not those of the descriptor.
        """
        descriptor = self._descriptor
        if self._received != descriptor.size:
            raise self._mismatch(f"{self._received} bytes instead of {descriptor.size}")
        if self._hash.hexdigest() != descriptor.digest.hex:
            raise self._mismatch("its digest is another one")

    def finish(self) -> None:
        """See that what was unpacked ended well.

        :raises BadLayer: when it is damaged, or ends in its middle.
        """
        if self._problem is not None:
            raise self._problem
        self._stage.finish()

    def _mismatch(self, problem: str) -> ContentMismatch:
        return ContentMismatch(str(self._descriptor.digest), problem)
