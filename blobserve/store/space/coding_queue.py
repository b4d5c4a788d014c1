"""Who wants which coding: one is made at a time, the one asked for last first.

Coded bytes belong to the content of a file. If another READY blob has them, they are read there at
once, and copied so that they outlive that blob; they are only made where no blob has them.

Runs on the reactor's thread; each slice of the work is a job of its own for the pool that extracts
layers, so that these come between. Room is asked for as by a pull, but one that gives way to all
others, and so does the right to read the blob meanwhile. Nothing fails here for those who ask:
what cannot be made now is refused for a while. Knows nothing of HTTP.
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
from blobserve.store.space.allocator import Allocator
from blobserve.store.space.quota import BlobLru
from blobserve.store.space.siblings import Siblings
from blobserve.store.space.stepped_job import SteppedJob

_log = Logger()

SMALLEST, LARGEST = KIB, 64 * MIB
"""Bytes of the files that are coded."""
MOST_WANTED = 1000
"""Codings that may wait to be made; beyond that, the one asked for longest ago is forgotten."""
RETRY = 60.0
"""Seconds for which a coding is refused that could not be made."""

_EXTENT = MIB


class _CodingRequest(NamedTuple):
    """A file of a blob by its hash, and a coding; without a hash, whatever the codings need."""

    kept: ReadyBlob
    sha256: bytes = b""
    coding: bytes = b""


class CodingQueue:
    """Makes the codings of a blob space."""

    def __init__(
        self,
        files: BlobFiles,
        threads: Threads,
        room: Allocator,
        shelf: BlobLru,
        lease: Callable[[ReadyBlob], BlobLease | None],
        seconds: Callable[[], float],
        metrics: Metrics,
    ) -> None:
        """`lease` gives the right to read a blob, if it is READY and open."""
        self._siblings = Siblings(threads, room, lease, seconds, metrics)
        self.is_coding = self._siblings.is_coding
        self._files = files
        self._threads = threads
        self._room = room
        self._shelf = shelf
        self._lease = lease
        self._seconds = seconds
        self._metrics = metrics
        self._wishes: OrderedDict[_CodingRequest, Entry | None] = OrderedDict()
        """The last asked for last; without an entry, nothing is made that is not there."""
        self._refused: OrderedDict[_CodingRequest, float] = OrderedDict()
        """Until when."""
        self._wish: _CodingRequest | None = None
        self._work: SteppedJob | None = None
        self._closed = False

    def want(self, kept: ReadyBlob, entry: Entry, coding: bytes) -> NoCoding:
        """Have a file coded, of which it is not known yet what comes of it. Does not block."""
        wish = _CodingRequest(kept, entry.sha256, coding)
        if self._closed or kept not in self._shelf or self._is_refused(wish):
            return NoCoding.NEVER
        if not _is_possible(entry, coding):
            return NoCoding.NEVER
        if wish != self._wish:
            self._wishes[wish] = entry
            self._wishes.move_to_end(wish)
            if len(self._wishes) > MOST_WANTED:
                self._wishes.popitem(last=False)
            self._begin()
        return NoCoding.PENDING

    def lend(self, kept: ReadyBlob, entry: Entry, coding: bytes) -> BlobLease | NoCoding | None:
        """See `Variants.lend`."""
        if not _is_possible(entry, coding):
            return None
        for other, codings in self._others(kept):
            made = codings.get(entry.sha256, coding)
            if made is NoCoding.NEVER and kept.codings is not None:
                kept.codings.put(entry.sha256, coding, made)
                return made
            if isinstance(made, CodingExtent) and (lender := self._lease(other)):
                return lender
        return None

    def opened(self, kept: ReadyBlob) -> None:
        """A blob was opened: see to the codings that were found, when there is nothing better."""
        codings = kept.codings
        if codings and (codings.next_unchecked() or not codings.is_whole):
            self._want_last(_CodingRequest(kept, *(codings.next_unchecked() or ())))

    async def close(self) -> None:
        """Forget what is wanted; returns when nothing is being made any more."""
        self._closed = True
        await self._siblings.close()
        if self._work is not None:
            await self._work.give_up(StoreClosed())

    def _others(self, kept: ReadyBlob) -> Iterator[tuple[ReadyBlob, CodingsFile]]:
        """Give the codings of all other blobs that are open, the last used first."""
        for other in self._shelf.open_blobs():
            if other is not kept and other.codings is not None:
                yield other, other.codings

    def _want_last(self, wish: _CodingRequest) -> None:
        if len(self._wishes) < MOST_WANTED and wish not in self._wishes:
            self._wishes[wish] = None
            self._wishes.move_to_end(wish, last=False)
            self._begin()

    def _is_refused(self, wish: _CodingRequest) -> bool:
        until = self._refused.get(wish, 0.0)
        if until <= self._seconds():
            self._refused.pop(wish, None)
            return False
        return True

    def _refuse(self, wish: _CodingRequest, outcome: str) -> None:
        self._count(wish, outcome)
        self._refused[wish] = self._seconds() + RETRY
        if len(self._refused) > MOST_WANTED:
            self._refused.popitem(last=False)

    def _count(self, wish: _CodingRequest, outcome: str) -> None:
        if wish.coding:
            self._metrics.codings.labels(wish.coding.decode(), outcome).inc()

    def _begin(self) -> None:
        if self._wish is None:
            Deferred.fromCoroutine(self._fulfil_all())

    async def _fulfil_all(self) -> None:
        while self._wishes and not self._closed:
            self._wish, entry = self._wishes.popitem()
            blob = self._lease(self._wish.kept)
            if blob is not None:
                await self._fulfil(self._wish, entry, blob)
        self._wish = None

    async def _fulfil(self, wish: _CodingRequest, entry: Entry | None, blob: BlobLease) -> None:
        """Do what comes of a wish; nothing comes of what goes wrong with it."""
        work = self._work = SteppedJob(wish.kept.digest, self._room, self._threads)
        self._room.enter(work, gives_way=True)
        try:
            await self._do(work, wish, entry, blob.filesystem)
        except StoreClosed:
            pass
        except BlobDamaged as damage:
            self._refuse(wish, "failed")
            blob.report(damage)
        except (NoSpace, TemporarilyUnavailable):
            self._refuse(wish, "no-room")
        except Exception as error:  # noqa: BLE001 - files are served without, whatever it is
            self._refuse(wish, "no-room" if is_full(error) else "failed")
            _log_error(wish, error)
        self._room.leave(work, work.grown)
        self._work = None
        blob.release()
        work.ended.succeed(None)

    async def _do(
        self,
        work: SteppedJob,
        wish: _CodingRequest,
        entry: Entry | None,
        filesystem: ImageFilesystem,
    ) -> None:
        codings = filesystem.codings
        is_known = await self._is_known(work, wish, codings)
        is_needed = entry is not None and not is_known
        if codings.is_whole and not is_needed:
            return
        charged = await self._threads.run(self._files.begin_coding, wish.kept, codings, is_needed)
        if charged is None:
            return

        def allowance() -> int:
            return charged + work.held

        try:
            if entry is not None and not is_known:
                copied = await self._copied(work, wish, codings, allowance)
                made = copied or await self._made(work, wish, entry, filesystem, allowance)
                codings.put(wish.sha256, wish.coding, made)
        finally:
            work.grown = await self._threads.run(codings.charge) - charged
            self._shelf.grow(wish.kept, work.grown)

    async def _made(
        self,
        work: SteppedJob,
        wish: _CodingRequest,
        entry: Entry,
        filesystem: ImageFilesystem,
        allowance: Callable[[], int],
    ) -> Made:
        file = filesystem.file(entry)
        steps = append(file, filesystem.codings, wish.coding, allowance)
        made = await work.run(steps, min(_EXTENT, blocks(entry.size)))
        self._count_made(wish, made)
        return made

    async def _copied(
        self,
        work: SteppedJob,
        wish: _CodingRequest,
        codings: CodingsFile,
        allowance: Callable[[], int],
    ) -> CodingExtent | None:
        """Copy a coding from another blob, if one has it and it is still what it was."""
        for other, theirs in self._others(wish.kept):
            coded = theirs.get(wish.sha256, wish.coding) or theirs.unchecked(*wish[1:])
            if not isinstance(coded, CodingExtent) or (lender := self._lease(other)) is None:
                continue
            try:
                steps = copy(theirs, coded, codings, wish.sha256, wish.coding, allowance)
                copied = await work.run(steps, min(_EXTENT, blocks(coded.size)))
            finally:
                lender.release()
            if copied is None:
                theirs.put(wish.sha256, wish.coding, None)
                theirs.forget(wish.coding, coded.offset)
                self._count_damaged(wish._replace(kept=other))
                return None
            theirs.put(wish.sha256, wish.coding, coded)
            self._count(wish, "copied")
            return copied
        return None

    async def _is_known(self, work: SteppedJob, wish: _CodingRequest, codings: CodingsFile) -> bool:
        """Whether there is a coding, and is still what it was."""
        found = codings.unchecked(wish.sha256, wish.coding)
        if found is None:
            return codings.get(wish.sha256, wish.coding) is not None
        is_good = await work.run(check(codings, found))
        codings.put(wish.sha256, wish.coding, found if is_good else None)
        if not is_good:
            self._count_damaged(wish)
        if other := codings.next_unchecked():
            self._want_last(_CodingRequest(wish.kept, *other))
        return is_good

    def _count_damaged(self, wish: _CodingRequest) -> None:
        self._count(wish, "damaged")
        _log.warn("a {coding} coding of {digest} is damaged", **_names(wish))

    def _count_made(self, wish: _CodingRequest, made: Made) -> None:
        if isinstance(made, CodingExtent):
            self._count(wish, "made")
            self._metrics.coded_bytes.labels(wish.coding.decode()).inc(made.size)
        else:
            self._count(wish, "useless")


def _is_possible(entry: Entry, coding: bytes) -> bool:
    """Return whether files like this are coded at all."""
    return coding in CODINGS and not entry.coding and SMALLEST <= entry.size <= LARGEST


def _log_error(wish: _CodingRequest, error: Exception) -> None:
    if isinstance(error, (OSError, BlobserveError)):
        _log.warn("no {coding} coding of a file in {digest}: {error}", error=error, **_names(wish))
    else:
        failure = Failure(error)
        _log.failure("no {coding} coding of a file in {digest}", failure, **_names(wish))


def _names(wish: _CodingRequest) -> dict[str, Any]:
    return {"coding": wish.coding.decode(), "digest": str(wish.kept.digest)}
