"""Stalls: detects a body that sends nothing, or too little, for too long.

Time does not count while the consumer of the bytes is paused.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime


class StallWatch:
    """A watch that calls `stalled` once, with the reason, when bytes stop coming.

    It is created stopped.

    :param silence: the limit of seconds without a byte. The mean over this time must be at least
        `rate` bytes per second.
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
        """Expect bytes from now on; idempotent."""
        if self._timer is None:
            self._begun = self._clock.seconds()
            self._timer = self._clock.callLater(self._silence, self._silent)

    def stop(self) -> None:
        """Expect no bytes; idempotent."""
        if self._timer is not None:
            self._active += self._clock.seconds() - self._begun
            self._timer.cancel()
            self._timer = None

    def saw(self, size: int) -> None:
        """Count `size` received bytes."""
        self._bytes += size
        if self._timer is None:  # A last chunk came after the pause.
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
