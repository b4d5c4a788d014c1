"""The download of one blob, over as many connections as needed.

Each byte is written once, in order. After an interruption, the rest is requested through the
registry, since the URL of a redirect may have expired. Ranges of responses are checked. The
consumer checks the digest.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IConsumer, IPushProducer, IReactorTime
from zope.interface import implementer

from blobserve.errors import BlobNotFound, BlobserveError, ContentMismatch, RegistryFailed
from blobserve.oci.http.response import BodyReceiver, Response
from blobserve.oci.http.retry import Transient, jitter, sleep
from blobserve.oci.manifest import Descriptor

_TRIES_WITHOUT_PROGRESS = 3
_PROGRESS = 1 << 20
_CONTENT_RANGE = re.compile(
    r"bytes (0|[1-9][0-9]{0,17})-(0|[1-9][0-9]{0,17})/([1-9][0-9]{0,17}|\*)"
)


def described_range(response: Response) -> tuple[int, int, int | None] | None:
    """Return the first and last byte of a 206, and the total size or None: RFC 9110 §14.4.

    None unless it describes exactly one range.
    """
    values = response.values("content-range")
    found = _CONTENT_RANGE.fullmatch(values[0]) if len(values) == 1 else None
    media_type = (response.value("content-type") or "").lower()
    if found is None or media_type.startswith("multipart/"):
        return None
    return int(found[1]), int(found[2]), None if found[3] == "*" else int(found[3])


@implementer(IPushProducer)
class BlobDownload:
    """The download of one blob to one consumer. See `Source.fetch`.

    :param ask: sends a GET of the blob with further headers.
    :param registry: the name of the registry in errors.
    """

    def __init__(
        self,
        ask: Callable[[dict[str, str]], Awaitable[Response]],
        registry: str,
        descriptor: Descriptor,
        consumer: IConsumer,
        clock: IReactorTime,
    ) -> None:
        self._ask = ask
        self._registry = registry
        self._descriptor = descriptor
        self._consumer = consumer
        self._clock = clock
        self._written = 0
        self._skip = 0
        self._left = 0
        self._budget = 2 * descriptor.size + _PROGRESS
        self._etag: str | None = None
        self._takes_ranges = True
        self._is_paused = False
        self._is_stopped = False
        self._body: BodyReceiver | None = None

    async def run(self) -> None:
        """Write the whole blob. Cancelling closes the connection."""
        self._consumer.registerProducer(self, True)
        try:
            await self._persist()
        finally:
            self._consumer.unregisterProducer()

    def pauseProducing(self) -> None:
        """See `IPushProducer.pauseProducing`."""
        self._is_paused = True
        if self._body is not None:
            self._body.pause()

    def resumeProducing(self) -> None:
        """See `IPushProducer.resumeProducing`."""
        self._is_paused = False
        if self._body is not None:
            self._body.resume()

    def stopProducing(self) -> None:
        """See `IProducer.stopProducing`. `run` then raises CancelledError."""
        self._is_stopped = True
        if self._body is not None:
            self._body.fail(CancelledError())

    async def _persist(self) -> None:
        failed = 0
        while self._written < self._descriptor.size:
            before = self._written
            if self._is_stopped:
                raise CancelledError
            try:
                await self._receive(await self._ask(self._headers()))
                cut = Transient(self._registry, "its response ended before the blob was complete")
            except Transient as error:
                cut = error
            if self._written == self._descriptor.size:
                return
            failed = 0 if self._written - before >= _PROGRESS else failed + 1
            if failed == _TRIES_WITHOUT_PROGRESS or self._budget < 0:
                raise RegistryFailed(self._registry, cut.problem) from cut
            await sleep(self._clock, jitter(failed))

    def _headers(self) -> dict[str, str]:
        if not self._written or not self._takes_ranges:
            return {}
        headers = {"Range": f"bytes={self._written}-{self._descriptor.size - 1}"}
        return {**headers, "If-Range": self._etag} if self._etag else headers

    async def _receive(self, response: Response) -> None:
        """Write the missing bytes from this response."""
        try:
            self._begin(response)
        except (BlobserveError, Transient):
            response.abandon()
            raise
        body = self._body = response.body(self._chunk)
        try:
            await body.start(self._is_paused)
        finally:
            self._body = None
        if response.coding and self._left:
            raise self._coded()

    def _begin(self, response: Response) -> None:
        """Check the head of a response, and set how many bytes to skip and to write."""
        is_ranged = bool(self._headers())
        if response.status in (404, 410):
            raise BlobNotFound(str(self._descriptor.digest))
        if response.status in (400, 416) and is_ranged:
            raise self._refuse_ranges(f"it answered {response.status} to a range request")
        if response.status == 200:
            self._skip, self._left = self._written, self._descriptor.size
        elif response.status == 206 and is_ranged:
            self._skip, self._left = 0, self._ranged_length(response)
        elif response.status in (401, 403):  # The URL of storage has expired.
            problem = response.located(f"it answered {response.status}")
            raise Transient(response.origin.host, problem)
        else:
            problem = response.located(f"it answered {response.status} for a blob")
            raise RegistryFailed(self._registry, problem)
        if response.coding and response.length not in (None, self._left):
            raise self._coded()
        if response.length not in (None, self._left):
            raise self._mismatch(f"{response.length} bytes were announced, not {self._left}")
        etag = response.value("etag") or ""
        self._etag = etag if etag.startswith('"') else None  # Only strong ones: RFC 9110 §13.1.5.

    def _ranged_length(self, response: Response) -> int:
        """Return the length of a 206, which must begin at the next byte: RFC 9110 §14.4."""
        described = described_range(response)
        if described is None:
            raise self._refuse_ranges("it sent a range without a valid Content-Range")
        first, last, total = described
        size = self._descriptor.size
        if first != self._written or not first <= last < size or total not in (None, size):
            raise self._refuse_ranges("it sent a range that was not requested")
        return last - first + 1

    def _refuse_ranges(self, problem: str) -> Transient:
        """Request the whole blob from now on, and skip the written bytes."""
        self._takes_ranges = False
        return Transient(self._registry, problem)

    def _chunk(self, chunk: bytes) -> None:
        self._budget -= len(chunk)
        self._left -= len(chunk)
        if self._skip:
            skipped = min(self._skip, len(chunk))
            self._skip -= skipped
            chunk = chunk[skipped:]
        if self._left < 0:
            self._fail(self._mismatch("the response is longer than the blob"))
        elif self._budget < 0:
            self._fail(Transient(self._registry, "it keeps sending the blob from its beginning"))
        elif chunk:
            self._written += len(chunk)
            self._consumer.write(chunk)

    def _fail(self, error: Exception) -> None:
        if self._body is not None:
            self._body.fail(error)

    def _coded(self) -> RegistryFailed:
        """Return the error for a body that is really encoded, as its size shows."""
        return RegistryFailed(self._registry, "it sent a blob in a content coding")

    def _mismatch(self, problem: str) -> ContentMismatch:
        return ContentMismatch(str(self._descriptor.digest), problem)
