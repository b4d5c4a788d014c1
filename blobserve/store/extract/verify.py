"""The decompression of one layer, and the check of its bytes against the descriptor.

Damage is reported at the end: until all bytes have the right digest, a damaged layer cannot be
distinguished from a damaged transfer.
"""

from __future__ import annotations

from collections.abc import Iterator

from blobserve.config import Limits
from blobserve.errors import BadLayer, ContentMismatch
from blobserve.oci.manifest import Descriptor
from blobserve.store.extract.decompress import Decompressor, Stage
from blobserve.store.extract.single_file import TarWrapper
from blobserve.store.extract.sparse import SparseExpander

_PARTS_PER_ENTRY = 4  # eStargz and zstd:chunked begin one for a header, and one for a body.


class LayerVerifier:
    """Verifies and decompresses one layer: after each `feed`, read all `pieces`."""

    def __init__(self, descriptor: Descriptor, limits: Limits) -> None:
        self.is_dry = descriptor.size > 0  # An empty file still has a tar header.
        """Whether everything that was fed has been decompressed."""
        self._descriptor = descriptor
        self._received = 0
        self._hash = descriptor.digest.hasher()
        self._stage = _stage_for(descriptor, limits)
        self.problem: BadLayer | None = None
        """The error that `finish` will raise."""
        self._is_given_up = False

    @property
    def is_whole(self) -> bool:
        """Return whether all bytes of the blob have been fed."""
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
        """Decompress the chunks that were fed, one piece at a time."""
        while not self._is_given_up:
            try:
                piece = self._stage.read()
            except BadLayer as problem:
                self.problem = problem
                self._is_given_up = True
                break
            if not piece:
                break
            yield piece
        self.is_dry = True

    def give_up(self) -> None:
        """Stop decompressing, and only check the digest. May be called in any thread."""
        self._is_given_up = True

    def verify(self) -> None:
        """Check the digest and size of the complete blob.

        :raises ContentMismatch: when they differ from the descriptor.
        """
        descriptor = self._descriptor
        if self._received != descriptor.size:
            raise self._mismatch(f"{self._received} bytes instead of {descriptor.size}")
        if self._hash.hexdigest() != descriptor.digest.hex:
            raise self._mismatch("its digest is another one")

    def finish(self) -> None:
        """Check that the stream was complete.

        :raises BadLayer: when it is damaged or cut short.
        """
        if self.problem is not None:
            raise self.problem
        self._stage.finish()

    def _mismatch(self, problem: str) -> ContentMismatch:
        return ContentMismatch(str(self._descriptor.digest), problem)


def _stage_for(descriptor: Descriptor, limits: Limits) -> Stage:
    """Return the stage that makes a tar stream of a layer."""
    if descriptor.file is not None:
        return TarWrapper(descriptor.file.encode(), descriptor.size)
    return SparseExpander(Decompressor(most_parts=_PARTS_PER_ENTRY * limits.entries), limits)
