"""The reactor's side of an extractor: its jobs for threads, and the room between them.

A chunk that comes when nothing else is to be done is one job; of those that wait, and of what comes
meanwhile, one thread unpacks one after another while a second extracts. Room is asked for between
jobs, never inside one. Knows neither where the bytes come from nor what is in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredList

from blobserve.concurrency.threads import Threads
from blobserve.config import MIB
from blobserve.store.disk.disk_errors import is_full
from blobserve.store.disk.files import BLOCK
from blobserve.store.extract.extractor import ExtractionResult, Extractor
from blobserve.store.index.name_watch import Seen
from blobserve.store.ingest.chunk_queue import ChunkQueue
from blobserve.store.ingest.early_files import StreamingLayer
from blobserve.store.space.allocator import Allocator, ReservationOwner

T = TypeVar("T")

FIRST_EXTENT, LARGEST_EXTENT = MIB, 16 * MIB

_IN_TURN = 16  # Chunks that are unpacked in one job: the layers of others wait for the threads.

OVERHEAD = 4 * BLOCK
"""Bytes a blob takes beside its two files: a directory, its name, and two blocks partly used."""


class ExtractionPipeline:
    """Extracts what comes into `intake`, within the room that is given to `pull`."""

    def __init__(
        self,
        threads: Threads,
        room: Allocator,
        pull: ReservationOwner,
        intake: ChunkQueue,
        passing: StreamingLayer,
    ) -> None:
        self.stopped: BaseException | None = None
        """Why nothing more is to be done."""
        self._threads = threads
        self._room = room
        self._pull = pull
        self._intake = intake
        self._passing = passing
        self._extent = FIRST_EXTENT
        self._wait: Deferred[Any] | None = None

    def stop(self, reason: BaseException) -> None:
        """Have `run` end as soon as no job runs any more, and raise `reason`; the first counts."""
        if self.stopped is None:
            self.stopped = reason
            if self._wait is not None:
                self._wait.cancel()

    async def run(self, begin: Callable[[], Extractor]) -> ExtractionResult:
        """Extract a whole layer with the extractor that `begin` makes, in a thread too."""
        await self._interruptible(self._room.reserve(self._pull, OVERHEAD))
        extractor = await self._job(begin, begin)
        self._passing.begin(extractor.content, self._intake.wake)
        while not (self._is_over and extractor.is_dry):
            # Whoever waits for a file does not wait until a chunk is full.
            is_hurried = self._intake.is_complete or self._passing.is_awaited
            if is_hurried and not self._intake.chunks:
                self._intake.cut()
            if not extractor.is_dry or self._intake.chunks > 1:
                await self._overlap(extractor)
            elif chunk := self._intake.take():  # There is nothing that could be done meanwhile.
                await self._settle(extractor, partial(extractor.feed, chunk))
            else:
                await self._wait_for_more(extractor)
        return await self._job(extractor.finish)

    async def do(self, job: Callable[[], T], again: Callable[[], T] | None) -> T:
        """Run `job` in a thread; when the disk is full, evict old blobs and go on with `again`."""
        while True:
            try:
                return await self._threads.run(job)
            except OSError as error:
                if (
                    again is None
                    or not is_full(error)
                    or not await self._room.relieve(self._extent)
                ):
                    raise
                job = again

    @property
    def _is_over(self) -> bool:
        return self._intake.is_complete and self._intake.is_empty

    async def _wait_for_more(self, extractor: Extractor) -> None:
        """Wait for bytes; whoever asks for a file that may have passed does not wait for any."""
        if self._passing.is_asked:
            await self._settle(extractor, extractor.go_on)
        else:
            await self._interruptible(self._intake.wait())

    async def _overlap(self, extractor: Extractor) -> None:
        """Unpack what waits, and extract what that gives meanwhile."""
        unpack = partial(extractor.unpack, islice(self._chunks(), _IN_TURN))
        unpacking = Deferred.fromCoroutine(self._job(unpack))
        taking = Deferred.fromCoroutine(self._settle(extractor, extractor.take))
        # Neither may be left behind running: what follows a failure is the removal of the files.
        both: list[Deferred[Any]] = [unpacking, taking]
        for succeeded, outcome in await DeferredList(both, consumeErrors=True):
            if not succeeded:
                outcome.raiseException()

    def _chunks(self) -> Iterator[bytes]:
        """The chunks that wait, for a thread, until there is something better to do."""
        while self.stopped is None and not self._passing.is_asked:
            chunk = self._intake.take()
            if chunk is None:
                return
            yield chunk

    async def _settle(self, extractor: Extractor, job: Callable[[], int]) -> None:
        """Do `job`, go on as often as there must be more room first, tell what has passed."""
        look = partial(extractor.look, self._passing.asked())
        go_on = partial(_looking, extractor.go_on, look)
        missing, seen = await self._job(partial(_looking, job, look), go_on)
        while missing:
            extractor.grant(await self._more(missing, extractor.due))
            missing, seen = await self._job(go_on, go_on)
        self._passing.tell(seen, is_last=extractor.is_whole or self._is_over)

    async def _more(self, missing: int, due: int) -> int:
        """Room for at least `missing` bytes; extents grow, so that large layers ask seldom."""
        wish, self._extent = self._extent, min(2 * self._extent, LARGEST_EXTENT)
        return await self._interruptible(self._room.reserve(self._pull, missing, wish, due))

    async def _job(self, job: Callable[[], T], again: Callable[[], T] | None = None) -> T:
        """Run `job` to its end, whatever happens meanwhile; nothing follows once it was stopped."""
        result = await self.do(job, again)
        if self.stopped is not None:
            raise self.stopped
        return result

    async def _interruptible(self, wait: Deferred[T]) -> T:
        """Wait for something that need not be waited for once this is stopped."""
        self._wait = wait
        try:
            if self.stopped is not None:
                wait.cancel()
            return await wait
        except CancelledError:
            raise self.stopped or CancelledError from None
        finally:
            self._wait = None


def _looking(step: Callable[[], int], look: Callable[[], Seen | None]) -> tuple[int, Seen | None]:
    """What a step of an extraction lacks to go on, and else what there is to be seen after it."""
    missing = step()
    return missing, {} if missing else look()
