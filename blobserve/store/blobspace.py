"""The blob space: layers on disk by digest, each there whole or not at all, within a bound.

What is decided is decided on the reactor's thread; what blocks runs in threads. The rooms beside
this one each have a part: `ingest` how a layer comes in, `room` what goes for it, `keep` the READY
blobs, `coder` their codings, `recovery` what is found at the start, `state` what is remembered.
Knows nothing of what references mean, and of no registry.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Container, Iterator
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
from blobserve.oci.source import Document
from blobserve.store.blobs.blob import BlobLease, BlobState, Readable
from blobserve.store.blobs.blob_files import BlobFiles
from blobserve.store.blobs.merged_index_files import MergedIndexFiles
from blobserve.store.blobs.recovery import examine, survey
from blobserve.store.disk.directory import FURNITURE, SpaceDirectory
from blobserve.store.disk.files import BLOCK
from blobserve.store.disk.metadata_db import SLACK, Change, MetadataDb
from blobserve.store.disk.write_behind import StoredReferences, WriteBehind
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


class BlobSpace:
    """One blob space. See the contract, section 6."""

    def __init__(
        self,
        reactor: IReactorTime,
        rules: BlobSpaceRules,
        limits: Callable[[], Limits],
        threads: Threads,
        metrics: Metrics,
        disk: Threads | None = None,
    ) -> None:
        """Layers are extracted, and files coded, in `threads`; `disk`, if given, does the rest."""
        self._reactor = reactor
        self._rules = rules
        self._limits = limits
        self._threads = threads
        self._disk = disk = disk or threads
        self._background = background = Background(disk)
        self._location = location = SpaceDirectory(rules.location)
        self._state = state = MetadataDb(rules.location / "state")
        self._bound = bound = Quota(rules.max_size, lambda: state.size)
        self._uses = WriteBehind(reactor, _USES_DELAY, self._write)
        self._remembered = WriteBehind(reactor, _REFERENCES_DELAY, self._write)
        files = BlobFiles(location, state, limits)
        tree_files = MergedIndexFiles(location, state, limits)
        self._keep = ReadyBlobs(
            files, tree_files, disk, bound, self._uses, reactor, metrics, threads, background.do
        )
        self._keep.is_verifying = rules.verify_on_read
        self._tree_files = tree_files
        self._trees = MergedIndexes(self._keep, tree_files, threads, reactor.seconds)
        self._manifest_files = ManifestFiles(location, state, limits)
        self._manifests = Manifests(self._manifest_files, disk, self._keep.allocator, bound)
        self.references = StoredReferences(self._remembered)
        """What references stand for; to be asked once the space is open."""
        self.provenance = Provenance(self._remembered, reactor.seconds)
        """Through which repositories content was verified; loaded when the space is open."""
        self.early = EarlyFiles(metrics)
        """Files of layers that are being ingested."""
        self._unready: set[Digest] = set()
        self._ingests: set[Ingest] = set()
        self._reclaiming: LoopingCall | None = None
        self._closed = False
        metrics.size.set_function(lambda: self.size)
        metrics.bound.set_function(lambda: self.bound or 0)

    @property
    def size(self) -> int:
        """Bytes it takes, or may take at any moment."""
        return self._bound.size

    @property
    def bound(self) -> int | None:
        """Bytes it may take; None: as many as the disk gives."""
        return self._bound.limit

    async def open(self) -> None:
        """Become its owner, and take up what is there; once only.

        Returns when every blob is known to be whole. That takes long only after the state file was
        lost, for then all of them are read.

        :raises SpaceUnusable: when it cannot be used or another owner has it; nothing is held then.
        """
        try:
            await self._background.to_the_end(self._location.take)
            await self._background.to_the_end(self._state.open)
            await self._recover()
        except (OSError, sqlite3.Error) as error:
            await self.close()
            raise SpaceUnusable(str(self._rules.location), f"it cannot be read: {error}") from error
        await self.reclaim()
        await self._keep.open_recent()
        self._reclaim_regularly(now=False)

    async def close(self) -> None:
        """Give everything up but what is leased; idempotent.

        Ingests fail with `StoreClosed` and are wiped. Waits for jobs that are running, for ten
        seconds at most; what is leased stays readable until it is released.
        """
        if self._closed:
            return
        self._closed = True
        if self._reclaiming is not None:
            self._reclaiming.stop()
        for ingest in list(self._ingests):
            self._background.do(ingest.give_up(StoreClosed()))
        self._background.do(self._keep.coding_queue.close())
        self._background.do(self._trees.close())
        await Deferred.fromCoroutine(self._background.quiet()).addTimeout(_CLOSING, self._reactor)
        await self._uses.flush()
        await self._remembered.flush()
        self._keep.close()
        await self._disk.run(self._state.close)
        await self._disk.run(self._location.leave)

    def reconfigure(self, rules: BlobSpaceRules) -> None:
        """Follow other rules from now on, from the next lease on; the location stays what it is."""
        self._rules = rules
        self._keep.is_verifying = rules.verify_on_read
        self._bound.limit = rules.max_size
        if self._reclaiming is not None and not self._closed:
            self._reclaiming.stop()
            self._reclaim_regularly(now=True)

    async def is_readable(self) -> bool:
        """Whether the directory can be read; cheap."""
        return await self._disk.run(self._location.is_readable)

    def state_of(self, digest: Digest) -> BlobState:
        """What is here of a layer."""
        if self._keep.lru.get(digest) is not None:
            return BlobState.READY
        return BlobState.UNREADY if digest in self._unready else BlobState.UNKNOWN

    def acquire(self, digest: Digest) -> BlobLease | None:
        """The right to read a READY layer, at once; counts as a use.

        None when it is not READY, or READY and closed: `mount` opens it.
        """
        return self._keep.acquire(digest)

    async def mount(self, digest: Digest) -> BlobLease | None:
        """The same, opening a blob that is closed, as those are that were not used for long.

        None when it is not READY, or turns out to be damaged beyond repair: it is gone then.

        :raises ComeAgain: when it cannot be opened for now, as without descriptors.
        """
        return await self._keep.mount(digest)

    def touch_for(self, layers: tuple[Digest, ...]) -> Callable[[], None]:
        """Return a cheap callback that counts a use of the image that these layers make."""
        return self._keep.lru.touch_for(parts_of(layers))

    def is_ready(self, layers: tuple[Digest, ...]) -> bool:
        """Whether all that serving these layers takes is READY."""
        return all(self._keep.lru.get(digest) for digest in parts_of(layers))

    def acquire_image(self, layers: tuple[Digest, ...]) -> Readable | None:
        """The right to read the image that these layers make, the lowest first; see `acquire`.

        None also when their tree has not been made.
        """
        return self._trees.acquire(layers)

    async def mount_image(self, layers: tuple[Digest, ...]) -> Readable | None:
        """The same, opening what is closed, and making the tree of several layers if it is missing.

        None when a layer is not READY. Cancelling ends this wait alone.

        :raises BadImage: when the layers together go beyond a limit.
        :raises NoSpace: when there is no room for the tree.
        """
        return await self._trees.mount(layers)

    @contextmanager
    def pulling(self, image: Digest, layers: tuple[Descriptor, ...]) -> Iterator[None]:
        """Have these layers, while they come in, count as one image that must fit together.

        :raises ImageTooLarge: when they cannot, whatever is removed; later it is their ingests that
            raise this, all of them at once.
        """
        sizes = {layer.kept_as: layer.size for layer in layers}
        limit = self._bound.limit
        if limit is not None and sum(sizes.values()) > limit:
            raise ImageTooLarge(str(image), limit)
        together = self._keep.allocator.begin(
            image, frozenset(parts_of(tuple(each.kept_as for each in layers)))
        )
        try:
            yield
        finally:
            self._keep.allocator.end(together)

    async def set_aside(self, digest: Digest) -> None:
        """Remove a layer that was found damaged, also while it is read."""
        kept = self._keep.lru.get(digest)
        if kept is not None:
            await self._keep.set_aside(kept)

    async def ingest(self, descriptor: Descriptor) -> Ingest:
        """Begin to take in a layer: it is UNREADY until the ingest has finished or is abandoned.

        No layer is ingested twice at once.

        :raises ImageTooLarge: when it cannot fit, whatever is removed.
        :raises StoreClosed: after `close`.
        """
        digest, limit = descriptor.kept_as, self._bound.limit
        if digest in self._unready:
            raise RuntimeError(f"{digest} is being ingested already")
        if limit is not None and descriptor.size > limit:
            raise ImageTooLarge(str(digest), limit)
        self._unready.add(digest)
        try:
            await self._keep.wait_removed(digest)
            if self._closed:
                raise StoreClosed
        except BaseException:
            self._unready.remove(digest)
            raise
        bench = BlobWriter(
            self._location, self._state, descriptor, self._limits, self._reactor.seconds
        )
        streaming = self.early.of(digest)
        ingest = Ingest(bench, self._threads, self._keep.allocator, streaming, self._ended)
        self._ingests.add(ingest)
        ingest.start()
        return ingest

    def mark_current(self, digests: Container[Digest]) -> None:
        """Say which layers and trees tags currently serve: they are evicted after all others.

        What is in `digests` is looked at whenever something is to be evicted.
        """
        self._keep.lru.current = digests

    async def reclaim(self) -> None:
        """Make the blob space keep its bound, and remove manifests that nothing needs."""
        await self._disk.run(self._location.sweep)
        await self._keep.allocator.shrink()
        await self._manifests.reclaim(digest for _, digest, _ in self.references.all())

    async def put_manifest(self, digest: Digest, content: bytes, media_type: str) -> None:
        """Keep a manifest that has been verified, if there is room for it."""
        await self._manifests.put(Document(digest, media_type, content), self._reactor.seconds())

    async def get_manifest(self, digest: Digest) -> Document | None:
        """A manifest that was put, and verified again; None if it is not to be had here."""
        return await self._manifests.get(digest)

    async def reserve(self, size: int) -> None:
        """Count bytes that are about to be written beside a blob, evicting others for them.

        :raises NoSpace: when no more can be evicted.
        """
        await self._keep.allocator.reserve(None, size)

    async def relieve(self, size: int) -> bool:
        """Evict `size` bytes because the disk itself is full; whether anything could go."""
        return await self._keep.allocator.relieve(size)

    def release(self, size: int) -> None:
        """Stop counting reserved bytes."""
        self._bound.give(size)

    async def scratch(self) -> Scratch:
        """A directory for what is not to be kept; empty, and to be discarded."""
        directory = await self._background.to_the_end(self._location.new_ingest)
        scratch = Scratch(directory, self._threads, self.reserve, self._discard)
        try:
            await scratch.reserve(2 * BLOCK)
        except BaseException:
            await scratch.discard()
            raise
        return scratch

    async def _discard(self, directory: Path, size: int) -> None:
        await self._background.to_the_end(partial(self._location.discard, directory))
        self.release(size)

    async def _recover(self) -> None:
        found = await self._background.to_the_end(partial(survey, self._location, self._state))
        manifests = await self._background.to_the_end(self._manifest_files.survey)
        trees = await self._background.to_the_end(self._tree_files.survey)
        self.references.load(await self._background.to_the_end(self._state.references))
        self.provenance.load(await self._background.to_the_end(self._state.provenance))
        if found.doubtful:
            _log.info("verifying {n} blobs", n=len(found.doubtful))
        examined = await gatherResults(
            self._threads.run(examine, self._location, self._state, self._limits(), *each)
            for each in found.doubtful
        )
        self._bound.take(FURNITURE + SLACK)
        self._manifests.load(manifests)
        self._keep.load([*filter(None, examined), *found.whole, *trees])

    def _ended(self, ingest: Ingest) -> None:
        self._ingests.remove(ingest)
        self._unready.remove(ingest.digest)
        if ingest.kept is not None:
            self._keep.add(ingest.kept)
            ingest.streaming.hold(lambda: self._keep.acquire(ingest.digest))
            self._background.do(self._keep.make_durable(ingest.kept))

    def _reclaim_regularly(self, now: bool) -> None:
        # A new one each time: one that is started again in the middle of a pass runs twice.
        self._reclaiming = LoopingCall(lambda: self._background.do(self.reclaim()))
        self._reclaiming.clock = self._reactor
        self._reclaiming.start(self._rules.gc_interval, now)

    async def _write(self, changes: list[Change]) -> None:
        if not changes:
            return
        try:
            await self._disk.run(self._state.change, *changes)
            await self._keep.allocator.shrink()
        except (OSError, sqlite3.Error) as error:
            _log.warn("the state file cannot be written: {error}", error=error)
