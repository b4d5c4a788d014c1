"""The books of a blob space: how many bytes are taken, and which blobs go first.

Pure arithmetic and order, on one thread. What is on its way in is taken before it is written, and
what is on its way out counts until it is gone, so `Quota.size` is never less than what the disk
holds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from functools import partial

from blobserve.names.digest import Digest
from blobserve.store.blobs.blob import ReadyBlob
from blobserve.store.blobs.filesystem import ImageFilesystem


class Quota:
    """Bytes taken, of as many as there may be (`limit` None: as many as the disk gives)."""

    def __init__(self, limit: int | None, measured: Callable[[], int] = lambda: 0) -> None:
        """`measured` are bytes that are counted where they are written."""
        self.limit = limit
        self._taken = 0
        self._measured = measured

    @property
    def size(self) -> int:
        """Bytes that are on disk, or may be at any moment."""
        return self._taken + self._measured()

    def missing(self, size: int = 0) -> int:
        """How many bytes must go before `size` more may be taken."""
        return 0 if self.limit is None else max(0, self.size + size - self.limit)

    def take(self, size: int) -> None:
        """Count bytes that are, or may from now on be, on disk."""
        self._taken += size

    def give(self, size: int) -> None:
        """Stop counting bytes that are gone, or will not come."""
        self._taken -= size


class BlobLru:
    """The READY blobs, the longest unused first, and which of them tags currently serve."""

    def __init__(self) -> None:
        self.current: Container[Digest] = ()
        self.size = 0
        """Bytes that all of them take."""
        self._blobs: OrderedDict[Digest, ReadyBlob] = OrderedDict()
        self._open: OrderedDict[Digest, ReadyBlob] = OrderedDict()

    def __iter__(self) -> Iterator[ReadyBlob]:
        return iter(self._blobs.values())

    def __contains__(self, blob: ReadyBlob) -> bool:
        return self._blobs.get(blob.digest) is blob

    def get(self, digest: Digest) -> ReadyBlob | None:
        """The READY blob of this digest."""
        return self._blobs.get(digest)

    def add(self, blob: ReadyBlob) -> None:
        """Put a blob there as the last used; its digest is not there yet."""
        self._blobs[blob.digest] = blob
        self.size += blob.size
        if blob.filesystem is not None:
            self._open[blob.digest] = blob

    def remove(self, blob: ReadyBlob) -> None:
        """Take a blob away."""
        del self._blobs[blob.digest]
        self.size -= blob.size
        self._open.pop(blob.digest, None)

    def grow(self, blob: ReadyBlob, size: int) -> None:
        """A blob, here or on its way out, takes `size` bytes more."""
        blob.size += size
        if blob in self:
            self.size += size

    def touch(self, blob: ReadyBlob) -> None:
        """Move a blob to the recently used end."""
        self._blobs.move_to_end(blob.digest)
        if blob.filesystem is not None:
            self._open.move_to_end(blob.digest)

    def touch_for(self, digests: Iterable[Digest]) -> Callable[[], None]:
        """Return a callback that counts a use of these blobs.

        The callback only marks the blobs, so that a response from memory can afford it. `victims`
        and `close` move the marked blobs to the recently used end. Blobs that are not READY now
        are left out.
        """
        return partial(_touch, list(filter(None, map(self._blobs.get, digests))))

    def opened(self, blob: ReadyBlob, filesystem: ImageFilesystem) -> None:
        """A closed blob has been opened."""
        blob.filesystem = filesystem
        self._open[blob.digest] = blob

    def open_blobs(self) -> Iterator[ReadyBlob]:
        """Give the blobs that are open, the last used first; not to be changed meanwhile."""
        return reversed(self._open.values())

    def close(self, most: int) -> None:
        """Close the longest unused of those that nobody reads, so that `most` of them stay open."""
        self._apply_touches(self._open)
        idle = [blob for blob in self._open.values() if not blob.leases]
        for blob in idle[: max(0, len(idle) - most)]:
            del self._open[blob.digest]
            blob.close()

    def victims(self, size: int) -> list[ReadyBlob]:
        """The blobs that go first, just as many as take `size` bytes, or all that may go."""
        self._apply_touches(self._blobs)
        victims: list[ReadyBlob] = []
        for is_current in (False, True):  # what tags currently serve goes last
            for blob in self:
                if size <= 0:
                    return victims
                if not blob.leases and (blob.digest in self.current) is is_current:
                    victims.append(blob)
                    size -= blob.size
        return victims

    def _apply_touches(self, blobs: Mapping[Digest, ReadyBlob]) -> None:
        for blob in [each for each in blobs.values() if each.is_touched]:
            blob.is_touched = False
            self.touch(blob)


def _touch(blobs: Iterable[ReadyBlob]) -> None:
    for blob in blobs:
        blob.is_touched = True
