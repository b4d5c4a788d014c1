"""The log of slow reactor iterations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.logger import capturedLogs, formatEvent

from tests.support.parts.server import Server
from tests.support.turn_watch import LOGGED, Turns, slow_turns
from tests.system.test_plugin import SERVED


class Reactor:
    """A main loop that a test turns by hand, with the CPU time of each iteration."""

    def __init__(self) -> None:
        self.now = 5.0

    def timeout(self) -> float | None:
        """See `ReactorBase.timeout`."""
        return 7.0

    def turn(self, seconds: float) -> None:
        """Take this CPU time, then ask for the time to wait."""
        self.now += seconds
        assert self.timeout() == 7.0


def test_slow_turns_are_logged() -> None:
    """Each iteration that takes longer than the limit is logged, and no other."""
    reactor = Reactor()
    turns = Turns(reactor, 0.02, lambda: reactor.now)
    with capturedLogs() as events:
        reactor.turn(1.0)
        turns.watch()
        for seconds in (0.0, 0.019, 0.021, 0.019, 1.0, 0.015):
            reactor.turn(seconds)
    said = [formatEvent(event) for event in events]
    assert said == [f"{LOGGED} 21.0 ms of CPU time", f"{LOGGED} 1000.0 ms of CPU time"]


def test_a_server_that_watches_itself(tmp_path: Path, running: Callable[[Any], Any]) -> None:
    """A server logs its slow iterations, and none takes a minute."""
    for ms in (0, 60_000):
        directory = tmp_path / str(ms)
        directory.mkdir()
        server: Server = running(Server(directory, SERVED, **slow_turns(ms)))
        assert server.fetch("/").status == 404
        assert (LOGGED in server.output.read_text()) == (ms == 0)
