"""The extraction of a layer as jobs for the compute threads, with reservations between them.

A single chunk that waits is one job. If several wait, one thread decompresses them while a second
extracts. Reservations are made between jobs, never inside one.

`ChunkQueue` holds the received bytes, and pauses their producer when it is full. Its methods run on
the reactor's thread, except `take`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IPushProducer

from blobserve.concurrency.steps import Steps, drive
from blobserve.concurrency.threads import Threads
from blobserve.config import KIB, MIB
from blobserve.store.disk.disk_errors import is_full
from blobserve.store.disk.files import BLOCK
from blobserve.store.extract.extractor import ExtractionResult, Extractor
from blobserve.store.index.name_watch import Seen
from blobserve.store.ingest.early_files import StreamingLayer
from blobserve.store.space.quota import Allocator, ReservationOwner

CHUNK = 512 * KIB
"""The least bytes of a full chunk."""

MOST_WAITING = 2 * CHUNK
"""Bytes that may wait before the producer is paused."""


class ChunkQueue:
    """The received bytes of one layer, which may come from several producers in turn."""

    def __init__(self, soon: Callable[[Callable[[], None]], None]) -> None:
        """`soon` schedules a call on the reactor's thread, and may be called from any thread."""
        self.is_complete = False
        """Whether the last byte was received."""
        self._soon = soon
        self._chunks: deque[bytes] = deque()
        self._partial: list[bytes] = []
        self._partial_size = 0
        self._cut = self._taken = 0  # Total bytes; each is changed by one thread only.
        self._producer: IPushProducer | None = None
        self._is_paused = False
        self._idle: Deferred[None] | None = None

    @property
    def is_empty(self) -> bool:
        """Return whether no bytes wait."""
        return not self._chunks and not self._partial

    @property
    def chunks(self) -> int:
        """Return the number of chunks that wait."""
        return len(self._chunks)

    def come_from(self, producer: IPushProducer | None) -> None:
        """Pause and resume `producer` from now on; None when there is none."""
        self._producer, self._is_paused = producer, False
        self._pace()

    def put(self, content: bytes) -> None:
        """Add received bytes."""
        self._partial.append(content)
        self._partial_size += len(content)
        if self._partial_size >= CHUNK:
            self.cut()
        self._pace()

    def cut(self) -> None:
        """Make a chunk of the bytes that do not fill one yet."""
        if self._partial:
            self._chunks.append(b"".join(self._partial))
            self._cut += self._partial_size
            self._partial.clear()
            self._partial_size = 0

    def take(self) -> bytes | None:
        """Remove and return the next chunk, if any. For any thread, one at a time."""
        if not self._chunks:
            return None
        chunk = self._chunks.popleft()
        self._taken += len(chunk)
        if self._is_paused and self._cut - self._taken <= MOST_WAITING // 2:
            self._soon(self._pace)
        return chunk

    def clear(self) -> None:
        """Drop all bytes; no thread may call `take` meanwhile."""
        self.cut()
        self._chunks.clear()
        self._taken = self._cut

    def wait(self) -> Deferred[None]:
        """Return a Deferred that fires at the next `wake`."""
        self._idle = Deferred()
        return self._idle

    def wake(self) -> None:
        """Fire the Deferred of `wait`, if there is one."""
        idle, self._idle = self._idle, None
        if idle is not None:
            idle.callback(None)

    def _pace(self) -> None:
        """Pause or resume the producer, as the queue is full or not."""
        # Checked again after a pause: a thread may have emptied the queue before it saw the pause.
        while self._producer is not None and self._is_full != self._is_paused:
            self._is_paused = not self._is_paused
            if self._is_paused:
                self._producer.pauseProducing()
            else:
                self._producer.resumeProducing()

    @property
    def _is_full(self) -> bool:
        waiting = self._partial_size + self._cut - self._taken
        return waiting > (MOST_WAITING // 2 if self._is_paused else MOST_WAITING)


T = TypeVar("T")

FIRST_EXTENT, LARGEST_EXTENT = MIB, 16 * MIB

_IN_TURN = 16  # Chunks that one job decompresses: other layers wait for the threads.

OVERHEAD = 4 * BLOCK
"""Bytes that a blob takes beside its two files: its directory, and two partly used blocks."""


class ExtractionPipeline:
    """Extracts the bytes of a queue, within the reservations of `owner`."""

    def __init__(
        self,
        threads: Threads,
        allocator: Allocator,
        owner: ReservationOwner,
        queue: ChunkQueue,
        streaming: StreamingLayer,
    ) -> None:
        self.stopped: BaseException | None = None
        """The reason why it was stopped."""
        self._threads = threads
        self._allocator = allocator
        self._owner = owner
        self._queue = queue
        self._streaming = streaming
        self._extent = FIRST_EXTENT
        self._wait: Deferred[Any] | None = None

    def stop(self, reason: BaseException) -> None:
        """Make `run` raise `reason` when its current job has ended; later calls do nothing."""
        if self.stopped is None:
            self.stopped = reason
            if self._wait is not None:
                self._wait.cancel()

    async def run(self, begin: Callable[[], Extractor]) -> ExtractionResult:
        """Extract the layer; `begin` makes the extractor, in a thread."""
        await self._interruptible(self._allocator.reserve(self._owner, OVERHEAD))
        extractor = await self._job(begin, begin)
        self._streaming.begin(extractor.content, self._queue.wake)
        while not (self._is_over and extractor.is_dry):
            # A caller that waits for a file does not wait for a full chunk.
            is_hurried = self._queue.is_complete or self._streaming.has_waiters
            if is_hurried and not self._queue.chunks:
                self._queue.cut()
            if not extractor.is_dry or self._queue.chunks > 1:
                await self._overlap(extractor)
            elif chunk := self._queue.take():  # No second chunk to decompress meanwhile.
                await self._complete(extractor, partial(extractor.feed, chunk))
            else:
                await self._wait_for_more(extractor)
        return await self._job(extractor.finish)

    async def do(self, job: Callable[[], T], again: Callable[[], T] | None) -> T:
        """Run `job` in a thread; if the disk is full, evict blobs and continue with `again`."""
        while True:
            try:
                return await self._threads.run(job)
            except OSError as error:
                if again is None or not await self._is_relieved(error):
                    raise
                job = again

    async def _is_relieved(self, error: OSError) -> bool:
        """Evict blobs if the disk is full; return whether the caller should try again."""
        return is_full(error) and await self._allocator.relieve(self._extent)

    @property
    def _is_over(self) -> bool:
        return self._queue.is_complete and self._queue.is_empty

    async def _wait_for_more(self, extractor: Extractor) -> None:
        """Wait for bytes, unless a caller asks for a file that may have been received already."""
        if self._streaming.has_new_names:
            await self._complete(extractor, extractor.resume)
        else:
            await self._interruptible(self._queue.wait())

    async def _overlap(self, extractor: Extractor) -> None:
        """Decompress the waiting chunks in one thread, and extract in another."""
        unpack = partial(extractor.unpack, islice(self._chunks(), _IN_TURN))
        unpacking = Deferred.fromCoroutine(self._job(unpack))
        taking = Deferred.fromCoroutine(self._complete(extractor, extractor.take))
        # Both must have ended: after a failure the files are removed.
        both: list[Deferred[Any]] = [unpacking, taking]
        for succeeded, outcome in await DeferredList(both, consumeErrors=True):
            if not succeeded:
                outcome.raiseException()

    def _chunks(self) -> Iterator[bytes]:
        """Yield the waiting chunks to a thread, until stopped or until a new name is requested."""
        while self.stopped is None and not self._streaming.has_new_names:
            chunk = self._queue.take()
            if chunk is None:
                return
            yield chunk

    async def _complete(
        self, extractor: Extractor, begin: Callable[[frozenset[bytes]], Steps[Seen | None]]
    ) -> None:
        """Run all steps, resume them after a full disk, and update early files."""
        names = self._streaming.names()
        steps = begin(names)
        while True:
            try:
                seen = await drive(steps, self._job, partial(self._reserve, extractor))
                break
            except OSError as error:
                if not await self._is_relieved(error):
                    raise
                steps = extractor.resume(names)
        self._streaming.update(seen, is_last=extractor.is_whole or self._is_over)

    async def _reserve(self, extractor: Extractor, missing: int) -> None:
        """Reserve at least `missing` bytes; extents grow, so that large layers reserve seldom."""
        preferred, self._extent = self._extent, min(2 * self._extent, LARGEST_EXTENT)
        reservation = self._allocator.reserve(self._owner, missing, preferred, extractor.due)
        extractor.grant(await self._interruptible(reservation))

    async def _job(self, job: Callable[[], T], again: Callable[[], T] | None = None) -> T:
        """Run `job` to its end; then raise if this was stopped meanwhile."""
        result = await self.do(job, again)
        if self.stopped is not None:
            raise self.stopped
        return result

    async def _interruptible(self, wait: Deferred[T]) -> T:
        """Wait, until this is stopped."""
        self._wait = wait
        try:
            if self.stopped is not None:
                wait.cancel()
            return await wait
        except CancelledError:
            raise self.stopped or CancelledError from None
        finally:
            self._wait = None
