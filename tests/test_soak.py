"""The soak: a server over a real registry, while everything that can happen to it happens."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path
from threading import Event

from tests.rig.images import Image
from tests.rig.registry import DockerRegistry
from tests.rig.server import Server
from tests.scale import sized
from tests.soak import BOUND, HOT, Probe, Soak, configuration, file_of
from tests.spaces import on_disk
from tests.test_bad_input import eventually
from tests.turns import slow_turns

QUIET = 3.0
PAUSE = 0.02
"""Seconds that clients pause in one half of the time; in the other they fill all cores."""
LONGEST = 50
"""Milliseconds of CPU time that a turn may take: of a machine that is full, the kernel's too."""


def test_soak(
    docker_registry: DockerRegistry,
    tmp_path: Path,
    running: Callable[[Server], Server],
    measured: Callable[..., None],
) -> None:
    """Through pushes, reloads, outages and kills each answer is right or failed for a reason.

    The bound holds all the while, no turn of the reactor is long, each tag comes to serve its
    newest image, and nothing is left.
    """
    content = file_of(0, 0, "app.js")
    docker_registry.put(Image.of({"app.js": content}), HOT)
    server = running(Server(tmp_path, *configuration(docker_registry, 0), **slow_turns(LONGEST)))
    hot = f"/{docker_registry.host}/{HOT}/app.js"
    assert server.fetch(hot).body == content
    quiet = Probe(server.port, hot, content)
    Event().wait(QUIET)
    before = quiet.stop()
    soak = Soak(server, docker_registry, 1)
    with soak.going_on():
        meanwhile = []
        for soak.pause in (PAUSE, 0.0):
            probe = Probe(server.port, hot, content)
            soak.run(sized(15.0, 240.0, 3600.0) / 2)
            meanwhile.append(probe.stop(soak.stood_still))
    some, full = (
        f"{1000 * each['p99']:.1f} ms, {each['p99'] / before['p99']:.1f} times that of quiet,"
        for each in meanwhile
    )
    figure = (
        f"a hot file's p99 is {some} while clients pause, and {full} while they do not;"
        f" at most {100 * soak.peak / BOUND:.0f} % of the bound are on disk"
    )
    measured(cases=soak.answers, figure=figure)
    assert soak.wrong == []
    assert eventually(lambda: not soak.stragglers())
    assert [each["wrong"] for each in (before, *meanwhile)] == [0, 0, 0]
    assert server.stop() == -signal.SIGTERM
    assert list((server.space / "ingest").iterdir()) == []
    assert on_disk(server.space) <= BOUND
    assert soak.outcomes["200"] > 100
    assert soak.outcomes["kill"] > 0
    log = server.output.read_text()
    assert not re.search("Traceback|Unhandled|a turn of the reactor", log), log
