"""The read of a part of a blob, in one response.

Ranges of responses are checked. If a registry ignores the range and sends the whole blob, it is
read up to the end of the part, unless that is too far.
"""

from __future__ import annotations

from blobserve.errors import BlobNotFound, BlobserveError, ContentMismatch, RegistryFailed
from blobserve.oci.http.response import Response
from blobserve.oci.http.retry import Transient
from blobserve.oci.manifest import Descriptor
from blobserve.oci.registry.blob_download import described_range

PART_TRIES = 3
MOST_SKIPPED = 16 << 20
"""The limit of bytes that are skipped before the part; beyond it, fetching the blob is better."""


class RangeRead:
    """One part of one blob. Each try calls `receive` once.

    :param registry: the name of the registry in errors.
    """

    def __init__(self, registry: str, descriptor: Descriptor, start: int, length: int) -> None:
        if not 0 <= start < start + length <= descriptor.size:
            raise ValueError("a part must lie within its blob, and must not be empty")
        self._registry = registry
        self.descriptor = descriptor
        self._start = start
        self._length = length
        self.headers = {"Range": f"bytes={start}-{start + length - 1}"}
        """The header fields of the request."""

    async def receive(self, response: Response) -> bytes:
        """Return the part from the response to a GET with `headers`.

        Cancelling closes the connection.

        :raises Transient: when the response is truncated or stalls.
        :raises BlobNotFound: when there is no such blob.
        :raises ContentMismatch: when the blob has another size.
        :raises RegistryFailed: when the response lacks the part, or has too many bytes before it.
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
                body.fail(self._failed("it sent more bytes than it announced"))
            elif seen >= skip + self._length and response.status == 200:
                body.fail(None)  # The rest is not needed.

        body = response.body(receive)
        await body.start()
        if len(content) < self._length:
            raise Transient(response.origin.host, "its response ended before the part was complete")
        return bytes(content)

    def _begin(self, response: Response) -> int:
        """Check the head of a response; return the number of bytes before the part."""
        size, digest = self.descriptor.size, str(self.descriptor.digest)
        if response.status in (404, 410):
            raise BlobNotFound(digest)
        if response.status in (401, 403):  # The URL of storage has expired.
            problem = response.located(f"it answered {response.status}")
            raise Transient(response.origin.host, problem)
        if response.status not in (200, 206):
            raise self._failed(
                response.located(f"it answered {response.status} for a part of a blob")
            )
        expected = self._length if response.status == 206 else size
        if response.coding and response.length not in (None, expected):
            raise self._failed("it sent a blob in a content coding")
        if response.status == 206:
            self._check_range(response)
            return 0
        if response.length not in (None, size):
            raise ContentMismatch(digest, f"{response.length} bytes were announced, not {size}")
        if self._start > MOST_SKIPPED:
            raise self._failed("it sends the whole blob instead of a part")
        return self._start

    def _check_range(self, response: Response) -> None:
        """Check that it is the requested range of a blob of this size: RFC 9110 §14.4."""
        described = described_range(response)
        if described is None:
            raise self._failed("it sent a range without a valid Content-Range")
        *found, total = described
        size = self.descriptor.size
        if total not in (None, size):
            problem = f"it has {total} bytes, not {size}"
            raise ContentMismatch(str(self.descriptor.digest), problem)
        last = self._start + self._length - 1
        if found != [self._start, last]:
            raise self._failed("it sent a range that was not requested")
        if response.length not in (None, self._length):
            raise self._failed("it sent a range with a wrong length")

    def _failed(self, problem: str) -> RegistryFailed:
        return RegistryFailed(self._registry, problem)
