"""Mending: what is done about a blob in which somebody met damage.

On the reactor's thread. A damaged index is made again from the content when the blob is next asked
for, a damaged coding is forgotten, and a blob of which any other byte is lost is set aside: all
that it takes then is a pull. Knows nothing of who met the damage, or how.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from blobserve.errors import BlobDamaged, CodingDamaged, IndexDamaged
from blobserve.metrics import Metrics
from blobserve.store.blobs.blob import ReadyBlob
from blobserve.store.space.quota import BlobLru

_log = Logger()

InBackground = Callable[[Coroutine[Deferred[Any], Any, None]], object]


class Repair:
    """Sees to the damaged blobs of one shelf."""

    def __init__(
        self,
        shelf: BlobLru,
        set_aside: Callable[[ReadyBlob], Coroutine[Deferred[Any], Any, None]],
        background: InBackground,
        metrics: Metrics,
    ) -> None:
        """What `background` is given runs on, and is waited for when the blob space closes."""
        self._shelf = shelf
        self._set_aside = set_aside
        self._background = background
        self._metrics = metrics

    def report(self, kept: ReadyBlob, damage: BlobDamaged) -> None:
        """Draw the conclusion from damage that was met; once for each blob, however many meet it.

        When this returns, the blob is not given to anybody as it is.
        """
        if kept not in self._shelf or kept.is_doubted:
            return
        if isinstance(damage, CodingDamaged):
            self.count("coding", damage)
            if kept.filesystem is not None:
                kept.filesystem.codings.forget(damage.coding, damage.offset)
        elif isinstance(damage, IndexDamaged):
            self.count("index", damage)
            if kept.has_content:
                kept.is_doubted = True
            else:  # a merged index, which is made again from the indexes of its layers
                self._background(self._set_aside(kept))
        else:
            self.count("content", damage)
            self._background(self._set_aside(kept))

    def count(self, part: str, damage: BlobDamaged) -> None:
        """Tell the operator of damage."""
        self._metrics.damaged.labels(part).inc()
        _log.error("{damage}", damage=damage, part=part)
