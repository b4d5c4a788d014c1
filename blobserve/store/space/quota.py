"""The quota of a blob space: the bytes that are taken, and the order of eviction.

Pure arithmetic, on one thread. Bytes are counted before they are written, and until they are
removed, so `Quota.size` is never less than the bytes on disk.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from functools import partial

from blobserve.names.digest import Digest
from blobserve.store.blobs.blob import ReadyBlob
from blobserve.store.blobs.filesystem import ImageFilesystem


class Quota:
    """A count of bytes against a limit. If `limit` is None, only the disk sets one."""

    def __init__(self, limit: int | None, measured: Callable[[], int] = lambda: 0) -> None:
        """`measured` returns further bytes, which another object counts."""
        self.limit = limit
        self._taken = 0
        self._measured = measured

    @property
    def size(self) -> int:
        """The bytes that are on disk, or may be at any moment."""
        return self._taken + self._measured()

    def missing(self, size: int = 0) -> int:
        """Return the bytes to free before `size` more may be taken."""
        return 0 if self.limit is None else max(0, self.size + size - self.limit)

    def take(self, size: int) -> None:
        """Count bytes that are, or may be from now on, on disk."""
        self._taken += size

    def give(self, size: int) -> None:
        """Stop counting bytes that were removed, or will not be written."""
        self._taken -= size


class BlobLru:
    """The READY blobs, the least recently used first."""

    def __init__(self) -> None:
        self.current: Container[Digest] = ()
        """The blobs that a tag currently serves, which are evicted last."""
        self.size = 0
        """The bytes that all of them take."""
        self._blobs: OrderedDict[Digest, ReadyBlob] = OrderedDict()
        self._open: OrderedDict[Digest, ReadyBlob] = OrderedDict()

    def __iter__(self) -> Iterator[ReadyBlob]:
        return iter(self._blobs.values())

    def __contains__(self, blob: ReadyBlob) -> bool:
        return self._blobs.get(blob.digest) is blob

    def get(self, digest: Digest) -> ReadyBlob | None:
        """Return the READY blob of this digest."""
        return self._blobs.get(digest)

    def add(self, blob: ReadyBlob) -> None:
        """Add a blob as the most recently used; none of this digest may be present."""
        self._blobs[blob.digest] = blob
        self.size += blob.size
        if blob.filesystem is not None:
            self._open[blob.digest] = blob

    def remove(self, blob: ReadyBlob) -> None:
        """Remove a blob."""
        del self._blobs[blob.digest]
        self.size -= blob.size
        self._open.pop(blob.digest, None)

    def grow(self, blob: ReadyBlob, size: int) -> None:
        """Count `size` bytes more for a blob, present or already removed."""
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
        """Record that a closed blob was opened."""
        blob.filesystem = filesystem
        self._open[blob.digest] = blob

    def open_blobs(self) -> Iterator[ReadyBlob]:
        """Iterate over the open blobs, the most recently used first.

        No blob may be added, removed, opened or closed meanwhile.
        """
        return reversed(self._open.values())

    def close(self, most: int) -> None:
        """Close the least recently used of the open blobs without a lease, all but `most`."""
        self._apply_touches(self._open)
        idle = [blob for blob in self._open.values() if not blob.leases]
        for blob in idle[: max(0, len(idle) - most)]:
            del self._open[blob.digest]
            blob.close()

    def victims(self, size: int) -> list[ReadyBlob]:
        """Return the blobs to evict for `size` bytes; all without a lease if they are too few.

        Blobs that no tag serves come first, then those in `current`. In both groups the least
        recently used come first.
        """
        self._apply_touches(self._blobs)
        victims: list[ReadyBlob] = []
        for is_current in (False, True):
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
