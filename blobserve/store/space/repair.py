"""Repair of blobs that turned out to be damaged.

A damaged index is rebuilt from the content when the blob is next requested. A damaged coding is
dropped. A blob with any other damage is set aside and pulled again. Runs on the reactor's thread.
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
    """Handles damage in the blobs of one `BlobLru`."""

    def __init__(
        self,
        lru: BlobLru,
        set_aside: Callable[[ReadyBlob], Coroutine[Deferred[Any], Any, None]],
        background: InBackground,
        metrics: Metrics,
    ) -> None:
        """`background` starts a coroutine that only the closing of the blob space waits for."""
        self._lru = lru
        self._set_aside = set_aside
        self._background = background
        self._metrics = metrics

    def report(self, blob: ReadyBlob, damage: BlobDamaged) -> None:
        """Handle damage that a reader met; a blob that is already handled is left alone.

        After this returns, the blob is not leased again in its damaged state.
        """
        if blob not in self._lru or blob.is_doubted:
            return
        if isinstance(damage, CodingDamaged):
            self.count("coding", damage)
            if blob.filesystem is not None:
                blob.filesystem.codings.forget(damage.coding, damage.offset)
        elif isinstance(damage, IndexDamaged):
            self.count("index", damage)
            if blob.has_content:
                blob.is_doubted = True
            else:  # a merged index, which is made again from the indexes of its layers
                self._background(self._set_aside(blob))
        else:
            self.count("content", damage)
            self._background(self._set_aside(blob))

    def count(self, part: str, damage: BlobDamaged) -> None:
        """Count damage in the metrics and write it to the log."""
        self._metrics.damaged.labels(part).inc()
        _log.error("{damage}", damage=damage, part=part)
