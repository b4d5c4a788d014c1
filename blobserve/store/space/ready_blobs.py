"""READY blobs and trees: read, counted, closed when nobody reads them, and removed.

Runs on the reactor's thread; the files are touched in threads only. Whoever holds a `BlobLease` can
read it to the end, whatever happens to it meanwhile. Knows nothing of how blobs come in.
"""

from __future__ import annotations

import sqlite3
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from blobserve.concurrency.singleflight import SingleFlight
from blobserve.concurrency.threads import Threads
from blobserve.errors import BlobDamaged, BlobserveError, IndexDamaged
from blobserve.metrics import Metrics
from blobserve.names.digest import Digest
from blobserve.store.blobs.blob import BlobLease, ReadyBlob
from blobserve.store.blobs.blob_files import BlobFiles
from blobserve.store.blobs.filesystem import ImageFilesystem
from blobserve.store.blobs.merged_index_files import MergedIndexFiles
from blobserve.store.disk.disk_errors import typed
from blobserve.store.disk.files import blocks
from blobserve.store.disk.metadata_db import Table, was_used
from blobserve.store.disk.write_behind import WriteBehind
from blobserve.store.space.allocator import Allocator
from blobserve.store.space.coding_queue import CodingQueue
from blobserve.store.space.quota import BlobLru, Quota
from blobserve.store.space.repair import InBackground, Repair

_log = Logger()

MOST_OPEN = 256
"""Blobs that stay open, at two descriptors each, or three, though nobody reads them."""


class _ReadyFiles(Protocol):
    """The files of one kind of READY entry: of layers, or of merged indexes. It blocks."""

    def open(self, kept: ReadyBlob) -> ImageFilesystem:
        """See `BlobFiles.open`."""
        ...

    def remove(self, blobs: list[ReadyBlob]) -> None:
        """See `BlobFiles.remove`."""
        ...


