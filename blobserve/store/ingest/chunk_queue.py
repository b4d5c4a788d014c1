"""What has come of a layer and is still to be taken; it slows down who brings more.

On the reactor's thread, but for `take`. Knows nothing of what is done with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer

from blobserve.config import KIB

CHUNK = 512 * KIB
"""Bytes that are taken at a time, or a little more."""

MOST_WAITING = 2 * CHUNK


class ChunkQueue:
    """The bytes of one layer, from one producer after another, until it `is_complete`."""

    def __init__(self, soon: Callable[[Callable[[], None]], None]) -> None:
        """`soon` has something called on the reactor's thread; from any other."""
        self.is_complete = False
        """Whether no more will come."""
        self._soon = soon
        self._chunks: deque[bytes] = deque()
        self._rest: list[bytes] = []
        self._rest_size = 0
        self._cut = self._taken = 0  # Bytes, ever; each is changed by one thread alone.
        self._producer: IPushProducer | None = None
        self._is_paused = False
        self._idle: Deferred[None] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._chunks and not self._rest

    @property
    def chunks(self) -> int:
        """How many chunks wait to be taken."""
        return len(self._chunks)

    def come_from(self, producer: IPushProducer | None) -> None:
        """Slow `producer` down from now on, and no other; None: nobody."""
        self._producer, self._is_paused = producer, False
        self._pace()

    def put(self, content: bytes) -> None:
        """Take what has come."""
        self._rest.append(content)
        self._rest_size += len(content)
        if self._rest_size >= CHUNK:
            self.cut()
        self._pace()

    def cut(self) -> None:
        """Make a chunk of what is none yet, however little that is."""
        if self._rest:
            self._chunks.append(b"".join(self._rest))
            self._cut += self._rest_size
            self._rest.clear()
            self._rest_size = 0

    def take(self) -> bytes | None:
        """Take out the next chunk, if one waits. From any thread, but one at a time."""
        if not self._chunks:
            return None
        chunk = self._chunks.popleft()
        self._taken += len(chunk)
        if self._is_paused and self._cut - self._taken <= MOST_WAITING // 2:
            self._soon(self._pace)
        return chunk

    def clear(self) -> None:
        """Drop what waits, once nobody takes any more."""
        self.cut()
        self._chunks.clear()
        self._taken = self._cut

    def wait(self) -> Deferred[None]:
        """Fires at the next `wake`."""
        self._idle = Deferred()
        return self._idle

    def wake(self) -> None:
        """Have whoever waits look again."""
        idle, self._idle = self._idle, None
        if idle is not None:
            idle.callback(None)

    def _pace(self) -> None:
        """Pause the producer when too much waits, and resume it some time later."""
        # Once more afterwards: who took what waited has not seen it paused.
        while self._producer is not None and self._is_full != self._is_paused:
            self._is_paused = not self._is_paused
            if self._is_paused:
                self._producer.pauseProducing()
            else:
                self._producer.resumeProducing()

    @property
    def _is_full(self) -> bool:
        waiting = self._rest_size + self._cut - self._taken
        return waiting > (MOST_WAITING // 2 if self._is_paused else MOST_WAITING)
