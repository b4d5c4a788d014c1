"""What is asked of an image before its index has been made: a few names, to be looked up first.

On the reactor's thread. Knows nothing of how they are found.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred, succeed

from blobserve.store.flight import Flight
from blobserve.store.published.layer import PublishedLayer

_MOST = 16


class Glance:
    """The names that are asked for by the time that a table is here, and what it says of them."""

    def __init__(self) -> None:
        self.is_met = False
        """Whether somebody has the file he asked for."""
        self._names: set[bytes] | None = set()
        self._flight: Flight[PublishedLayer | None] = Flight()

    def ask(self, name: bytes) -> Deferred[PublishedLayer | None]:
        """The layer by an index that has this name, if it is asked for in time; held by nobody."""
        if self._names is None or (name not in self._names and len(self._names) >= _MOST):
            return succeed(None)
        self._names.add(name)
        waiting = self._flight.wait()
        return waiting.addCallback(self._found, name)

    def _found(self, layer: PublishedLayer | None, name: bytes) -> PublishedLayer | None:
        if layer is None or not layer.has(name):
            return None
        self.is_met = True
        return layer

    def take(self) -> frozenset[bytes]:
        """The names; whoever comes now comes too late."""
        names, self._names = self._names, None
        return frozenset(names or ())

    def land(self, layer: PublishedLayer | None) -> None:
        """Tell all who ask what was found; who wants it takes it now. The first call counts."""
        self._names = None
        self._flight.land(layer)
