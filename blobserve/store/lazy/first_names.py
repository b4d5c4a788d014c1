"""The names that the first requests need, which are looked up before the whole index is built.

Runs on the reactor's thread.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed

from blobserve.concurrency.singleflight import Call
from blobserve.store.lazy.lazy_layer import LazyLayer

# One search of the table looks for all of them, and holds the interpreter lock meanwhile.
_MOST, _DEEPEST, _LONGEST = 4, 16, 1024


class FirstNames:
    """The names requested before the table of contents has been read, and the layer with them."""

    def __init__(self) -> None:
        self.is_found = False
        """Whether a name was found, so that a request is served."""
        self._names: set[bytes] | None = set()
        self._call: Call[LazyLayer | None] = Call()

    def ask(self, name: bytes) -> Deferred[LazyLayer | None]:
        """Wait for a layer that has `name`; None if it has not, or the call came too late.

        The layer is not acquired for the caller.
        """
        names = self._names
        if names is None or name.count(b"/") > _DEEPEST or len(name) > _LONGEST:
            return succeed(None)
        if name not in names and len(names) == _MOST:
            return succeed(None)
        names.add(name)
        waiting = self._call.wait()
        return waiting.addCallback(self._found, name)

    def _found(self, layer: LazyLayer | None, name: bytes) -> LazyLayer | None:
        if layer is None or not layer.has(name):
            return None
        self.is_found = True
        return layer

    def take(self) -> frozenset[bytes]:
        """Return the names; later calls of `ask` return None."""
        names, self._names = self._names, None
        return frozenset(names or ())

    def settle(self, layer: LazyLayer | None) -> None:
        """Give the layer, or None, to all waiters, which acquire it now. Later calls do nothing."""
        self._names = None
        self._call.succeed(layer)
