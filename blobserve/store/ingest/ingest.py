"""One layer on its way in: the reactor's side of its extraction.

The producer is paused while more than two chunks wait, so memory stays flat however slow the disk
is. However an ingest ends, its directory is gone and its room given back by the time anybody is
told. Knows neither where the bytes come from nor what is in them.
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
from blobserve.store.ingest.chunk_queue import ChunkQueue
from blobserve.store.ingest.early_files import StreamingLayer
from blobserve.store.ingest.pipeline import ExtractionPipeline
from blobserve.store.ingest.writer import BlobWriter
from blobserve.store.space.allocator import Allocator

_log = Logger()


@implementer(IConsumer)
class Ingest:
    """A consumer that extracts a layer as it arrives. Made by `BlobSpace.ingest`."""

    def __init__(
        self,
        bench: BlobWriter,
        threads: Threads,
        room: Allocator,
        passing: StreamingLayer,
        ended: Callable[[Ingest], None],
    ) -> None:
        """`ended` hears that it is over before anybody else does."""
        self.digest = bench.digest
        self.held = 0
        """Bytes of room it was given."""
        self.failure: Deferred[None] = Deferred()
        """Fires with the first failure, so that no more is downloaded; never on success."""
        self.kept: ReadyBlob | None = None
        """What was published."""
        self.passing = passing
        """Who waits for files of the layer, and is told of those that are there."""
        self._bench = bench
        self._threads = threads
        self._room = room
        self._when_ended = ended
        self._intake = ChunkQueue(threads.soon)
        self._extraction = ExtractionPipeline(threads, room, self, self._intake, passing)
        self._outcome: Failure | None = None
        self._ended = False
        self._waiting: list[Deferred[None]] = []

    def start(self) -> None:
        """Begin to take bytes; once only, before anything else."""
        self._room.enter(self)
        Deferred.fromCoroutine(self._work())

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """See `IConsumer.registerProducer`. Push producers only: a layer is a stream."""
        if not streaming:
            raise TypeError("a layer comes from a push producer")
        self._intake.come_from(cast("IPushProducer", producer))

    def unregisterProducer(self) -> None:
        """See `IConsumer.unregisterProducer`."""
        self._intake.come_from(None)

    def write(self, data: bytes) -> None:
        """Take the next bytes of the layer; once it failed or was stopped, they are dropped."""
        if self._extraction.stopped is not None or self._ended:
            return
        self._intake.put(data)
        if self._intake.chunks or self.passing.is_awaited:
            self._intake.wake()

    async def finish(self) -> None:
        """The layer is complete: verify and publish it. Returns when it is READY.

        Cancelling ends this wait and nothing else.

        :raises ContentMismatch: when its bytes are not those of its digest.
        :raises BlobserveError: whatever else made it fail.
        """
        self._intake.is_complete = True
        self._intake.wake()
        await self._end()
        if self._outcome is not None:
            self._outcome.raiseException()

    async def abandon(self) -> None:
        """Stop, and wipe what has not been published; idempotent.

        Returns when the running job has ended, the directory is gone and its room is given back.
        """
        self._extraction.stop(CancelledError())
        await self._end()

    async def give_up(self, error: BlobserveError) -> None:
        """Fail with `error`, as if it had happened here. Returns as `abandon` does."""
        self._extraction.stop(error)
        await self._end()

    def _end(self) -> Deferred[None]:
        """A new Deferred that fires when it is over, however it ended."""
        waiter: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(waiter)
        if self._ended:
            self._tell()
        return waiter

    def _tell(self) -> None:
        while self._waiting:
            self._waiting.pop(0).callback(None)

    async def _work(self) -> None:
        try:
            extracted = await self._extraction.run(self._bench.begin)
            # From here on it can no longer be stopped.
            publish = partial(self._bench.publish, extracted)
            self.kept = await self._extraction.do(publish, publish)
        except Exception:  # noqa: BLE001 - kept for those who wait, whatever it is
            await self._fail(Failure())
        self._room.leave(self, self.kept.size if self.kept else 0)
        self._ended = True
        self._when_ended(self)
        self.passing.end()
        self._tell()

    async def _fail(self, failure: Failure) -> None:
        """Tell the first failure, then remove what has been written."""
        error = typed(failure.value)
        self._outcome = failure if error is None else Failure(error)
        self._extraction.stop(cast("Exception", self._outcome.value))
        self._intake.clear()
        is_damaged = failure.check(ContentMismatch, BadImage)
        self.passing.end("damaged" if is_damaged else "abandoned")
        if not failure.check(CancelledError):
            self.failure.errback(self._outcome)
        try:
            await self._threads.run(self._bench.wipe)
        except Exception:  # noqa: BLE001 - it is over all the same
            _log.failure("wiping an ingest of {digest}", digest=str(self.digest))
