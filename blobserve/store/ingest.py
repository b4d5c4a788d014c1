"""One layer on its way in: the reactor's side of its extraction.

Chunks are joined to jobs for a thread. A chunk that comes when nothing else is to be done is one
job; of those that wait, one is unpacked while what the one before unpacked to is extracted. The
producer is paused while more than two chunks wait, so memory stays flat however slow the disk is.
Room is asked for between jobs, never inside one. However an ingest ends, its directory is gone and
its room given back by the time anybody is told. Knows neither where the bytes come from nor what is
in them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from blobserve.config import MIB
from blobserve.errors import BadImage, BlobserveError, ContentMismatch
from blobserve.store.blob import KeptBlob
from blobserve.store.damage import is_full, typed
from blobserve.store.early import Passing
from blobserve.store.extractor import Extracted, Extractor
from blobserve.store.intake import Intake
from blobserve.store.location import BLOCK
from blobserve.store.room import Room
from blobserve.store.sightings import Seen
from blobserve.store.workbench import Workbench
from blobserve.threads import Threads

T = TypeVar("T")

_log = Logger()

FIRST_EXTENT, LARGEST_EXTENT = MIB, 16 * MIB

OVERHEAD = 4 * BLOCK
"""Bytes a blob takes beside its two files: a directory, its name, and two blocks partly used."""


@implementer(IConsumer)
class Ingest:
    """A consumer that extracts a layer as it arrives. Made by `BlobSpace.ingest`."""

    def __init__(
        self,
        bench: Workbench,
        threads: Threads,
        room: Room,
        passing: Passing,
        ended: Callable[[Ingest], None],
    ) -> None:
        """`ended` hears that it is over before anybody else does."""
        self.digest = bench.digest
        self.held = 0
        """Bytes of room it was given."""
        self.failure: Deferred[None] = Deferred()
        """Fires with the first failure, so that no more is downloaded; never on success."""
        self.kept: KeptBlob | None = None
        """What was published."""
        self.passing = passing
        """Who waits for files of the layer, and is told of those that are there."""
        self._bench = bench
        self._threads = threads
        self._room = room
        self._when_ended = ended
        self._intake = Intake()
        self._extent = FIRST_EXTENT
        self._wait: Deferred[Any] | None = None
        self._stopped: BaseException | None = None
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
        if self._stopped is not None or self._ended:
            return
        self._intake.put(data)
        if self._intake.has_chunk or self.passing.is_awaited:
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
        self._stop(CancelledError())
        await self._end()

    async def give_up(self, error: BlobserveError) -> None:
        """Fail with `error`, as if it had happened here. Returns as `abandon` does."""
        self._stop(error)
        await self._end()

    def _stop(self, reason: Exception) -> None:
        if self._stopped is None:
            self._stopped = reason
            if self._wait is not None:
                self._wait.cancel()

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
            extracted = await self._extract()
            # From here on it can no longer be stopped.
            publish = partial(self._bench.publish, extracted)
            self.kept = await self._run(publish, publish)
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
        self._stopped = self._outcome.value
        self._intake.clear()
        is_damaged = failure.check(ContentMismatch, BadImage)
        self.passing.end("damaged" if is_damaged else "abandoned")
        if not failure.check(CancelledError):
            self.failure.errback(self._outcome)
        try:
            await self._threads.run(self._bench.wipe)
        except Exception:  # noqa: BLE001 - it is over all the same
            _log.failure("wiping an ingest of {digest}", digest=str(self.digest))

    async def _extract(self) -> Extracted:
        await self._interruptible(self._room.ask(self, OVERHEAD))
        extractor = await self._job(self._bench.begin, self._bench.begin)
        self.passing.begin(extractor.content, self._intake.wake)
        pieces: list[bytes] = []
        while (chunk := self._cut(extractor)) is not None or pieces or not self._intake.is_complete:
            if chunk is None and not pieces and self.passing.is_asked:
                await self._settle(extractor, extractor.go_on)
            elif chunk is None and not pieces:
                await self._interruptible(self._intake.wait())
            elif chunk is None:
                await self._settle(extractor, partial(extractor.take, pieces))
                pieces = []
            elif pieces or not extractor.is_dry or self._intake.has_chunk:
                pieces = await self._overlap(extractor, chunk, pieces)
            else:  # There is nothing that could be done meanwhile.
                await self._settle(extractor, partial(extractor.feed, chunk))
        return await self._job(extractor.finish)

    def _cut(self, extractor: Extractor) -> bytes | None:
        """What is to be unpacked next; None when that is still to come, or all of it is done."""
        if not extractor.is_dry:
            return b""
        intake = self._intake
        # Whoever waits for a file does not wait until a chunk is full.
        is_hurried = intake.is_complete or self.passing.is_awaited
        is_due = intake.has_chunk or (is_hurried and not intake.is_empty)
        return intake.cut() if is_due else None

    async def _overlap(
        self, extractor: Extractor, chunk: bytes, pieces: list[bytes]
    ) -> list[bytes]:
        """Unpack `chunk`, and extract the `pieces` of the one before meanwhile."""
        unpack, take = partial(extractor.unpack, chunk), partial(extractor.take, pieces)
        unpacking = Deferred.fromCoroutine(self._job(unpack))
        taking = Deferred.fromCoroutine(self._settle(extractor, take) if pieces else _nothing())
        # Neither may be left behind running: what follows a failure is the removal of the files.
        both: list[Deferred[Any]] = [unpacking, taking]
        outcomes = await DeferredList(both, consumeErrors=True)
        for succeeded, outcome in outcomes:
            if not succeeded:
                outcome.raiseException()
        return cast("list[bytes]", outcomes[0][1])

    async def _settle(self, extractor: Extractor, job: Callable[[], int]) -> None:
        """Do `job`, go on as often as there must be more room first, tell what has passed."""
        look = partial(extractor.look, self.passing.asked())
        go_on = partial(_looking, extractor.go_on, look)
        missing, seen = await self._job(partial(_looking, job, look), go_on)
        while missing:
            extractor.grant(await self._more(missing, extractor.due))
            missing, seen = await self._job(go_on, go_on)
        is_last = extractor.is_whole or (self._intake.is_complete and self._intake.is_empty)
        self.passing.tell(seen, is_last)

    async def _more(self, missing: int, due: int) -> int:
        """Room for at least `missing` bytes; extents grow, so that large layers ask seldom."""
        wish, self._extent = self._extent, min(2 * self._extent, LARGEST_EXTENT)
        return await self._interruptible(self._room.ask(self, missing, wish, due))

    async def _job(self, job: Callable[[], T], again: Callable[[], T] | None = None) -> T:
        """Run `job` to its end, whatever happens meanwhile; nothing follows once it was stopped."""
        result = await self._run(job, again)
        if self._stopped is not None:
            raise self._stopped
        return result

    async def _run(self, job: Callable[[], T], again: Callable[[], T] | None) -> T:
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

    async def _interruptible(self, wait: Deferred[T]) -> T:
        """Wait for something that need not be waited for once this is stopped."""
        self._wait = wait
        try:
            if self._stopped is not None:
                wait.cancel()
            return await wait
        except CancelledError:
            raise self._stopped or CancelledError from None
        finally:
            self._wait = None


def _looking(step: Callable[[], int], look: Callable[[], Seen | None]) -> tuple[int, Seen | None]:
    """What a step of an extraction lacks to go on, and else what there is to be seen after it."""
    missing = step()
    return missing, {} if missing else look()


async def _nothing() -> None:
    """What there is to extract before anything has been unpacked."""
