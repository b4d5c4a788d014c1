"""The queue of codings to make: one at a time, the one requested last first.

Coded bytes belong to the content of a file. If another READY blob has them, they are read there at
once, and copied so that they outlive that blob. They are made only if no blob has them.

Runs on the reactor's thread. The work is cut into short jobs for the compute threads, so that
layers are extracted between them. A coding makes reservations like a pull, but gives way to every
pull. A request never fails: a coding that cannot be made now is refused for a while.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from blobserve.concurrency.threads import Threads
from blobserve.config import KIB, MIB
from blobserve.errors import (
    BlobDamaged,
    BlobserveError,
    NoSpace,
    StoreClosed,
    TemporarilyUnavailable,
)
from blobserve.metrics import Metrics
from blobserve.store.blobs.blob import BlobLease, ReadyBlob
from blobserve.store.blobs.blob_files import BlobFiles
from blobserve.store.blobs.compress import append, check, copy
from blobserve.store.blobs.filesystem import ImageFilesystem
from blobserve.store.disk.codings_file import CODINGS, CodingExtent, CodingsFile, Made, NoCoding
from blobserve.store.disk.disk_errors import is_full
from blobserve.store.disk.files import blocks
from blobserve.store.index.entry import Entry
from blobserve.store.space.quota import Allocator, BlobLru
from blobserve.store.space.siblings import Siblings
from blobserve.store.space.stepped_job import SteppedJob

_log = Logger()

SMALLEST, LARGEST = KIB, 64 * MIB
"""Sizes in bytes of the smallest and the largest file that is coded."""
MOST_WANTED = 1000
"""Codings that may wait; beyond that, the one requested longest ago is dropped."""
RETRY = 60.0
"""Seconds for which a coding is refused after it could not be made."""

_EXTENT = MIB


class _CodingRequest(NamedTuple):
    """A file of a blob by its hash, and a coding; without a hash, a repair of the codings file."""

    blob: ReadyBlob
    sha256: bytes = b""
    coding: bytes = b""


class CodingQueue:
    """Makes the codings of a blob space."""

    def __init__(
        self,
        files: BlobFiles,
        threads: Threads,
        allocator: Allocator,
        lru: BlobLru,
        lease: Callable[[ReadyBlob], BlobLease | None],
        seconds: Callable[[], float],
        metrics: Metrics,
    ) -> None:
        """`lease` returns a lease of a blob if it is READY and open."""
        self._siblings = Siblings(threads, allocator, lease, seconds, metrics)
        self.is_coding = self._siblings.is_coding
        self._files = files
        self._threads = threads
        self._allocator = allocator
        self._lru = lru
        self._lease = lease
        self._seconds = seconds
        self._metrics = metrics
        self._queue: OrderedDict[_CodingRequest, Entry | None] = OrderedDict()
        """The newest last; without an entry, codings are only checked."""
        self._refused: OrderedDict[_CodingRequest, float] = OrderedDict()
        """The times until which they are refused."""
        self._current: _CodingRequest | None = None
        self._work: SteppedJob | None = None
        self._closed = False

    def want(self, blob: ReadyBlob, entry: Entry, coding: bytes) -> NoCoding:
        """See `Variants.want`."""
        request = _CodingRequest(blob, entry.sha256, coding)
        if self._closed or blob not in self._lru or self._is_refused(request):
            return NoCoding.NEVER
        if not _is_possible(entry, coding):
            return NoCoding.NEVER
        if request != self._current:
            self._queue[request] = entry
            self._queue.move_to_end(request)
            if len(self._queue) > MOST_WANTED:
                self._queue.popitem(last=False)
            self._start()
        return NoCoding.PENDING

    def lend(self, blob: ReadyBlob, entry: Entry, coding: bytes) -> BlobLease | NoCoding | None:
        """See `Variants.lend`."""
        if not _is_possible(entry, coding):
            return None
        for other, codings in self._others(blob):
            made = codings.get(entry.sha256, coding)
            if made is NoCoding.NEVER and blob.codings is not None:
                blob.codings.put(entry.sha256, coding, made)
                return made
            if isinstance(made, CodingExtent) and (lender := self._lease(other)):
                return lender
        return None

    def opened(self, blob: ReadyBlob) -> None:
        """Queue the codings that were found in a blob just opened, to be checked last."""
        codings = blob.codings
        if codings and (codings.next_unchecked() or not codings.is_whole):
            self._want_last(_CodingRequest(blob, *(codings.next_unchecked() or ())))

    async def close(self) -> None:
        """Drop the queue; return when the job that is running has ended."""
        self._closed = True
        await self._siblings.close()
        if self._work is not None:
            await self._work.give_up(StoreClosed())

    def _others(self, blob: ReadyBlob) -> Iterator[tuple[ReadyBlob, CodingsFile]]:
        """Yield the codings of all other open blobs, the most recently used first."""
        for other in self._lru.open_blobs():
            if other is not blob and other.codings is not None:
                yield other, other.codings

    def _want_last(self, request: _CodingRequest) -> None:
        if len(self._queue) < MOST_WANTED and request not in self._queue:
            self._queue[request] = None
            self._queue.move_to_end(request, last=False)
            self._start()

    def _is_refused(self, request: _CodingRequest) -> bool:
        until = self._refused.get(request, 0.0)
        if until <= self._seconds():
            self._refused.pop(request, None)
            return False
        return True

    def _refuse(self, request: _CodingRequest, outcome: str) -> None:
        self._count(request, outcome)
        self._refused[request] = self._seconds() + RETRY
        if len(self._refused) > MOST_WANTED:
            self._refused.popitem(last=False)

    def _count(self, request: _CodingRequest, outcome: str) -> None:
        if request.coding:
            self._metrics.codings.labels(request.coding.decode(), outcome).inc()

    def _start(self) -> None:
        if self._current is None:
            Deferred.fromCoroutine(self._serve_all())

    async def _serve_all(self) -> None:
        while self._queue and not self._closed:
            self._current, entry = self._queue.popitem()
            blob = self._lease(self._current.blob)
            if blob is not None:
                await self._serve(self._current, entry, blob)
        self._current = None

    async def _serve(self, request: _CodingRequest, entry: Entry | None, blob: BlobLease) -> None:
        """Serve one request; an error is logged and counted, and the coding is refused."""
        work = self._work = SteppedJob(request.blob.digest, self._allocator, self._threads)
        self._allocator.enter(work, gives_way=True)
        try:
            await self._code(work, request, entry, blob.filesystem)
        except StoreClosed:
            pass
        except BlobDamaged as damage:
            self._refuse(request, "failed")
            blob.report(damage)
        except (NoSpace, TemporarilyUnavailable):
            self._refuse(request, "no-room")
        except Exception as error:  # noqa: BLE001 - the file is served uncoded
            self._refuse(request, "no-room" if is_full(error) else "failed")
            _log_error(request, error)
        self._allocator.leave(work, work.grown)
        self._work = None
        blob.release()
        work.ended.succeed(None)

    async def _code(
        self,
        work: SteppedJob,
        request: _CodingRequest,
        entry: Entry | None,
        filesystem: ImageFilesystem,
    ) -> None:
        codings = filesystem.codings
        is_known = await self._is_known(work, request, codings)
        is_needed = entry is not None and not is_known
        if codings.is_whole and not is_needed:
            return
        charged = await self._threads.run(
            self._files.begin_coding, request.blob, codings, is_needed
        )
        if charged is None:
            return

        def allowance() -> int:
            return charged + work.held

        try:
            if entry is not None and not is_known:
                copied = await self._copied(work, request, codings, allowance)
                made = copied or await self._made(work, request, entry, filesystem, allowance)
                codings.put(request.sha256, request.coding, made)
        finally:
            work.grown = await self._threads.run(codings.charge) - charged
            self._lru.grow(request.blob, work.grown)

    async def _made(
        self,
        work: SteppedJob,
        request: _CodingRequest,
        entry: Entry,
        filesystem: ImageFilesystem,
        allowance: Callable[[], int],
    ) -> Made:
        file = filesystem.file(entry)
        steps = append(file, filesystem.codings, request.coding, allowance)
        made = await work.run(steps, min(_EXTENT, blocks(entry.size)))
        self._count_made(request, made)
        return made

    async def _copied(
        self,
        work: SteppedJob,
        request: _CodingRequest,
        codings: CodingsFile,
        allowance: Callable[[], int],
    ) -> CodingExtent | None:
        """Copy a coding from another blob, if one has it and its hash is right."""
        for other, theirs in self._others(request.blob):
            coded = theirs.get(request.sha256, request.coding) or theirs.unchecked(*request[1:])
            if not isinstance(coded, CodingExtent) or (lender := self._lease(other)) is None:
                continue
            try:
                steps = copy(theirs, coded, codings, request.sha256, request.coding, allowance)
                copied = await work.run(steps, min(_EXTENT, blocks(coded.size)))
            finally:
                lender.release()
            if copied is None:
                theirs.put(request.sha256, request.coding, None)
                theirs.forget(request.coding, coded.offset)
                self._count_damaged(request._replace(blob=other))
                return None
            theirs.put(request.sha256, request.coding, coded)
            self._count(request, "copied")
            return copied
        return None

    async def _is_known(
        self, work: SteppedJob, request: _CodingRequest, codings: CodingsFile
    ) -> bool:
        """Return whether the outcome of the coding is known, after checking bytes on disk."""
        found = codings.unchecked(request.sha256, request.coding)
        if found is None:
            return codings.get(request.sha256, request.coding) is not None
        is_good = await work.run(check(codings, found))
        codings.put(request.sha256, request.coding, found if is_good else None)
        if not is_good:
            self._count_damaged(request)
        if other := codings.next_unchecked():
            self._want_last(_CodingRequest(request.blob, *other))
        return is_good

    def _count_damaged(self, request: _CodingRequest) -> None:
        self._count(request, "damaged")
        _log.warn("a {coding} coding of {digest} is damaged", **_names(request))

    def _count_made(self, request: _CodingRequest, made: Made) -> None:
        if isinstance(made, CodingExtent):
            self._count(request, "made")
            self._metrics.coded_bytes.labels(request.coding.decode()).inc(made.size)
        else:
            self._count(request, "useless")


def _is_possible(entry: Entry, coding: bytes) -> bool:
    """Return whether such a file is coded at all."""
    return coding in CODINGS and not entry.coding and SMALLEST <= entry.size <= LARGEST


def _log_error(request: _CodingRequest, error: Exception) -> None:
    if isinstance(error, (OSError, BlobserveError)):
        _log.warn(
            "no {coding} coding of a file in {digest}: {error}", error=error, **_names(request)
        )
    else:
        failure = Failure(error)
        _log.failure("no {coding} coding of a file in {digest}", failure, **_names(request))


def _names(request: _CodingRequest) -> dict[str, Any]:
    return {"coding": request.coding.decode(), "digest": str(request.blob.digest)}
