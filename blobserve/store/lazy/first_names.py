"""What is asked of an image before its index has been made: a few names, to be looked up first.

On the reactor's thread. Knows nothing of how they are found.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed

from blobserve.concurrency.singleflight import Call
from blobserve.store.lazy.lazy_layer import LazyLayer

# A table is searched for all of them in one go, in which no other thread of Python runs.
_MOST, _DEEPEST, _LONGEST = 4, 16, 1024


class FirstNames:
    """The names that are asked for by the time that a table is here, and what it says of them."""

    def __init__(self) -> None:
        self.is_met = False
        """Whether somebody has the file he asked for."""
        self._names: set[bytes] | None = set()
        self._flight: Call[LazyLayer | None] = Call()

    def ask(self, name: bytes) -> Deferred[LazyLayer | None]:
        """The layer by an index that has this name, if it is asked for in time; held by nobody."""
        names = self._names
        if names is None or name.count(b"/") > _DEEPEST or len(name) > _LONGEST:
            return succeed(None)
        if name not in names and len(names) == _MOST:
            return succeed(None)
        names.add(name)
        waiting = self._flight.wait()
        return waiting.addCallback(self._found, name)

    def _found(self, layer: LazyLayer | None, name: bytes) -> LazyLayer | None:
        if layer is None or not layer.has(name):
            return None
        self.is_met = True
        return layer

    def take(self) -> frozenset[bytes]:
        """The names; whoever comes now comes too late."""
        names, self._names = self._names, None
        return frozenset(names or ())

    def settle(self, layer: LazyLayer | None) -> None:
        """Tell all who ask what was found; who wants it takes it now. The first call counts."""
        self._names = None
        self._flight.succeed(layer)
