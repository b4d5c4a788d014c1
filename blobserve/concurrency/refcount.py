"""Reference counting: a resource ends when its last user releases it."""

from __future__ import annotations

from collections.abc import Callable


class RefCounted:
    """A resource with a count of its users, at first one."""

    def __init__(self, end: Callable[[], None]) -> None:
        """`end` is called once, when the count falls to zero."""
        self._end = end
        self._users = 1

    def acquire(self) -> None:
        """Add a user."""
        self._users += 1

    def release(self) -> None:
        """Remove a user; call it once for each `acquire`, and once for the first user."""
        self._users -= 1
        if not self._users:
            self._end()
