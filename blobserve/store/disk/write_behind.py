"""Changes of the metadata database, collected and written a little later.

`StoredReferences` holds the digest of each reference in memory, and writes it the same way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from blobserve.names.digest import Digest
from blobserve.store.disk.metadata_db import Change, forgotten, remembered

MOST_REFERENCES = 10_000
"""References that are stored; beyond that, the one stored longest ago is dropped."""


class WriteBehind:
    """Writes changes `delay` seconds after the first of them; for each key only the last."""

    def __init__(
        self, clock: IReactorTime, delay: float, write: Callable[[list[Change]], Awaitable[None]]
    ) -> None:
        """`write` must not fail."""
        self._clock = clock
        self._delay = delay
        self._write = write
        self._pending: dict[Hashable, Change] = {}
        self._timer: IDelayedCall | None = None
        self._turn = DeferredLock()

    def put(self, key: Hashable, change: Change) -> None:
        """Schedule a change."""
        self._pending[key] = change
        if self._timer is None:
            self._timer = self._clock.callLater(self._delay, self._due)

    async def flush(self) -> None:
        """Write now; return when all scheduled changes are written."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        # One at a time, or an older change could overwrite a newer one.
        await self._turn.run(self._write_pending)

    def _due(self) -> None:
        Deferred.fromCoroutine(self.flush())

    def _write_pending(self) -> Deferred[None]:
        changes, self._pending = list(self._pending.values()), {}
        return Deferred.fromCoroutine(self._write(changes))  # type: ignore[arg-type]


class StoredReferences:
    """The references that a blob space stores; they outlive the blobs of their images."""

    def __init__(self, behind: WriteBehind) -> None:
        self._behind = behind
        self._known: dict[str, tuple[Digest, float]] = {}

    def load(self, rows: Iterable[tuple[str, Digest, float]]) -> None:
        """Load the stored references; `rows` are ordered, the longest unchecked first."""
        self._known = {reference: (digest, checked) for reference, digest, checked in rows}

    def remember(self, reference: str, digest: Digest, checked: float) -> None:
        """Store the digest of `reference`, and when it was last checked."""
        self._known.pop(reference, None)
        self._known[reference] = (digest, checked)
        self._behind.put(reference, remembered(reference, digest, checked))
        if len(self._known) > MOST_REFERENCES:
            self.forget(next(iter(self._known)))

    def forget(self, reference: str) -> None:
        """Drop `reference`; do nothing if it is not stored."""
        if self._known.pop(reference, None) is not None:
            self._behind.put(reference, forgotten(reference))

    def all(self) -> list[tuple[str, Digest, float]]:
        """Return each reference, its digest and its last check, the longest unchecked first."""
        return [(reference, *known) for reference, known in self._known.items()]
