"""Leases of images of several layers, read through their merged index.

A missing merged index is made from READY layers, once for all callers. It stays when a layer is
evicted, and serves again when that layer is back. Runs on the reactor's thread; each step of the
work is one job for the compute threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs

from blobserve.concurrency.singleflight import SingleFlight
from blobserve.concurrency.threads import Threads
from blobserve.config import MIB
from blobserve.errors import BlobDamaged, DiskFull, StoreClosed
from blobserve.names.digest import Digest
from blobserve.store.blobs.blob import BlobLease, Readable, ReadyMergedIndex
from blobserve.store.blobs.filesystem import ImageFilesystem
from blobserve.store.blobs.merged_index_files import MergedIndexFiles
from blobserve.store.disk.codings_file import NoCoding
from blobserve.store.disk.disk_errors import is_full, typed
from blobserve.store.index.entry import Entry
from blobserve.store.index.merged_index import tree_digest
from blobserve.store.space.ready_blobs import ReadyBlobs
from blobserve.store.space.stepped_job import SteppedJob

_EXTENT = MIB
_USE_INTERVAL = 1.0


def parts_of(layers: tuple[Digest, ...]) -> tuple[Digest, ...]:
    """Return all that must be READY to serve these layers: each layer once, and the merged index.

    An image of one layer has no merged index: it is served from that layer's own index.
    """
    index = (tree_digest(layers),) if len(layers) > 1 else ()
    return (*dict.fromkeys(layers), *index)


class MergedLease:
    """A lease of several layers and their merged index. See `Readable`."""

    def __init__(self, index: BlobLease, layers: list[BlobLease]) -> None:
        self.filesystem = ImageFilesystem(
            index.filesystem.tree, [layer.filesystem.contents[0] for layer in layers]
        )
        self._index = index
        self._layers = layers

    def coded(self, entry: Entry, coding: bytes, is_wanted: bool = True) -> Entry | NoCoding | None:
        """See `Readable.coded`; the coding is stored beside the layer that has the file."""
        layer = entry.layer
        coded = self._layers[layer].coded(attrs.evolve(entry, layer=0), coding, is_wanted)
        return attrs.evolve(coded, layer=layer) if isinstance(coded, Entry) else coded

    def is_coding(self, coded: Entry, coding: bytes, plain: Entry) -> bool | None:
        """See `Readable.is_coding`; the two files may be of different layers."""
        return self._layers[coded.layer].is_coding(attrs.evolve(coded, layer=0), coding, plain)

    def report(self, damage: BlobDamaged) -> None:
        """See `Readable.report`."""
        for blob in (self._index, *self._layers):
            if blob.has(damage.digest):
                blob.report(damage)
                return

    def release(self) -> None:
        """See `Readable.release`."""
        _release([self._index, *self._layers])


class MergedIndexes:
    """The merged indexes of a blob space."""

    def __init__(
        self,
        ready_blobs: ReadyBlobs,
        files: MergedIndexFiles,
        threads: Threads,
        seconds: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._ready_blobs = ready_blobs
        self._files = files
        self._threads = threads
        self._seconds = seconds
        self._wall = wall
        self._calls: SingleFlight[Digest, None] = SingleFlight()
        self._jobs: set[SteppedJob] = set()
        self._closed = False

    def acquire(self, layers: tuple[Digest, ...]) -> Readable | None:
        """Return a lease on the image that these layers make, the lowest first; counts as a use.

        None when a layer is not READY, or the image has to be opened or merged: see `mount`.
        """
        if len(layers) == 1:
            return self._ready_blobs.acquire(layers[0])
        leases: list[BlobLease] = []
        # The merged index first: without it, the layers need not be looked up.
        index = tree_digest(layers)
        is_use = self._is_use(index)
        for digest in (index, *layers):
            blob = self._ready_blobs.acquire(digest, is_use)
            if blob is None:
                _release(leases)
                return None
            leases.append(blob)
        return MergedLease(leases[0], leases[1:])

    async def mount(self, layers: tuple[Digest, ...]) -> Readable | None:
        """Return a lease as `acquire` does; open files, and make the merged index, if necessary.

        None when a layer is not READY. Cancelling ends this wait only.

        :raises BadImage: when the layers together exceed a limit.
        :raises NoSpace: when there is no space for the merged index.
        """
        if len(layers) == 1:
            return await self._ready_blobs.mount(layers[0])
        leases: list[BlobLease] = []
        try:
            for digest in layers:
                layer = await self._ready_blobs.mount(digest)
                if layer is None:
                    return None
                leases.append(layer)
            index = await self._index(layers)
            if index is None:
                return None
            image, leases = MergedLease(index, leases), []
            return image
        finally:
            _release(leases)

    async def close(self) -> None:
        """Stop making merged indexes; return when none is being made. Idempotent."""
        self._closed = True
        for work in list(self._jobs):
            await work.give_up(StoreClosed())

    def _is_use(self, index: Digest) -> bool:
        """Return whether to record this use; recording one for each layer is slow."""
        merged, now = self._ready_blobs.lru.get(index), self._seconds()
        if merged is None or 0 <= now - merged.counted < _USE_INTERVAL:
            return False
        merged.counted = now
        return True

    async def _index(self, layers: tuple[Digest, ...]) -> BlobLease | None:
        """Lease the merged index of layers that are leased; make it if it is missing."""
        digest = tree_digest(layers)
        index = await self._ready_blobs.mount(digest)
        if index is None:
            call = self._calls.get(digest) or self._calls.start(
                digest, lambda _: self._make(digest, layers)
            )
            await call.wait()
            index = await self._ready_blobs.mount(digest)
        return index

    async def _make(self, digest: Digest, layers: tuple[Digest, ...]) -> None:
        if self._closed:
            raise StoreClosed
        leases = list(filter(None, map(self._ready_blobs.acquire, dict.fromkeys(layers))))
        work = SteppedJob(digest, self._ready_blobs.allocator, self._threads)
        self._jobs.add(work)
        self._ready_blobs.allocator.enter(work)
        merged: ReadyMergedIndex | None = None
        try:
            await self._ready_blobs.wait_removed(digest)
            merged = await self._made(work, digest, layers)
        finally:
            self._ready_blobs.allocator.leave(work, merged.size if merged else 0)
            if merged is not None:
                self._ready_blobs.add(merged)
            _release(leases)
            self._jobs.remove(work)
            work.ended.succeed(None)

    async def _made(
        self, work: SteppedJob, digest: Digest, layers: tuple[Digest, ...]
    ) -> ReadyMergedIndex:
        while True:
            steps = self._files.make(digest, layers, lambda: work.held, self._wall)
            try:
                return await work.run(steps, _EXTENT)
            except OSError as error:
                if not is_full(error):
                    raise typed(error) or error from error
                if not await self._ready_blobs.allocator.relieve(_EXTENT):
                    raise DiskFull from error


def _release(blobs: Iterable[BlobLease]) -> None:
    for blob in blobs:
        blob.release()
