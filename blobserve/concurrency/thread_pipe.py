"""A bounded pipe of bytes between two threads.

Each side blocks only while the other is running. If the other is still queued it may be waiting for
this very thread, and blocking would deadlock the pool.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition

_MOST = 1 << 20
_ENOUGH = _MOST // 2


class ThreadPipe:
    """Pieces of bytes from one producing thread to one consuming thread."""

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._changed = Condition()
        self._has_producer = self._has_consumer = False

    @property
    def is_empty(self) -> bool:
        """Return whether no piece waits."""
        return not self._pieces

    @contextmanager
    def giving(self) -> Iterator[None]:
        """Mark the producer as running."""
        self._has_producer = True
        try:
            yield
        finally:
            with self._changed:
                self._has_producer = False
                self._changed.notify()

    def put(self, piece: bytes) -> bool:
        """Add a piece; while the pipe is full and the consumer is running, wait.

        Return whether the pipe can take another piece.
        """
        with self._changed:
            self._pieces.append(piece)
            self._size += len(piece)
            self._changed.notify()
            while self._size >= _MOST and self._has_consumer:
                self._changed.wait()
            return self._size < _MOST

    @contextmanager
    def taking(self) -> Iterator[None]:
        """Mark the consumer as running."""
        self._has_consumer = True
        try:
            yield
        finally:
            with self._changed:
                self._has_consumer = False
                self._changed.notify()

    def clear(self) -> None:
        """Drop all pieces."""
        with self._changed:
            self._pieces.clear()
            self._size = 0
            self._changed.notify()

    def pieces(self) -> Iterator[bytes]:
        """Yield each piece as it arrives, until the pipe is empty and the producer has ended."""
        while True:
            with self._changed:
                while not self._pieces and self._has_producer:
                    self._changed.wait()
                if not self._pieces:
                    return
                piece = self._pieces.popleft()
                self._size -= len(piece)
                if self._size < _ENOUGH:
                    self._changed.notify()
            yield piece