class ReadyBlobs:
    """The READY blobs of a blob space."""

    def __init__(
        self,
        files: BlobFiles,
        trees: MergedIndexFiles,
        threads: Threads,
        bound: Quota,
        uses: WriteBehind,
        clock: IReactorTime,
        metrics: Metrics,
        compute: Threads,
        background: InBackground,
    ) -> None:
        """Files are coded in `compute`; `threads` does the rest of what blocks.

        What `background` is given, nobody waits for but whoever closes the blob space.
        """
        self.is_verifying = False
        """Whether files are checked before they are first read; see `ImageFilesystem.check`."""
        self.lru = BlobLru()
        self.allocator = Allocator(bound, self.lru, self.evict)
        self.coding_queue = CodingQueue(
            files, compute, self.allocator, self.lru, self._lease, clock.seconds, metrics
        )
        self._mending = Repair(self.lru, self.set_aside, background, metrics)
        self._openings: SingleFlight[ReadyBlob, None] = SingleFlight()
        self._files: dict[Table, _ReadyFiles] = {"trees": trees, "blobs": files}
        self._blob_files = files
        self._threads = threads
        self._bound = bound
        self._uses = uses
        self._clock = clock
        self._metrics = metrics
        self._last_use = 0.0
        self._most_open = MOST_OPEN
        self._leaving: dict[Digest, list[Deferred[None]]] = {}
        """Blobs whose files are being removed, and who waits for that."""

    def load(self, found: list[ReadyBlob]) -> None:
        """Take up, and count, the blobs that are on disk."""
        for kept in sorted(found, key=lambda each: each.record.used):
            self._bound.take(kept.size)
            self._last_use = kept.record.used
            self.lru.add(kept)

    async def open_recent(self) -> None:
        """Open the blobs that were used last, as many as may stay open."""
        for kept in list(self.lru)[-MOST_OPEN:]:
            try:
                await self._open(kept)
            except (BlobserveError, OSError, sqlite3.Error) as error:
                _log.warn("{digest} stays closed: {error}", digest=str(kept.digest), error=error)

    def add(self, kept: ReadyBlob) -> None:
        """Keep a blob whose bytes are counted already; it takes the place of another."""
        former = self.lru.get(kept.digest)
        if former is not None:
            self.lru.remove(former)
            Deferred.fromCoroutine(self._bury([former]))
        self.lru.add(kept)
        self.lru.close(self._most_open)

    def acquire(self, digest: Digest, is_use: bool = True) -> BlobLease | None:
        """See `BlobSpace.acquire`; without `is_use`, the use is not recorded on disk."""
        kept = self.lru.get(digest)
        if kept is None or kept.filesystem is None or kept.is_doubted:
            return None
        if is_use:
            self._count_use(kept)
        else:
            kept.is_touched = True
        return self._lease(kept)

    async def mount(self, digest: Digest) -> BlobLease | None:
        """See `BlobSpace.mount`."""
        kept = self.lru.get(digest)
        if kept is not None and (kept.filesystem is None or kept.is_doubted):
            kept.leases += 1
            try:
                opening = self._openings.get(kept) or self._openings.start(
                    kept, lambda _: self._opened(kept)
                )
                await opening.wait()
            finally:
                kept.leases -= 1
                self._released(kept)
        return self.acquire(digest)

    async def settle(self, kept: ReadyBlob) -> None:
        """Bring a blob to the disk; one that cannot be brought there is set aside."""
        try:
            await self._threads.run(self._blob_files.settle, kept)
        except OSError as error:
            # What was not written once is not written by trying again, whatever fsync says then.
            _log.error("{digest} is set aside: {error}", digest=str(kept.digest), error=error)
            await self.set_aside(kept)
        except sqlite3.Error as error:
            _log.warn("{digest} is not marked: {error}", digest=str(kept.digest), error=error)

    async def set_aside(self, kept: ReadyBlob) -> None:
        """Remove a damaged blob, also while it is read."""
        if kept in self.lru:
            await self._remove([kept])

    async def evict(self, blobs: list[ReadyBlob]) -> None:
        """Remove blobs that nobody reads; returns when their bytes are free."""
        if not blobs:
            return
        self._metrics.evictions.inc(len(blobs))
        await self._remove(blobs)

    async def left(self, digest: Digest) -> None:
        """Wait until no file of a removed blob has this digest's name any more."""
        if digest in self._leaving:
            waiter: Deferred[None] = Deferred()
            self._leaving[digest].append(waiter)
            await waiter

    def close(self) -> None:
        """Close all that nobody reads; what is read is closed when it is released."""
        self._most_open = 0
        self.lru.close(self._most_open)

    def _count_use(self, kept: ReadyBlob) -> None:
        self.lru.touch(kept)
        # Later than every use before it, also when the clock was set back.
        self._last_use = max(self._clock.seconds(), self._last_use + 1e-6)
        used = was_used(kept.digest, self._last_use, kept.table)
        self._uses.put(kept.digest, used)

    def _lease(self, kept: ReadyBlob) -> BlobLease | None:
        """The right to read a READY blob that is open; does not count as a use."""
        if kept.filesystem is None or kept.is_doubted or kept not in self.lru:
            return None
        kept.filesystem.verify(self.is_verifying)
        report = self._mending.report
        return BlobLease(kept, kept.filesystem, self._released, self.coding_queue, report)

    async def _opened(self, kept: ReadyBlob) -> None:
        """Open a blob as `_open` does, once for all who ask meanwhile.

        :raises ComeAgain: when it cannot be opened for now.
        """
        try:
            await self._open(kept)
        except (OSError, sqlite3.Error) as error:
            raise typed(error) or error from error

    async def _open(self, kept: ReadyBlob) -> None:
        """Open a blob, or set it aside if it is damaged beyond repair.

        :raises OSError: when that cannot be told, as without descriptors.
        """
        try:
            filesystem = await self._open_or_repair(kept)
        except BlobDamaged as damage:
            self._mending.count("content", damage)
            await self.set_aside(kept)
            return
        if kept.is_doubted and kept.filesystem is not None:
            kept.filesystem.take_index(filesystem)
            kept.is_doubted = False
        elif kept.filesystem is None and kept in self.lru:
            self.lru.opened(kept, filesystem)
            self.coding_queue.opened(kept)
            self.lru.close(self._most_open)
        else:
            filesystem.close()

    async def _open_or_repair(self, kept: ReadyBlob) -> ImageFilesystem:
        # An index that was damaged while it was open may pass the check, so it is not tried.
        if not kept.is_doubted:
            try:
                return await self._threads.run(self._files[kept.table].open, kept)
            except IndexDamaged as damage:
                if not kept.has_content:
                    raise
                self._mending.count("index", damage)
        return await self._repair(kept)

    async def _repair(self, kept: ReadyBlob) -> ImageFilesystem:
        spare = await self.allocator.reserve(None, 2 * blocks(kept.record.index_size))
        try:
            filesystem, size = await self._threads.run(self._blob_files.repair, kept)
            self._bound.take(size - kept.size)
            self.lru.size += size - kept.size
            kept.size = size
        finally:
            self._bound.give(spare)
        return filesystem

    async def _remove(self, blobs: list[ReadyBlob]) -> None:
        for kept in blobs:
            self.lru.remove(kept)
            self._leaving[kept.digest] = []
        try:
            await self._threads.run(self._remove_files, blobs)
        except sqlite3.Error as error:
            # That they are gone is seen at the next start.
            _log.warn("the state file cannot be written: {error}", error=error)
        finally:
            for kept in blobs:
                for waiter in self._leaving.pop(kept.digest):
                    waiter.callback(None)
                if not kept.is_removed:  # the disk does not let go of it: it serves on
                    self.lru.add(kept)
            await self._bury([kept for kept in blobs if kept.is_removed])

    def _remove_files(self, blobs: list[ReadyBlob]) -> None:
        for table, files in self._files.items():
            files.remove([kept for kept in blobs if kept.table == table])

    async def _bury(self, removed: list[ReadyBlob]) -> None:
        """Close removed blobs that nobody reads, for only then does the disk have their bytes."""
        for kept in removed:
            kept.is_gone = True
        idle = [kept for kept in removed if not kept.leases]
        # Closing frees the bytes of removed files, and takes as long as that takes.
        await self._threads.run(_close, idle)
        self._bound.give(sum(kept.size for kept in idle))

    def _released(self, kept: ReadyBlob) -> None:
        if kept.is_gone and not kept.leases:
            Deferred.fromCoroutine(self._bury([kept]))
        elif not self._most_open:
            self.lru.close(self._most_open)


def _close(blobs: list[ReadyBlob]) -> None:
    for kept in blobs:
        kept.close()
