"""Lazy indexes: reading the tables of contents of layers that are being pulled.

Runs on the reactor's thread. Errors are logged and counted, and the normal pull continues.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredList, DeferredSemaphore
from twisted.logger import Logger
from twisted.python.failure import Failure

from blobserve.concurrency.steps import drive
from blobserve.config import Limits
from blobserve.errors import BadToc, BlobDamaged, BlobserveError, StoreClosed
from blobserve.metrics import Metrics
from blobserve.names.reference import Repository
from blobserve.oci.manifest import Descriptor
from blobserve.oci.source import Source
from blobserve.store.blobspace import BlobSpace
from blobserve.store.lazy.availability import FirstNames
from blobserve.store.lazy.chunk_cache import ChunkCache, Chunks
from blobserve.store.lazy.lazy_index import LazyIndex
from blobserve.store.lazy.lazy_layer import LazyLayer
from blobserve.store.lazy.toc.location import TocDescriptor, TocLocation
from blobserve.store.space.scratch import Scratch

if TYPE_CHECKING:
    from blobserve.store.lazy.toc.index_builder import EntrySource

_log = Logger()

TAIL = 64 << 10
"""Bytes at the end of an eStargz layer that are read first: often they contain the whole table."""
_EXTENT = 1 << 20
_OPENED_AT_ONCE = 4  # A compressed table is in memory while its index is built.

T = TypeVar("T")

_Read = Callable[[int, int], Deferred[bytes]]


class LazyIndexes:
    """All layers that are served lazily, or are about to be."""

    def __init__(self, space: BlobSpace, metrics: Metrics, limits: Callable[[], Limits]) -> None:
        self._space = space
        self._metrics = metrics
        self._limits = limits
        self._cache = ChunkCache(limits)
        self._reads = DeferredSemaphore(limits().parallel_chunk_reads)
        self._turns = DeferredSemaphore(_OPENED_AT_ONCE)
        self._layers: set[LazyLayer] = set()
        self._reading: set[Deferred[bytes]] = set()
        self._running: set[Deferred[Any]] = set()
        self._closed = False

    def open(
        self, source: Source, repository: Repository, layer: Descriptor, first_names: FirstNames
    ) -> Deferred[LazyLayer | None]:
        """Open a layer for lazy serving, or return None; the caller releases the layer.

        Waiters of `first_names` get their layer before the whole index is built. The Deferred never
        fails, must not be cancelled, and fires soon after `close`.
        """
        return self._run(self._open(source, repository, layer, first_names))

    async def close(self) -> None:
        """Fail all readers with `StoreClosed`, and cancel all reads of sources. Idempotent."""
        self._closed = True
        for layer in list(self._layers):
            layer.chunks.close()
        for reading in list(self._reading):
            reading.cancel()
        await DeferredList(list(self._running))

    def _run(self, work: Coroutine[Deferred[Any], Any, T]) -> Deferred[T]:
        """Run a coroutine that `close` waits for."""
        running = Deferred.fromCoroutine(work)
        if not running.called:
            ended: Deferred[None] = Deferred()
            self._running.add(ended)

            def end(outcome: T) -> T:
                self._running.discard(ended)
                ended.callback(None)
                return outcome

            running.addBoth(end)
        return running

    async def _open(
        self, source: Source, repository: Repository, layer: Descriptor, first_names: FirstNames
    ) -> LazyLayer | None:
        """Open a layer, acquired once; log and count errors, and return None then."""
        try:
            promise = TocDescriptor.of(layer, self._limits())
            if promise is None:
                return None
            read = partial(self._read, source, repository, layer)
            opened = await self._turns.run(self._made, promise, layer, read, first_names)
        except (BadToc, BlobserveError, OSError, sqlite3.Error, CancelledError) as error:
            if not self._closed:
                is_bad = isinstance(error, BadToc)
                self._metrics.published_indexes.labels("refused" if is_bad else "failed").inc()
                _log.warn(
                    "the table of contents of {digest} is not used: {error}",
                    digest=str(layer.digest),
                    error=error,
                )
            return None
        if not first_names.is_found:
            self._metrics.published_indexes.labels("used").inc()
        return opened

    def _read(
        self, source: Source, repository: Repository, layer: Descriptor, start: int, length: int
    ) -> Deferred[bytes]:
        """Read bytes of a layer; downloads do not count towards the limit on these reads."""

        async def read() -> bytes:
            self._check_open()
            return await source.read(repository, layer, start, length)

        reading = self._reads.run(lambda: Deferred.fromCoroutine(read()))
        self._reading.add(reading)

        def end(outcome: bytes | Failure) -> bytes | Failure:
            self._reading.discard(reading)
            if not isinstance(outcome, Failure):
                self._metrics.chunk_bytes.inc(length)
            return outcome

        return reading.addBoth(end)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosed

    async def _made(
        self, promise: TocDescriptor, layer: Descriptor, read: _Read, first_names: FirstNames
    ) -> LazyLayer:
        self._check_open()
        place, tail, tail_start = promise.place, b"", layer.size
        if place is None:
            tail_start = max(0, layer.size - TAIL)
            tail = await read(tail_start, layer.size - tail_start)
            place = promise.found(tail, layer, self._limits())
        # Imported late, like `build_index`: most layers have no table.
        from blobserve.store.lazy.toc.search import TocSearch
        from blobserve.store.lazy.toc.stream import WholeToc

        packed = await self._packed(place, tail, tail_start, read)
        if names := first_names.take():
            # An error shows again below, when the whole table is read.
            with suppress(BadToc, BlobserveError, OSError, sqlite3.Error):
                source = partial(TocSearch, place, packed, names, self._limits())
                first = await self._indexed(source, layer, read)
                first_names.settle(first)
                first.release()
            if first_names.is_found:
                self._metrics.published_indexes.labels("used").inc()
        first_names.settle(None)
        return await self._indexed(partial(WholeToc, place, packed, self._limits()), layer, read)

    async def _indexed(
        self, source: Callable[[], EntrySource], layer: Descriptor, read: _Read
    ) -> LazyLayer:
        """Build the index of a layer from `source`; return the layer, acquired once."""
        scratch = await self._space.scratch()
        try:
            index = await self._built(scratch, layer, source)
        except BaseException:
            await scratch.discard()
            raise
        chunks = Chunks(layer.digest, read, scratch.threads, self._cache)
        opened = LazyLayer(index, chunks, scratch, self._layers.discard)
        self._layers.add(opened)
        return opened

    async def _packed(self, place: TocLocation, tail: bytes, tail_start: int, read: _Read) -> bytes:
        """Read the compressed table; `tail` may already contain some of it."""
        end = place.start + place.length
        known = tail[max(0, place.start - tail_start) : end - tail_start] if tail else b""
        missing = place.length - len(known)
        return (await read(place.start, missing) if missing else b"") + known

    async def _built(
        self, scratch: Scratch, layer: Descriptor, source: Callable[[], EntrySource]
    ) -> LazyIndex:
        from blobserve.store.lazy.toc.index_builder import build_index

        run, limits = scratch.threads.run, self._limits
        steps = build_index(scratch.directory, source, limits(), lambda: scratch.size)

        async def step(f: Callable[[], T]) -> T:
            outcome = await run(f)
            self._check_open()
            return outcome

        try:
            await drive(steps, step, lambda lacking: scratch.reserve(max(lacking, _EXTENT)))
        finally:
            await run(steps.close)
        try:
            return await run(LazyIndex.open, scratch.directory, layer.digest, limits)
        except BlobDamaged as error:
            raise BadToc(str(error)) from error
