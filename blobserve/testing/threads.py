"""A fake of `Threads`."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from twisted.internet.defer import Deferred, execute

P = ParamSpec("P")
T = TypeVar("T")


class InlineThreads:
    """`Threads` that run each job at once, in the caller's thread."""

    def run(self, f: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """See `Threads.run`; the Deferred has fired already."""
        return execute(f, *args, **kwargs)

    def soon(self, f: Callable[[], None]) -> None:
        """See `Threads.soon`; it is called at once."""
        f()
