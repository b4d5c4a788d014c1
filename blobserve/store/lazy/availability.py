"""Offers: an image by its published index, to those who wait for its pull.

The pull lets the index go first, for a while: what it takes of the line would come out of that.
Knows nothing of what is in an index.
"""

from __future__ import annotations

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from blobserve.concurrency.singleflight import Call
from blobserve.store.blobspace import Readable
from blobserve.store.lazy.first_names import FirstNames
from blobserve.store.lazy.lazy_layer import LazyLayer, LazyLease
from blobserve.store.refs.freshness import TagState

HEAD_START = 2.0
"""Seconds that a download waits for the index, which so has the line for itself."""


@attrs.frozen
class LazyImage:
    """An image that can be read by its index; `known` is what its reference will stand for."""

    layer: LazyLayer
    known: TagState

    def take(self) -> LazyLease | None:
        """The right to read it; None when it is READY by now, or was found wrong."""
        return LazyLease(self.layer) if self.layer.is_open else None


class Availability:
    """What is offered of one image that is being pulled: some of its files first, then all."""

    def __init__(self) -> None:
        self.known: TagState | None = None
        """What the reference will stand for, once that is known."""
        self.glance = FirstNames()
        self._flight: Call[LazyImage | None] = Call()

    async def wait(self, name: bytes | None) -> LazyImage | None:
        """The image, as soon as it can be read; None when it cannot, or its pull is over before.

        `name`: of the one regular file that is wanted, if that is known. What is offered may have
        no other.
        """
        if name is not None:
            layer = await self.glance.ask(name)
            if layer is not None and self.known is not None:
                return LazyImage(layer, self.known)
        return await self._flight.wait()

    def settle(self, offer: LazyImage | None) -> None:
        """Offer it, or say that there will be nothing. Only the first call counts."""
        self.glance.settle(None)
        self._flight.succeed(offer)


class AvailabilityPublisher:
    """The index of one image on its way to `offers`; belongs to a pull, which ends it."""

    def __init__(
        self,
        known: TagState,
        offers: Availability,
        opening: Deferred[LazyLayer | None],
        clock: IReactorTime,
    ) -> None:
        self._known = offers.known = known
        self._offers = offers
        self._is_over = False
        self._clock = clock
        self._layer: LazyLayer | None = None
        self._go: Call[None] = Call()
        opening.addCallback(self._opened)

    async def head_start(self) -> None:
        """Wait until it is known whether there is an offer, or long enough."""
        impatience = self._clock.callLater(HEAD_START, self._go.succeed, None)
        try:
            await self._go.wait()
        finally:
            if impatience.active():
                impatience.cancel()

    def replace(self, ready: Readable | None) -> None:
        """The image is READY; `ready` is held from here on, as long as somebody reads the other."""
        if ready is None:
            return
        if self._layer is None:
            ready.release()
        else:
            self._layer.become(ready)

    def end(self) -> None:
        """Offer nothing any more; once only."""
        self._is_over = True
        layer, self._layer = self._layer, None
        if layer is not None:
            layer.release()

    def _opened(self, layer: LazyLayer | None) -> None:
        if layer is not None and self._is_over:
            layer.release()
            return
        self._layer = layer
        self._offers.settle(None if layer is None else LazyImage(layer, self._known))
        self._go.succeed(None)
