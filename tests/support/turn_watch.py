"""A server that watches the turns of its reactor: none may take long.

A turn is the work between two waits for events; meanwhile no client is served. The measure is the
CPU time of the reactor's thread, which other work of the machine, extraction included, hardly
changes. Run as a module it is `twist` with such a watch: ``python -m tests.support.turn_watch 20
blobserve --config F`` logs each turn that takes more than 20 ms.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import thread_time
from typing import Any

from twisted.application.twist._twist import Twist
from twisted.logger import Logger

_log = Logger()

LOGGED = "a turn of the reactor took"
"""The beginning of each line in the log."""


def slow_turns(ms: int) -> dict[str, Any]:
    """Return the arguments for a `Server` that logs the turns of its reactor that take longer."""
    return {"twist": ("-m", __name__, str(ms))}


class Turns:
    """Logs the turns of a reactor that take too long."""

    def __init__(
        self, reactor: Any, longest: float, seconds: Callable[[], float] = thread_time
    ) -> None:
        """`reactor` is one whose main loop is that of `twisted.internet.base.ReactorBase`."""
        self._reactor = reactor
        self._longest = longest
        self._seconds = seconds
        self._timeout: Callable[[], float | None] = reactor.timeout
        self._since = 0.0

    def watch(self) -> None:
        """Begin, in the reactor's thread; goes on for as long as the reactor runs."""
        self._since = self._seconds()
        # The main loop asks for it once a turn: after all that is due, before it waits.
        self._reactor.timeout = self._ended

    def _ended(self) -> float | None:
        took = self._seconds() - self._since
        if took > self._longest:
            _log.error(LOGGED + " {ms:.1f} ms of CPU time", ms=took * 1000)
        self._since = self._seconds()
        return self._timeout()


def main(longest: float) -> None:
    """Run `twist`, and watch the turns as soon as the server has started."""

    class Watched(Twist):
        @staticmethod
        def startService(reactor: Any, service: Any) -> None:
            Twist.startService(reactor, service)
            [daemon] = service
            [server] = daemon
            started = server.when_started()
            started.addCallbacks(lambda _: Turns(reactor, longest).watch(), lambda _: None)

    Watched.main()


if __name__ == "__main__":
    ms = sys.argv.pop(1)
    main(int(ms) / 1000)
