"""A queue of received bytes of a layer, which pauses their producer when it is full.

All methods run on the reactor's thread, except `take`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer

from blobserve.config import KIB

CHUNK = 512 * KIB
"""The least bytes of a full chunk."""

MOST_WAITING = 2 * CHUNK
"""Bytes that may wait before the producer is paused."""


class ChunkQueue:
    """The received bytes of one layer, which may come from several producers in turn."""

    def __init__(self, soon: Callable[[Callable[[], None]], None]) -> None:
        """`soon` schedules a call on the reactor's thread, and may be called from any thread."""
        self.is_complete = False
        """Whether the last byte was received."""
        self._soon = soon
        self._chunks: deque[bytes] = deque()
        self._partial: list[bytes] = []
        self._partial_size = 0
        self._cut = self._taken = 0  # Total bytes; each is changed by one thread only.
        self._producer: IPushProducer | None = None
        self._is_paused = False
        self._idle: Deferred[None] | None = None

    @property
    def is_empty(self) -> bool:
        """Return whether no bytes wait."""
        return not self._chunks and not self._partial

    @property
    def chunks(self) -> int:
        """Return the number of chunks that wait."""
        return len(self._chunks)

    def come_from(self, producer: IPushProducer | None) -> None:
        """Pause and resume `producer` from now on; None when there is none."""
        self._producer, self._is_paused = producer, False
        self._pace()

    def put(self, content: bytes) -> None:
        """Add received bytes."""
        self._partial.append(content)
        self._partial_size += len(content)
        if self._partial_size >= CHUNK:
            self.cut()
        self._pace()

    def cut(self) -> None:
        """Make a chunk of the bytes that do not fill one yet."""
        if self._partial:
            self._chunks.append(b"".join(self._partial))
            self._cut += self._partial_size
            self._partial.clear()
            self._partial_size = 0

    def take(self) -> bytes | None:
        """Remove and return the next chunk, if any. For any thread, one at a time."""
        if not self._chunks:
            return None
        chunk = self._chunks.popleft()
        self._taken += len(chunk)
        if self._is_paused and self._cut - self._taken <= MOST_WAITING // 2:
            self._soon(self._pace)
        return chunk

    def clear(self) -> None:
        """Drop all bytes; no thread may call `take` meanwhile."""
        self.cut()
        self._chunks.clear()
        self._taken = self._cut

    def wait(self) -> Deferred[None]:
        """Return a Deferred that fires at the next `wake`."""
        self._idle = Deferred()
        return self._idle

    def wake(self) -> None:
        """Fire the Deferred of `wait`, if there is one."""
        idle, self._idle = self._idle, None
        if idle is not None:
            idle.callback(None)

    def _pace(self) -> None:
        """Pause or resume the producer, as the queue is full or not."""
        # Checked again after a pause: a thread may have emptied the queue before it saw the pause.
        while self._producer is not None and self._is_full != self._is_paused:
            self._is_paused = not self._is_paused
            if self._is_paused:
                self._producer.pauseProducing()
            else:
                self._producer.resumeProducing()

    @property
    def _is_full(self) -> bool:
        waiting = self._partial_size + self._cut - self._taken
        return waiting > (MOST_WAITING // 2 if self._is_paused else MOST_WAITING)
