"""The lazily served image of a pull, for the requests that wait for the pull.

The downloads of the pull start a little later, so that the table of contents arrives sooner.
`FirstNames` are the names that the first requests need. They are looked up before the whole index
is built.
"""

from __future__ import annotations

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime

from blobserve.concurrency.singleflight import Call
from blobserve.store.blobspace import Readable
from blobserve.store.lazy.lazy_layer import LazyLayer, LazyLease
from blobserve.store.refs.freshness import TagState

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


HEAD_START = 2.0
"""Seconds that downloads wait at most for the lazy image."""


@attrs.frozen
class LazyImage:
    """A lazily served image; `known` is the state that its reference will have."""

    layer: LazyLayer
    known: TagState

    def take(self) -> LazyLease | None:
        """Return a lease, or None if the image is READY or was found to be wrong."""
        return LazyLease(self.layer) if self.layer.is_open else None


class Availability:
    """The availability of one image that is being pulled: first some files, then all."""

    def __init__(self) -> None:
        self.known: TagState | None = None
        """The state that the reference will have, once that is known."""
        self.first_names = FirstNames()
        self._call: Call[LazyImage | None] = Call()

    async def wait(self, name: bytes | None) -> LazyImage | None:
        """Wait for the image; return None if it is not served lazily, or the pull ends first.

        A caller that needs one file gives its `name`. The returned image may then lack all others.
        """
        if name is not None:
            layer = await self.first_names.ask(name)
            if layer is not None and self.known is not None:
                return LazyImage(layer, self.known)
        return await self._call.wait()

    def settle(self, image: LazyImage | None) -> None:
        """Announce the image, or None if it is not served lazily. Later calls do nothing."""
        self.first_names.settle(None)
        self._call.succeed(image)


class AvailabilityPublisher:
    """The part of a pull that announces the lazy image; the pull calls `end`."""

    def __init__(
        self,
        known: TagState,
        availability: Availability,
        opening: Deferred[LazyLayer | None],
        clock: IReactorTime,
    ) -> None:
        self._known = availability.known = known
        self._availability = availability
        self._is_over = False
        self._clock = clock
        self._layer: LazyLayer | None = None
        self._decided: Call[None] = Call()
        opening.addCallback(self._opened)

    async def head_start(self) -> None:
        """Wait until `opening` has a result, at most `HEAD_START` seconds."""
        timeout = self._clock.callLater(HEAD_START, self._decided.succeed, None)
        try:
            await self._decided.wait()
        finally:
            if timeout.active():
                timeout.cancel()

    def replace(self, ready: Readable | None) -> None:
        """Hand over the lease of the READY image; it is released after the last lazy reader."""
        if ready is None:
            return
        if self._layer is None:
            ready.release()
        else:
            self._layer.become(ready)

    def end(self) -> None:
        """Release the layer; call it once."""
        self._is_over = True
        layer, self._layer = self._layer, None
        if layer is not None:
            layer.release()

    def _opened(self, layer: LazyLayer | None) -> None:
        if layer is not None and self._is_over:
            layer.release()
            return
        self._layer = layer
        self._availability.settle(None if layer is None else LazyImage(layer, self._known))
        self._decided.succeed(None)
