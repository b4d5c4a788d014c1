"""The chunks of layers that are not here: fetched together, shared, kept in memory up to a bound.

On the reactor's thread. Whoever waits for a chunk waits for it alone: the reads go on. Knows
nothing of files.
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
"""Bytes of a layer that are asked for at once, a single chunk aside."""
_LARGEST_GAP = 16 << 10  # Between two chunks: cheaper to read than to ask around.

_OVERHEAD = 512  # Bytes that a chunk takes beside its own.

_Key = tuple[object, tuple[bytes, int]]


class ChunkCache:
    """The chunks of all layers, forgotten by last use; each layer finds its own alone.

    Those that somebody is in the middle of are counted by themselves, up to the same bound.
    """

    def __init__(self, limits: Callable[[], Limits]) -> None:
        self.size = 0
        """Bytes that are kept; at most the limit ``chunkCacheSize``."""
        self.held = 0
        """Bytes that somebody is in the middle of; but for a single chunk, at most the same."""
        self._limits = limits
        self._kept: OrderedDict[_Key, bytes] = OrderedDict()
        self._holders: dict[_Key, int] = {}
        self._waiting: list[Deferred[None]] = []

    def get(self, key: _Key) -> bytes | None:
        """A chunk that is kept; counts as a use."""
        content = self._kept.get(key)
        if content is not None:
            self._kept.move_to_end(key)
        return content

    def put(self, key: _Key, content: bytes) -> None:
        """Keep a chunk, for as long as there is room."""
        if key in self._kept:
            return
        self._kept[key] = content
        self.size += _cost(content)
        while self.size > self._limits().chunk_cache_size:
            self.size -= _cost(self._kept.popitem(last=False)[1])

    def drop(self, owner: object) -> None:
        """Forget the chunks of one layer, and let those who wait look around."""
        for key in [key for key in self._kept if key[0] is owner]:
            self.size -= _cost(self._kept.pop(key))
        self._wake()

    def hold(self, key: _Key, size: int) -> bool:
        """Count a chunk that somebody begins to read, if there is room; else see `room`."""
        if key not in self._holders:
            if self.held and self.held + size > self._limits().chunk_cache_size:
                return False
            self.held += size
        self._holders[key] = self._holders.get(key, 0) + 1
        return True

    def let_go(self, key: _Key, size: int) -> None:
        """Who has held a chunk does so no longer."""
        self._holders[key] -= 1
        if not self._holders[key]:
            del self._holders[key]
            self.held -= size
            self._wake()

    def room(self) -> Deferred[None]:
        """Fires when it makes sense to try `hold` again."""
        waiter: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(waiter)
        return waiter

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        while waiting:
            waiting.pop(0).callback(None)


class Chunks:
    """The chunks of one layer. `read` gives the bytes of the layer from a place on, so many."""

    def __init__(
        self,
        digest: Digest,
        read: Callable[[int, int], Deferred[bytes]],
        threads: Threads,
        cache: ChunkCache,
    ) -> None:
        self.is_wrong = False
        """Whether the layer was found not to be what its index says."""
        self.is_over = False
        """Whether it is retired."""
        self._digest = digest
        self._read = read
        self._threads = threads
        self._cache = cache
        self._coming: dict[tuple[bytes, int], Call[bytes]] = {}
        self._running: set[Deferred[None]] = set()
        self._closed = False

    def want(self, chunks: list[Chunk]) -> None:
        """Have chunks fetched, those that lie next to each other together."""
        if self.is_over:
            return
        group: list[Chunk] = []
        end = unpacked = 0
        for chunk in chunks:
            if chunk.key in self._coming or self._cache.get((self, chunk.key)) is not None:
                continue
            if group:
                is_near = group[0].at <= chunk.at <= end + _LARGEST_GAP
                is_small = chunk.end - group[0].at <= LARGEST_READ and unpacked <= LARGEST
                if not (is_near and is_small):
                    self._begin(group)
                    group, end, unpacked = [], 0, 0
            self._coming[chunk.key] = Call()
            group.append(chunk)
            end, unpacked = max(end, chunk.end), unpacked + chunk.skip + chunk.size
        if group:
            self._begin(group)

    async def get(self, chunk: Chunk) -> bytes:
        """The bytes of a chunk, checked.

        :raises ContentMismatch: when they are not what the index says.
        :raises StoreClosed: after `close`, also when waiting by then.
        :raises BlobserveError: when they cannot be had.
        """
        if self._closed:
            raise StoreClosed
        content = self._cache.get((self, chunk.key))
        if content is not None:
            return content
        flight = self._coming.get(chunk.key)
        if flight is None:
            flight = self._coming[chunk.key] = Call()
            self._begin([chunk])
        return await flight.wait()

    async def hold(self, chunk: Chunk) -> bool:
        """Wait until somebody else may be in the middle of this chunk, to be `let_go`.

        False when it is not held: what is read from here on comes from elsewhere.
        """
        while not self.is_over:
            if self._cache.hold((self, chunk.key), chunk.size):
                return True
            await self._cache.room()
        return False

    def let_go(self, chunk: Chunk) -> None:
        """Once for each `hold`."""
        self._cache.let_go((self, chunk.key), chunk.size)

    def retire(self) -> None:
        """Keep and fetch ahead nothing any more."""
        self.is_over = True
        self._cache.drop(self)

    def close(self) -> None:
        """Fail every wait, and end every read. Idempotent."""
        self._closed = True
        self.retire()
        for flight in list(self._coming.values()):
            flight.fail(StoreClosed())
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
            # Those that have come have landed, and landing once more does nothing.
            self._coming.pop(chunk.key).fail(error)

    async def _fetch(self, group: list[Chunk]) -> None:
        try:
            contents = await self._extracted(group)
        except BadToc as wrong:
            # One bad node of a content delivery network need not be asked twice.
            _log.warn("{digest}: {wrong}; once more", digest=str(self._digest), wrong=wrong)
            try:
                contents = await self._extracted(group)
            except BadToc as error:
                self.is_wrong = True
                raise ContentMismatch(str(self._digest), str(error)) from error
        for chunk, content in zip(group, contents, strict=True):
            if not self.is_over:
                self._cache.put((self, chunk.key), content)
            self._coming[chunk.key].succeed(content)

    async def _extracted(self, group: list[Chunk]) -> list[bytes]:
        start = group[0].at
        length = max(chunk.end for chunk in group) - start
        content = await self._read(start, length)
        return await self._threads.run(extract, group, start, content)


def _cost(content: bytes) -> int:
    return len(content) + _OVERHEAD
