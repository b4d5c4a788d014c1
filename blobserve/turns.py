"""A switch for those who work on blobserve: no turn of the reactor may take long.

A turn is what is done between two waits for events; while it lasts nobody is served. What is
measured is the CPU time of the reactor's thread, which other work of the machine, extraction
included, hardly changes. Off, as it is unless the environment says otherwise, it costs nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from time import thread_time
from typing import Any

from prometheus_client import CollectorRegistry, Counter
from twisted.logger import Logger

VARIABLE = "BLOBSERVE_DEBUG_TURNS"

_log = Logger()


def longest_turn(environ: Mapping[str, str] = os.environ) -> float | None:
    """Seconds that a turn may take by `VARIABLE`, written as ``20ms``; None where it is not set.

    :raises ValueError: when it is something else.
    """
    text = environ.get(VARIABLE, "")
    if not text:
        return None
    written = re.fullmatch(r"(\d+)ms", text, re.ASCII)
    if written is None:
        raise ValueError(f"{VARIABLE}: expected milliseconds, such as 20ms, got {text!r}")
    return int(written[1]) / 1000


class Turns:
    """Logs and counts, as ``blobserve_slow_turns_total``, the turns that take too long."""

    def __init__(
        self,
        reactor: Any,
        longest: float,
        registry: CollectorRegistry,
        seconds: Callable[[], float] = thread_time,
    ) -> None:
        """`reactor` is one whose main loop is that of `twisted.internet.base.ReactorBase`."""
        self._reactor = reactor
        self._longest = longest
        self._seconds = seconds
        self._timeout: Callable[[], float | None] = reactor.timeout
        self._since = 0.0
        self._slow = Counter(
            "blobserve_slow_turns_total",
            "Turns of the reactor that took more CPU time than they may.",
            registry=registry,
        )

    def watch(self) -> None:
        """Begin, in the reactor's thread; goes on for as long as the reactor runs."""
        self._since = self._seconds()
        # The main loop asks for it once a turn: after all that is due, before it waits.
        self._reactor.timeout = self._ended

    def _ended(self) -> float | None:
        took = self._seconds() - self._since
        if took > self._longest:
            self._slow.inc()
            _log.error("a turn of the reactor took {ms:.1f} ms of CPU time", ms=took * 1000)
        self._since = self._seconds()
        return self._timeout()
