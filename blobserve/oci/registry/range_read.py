"""Parts: some bytes of a blob out of its middle, in one answer.

Believes nothing about ranges that it has not checked. A registry that knows no ranges, and sends
the whole blob instead, is read as far as the part goes and then left, if that is not too far. Knows
nothing of what the bytes are for.
"""

from __future__ import annotations

from blobserve.errors import BlobNotFound, BlobserveError, ContentMismatch, RegistryFailed
from blobserve.oci.http.response import Response
from blobserve.oci.http.retry import Transient
from blobserve.oci.manifest import Descriptor
from blobserve.oci.registry.blob_download import described_range

PART_TRIES = 3
MOST_SKIPPED = 16 << 20
"""Bytes before the part that are read away; whoever must read more had better fetch all of it."""


class RangeRead:
    """One part of one blob, to be received once for each try.

    :param registry: whom errors are about.
    """

    def __init__(self, registry: str, descriptor: Descriptor, start: int, length: int) -> None:
        if not 0 <= start < start + length <= descriptor.size:
            raise ValueError("a part lies within its blob, and has bytes")
        self._registry = registry
        self.descriptor = descriptor
        self._start = start
        self._length = length
        self.headers = {"Range": f"bytes={start}-{start + length - 1}"}
        """What asks for it."""

    async def receive(self, response: Response) -> bytes:
        """The bytes, out of an answer to a GET with `headers`. Cancelling closes the connection.

        :raises Transient: when it is cut off or stalls.
        :raises BlobNotFound: when there is no such blob.
        :raises ContentMismatch: when the blob is of another size.
        :raises RegistryFailed: when the answer does not have these bytes, or too many before them.
        """
        try:
            skip = self._begin(response)
        except (BlobserveError, Transient):
            response.abandon()
            raise
        content, seen = bytearray(), 0

        def receive(chunk: bytes) -> None:
            nonlocal seen
            content.extend(chunk[max(0, skip - seen) :][: self._length - len(content)])
            seen += len(chunk)
            if seen > skip + self._length and response.status == 206:
                body.fail(self._failed("it sent more than the range that it announced"))
            elif seen >= skip + self._length and response.status == 200:
                body.fail(None)  # the rest is of no use

        body = response.body(receive)
        await body.start()
        if len(content) < self._length:
            raise Transient(response.origin.host, "it ended a part of a blob too early")
        return bytes(content)

    def _begin(self, response: Response) -> int:
        """Check the head of an answer; how many bytes of the body come before the part."""
        size, digest = self.descriptor.size, str(self.descriptor.digest)
        if response.status in (404, 410):
            raise BlobNotFound(digest)
        if response.status in (401, 403):  # of storage, whose URL is good for a while
            problem = response.said(f"it answered {response.status}")
            raise Transient(response.origin.host, problem)
        if response.status not in (200, 206):
            raise self._failed(response.said(f"it answered {response.status} for a part of a blob"))
        expected = self._length if response.status == 206 else size
        if response.coding and response.length not in (None, expected):
            raise self._failed("it sent a blob in a content coding")
        if response.status == 206:
            self._check_range(response)
            return 0
        if response.length not in (None, size):
            raise ContentMismatch(digest, f"{response.length} bytes were announced, not {size}")
        if self._start > MOST_SKIPPED:
            raise self._failed("it sends whole blobs where a part is asked for")
        return self._start

    def _check_range(self, response: Response) -> None:
        """RFC 9110 §14.4: the range must be the one asked for, of a blob of this size."""
        described = described_range(response)
        if described is None:
            raise self._failed("it sent a range that it did not describe")
        *found, total = described
        size = self.descriptor.size
        if total not in (None, size):
            problem = f"it has {total} bytes, not {size}"
            raise ContentMismatch(str(self.descriptor.digest), problem)
        last = self._start + self._length - 1
        if found != [self._start, last]:
            raise self._failed("it sent another range than the one asked for")
        if response.length not in (None, self._length):
            raise self._failed("it sent a range of another length than it announced")

    def _failed(self, problem: str) -> RegistryFailed:
        return RegistryFailed(self._registry, problem)
