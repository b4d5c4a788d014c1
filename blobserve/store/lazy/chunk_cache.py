"""The chunks of lazily served layers: fetched in groups, shared, and cached in memory.

Runs on the reactor's thread. A caller that stops waiting for a chunk does not end its fetch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from blobserve.concurrency.singleflight import Call, reason_of
from blobserve.concurrency.threads import Threads
from blobserve.config import Limits
from blobserve.errors import BadToc, ContentMismatch, StoreClosed
from blobserve.names.digest import Digest
from blobserve.store.lazy.toc.chunk import LARGEST, Chunk, extract

_log = Logger()

LARGEST_READ = 4 << 20
"""Bytes of a layer that one read fetches at most; a single chunk may be larger."""
_LARGEST_GAP = 16 << 10  # Reading this gap between two chunks is cheaper than a second request.

_OVERHEAD = 512  # Bytes of memory that a chunk takes beside its content.

_Key = tuple[object, tuple[bytes, int]]


class ChunkCache:
    """An LRU cache of chunks for all layers; a layer finds only its own chunks.

    Chunks that readers hold are counted separately, with the same limit.
    """

    def __init__(self, limits: Callable[[], Limits]) -> None:
        self.size = 0
        """Bytes in the cache; at most the limit ``chunkCacheSize``."""
        self.held = 0
        """Bytes that readers hold; at most the same limit, except for a single chunk."""
        self._limits = limits
        self._cached: OrderedDict[_Key, bytes] = OrderedDict()
        self._holders: dict[_Key, int] = {}
        self._waiting: list[Deferred[None]] = []

    def get(self, key: _Key) -> bytes | None:
        """Return a cached chunk, and mark it as used."""
        content = self._cached.get(key)
        if content is not None:
            self._cached.move_to_end(key)
        return content

    def put(self, key: _Key, content: bytes) -> None:
        """Cache a chunk, and evict old ones beyond the limit."""
        if key in self._cached:
            return
        self._cached[key] = content
        self.size += _cost(content)
        while self.size > self._limits().chunk_cache_size:
            self.size -= _cost(self._cached.popitem(last=False)[1])

    def drop(self, owner: object) -> None:
        """Remove the chunks of one layer, and wake waiters."""
        for key in [key for key in self._cached if key[0] is owner]:
            self.size -= _cost(self._cached.pop(key))
        self._wake()

    def hold(self, key: _Key, size: int) -> bool:
        """Hold a chunk for a reader; return False if the limit is reached, then see `room`."""
        if key not in self._holders:
            if self.held and self.held + size > self._limits().chunk_cache_size:
                return False
            self.held += size
        self._holders[key] = self._holders.get(key, 0) + 1
        return True

    def let_go(self, key: _Key, size: int) -> None:
        """End one `hold` of a chunk."""
        self._holders[key] -= 1
        if not self._holders[key]:
            del self._holders[key]
            self.held -= size
            self._wake()

    def room(self) -> Deferred[None]:
        """Return a Deferred that fires when `hold` should be tried again."""
        waiter: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(waiter)
        return waiter

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        while waiting:
            waiting.pop(0).callback(None)


class Chunks:
    """The chunks of one layer; `read(start, length)` returns bytes of the layer."""

    def __init__(
        self,
        digest: Digest,
        read: Callable[[int, int], Deferred[bytes]],
        threads: Threads,
        cache: ChunkCache,
    ) -> None:
        self.is_wrong = False
        """Whether the layer was found to differ from its table of contents."""
        self.is_over = False
        """Whether it is retired."""
        self._digest = digest
        self._read = read
        self._threads = threads
        self._cache = cache
        self._calls: dict[tuple[bytes, int], Call[bytes]] = {}
        self._running: set[Deferred[None]] = set()
        self._closed = False

    def want(self, chunks: list[Chunk]) -> None:
        """Start to fetch chunks; neighbours are fetched together."""
        if self.is_over:
            return
        group: list[Chunk] = []
        end = unpacked = 0
        for chunk in chunks:
            if chunk.key in self._calls or self._cache.get((self, chunk.key)) is not None:
                continue
            if group:
                is_near = group[0].at <= chunk.at <= end + _LARGEST_GAP
                is_small = chunk.end - group[0].at <= LARGEST_READ and unpacked <= LARGEST
                if not (is_near and is_small):
                    self._begin(group)
                    group, end, unpacked = [], 0, 0
            self._calls[chunk.key] = Call()
            group.append(chunk)
            end, unpacked = max(end, chunk.end), unpacked + chunk.skip + chunk.size
        if group:
            self._begin(group)

    async def get(self, chunk: Chunk) -> bytes:
        """Return the verified bytes of a chunk.

        :raises ContentMismatch: when they do not match the table of contents.
        :raises StoreClosed: after `close`, also while waiting.
        :raises BlobserveError: when they cannot be fetched.
        """
        if self._closed:
            raise StoreClosed
        content = self._cache.get((self, chunk.key))
        if content is not None:
            return content
        call = self._calls.get(chunk.key)
        if call is None:
            call = self._calls[chunk.key] = Call()
            self._begin([chunk])
        return await call.wait()

    async def hold(self, chunk: Chunk) -> bool:
        """Wait until this chunk can be held; the caller ends it with `let_go`.

        Returns False, and holds nothing, once the chunks are retired.
        """
        while not self.is_over:
            if self._cache.hold((self, chunk.key), chunk.size):
                return True
            await self._cache.room()
        return False

    def let_go(self, chunk: Chunk) -> None:
        """End one `hold`."""
        self._cache.let_go((self, chunk.key), chunk.size)

    def retire(self) -> None:
        """Empty the cache of this layer; nothing is cached or fetched ahead from now on."""
        self.is_over = True
        self._cache.drop(self)

    def close(self) -> None:
        """Fail all waiters with `StoreClosed`, and cancel all reads. Idempotent."""
        self._closed = True
        self.retire()
        for call in list(self._calls.values()):
            call.fail(StoreClosed())
        for running in list(self._running):
            running.cancel()

    def _begin(self, group: list[Chunk]) -> None:
        running = Deferred.fromCoroutine(self._fetch(group))
        if not running.called:
            self._running.add(running)
        running.addBoth(self._ended, running, group)

    def _ended(self, outcome: Failure | None, running: Deferred[None], group: list[Chunk]) -> None:
        self._running.discard(running)
        error = StoreClosed() if outcome is None else reason_of(outcome)
        if self._closed:
            error = StoreClosed()
        for chunk in group:
            # Chunks that were fetched have succeeded, and failing them does nothing.
            self._calls.pop(chunk.key).fail(error)

    async def _fetch(self, group: list[Chunk]) -> None:
        try:
            contents = await self._extracted(group)
        except BadToc as wrong:
            # A second request may reach another node of a content delivery network.
            _log.warn(
                "{digest}: {wrong}; reading it once more", digest=str(self._digest), wrong=wrong
            )
            try:
                contents = await self._extracted(group)
            except BadToc as error:
                self.is_wrong = True
                raise ContentMismatch(str(self._digest), str(error)) from error
        for chunk, content in zip(group, contents, strict=True):
            if not self.is_over:
                self._cache.put((self, chunk.key), content)
            self._calls[chunk.key].succeed(content)

    async def _extracted(self, group: list[Chunk]) -> list[bytes]:
        start = group[0].at
        length = max(chunk.end for chunk in group) - start
        content = await self._read(start, length)
        return await self._threads.run(extract, group, start, content)


def _cost(content: bytes) -> int:
    return len(content) + _OVERHEAD
