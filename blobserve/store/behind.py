"""Writing behind: changes of the state are gathered, and written some time later in one go."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from blobserve.store.state import Change


class WriteBehind:
    """Writes changes `delay` seconds after the first of them; of several to one key, the last."""

    def __init__(
        self, clock: IReactorTime, delay: float, write: Callable[[list[Change]], Awaitable[None]]
    ) -> None:
        """`write` does not fail."""
        self._clock = clock
        self._delay = delay
        self._write = write
        self._pending: dict[Hashable, Change] = {}
        self._timer: IDelayedCall | None = None
        self._turn = DeferredLock()

    def put(self, key: Hashable, change: Change) -> None:
        """Have a change written."""
        self._pending[key] = change
        if self._timer is None:
            self._timer = self._clock.callLater(self._delay, self._due)

    async def flush(self) -> None:
        """Write now; returns when all that was put is written."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        # One after another, or an older change could overtake a newer one.
        await self._turn.run(self._write_pending)

    def _due(self) -> None:
        Deferred.fromCoroutine(self.flush())

    def _write_pending(self) -> Deferred[None]:
        changes, self._pending = list(self._pending.values()), {}
        return Deferred.fromCoroutine(self._write(changes))  # type: ignore[arg-type]
