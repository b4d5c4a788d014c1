"""The READY blobs: leases, use, opening, repair, eviction.

Runs on the reactor's thread; the files are touched in threads only. A leased blob stays readable
until its lease is released, even if it is evicted or replaced meanwhile.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from blobserve.concurrency.singleflight import SingleFlight
from blobserve.concurrency.threads import Threads
from blobserve.errors import BlobDamaged, BlobserveError, IndexDamaged, IndexOutdated
from blobserve.metrics import Metrics
from blobserve.names.digest import Digest
from blobserve.store.blobs.blob import BlobLease, ReadyBlob
from blobserve.store.blobs.blob_files import BlobFiles
from blobserve.store.blobs.filesystem import ImageFilesystem
from blobserve.store.blobs.merged_index_files import MergedIndexFiles
from blobserve.store.disk.disk_errors import typed
from blobserve.store.disk.files import blocks
from blobserve.store.disk.metadata_db import Table, WriteBehind, was_used
from blobserve.store.space.coding_queue import CodingQueue
from blobserve.store.space.quota import Allocator, BlobLru, Quota
from blobserve.store.space.repair import InBackground, Repair

_log = Logger()

MOST_OPEN = 256
"""Blobs that stay open without a lease, with two or three file descriptors each."""


class _ReadyFiles(Protocol):
    """The files of one kind of READY entry: of layers, or of merged indexes. It blocks."""

    def open(self, blob: ReadyBlob) -> ImageFilesystem:
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
        quota: Quota,
        uses: WriteBehind,
        clock: IReactorTime,
        metrics: Metrics,
        compute: Threads,
        background: InBackground,
        wall: Callable[[], float],
    ) -> None:
        """`compute` makes codings; `threads` runs all other blocking work.

        `wall` returns the time of day, for the stored times of last uses.

        `background` starts a coroutine that only the closing of the blob space waits for.
        """
        self.is_verifying = False
        """Whether files are checked before they are first read (`verifyOnRead`)."""
        self.on_evicted: Callable[[list[Digest]], object] = lambda digests: None
        """Called with the digests of blobs that are being evicted."""
        self.lru = BlobLru()
        self.allocator = Allocator(quota, self.lru, self.evict)
        self.coding_queue = CodingQueue(
            files, compute, self.allocator, self.lru, self._lease, clock.seconds, metrics
        )
        self._repairs = Repair(self.lru, self.set_aside, background, metrics)
        self._openings: SingleFlight[ReadyBlob, None] = SingleFlight()
        self._files: dict[Table, _ReadyFiles] = {"trees": trees, "blobs": files}
        self._blob_files = files
        self._threads = threads
        self._quota = quota
        self._uses = uses
        self._wall = wall
        self._metrics = metrics
        self._last_use = 0.0
        self._most_open = MOST_OPEN
        self._removing: dict[Digest, list[Deferred[None]]] = {}
        """Blobs with files that are being removed, and the callers that wait for it."""

    def load(self, found: list[ReadyBlob]) -> None:
        """Register and count the blobs that are on disk."""
        for blob in sorted(found, key=lambda each: each.record.used):
            self._quota.take(blob.size)
            self._last_use = blob.record.used
            self.lru.add(blob)

    async def open_recent(self) -> None:
        """Open the most recently used blobs, as many as may stay open."""
        for blob in list(self.lru)[-MOST_OPEN:]:
            try:
                await self._open(blob)
            except (BlobserveError, OSError, sqlite3.Error) as error:
                _log.warn("{digest} stays closed: {error}", digest=str(blob.digest), error=error)

    def add(self, blob: ReadyBlob) -> None:
        """Register a blob with bytes that are counted already; it replaces one of its digest."""
        previous = self.lru.get(blob.digest)
        if previous is not None:
            self.lru.remove(previous)
            Deferred.fromCoroutine(self._close_removed([previous]))
        self.lru.add(blob)
        self.lru.close(self._most_open)

    def acquire(self, digest: Digest, is_use: bool = True) -> BlobLease | None:
        """Return a lease on a READY layer at once; counts as a use.

        None when the layer is not READY, or READY and closed: `mount` opens it. Without `is_use`,
        the use is not recorded on disk.
        """
        blob = self.lru.get(digest)
        if blob is None or blob.filesystem is None or blob.is_doubted:
            return None
        if is_use:
            self._count_use(blob)
        else:
            blob.is_touched = True
        return self._lease(blob)

    async def mount(self, digest: Digest) -> BlobLease | None:
        """Return a lease on a READY layer, and open it if it was closed after a long time unused.

        None when the layer is not READY, or damaged beyond repair; then it is removed.

        :raises TemporarilyUnavailable: when it cannot be opened now, as without descriptors.
        """
        blob = self.lru.get(digest)
        if blob is not None and (blob.filesystem is None or blob.is_doubted):
            blob.leases += 1
            try:
                opening = self._openings.get(blob) or self._openings.start(
                    blob, lambda _: self._open_typed(blob)
                )
                await opening.wait()
            finally:
                blob.leases -= 1
                self._released(blob)
        return self.acquire(digest)

    async def make_durable(self, blob: ReadyBlob) -> None:
        """Sync a blob to the disk and mark it durable; set it aside if that fails."""
        try:
            await self._threads.run(self._blob_files.settle, blob)
        except OSError as error:
            # A second fsync may succeed although the pages of the first were lost.
            _log.error("{digest} is set aside: {error}", digest=str(blob.digest), error=error)
            await self.set_aside(blob)
        except sqlite3.Error as error:
            _log.warn("{digest} is not durable: {error}", digest=str(blob.digest), error=error)

    async def set_aside(self, blob: ReadyBlob) -> None:
        """Remove a damaged blob, even if it is leased."""
        if blob in self.lru:
            await self._remove([blob])

    async def evict(self, blobs: list[ReadyBlob]) -> None:
        """Remove blobs without a lease; return when their bytes are free."""
        if not blobs:
            return
        self._metrics.evictions.inc(len(blobs))
        self.on_evicted([blob.digest for blob in blobs])
        await self._remove(blobs)

    async def wait_removed(self, digest: Digest) -> None:
        """Wait until the files of a removed blob of this digest are moved away."""
        if digest in self._removing:
            waiter: Deferred[None] = Deferred()
            self._removing[digest].append(waiter)
            await waiter

    def close(self) -> None:
        """Close all blobs without a lease, and the others when they are released."""
        self._most_open = 0
        self.lru.close(self._most_open)

    def _count_use(self, blob: ReadyBlob) -> None:
        self.lru.touch(blob)
        # Later than every earlier use, also when the clock was set back.
        self._last_use = max(self._wall(), self._last_use + 1e-6)
        used = was_used(blob.digest, self._last_use, blob.table)
        self._uses.put(blob.digest, used)

    def _lease(self, blob: ReadyBlob) -> BlobLease | None:
        """Lease a READY blob if it is open; this does not count as a use."""
        if blob.filesystem is None or blob.is_doubted or blob not in self.lru:
            return None
        blob.filesystem.verify(self.is_verifying)
        report = self._repairs.report
        return BlobLease(blob, blob.filesystem, self._released, self.coding_queue, report)

    async def _open_typed(self, blob: ReadyBlob) -> None:
        """Open a blob as `_open` does, with typed errors.

        :raises ComeAgain: when it cannot be opened for now.
        """
        try:
            await self._open(blob)
        except (OSError, sqlite3.Error) as error:
            raise typed(error) or error from error

    async def _open(self, blob: ReadyBlob) -> None:
        """Open a blob, or set it aside if it is damaged beyond repair.

        :raises OSError: when the damage cannot be judged, as without free file descriptors.
        """
        try:
            filesystem = await self._open_or_repair(blob)
        except BlobDamaged as damage:
            self._repairs.count("content", damage)
            await self.set_aside(blob)
            return
        if blob.is_doubted and blob.filesystem is not None:
            blob.filesystem.take_index(filesystem)
            blob.is_doubted = False
        elif blob.filesystem is None and blob in self.lru:
            self.lru.opened(blob, filesystem)
            self.coding_queue.opened(blob)
            self.lru.close(self._most_open)
        else:
            filesystem.close()

    async def _open_or_repair(self, blob: ReadyBlob) -> ImageFilesystem:
        # An index that was damaged while it was open may pass the check, so it is not tried.
        if not blob.is_doubted:
            try:
                return await self._threads.run(self._files[blob.table].open, blob)
            except IndexDamaged as damage:
                if not blob.has_content:
                    raise
                if isinstance(damage, IndexOutdated):
                    _log.info("{digest}: its index is made again", digest=damage.digest)
                else:
                    self._repairs.count("index", damage)
        return await self._repair(blob)

    async def _repair(self, blob: ReadyBlob) -> ImageFilesystem:
        reserved = await self.allocator.reserve(None, 2 * blocks(blob.record.index_size))
        try:
            filesystem, size = await self._threads.run(self._blob_files.repair, blob)
            self._quota.take(size - blob.size)
            self.lru.size += size - blob.size
            blob.size = size
        finally:
            self._quota.give(reserved)
        return filesystem

    async def _remove(self, blobs: list[ReadyBlob]) -> None:
        for blob in blobs:
            self.lru.remove(blob)
            self._removing[blob.digest] = []
        try:
            await self._threads.run(self._remove_files, blobs)
        except sqlite3.Error as error:
            # The next start removes records of blobs that do not exist.
            _log.warn("the state file cannot be written: {error}", error=error)
        finally:
            for blob in blobs:
                for waiter in self._removing.pop(blob.digest):
                    waiter.callback(None)
                if not blob.is_removed:  # it could not be moved away, so it goes on serving
                    self.lru.add(blob)
            await self._close_removed([blob for blob in blobs if blob.is_removed])

    def _remove_files(self, blobs: list[ReadyBlob]) -> None:
        for table, files in self._files.items():
            files.remove([blob for blob in blobs if blob.table == table])

    async def _close_removed(self, removed: list[ReadyBlob]) -> None:
        """Close removed blobs without a lease, which frees their bytes on disk."""
        for blob in removed:
            blob.is_gone = True
        idle = [blob for blob in removed if not blob.leases]
        # Closing a removed file frees its bytes, which can take long.
        await self._threads.run(_close, idle)
        self._quota.give(sum(blob.size for blob in idle))

    def _released(self, blob: ReadyBlob) -> None:
        if blob.is_gone and not blob.leases:
            Deferred.fromCoroutine(self._close_removed([blob]))
        elif not self._most_open:
            self.lru.close(self._most_open)


def _close(blobs: list[ReadyBlob]) -> None:
    for blob in blobs:
        blob.close()
