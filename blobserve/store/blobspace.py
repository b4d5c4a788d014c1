"""The blob space: layers on disk by digest, each whole or absent, within a quota.

All decisions are made on the reactor's thread; blocking work runs in threads. This class joins the
parts of `ingest`, `space`, `blobs` and `disk`: ingests, reservations and eviction, READY blobs,
recovery at start, and the metadata database. References and registries are not known here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from blobserve.concurrency.background import Background
from blobserve.concurrency.threads import Threads
from blobserve.config import BlobSpaceRules, Limits
from blobserve.errors import ImageTooLarge, SpaceUnusable, StoreClosed
from blobserve.metrics import Metrics
from blobserve.names.digest import Digest
from blobserve.oci.manifest import Descriptor
from blobserve.store.blobs.blob import BlobLease, BlobState, Readable
from blobserve.store.blobs.blob_files import BlobFiles
from blobserve.store.blobs.merged_index_files import MergedIndexFiles
from blobserve.store.blobs.recovery import examine, survey
from blobserve.store.disk.directory import FURNITURE, SpaceDirectory
from blobserve.store.disk.files import BLOCK
from blobserve.store.disk.metadata_db import (
    SLACK,
    Change,
    MetadataDb,
    StoredReferences,
    StoredRows,
    WriteBehind,
)
from blobserve.store.disk.owner_lock import exposure
from blobserve.store.ingest.early_files import EarlyFiles
from blobserve.store.ingest.ingest import Ingest
from blobserve.store.ingest.writer import BlobWriter
from blobserve.store.space.manifests import ManifestFiles, Manifests
from blobserve.store.space.merged_indexes import MergedIndexes, parts_of
from blobserve.store.space.provenance import Provenance
from blobserve.store.space.quota import Quota
from blobserve.store.space.ready_blobs import ReadyBlobs
from blobserve.store.space.scratch import Scratch

__all__ = ["BlobLease", "BlobSpace", "BlobState", "Ingest", "Readable"]

_log = Logger()

_USES_DELAY = 60.0
_REFERENCES_DELAY = 1.0
_CLOSING = 10.0
_HOLD_INTERVAL = 10.0


class BlobSpace:
    """One blob space. See docs/reference/blob-space.md."""

    def __init__(
        self,
        reactor: IReactorTime,
        rules: BlobSpaceRules,
        limits: Callable[[], Limits],
        threads: Threads,
        metrics: Metrics,
        disk: Threads | None = None,
        wall: Callable[[], float] | None = None,
    ) -> None:
        """Extraction and compression run in `threads`; other blocking work in `disk`, if given.

        `wall` returns the time of day for stored times, in seconds since 1970. The default is the
        reactor's clock.
        """
        self._reactor = reactor
        self._wall = wall = wall or reactor.seconds
        self._rules = rules
        self._limits = limits
        self._threads = threads
        self._disk = disk = disk or threads
        self._background = background = Background(disk)
        self._location = location = SpaceDirectory(rules.location)
        self._state = state = MetadataDb(rules.location / "state")
        self._quota = quota = Quota(rules.max_size, lambda: state.size)
        self._uses = WriteBehind(reactor, _USES_DELAY, self._write)
        self._remembered = WriteBehind(reactor, _REFERENCES_DELAY, self._write)
        files = BlobFiles(location, state, limits)
        merged_files = MergedIndexFiles(location, state, limits)
        self.blobs = ReadyBlobs(
            files,
            merged_files,
            disk,
            quota,
            self._uses,
            reactor,
            metrics,
            threads,
            background.do,
            wall,
        )
        self.blobs.is_verifying = rules.verify_on_read
        """READY layers and merged indexes."""
        self._merged_files = merged_files
        self.images = MergedIndexes(self.blobs, merged_files, threads, reactor.seconds, wall)
        """Images of one or several READY layers."""
        self._manifest_files = ManifestFiles(location, state, limits)
        self.manifests = Manifests(self._manifest_files, disk, self.blobs.allocator, quota, wall)
        """Manifests on disk, verified again at each reading."""
        self.references = StoredReferences(self._remembered)
        """The digests of references; loaded by `open`."""
        self.provenance = Provenance(self._remembered, wall)
        """The repositories through which content was verified; loaded by `open`."""
        self.rows = StoredRows(self._remembered)
        """Rows of the metadata database about tags; loaded by `open`."""
        self.early = EarlyFiles(metrics)
        """Files of layers that are being ingested."""
        self._kept_roots: Callable[[], Iterable[Digest]] = tuple
        self._unready: set[Digest] = set()
        self._ingests: set[Ingest] = set()
        self._reclaiming: LoopingCall | None = None
        self._holding = LoopingCall(lambda: background.do(self._hold()))
        self._holding.clock = reactor
        self.when_lost: Callable[[SpaceUnusable], object] = lambda _: None
        """Called when another owner has taken it, or another directory is in its place."""
        self._closed = False
        metrics.size.set_function(lambda: self.size)
        metrics.bound.set_function(lambda: self.bound or 0)

    @property
    def size(self) -> int:
        """Return the bytes that it takes, or may take at any moment."""
        return self._quota.size

    @property
    def bound(self) -> int | None:
        """Return the bytes that it may take; None without a limit."""
        return self._quota.limit

    async def open(self) -> None:
        """Become its owner, and load its content; once only.

        Returns when every blob is known to be whole. That takes long only after the state file was
        lost: then all blobs are read.

        :raises SpaceUnusable: when it cannot be used or another owner has it; it is closed then.
        """
        try:
            await self._background.to_the_end(self._location.take)
            await self._background.to_the_end(self._state.open)
            await self._recover()
        except (OSError, sqlite3.Error) as error:
            await self.close()
            raise SpaceUnusable(str(self._rules.location), f"it cannot be read: {error}") from error
        self._holding.start(_HOLD_INTERVAL, now=False)
        warning = await self._disk.run(exposure, self._rules.location)
        if warning is not None:
            _log.warn("blobSpace.location: {warning}", warning=warning)
        await self.reclaim()
        await self.blobs.open_recent()
        self._reclaim_regularly(now=False)

    async def close(self) -> None:
        """Close all that is not leased; idempotent.

        Ingests fail with `StoreClosed` and are wiped. Waits for running jobs, ten seconds at most.
        Leased images stay readable until they are released.
        """
        if self._closed:
            return
        self._closed = True
        if self._reclaiming is not None:
            self._reclaiming.stop()
        if self._holding.running:
            self._holding.stop()
        for ingest in list(self._ingests):
            self._background.do(ingest.give_up(StoreClosed()))
        self._background.do(self.blobs.coding_queue.close())
        self._background.do(self.images.close())
        await Deferred.fromCoroutine(self._background.quiet()).addTimeout(_CLOSING, self._reactor)
        await self._uses.flush()
        await self._remembered.flush()
        self.blobs.close()
        await self._disk.run(self._state.close)
        await self._disk.run(self._location.leave)

    def reconfigure(self, rules: BlobSpaceRules) -> None:
        """Follow other rules from the next lease on; the location does not change."""
        self._rules = rules
        self.blobs.is_verifying = rules.verify_on_read
        self._quota.limit = rules.max_size
        if self._reclaiming is not None and not self._closed:
            self._reclaiming.stop()
            self._reclaim_regularly(now=True)

    async def is_readable(self) -> bool:
        """Return whether the directory can be read; cheap."""
        return await self._disk.run(self._location.is_readable)

    def state_of(self, digest: Digest) -> BlobState:
        """Return the state of a layer."""
        if self.blobs.lru.get(digest) is not None:
            return BlobState.READY
        return BlobState.UNREADY if digest in self._unready else BlobState.UNKNOWN

    def touch_for(self, layers: tuple[Digest, ...]) -> Callable[[], None]:
        """Return a cheap callback that counts a use of the image that these layers make."""
        return self.blobs.lru.touch_for(parts_of(layers))

    def is_ready(self, layers: tuple[Digest, ...]) -> bool:
        """Return whether these layers, and their merged index if they are several, are READY."""
        return all(self.blobs.lru.get(digest) for digest in parts_of(layers))

    @contextmanager
    def pulling(self, image: Digest, layers: tuple[Descriptor, ...]) -> Iterator[None]:
        """Count these layers as one image, which must fit as a whole, while they are ingested.

        :raises ImageTooLarge: when they cannot fit, even if all else is evicted. Later all their
            ingests raise this at once.
        """
        sizes = {layer.kept_as: layer.size for layer in layers}
        limit = self._quota.limit
        if limit is not None and sum(sizes.values()) > limit:
            raise ImageTooLarge(str(image), limit)
        group = self.blobs.allocator.begin(
            image, frozenset(parts_of(tuple(each.kept_as for each in layers)))
        )
        try:
            yield
        finally:
            self.blobs.allocator.end(group)

    async def set_aside(self, digest: Digest) -> None:
        """Remove a damaged layer, also while it is read."""
        blob = self.blobs.lru.get(digest)
        if blob is not None:
            await self.blobs.set_aside(blob)

    async def evict_unused(self, digests: Iterable[Digest]) -> None:
        """Evict those of these blobs that no tag serves or keeps, and that are not being read."""
        lru = self.blobs.lru
        unused = [each for each in digests if each not in lru.current and each not in lru.kept]
        blobs = [lru.get(each) for each in unused]
        await self.blobs.evict([each for each in blobs if each is not None and not each.leases])

    async def ingest(self, descriptor: Descriptor) -> Ingest:
        """Start the ingest of a layer, which is UNREADY until that has finished or is abandoned.

        A layer has one ingest at a time.

        :raises ImageTooLarge: when it cannot fit, even if all else is evicted.
        :raises StoreClosed: after `close`.
        """
        digest, limit = descriptor.kept_as, self._quota.limit
        if digest in self._unready:
            raise RuntimeError(f"{digest} is being ingested already")
        if limit is not None and descriptor.size > limit:
            raise ImageTooLarge(str(digest), limit)
        self._unready.add(digest)
        try:
            await self.blobs.wait_removed(digest)
            if self._closed:
                raise StoreClosed
        except BaseException:
            self._unready.remove(digest)
            raise
        writer = BlobWriter(self._location, self._state, descriptor, self._limits, self._wall)
        streaming = self.early.of(digest)
        ingest = Ingest(writer, self._threads, self.blobs.allocator, streaming, self._ended)
        self._ingests.add(ingest)
        ingest.start()
        return ingest

    def mark_current(self, digests: Container[Digest]) -> None:
        """Set the layers and merged indexes that tags serve now; they are evicted last.

        `digests` is read at each eviction.
        """
        self.blobs.lru.current = digests

    def mark_kept(
        self, blobs: Mapping[Digest, float], roots: Callable[[], Iterable[Digest]]
    ) -> None:
        """Set the blobs of earlier versions of tags, and a callback that returns their images.

        `blobs` is read at each eviction. It has the time when the newest version with a blob
        ended: see `BlobLru.kept`. `roots` is called when manifests are removed.
        """
        self.blobs.lru.kept = blobs
        self._kept_roots = roots

    async def flush(self) -> None:
        """Write what is known about references now; return when it is written."""
        await self._remembered.flush()

    async def reclaim(self) -> None:
        """Evict down to the quota, and remove manifests that nothing needs."""
        await self._disk.run(self._location.sweep)
        await self.blobs.allocator.shrink()
        roots = {digest for _, digest, _ in self.references.all()}
        await self.manifests.reclaim(roots.union(self._kept_roots()))

    async def reserve(self, size: int) -> None:
        """Reserve bytes for a write beside a blob, and evict other blobs if necessary.

        :raises NoSpace: when no more can be evicted.
        """
        await self.blobs.allocator.reserve(None, size)

    async def relieve(self, size: int) -> bool:
        """Evict blobs to free `size` bytes of a full disk; return whether it evicted any."""
        return await self.blobs.allocator.relieve(size)

    def release(self, size: int) -> None:
        """Stop counting reserved bytes."""
        self._quota.give(size)

    async def scratch(self) -> Scratch:
        """Return an empty directory for temporary files; the caller discards it."""
        directory = await self._background.to_the_end(self._location.new_ingest)
        scratch = Scratch(directory, self._threads, self.reserve, self._discard)
        try:
            await scratch.reserve(2 * BLOCK)
        except BaseException:
            await scratch.discard()
            raise
        return scratch

    async def _hold(self) -> None:
        """Check the ownership. Without it nothing may be written."""
        try:
            await self._disk.run(self._location.hold)
        except SpaceUnusable as error:
            if not self._closed:
                _log.critical("{error}", error=error)
                self.when_lost(error)

    async def _discard(self, directory: Path, size: int) -> None:
        await self._background.to_the_end(partial(self._location.discard, directory))
        self.release(size)

    async def _recover(self) -> None:
        found = await self._background.to_the_end(partial(survey, self._location, self._state))
        manifests = await self._background.to_the_end(self._manifest_files.survey)
        merged = await self._background.to_the_end(self._merged_files.survey)
        self.references.load(await self._background.to_the_end(self._state.references))
        self.provenance.load(await self._background.to_the_end(self._state.provenance))
        await self._background.to_the_end(partial(self.rows.load, self._state))
        if found.doubtful:
            _log.info("verifying {n} blobs", n=len(found.doubtful))
        examined = await gatherResults(
            self._threads.run(examine, self._location, self._state, self._limits(), *each)
            for each in found.doubtful
        )
        self._quota.take(FURNITURE + SLACK)
        self.manifests.load(manifests)
        self.blobs.load([*filter(None, examined), *found.whole, *merged])

    def _ended(self, ingest: Ingest) -> None:
        self._ingests.remove(ingest)
        self._unready.remove(ingest.digest)
        if ingest.kept is not None:
            self.blobs.add(ingest.kept)
            ingest.streaming.hold(lambda: self.blobs.acquire(ingest.digest))
            self._background.do(self.blobs.make_durable(ingest.kept))

    def _reclaim_regularly(self, now: bool) -> None:
        # A new one each time: one that is started again during a pass runs twice.
        self._reclaiming = LoopingCall(lambda: self._background.do(self.reclaim()))
        self._reclaiming.clock = self._reactor
        self._reclaiming.start(self._rules.gc_interval, now)

    async def _write(self, changes: list[Change]) -> None:
        if not changes:
            return
        try:
            await self._disk.run(self._state.change, *changes)
            await self.blobs.allocator.shrink()
        except (OSError, sqlite3.Error) as error:
            _log.warn("the state file cannot be written: {error}", error=error)
