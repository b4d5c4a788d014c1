"""Transfers: one blob from its first byte to its last, over as many connections as that takes.

Writes each byte once and in order, obeys its consumer, and asks for the rest through the registry
when a connection is cut: a redirect's URL may have expired. Believes nothing about ranges that it
has not checked. Knows nothing of digests and hashes; the consumer checks the bytes.
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
    """The first and the last byte that a 206 has, and how many there are in all, if it says that.

    None where it does not describe one range. RFC 9110 §14.4.
    """
    values = response.values("content-range")
    found = _CONTENT_RANGE.fullmatch(values[0]) if len(values) == 1 else None
    media_type = (response.value("content-type") or "").lower()
    if found is None or media_type.startswith("multipart/"):
        return None
    return int(found[1]), int(found[2]), None if found[3] == "*" else int(found[3])


@implementer(IPushProducer)
class BlobDownload:
    """Carries one blob to one consumer. See `Source.fetch` for what it promises.

    :param ask: gives the answer to a GET of the blob with these further headers.
    :param registry: whom errors are about.
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
        """See `IProducer.stopProducing`: `run` fails with CancelledError."""
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
                cut = Transient(self._registry, "it ended a blob too early")
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
        """Write what this answer has of the bytes that are still missing."""
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
        """Take the head of an answer: how many bytes it has, and how many to skip."""
        is_ranged = bool(self._headers())
        if response.status in (404, 410):
            raise BlobNotFound(str(self._descriptor.digest))
        if response.status in (400, 416) and is_ranged:
            raise self._refuse_ranges(f"it answered {response.status} to a range")
        if response.status == 200:
            self._skip, self._left = self._written, self._descriptor.size
        elif response.status == 206 and is_ranged:
            self._skip, self._left = 0, self._ranged_length(response)
        elif response.status in (401, 403):  # of storage, whose URL is good for a while
            problem = response.said(f"it answered {response.status}")
            raise Transient(response.origin.host, problem)
        else:
            problem = response.said(f"it answered {response.status} for a blob")
            raise RegistryFailed(self._registry, problem)
        if response.coding and response.length not in (None, self._left):
            raise self._coded()
        if response.length not in (None, self._left):
            raise self._mismatch(f"{response.length} bytes were announced, not {self._left}")
        etag = response.value("etag") or ""
        self._etag = etag if etag.startswith('"') else None  # RFC 9110 §13.1.5: strong ones only

    def _ranged_length(self, response: Response) -> int:
        """How many bytes a 206 has; they must be those that come next. RFC 9110 §14.4."""
        described = described_range(response)
        if described is None:
            raise self._refuse_ranges("it sent a range that it did not describe")
        first, last, total = described
        size = self._descriptor.size
        if first != self._written or not first <= last < size or total not in (None, size):
            raise self._refuse_ranges("it sent another range than the one asked for")
        return last - first + 1

    def _refuse_ranges(self, problem: str) -> Transient:
        """From now on ask for the whole blob, and skip what has been written."""
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
            self._fail(self._mismatch("more bytes were sent than it has"))
        elif self._budget < 0:
            self._fail(Transient(self._registry, "it goes on sending a blob from its beginning"))
        elif chunk:
            self._written += len(chunk)
            self._consumer.write(chunk)

    def _fail(self, error: Exception) -> None:
        if self._body is not None:
            self._body.fail(error)

    def _coded(self) -> RegistryFailed:
        """Say that a coding is more than a label: what it is on is not of the blob's size."""
        return RegistryFailed(self._registry, "it sent a blob in a content coding")

    def _mismatch(self, problem: str) -> ContentMismatch:
        return ContentMismatch(str(self._descriptor.digest), problem)
