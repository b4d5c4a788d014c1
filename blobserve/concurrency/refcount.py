"""What several need, each for a while of its own: it ends when the last of them leaves."""

from __future__ import annotations

from collections.abc import Callable


class RefCounted:
    """A count of those who need something, at first one."""

    def __init__(self, end: Callable[[], None]) -> None:
        """`end` is called once, when nobody needs it any more."""
        self._end = end
        self._needed_by = 1

    def acquire(self) -> None:
        """One more needs it."""
        self._needed_by += 1

    def release(self) -> None:
        """One who needed it does so no longer."""
        self._needed_by -= 1
        if not self._needed_by:
            self._end()
