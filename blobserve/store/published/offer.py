"""Offers: an image by its published index, to those who wait for its pull.

The pull lets the index go first, for a while: what it takes of the line would come out of that.
Knows nothing of what is in an index.
"""

from __future__ import annotations

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from blobserve.store.blobspace import Readable
from blobserve.store.flight import Flight
from blobserve.store.freshness import Known
from blobserve.store.published.indexes import PublishedIndexes
from blobserve.store.published.layer import PublishedLayer, PublishedReadable

HEAD_START = 2.0
"""Seconds that a download waits for the index, which so has the line for itself."""


@attrs.frozen
class Offer:
    """An image that can be read by its index; `known` is what its reference will stand for."""

    layer: PublishedLayer
    known: Known

    def take(self) -> PublishedReadable | None:
        """The right to read it; None when it is READY by now, or was found wrong."""
        return PublishedReadable(self.layer) if self.layer.is_open else None


class Offering:
    """The index of one image on its way to `flight`; belongs to a pull, which ends it."""

    def __init__(
        self,
        known: Known,
        flight: Flight[Offer | None],
        opening: Deferred[PublishedLayer | None],
        indexes: PublishedIndexes,
        clock: IReactorTime,
    ) -> None:
        self._known = known
        self._flight = flight
        self._is_over = False
        self._indexes = indexes
        self._clock = clock
        self._layer: PublishedLayer | None = None
        self._go: Flight[None] = Flight()
        opening.addCallback(self._opened)

    async def head_start(self) -> bool:
        """Wait until it is known whether there is an offer, or long enough; whether there is."""
        impatience = self._clock.callLater(HEAD_START, self._go.land, None)
        try:
            await self._go.wait()
        finally:
            if impatience.active():
                impatience.cancel()
        return self._layer is not None

    def replace(self, ready: Readable | None) -> None:
        """The image is READY; `ready` is held from here on, as long as somebody reads the other."""
        if ready is None:
            return
        if self._layer is None:
            ready.release()
        else:
            self._indexes.replace(self._layer, ready)

    def end(self) -> None:
        """Offer nothing any more; once only."""
        self._is_over = True
        layer, self._layer = self._layer, None
        if layer is not None:
            layer.leave()

    def _opened(self, layer: PublishedLayer | None) -> None:
        if layer is not None and self._is_over:
            layer.leave()
            return
        self._layer = layer
        self._flight.land(None if layer is None else Offer(layer, self._known))
        self._go.land(None)
