"""Stalls: when a body has been silent, or slower than anybody would wait for, for too long.

Knows a clock and numbers of bytes. While whoever takes the bytes has paused us, no time passes.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime


class StallWatch:
    """Calls `stalled` once with the reason, unless bytes keep coming. Begins stopped.

    :param silence: seconds without a byte that are too many; also the time over which at least
        `rate` bytes per second must come.
    """

    def __init__(
        self, clock: IReactorTime, silence: float, rate: int, stalled: Callable[[str], None]
    ) -> None:
        self._clock = clock
        self._silence = silence
        self._rate = rate
        self._stalled = stalled
        self._timer: IDelayedCall | None = None
        self._begun = 0.0
        self._active = 0.0
        self._bytes = 0

    def start(self) -> None:
        """Bytes are expected from now. Does nothing if they already are."""
        if self._timer is None:
            self._begun = self._clock.seconds()
            self._timer = self._clock.callLater(self._silence, self._silent)

    def stop(self) -> None:
        """No bytes are expected. Does nothing if none are."""
        if self._timer is not None:
            self._active += self._clock.seconds() - self._begun
            self._timer.cancel()
            self._timer = None

    def saw(self, size: int) -> None:
        """`size` bytes came."""
        self._bytes += size
        if self._timer is None:  # a last chunk that was on its way when we paused
            return
        self._timer.reset(self._silence)
        now = self._clock.seconds()
        active = self._active + now - self._begun
        if active < self._silence:
            return
        is_slow = self._bytes < self._rate * active
        self._begun, self._active, self._bytes = now, 0.0, 0
        if is_slow:
            self.stop()
            self._stalled(f"it sends less than {self._rate} bytes per second")

    def _silent(self) -> None:
        self._timer = None
        self._stalled(f"it sent nothing for {self._silence:g} s")
