"""The ingest of one layer: a consumer that extracts bytes as they arrive.

The producer is paused while more than two chunks wait, so memory use is bounded even if the disk is
slow. After a failure, the directory is removed and the reservation returned before `finish` raises.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from blobserve.concurrency.threads import Threads
from blobserve.errors import BadImage, BlobserveError, ContentMismatch
from blobserve.store.blobs.blob import ReadyBlob
from blobserve.store.disk.disk_errors import typed
from blobserve.store.ingest.early_files import StreamingLayer
from blobserve.store.ingest.pipeline import ChunkQueue, ExtractionPipeline
from blobserve.store.ingest.writer import BlobWriter
from blobserve.store.space.quota import Allocator

_log = Logger()


@implementer(IConsumer)
class Ingest:
    """A consumer that extracts a layer as it arrives. Made by `BlobSpace.ingest`."""

    def __init__(
        self,
        writer: BlobWriter,
        threads: Threads,
        allocator: Allocator,
        streaming: StreamingLayer,
        ended: Callable[[Ingest], None],
    ) -> None:
        """`ended` is called first when it has ended, before any waiter."""
        self.digest = writer.digest
        self.held = 0
        """See `ReservationOwner.held`."""
        self.failure: Deferred[None] = Deferred()
        """Fires with the first failure, so that the download stops; never fires on success."""
        self.kept: ReadyBlob | None = None
        """The blob that was published."""
        self.streaming = streaming
        """The early files of the layer, and the callers that wait for them."""
        self._writer = writer
        self._threads = threads
        self._allocator = allocator
        self._when_ended = ended
        self._queue = ChunkQueue(threads.soon)
        self._extraction = ExtractionPipeline(threads, allocator, self, self._queue, streaming)
        self._outcome: Failure | None = None
        self._ended = False
        self._waiting: list[Deferred[None]] = []

    def start(self) -> None:
        """Start to accept bytes; call it once, before anything else."""
        self._allocator.enter(self)
        Deferred.fromCoroutine(self._work())

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """See `IConsumer.registerProducer`; only push producers are accepted."""
        if not streaming:
            raise TypeError("a layer comes from a push producer")
        self._queue.come_from(cast("IPushProducer", producer))

    def unregisterProducer(self) -> None:
        """See `IConsumer.unregisterProducer`."""
        self._queue.come_from(None)

    def write(self, data: bytes) -> None:
        """Accept the next bytes of the layer; drop them if it has failed or was stopped."""
        if self._extraction.stopped is not None or self._ended:
            return
        self._queue.put(data)
        if self._queue.chunks or self.streaming.has_waiters:
            self._queue.wake()

    async def finish(self) -> None:
        """Verify and publish the layer, which is complete; return when it is READY.

        Cancelling ends this wait and nothing else.

        :raises ContentMismatch: when its bytes do not match its digest.
        :raises BlobserveError: when it fails for another reason.
        """
        self._queue.is_complete = True
        self._queue.wake()
        await self._end()
        if self._outcome is not None:
            self._outcome.raiseException()

    async def abandon(self) -> None:
        """Stop, and remove the files unless they are published. Idempotent.

        Returns when the running job has ended, the directory is removed and the reservation
        returned.
        """
        self._extraction.stop(CancelledError())
        await self._end()

    async def give_up(self, error: BlobserveError) -> None:
        """Fail with `error`; return when `abandon` would."""
        self._extraction.stop(error)
        await self._end()

    def _end(self) -> Deferred[None]:
        """Return a new Deferred that fires when the ingest has ended, in success or failure."""
        waiter: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(waiter)
        if self._ended:
            self._fire()
        return waiter

    def _fire(self) -> None:
        while self._waiting:
            self._waiting.pop(0).callback(None)

    async def _work(self) -> None:
        try:
            extracted = await self._extraction.run(self._writer.begin)
            # It can no longer be stopped.
            publish = partial(self._writer.publish, extracted)
            self.kept = await self._extraction.do(publish, publish)
        except Exception:  # noqa: BLE001 - raised by `finish`
            await self._fail(Failure())
        self._allocator.leave(self, self.kept.size if self.kept else 0)
        self._ended = True
        self._when_ended(self)
        self.streaming.end()
        self._fire()

    async def _fail(self, failure: Failure) -> None:
        """Report the first failure, then remove the files."""
        error = typed(failure.value)
        self._outcome = failure if error is None else Failure(error)
        self._extraction.stop(cast("Exception", self._outcome.value))
        self._queue.clear()
        is_damaged = failure.check(ContentMismatch, BadImage)
        self.streaming.end("damaged" if is_damaged else "abandoned")
        if not failure.check(CancelledError):
            self.failure.errback(self._outcome)
        try:
            await self._threads.run(self._writer.wipe)
        except Exception:  # noqa: BLE001 - the ingest has failed already
            _log.failure("wiping an ingest of {digest}", digest=str(self.digest))
