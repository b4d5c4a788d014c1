"""Images of several layers: the right to read all of them, through the tree that they make.

A tree is made where it is missing, once however many ask, from layers that are READY; it stays when
one of them goes, and is good again when that is back. Runs on the reactor's thread; each step of
the making is a job of its own for the pool that extracts layers. Fetches nothing.
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
_USES_APART = 1.0


def parts_of(layers: tuple[Digest, ...]) -> tuple[Digest, ...]:
    """All that must be READY to serve these layers: each of them once, and their tree if several.

    An image of one layer is served from that layer's own index.
    """
    tree = (tree_digest(layers),) if len(layers) > 1 else ()
    return (*dict.fromkeys(layers), *tree)


class MergedLease:
    """The right to read several layers through their tree. See `Readable`."""

    def __init__(self, tree: BlobLease, layers: list[BlobLease]) -> None:
        self.filesystem = ImageFilesystem(
            tree.filesystem.tree, [layer.filesystem.contents[0] for layer in layers]
        )
        self._tree = tree
        self._layers = layers

    def coded(self, entry: Entry, coding: bytes, is_wanted: bool = True) -> Entry | NoCoding | None:
        """See `Readable.coded`: it is made, and kept, beside the layer that has the file."""
        layer = entry.layer
        coded = self._layers[layer].coded(attrs.evolve(entry, layer=0), coding, is_wanted)
        return attrs.evolve(coded, layer=layer) if isinstance(coded, Entry) else coded

    def is_coding(self, coded: Entry, coding: bytes, plain: Entry) -> bool | None:
        """See `Readable.is_coding`: the two files may be of different layers."""
        return self._layers[coded.layer].is_coding(attrs.evolve(coded, layer=0), coding, plain)

    def report(self, damage: BlobDamaged) -> None:
        """See `Readable.report`."""
        for blob in (self._tree, *self._layers):
            if blob.has(damage.digest):
                blob.report(damage)
                return

    def release(self) -> None:
        """See `Readable.release`."""
        _release([self._tree, *self._layers])


class MergedIndexes:
    """The trees of a blob space."""

    def __init__(
        self,
        keep: ReadyBlobs,
        files: MergedIndexFiles,
        threads: Threads,
        seconds: Callable[[], float],
    ) -> None:
        self._keep = keep
        self._files = files
        self._threads = threads
        self._seconds = seconds
        self._flights: SingleFlight[Digest, None] = SingleFlight()
        self._works: set[SteppedJob] = set()
        self._closed = False

    def acquire(self, layers: tuple[Digest, ...]) -> Readable | None:
        """See `BlobSpace.acquire_image`."""
        if len(layers) == 1:
            return self._keep.acquire(layers[0])
        held: list[BlobLease] = []
        # The tree first: what is not merged yet need not be looked at layer by layer.
        tree = tree_digest(layers)
        is_use = self._is_use(tree)
        for digest in (tree, *layers):
            blob = self._keep.acquire(digest, is_use)
            if blob is None:
                _release(held)
                return None
            held.append(blob)
        return MergedLease(held[0], held[1:])

    async def mount(self, layers: tuple[Digest, ...]) -> Readable | None:
        """See `BlobSpace.mount_image`."""
        if len(layers) == 1:
            return await self._keep.mount(layers[0])
        held: list[BlobLease] = []
        try:
            for digest in layers:
                layer = await self._keep.mount(digest)
                if layer is None:
                    return None
                held.append(layer)
            tree = await self._tree(layers)
            if tree is None:
                return None
            image, held = MergedLease(tree, held), []
            return image
        finally:
            _release(held)

    async def close(self) -> None:
        """Have nothing made any more; returns when nothing is. Idempotent."""
        self._closed = True
        for work in list(self._works):
            await work.give_up(StoreClosed())

    def _is_use(self, tree: Digest) -> bool:
        """Whether a use is to be counted: to count it for each layer takes longer than all else."""
        kept, now = self._keep.lru.get(tree), self._seconds()
        if kept is None or 0 <= now - kept.counted < _USES_APART:
            return False
        kept.counted = now
        return True

    async def _tree(self, layers: tuple[Digest, ...]) -> BlobLease | None:
        """The tree of layers that are held; made if it is missing."""
        digest = tree_digest(layers)
        tree = await self._keep.mount(digest)
        if tree is None:
            making = self._flights.get(digest) or self._flights.start(
                digest, lambda _: self._make(digest, layers)
            )
            await making.wait()
            tree = await self._keep.mount(digest)
        return tree

    async def _make(self, digest: Digest, layers: tuple[Digest, ...]) -> None:
        if self._closed:
            raise StoreClosed
        held = list(filter(None, map(self._keep.acquire, dict.fromkeys(layers))))
        work = SteppedJob(digest, self._keep.allocator, self._threads)
        self._works.add(work)
        self._keep.allocator.enter(work)
        kept: ReadyMergedIndex | None = None
        try:
            await self._keep.left(digest)
            kept = await self._made(work, digest, layers)
        finally:
            self._keep.allocator.leave(work, kept.size if kept else 0)
            if kept is not None:
                self._keep.add(kept)
            _release(held)
            self._works.remove(work)
            work.ended.succeed(None)

    async def _made(
        self, work: SteppedJob, digest: Digest, layers: tuple[Digest, ...]
    ) -> ReadyMergedIndex:
        while True:
            steps = self._files.make(digest, layers, lambda: work.held, self._seconds)
            try:
                return await work.run(steps, _EXTENT)
            except OSError as error:
                if not is_full(error):
                    raise typed(error) or error from error
                if not await self._keep.allocator.relieve(_EXTENT):
                    raise DiskFull from error


def _release(blobs: Iterable[BlobLease]) -> None:
    for blob in blobs:
        blob.release()
