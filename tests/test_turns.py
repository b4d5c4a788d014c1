"""The watch on the turns of the reactor."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from blobserve.turns import VARIABLE, Turns, longest_turn
from tests.rig.parts import free_port
from tests.rig.server import ROOT, Server
from tests.test_plugin import SERVED, twist
from tests.turns import slow_turns


class Reactor:
    """A main loop that is turned by hand, and the CPU time that its turns take."""

    def __init__(self) -> None:
        self.now = 5.0

    def timeout(self) -> float | None:
        """See `ReactorBase.timeout`."""
        return 7.0

    def turn(self, seconds: float) -> None:
        """Do what takes so long, then look for how long to wait."""
        self.now += seconds
        assert self.timeout() == 7.0


def test_slow_turns_are_counted() -> None:
    """Each turn that takes longer than it may is counted, and no other."""
    reactor, registry = Reactor(), CollectorRegistry()
    turns = Turns(reactor, 0.02, registry, lambda: reactor.now)
    reactor.turn(1.0)
    turns.watch()
    for seconds in (0.0, 0.019, 0.021, 0.019, 1.0, 0.015):
        reactor.turn(seconds)
    assert registry.get_sample_value("blobserve_slow_turns_total") == 2


def test_the_switch() -> None:
    """The environment says how many milliseconds a turn may take; otherwise nothing is watched."""
    assert longest_turn({}) is longest_turn({VARIABLE: ""}) is None
    assert longest_turn({VARIABLE: "20ms"}) == 0.02
    for text in ("20", "0.02s", "-1ms", "ms"):
        with pytest.raises(ValueError, match=f"expected milliseconds, such as 20ms, got '{text}'"):
            longest_turn({VARIABLE: text})


def test_a_server_that_watches_itself(tmp_path: Path, running: Callable[[Any], Any]) -> None:
    """Switched on, slow turns are errors in the log and a metric; nothing is slow in a minute."""
    for ms in (0, 60_000):
        port, directory = free_port(), tmp_path / str(ms)
        directory.mkdir()
        top = {"prometheusAddr": f"127.0.0.1:{port}"}
        server: Server = running(Server(directory, SERVED, top, **slow_turns(ms)))
        assert server.fetch("/").status == 404
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            connection.request("GET", "/metrics")
            metrics = connection.getresponse().read().decode()
        is_slow = ms == 0
        assert ("\nblobserve_slow_turns_total 0.0\n" in metrics) != is_slow
        assert "\nblobserve_slow_turns_total " in metrics
        assert ("a turn of the reactor took" in server.output.read_text()) == is_slow


def test_a_switch_that_makes_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong value of the variable ends the start with a sentence that names it."""
    monkeypatch.setitem(twist.__globals__["ENVIRONMENT"], VARIABLE, "fast")
    done = twist("blobserve", "--config", ROOT / "etc" / "blobserve.yaml")
    assert done.returncode == 1
    assert done.stderr == f"{VARIABLE}: expected milliseconds, such as 20ms, got 'fast'\n"
