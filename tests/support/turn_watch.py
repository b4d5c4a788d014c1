"""A server that logs slow iterations of its reactor.

An iteration is the work between two waits for events, during which no client is served. The measure
is the CPU time of the reactor's thread, which other work on the machine hardly changes. As a
program the module is `twist` with this log: ``python -m tests.support.turn_watch 20 blobserve
--config F`` logs each iteration of more than 20 ms.
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
    """Return the arguments for a `Server` that logs the reactor iterations longer than this."""
    return {"twist": ("-m", __name__, str(ms))}


class Turns:
    """The log of a reactor's slow iterations."""

    def __init__(
        self, reactor: Any, longest: float, seconds: Callable[[], float] = thread_time
    ) -> None:
        """Prepare for a `reactor` that has the main loop of `twisted.internet.base.ReactorBase`."""
        self._reactor = reactor
        self._longest = longest
        self._seconds = seconds
        self._timeout: Callable[[], float | None] = reactor.timeout
        self._since = 0.0

    def watch(self) -> None:
        """Start to watch, in the reactor's thread, until the reactor stops."""
        self._since = self._seconds()
        # The main loop calls this once an iteration, after all that is due and before it waits.
        self._reactor.timeout = self._ended

    def _ended(self) -> float | None:
        took = self._seconds() - self._since
        if took > self._longest:
            _log.error(LOGGED + " {ms:.1f} ms of CPU time", ms=took * 1000)
        self._since = self._seconds()
        return self._timeout()


def main(longest: float) -> None:
    """Run `twist`, and watch the reactor as soon as the server has started."""

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
