"""What one thread hands to another, in order: as much as may well wait in memory.

Neither waits for the other but while he is there: a job that has begun ends some time, and one that
waits for a thread of its own may wait for this very one. Knows nothing of what is handed over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition

_MOST = 1 << 20
_ENOUGH = _MOST // 2


class ThreadPipe:
    """Pieces of bytes between two threads: one of them gives, the other takes."""

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._changed = Condition()
        self._is_given = self._is_taken = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be taken."""
        return not self._pieces

    @contextmanager
    def giving(self) -> Iterator[None]:
        """Somebody is there who gives."""
        self._is_given = True
        try:
            yield
        finally:
            with self._changed:
                self._is_given = False
                self._changed.notify()

    def put(self, piece: bytes) -> bool:
        """Hand over a piece, and wait until there is room for another.

        False when there is none, and nobody there who would make some.
        """
        with self._changed:
            self._pieces.append(piece)
            self._size += len(piece)
            self._changed.notify()
            while self._size >= _MOST and self._is_taken:
                self._changed.wait()
            return self._size < _MOST

    @contextmanager
    def taking(self) -> Iterator[None]:
        """Somebody is there who takes."""
        self._is_taken = True
        try:
            yield
        finally:
            with self._changed:
                self._is_taken = False
                self._changed.notify()

    def clear(self) -> None:
        """Drop what waits."""
        with self._changed:
            self._pieces.clear()
            self._size = 0
            self._changed.notify()

    def pieces(self) -> Iterator[bytes]:
        """What is handed over, each piece when it is there, until nobody gives any more."""
        while True:
            with self._changed:
                while not self._pieces and self._is_given:
                    self._changed.wait()
                if not self._pieces:
                    return
                piece = self._pieces.popleft()
                self._size -= len(piece)
                if self._size < _ENOUGH:
                    self._changed.notify()
            yield piece
