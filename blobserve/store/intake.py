"""What has come of a layer and is still to be taken; it slows down who brings more.

Knows nothing of what is done with it.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer

from blobserve.config import KIB

CHUNK = 512 * KIB
"""Bytes that are taken at a time."""

MOST_WAITING = 2 * CHUNK


class Intake:
    """The bytes of one layer, from one producer after another, until it `is_complete`."""

    def __init__(self) -> None:
        self.is_complete = False
        """Whether no more will come."""
        self._buffer = bytearray()
        self._producer: IPushProducer | None = None
        self._is_paused = False
        self._idle: Deferred[None] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._buffer

    @property
    def has_chunk(self) -> bool:
        """Whether as much waits as is taken at a time."""
        return len(self._buffer) >= CHUNK

    def come_from(self, producer: IPushProducer | None) -> None:
        """Slow `producer` down from now on, and no other; None: nobody."""
        self._producer, self._is_paused = producer, False
        self._pace()

    def put(self, content: bytes) -> None:
        """Take what has come."""
        self._buffer += content
        self._pace()

    def cut(self) -> bytes:
        """Take out what is to be worked on next."""
        chunk = bytes(self._buffer[:CHUNK])
        del self._buffer[:CHUNK]
        self._pace()
        return chunk

    def clear(self) -> None:
        """Drop what waits."""
        self._buffer.clear()

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
        is_full = len(self._buffer) > (CHUNK if self._is_paused else MOST_WAITING)
        if self._producer is None or is_full == self._is_paused:
            return
        self._is_paused = is_full
        if is_full:
            self._producer.pauseProducing()
        else:
            self._producer.resumeProducing()
