"""The soak: a server with a real registry, under random events."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

from tests.faults.scale import sized
from tests.faults.soak import BOUND, HOT, Probe, Soak, configuration, file_of
from tests.faults.test_bad_input import eventually
from tests.support.parts.images import Image
from tests.support.parts.nginx import Nginx
from tests.support.parts.registry import DockerRegistry
from tests.support.parts.server import Server
from tests.support.spaces import on_disk
from tests.support.turn_watch import LOGGED, slow_turns

QUIET = 3.0
PAUSES = (0.1, 0.02, 0.0)
"""Pauses of the clients after an answer, in seconds, each for a third of the time."""
LONGEST = 50
"""The largest CPU time of a reactor iteration in milliseconds, with the kernel's on a full machine.
"""


def peer(directory: Path, content: bytes) -> Nginx:
    """Return an nginx with the hot file, as a measure of the load on the machine."""
    (directory / "app.js").write_bytes(content)
    return Nginx(directory, f"root {directory}; access_log off; keepalive_requests 1000000;")


def said(probed: list[dict[str, float]], quiet: list[dict[str, float]] | None = None) -> str:
    """Format the p99 of both servers, with the factor to `quiet` if given."""
    times = [f"{1000 * each['p99']:.1f} ms" for each in probed]
    if quiet is not None:
        factors = [each["p99"] / before["p99"] for each, before in zip(probed, quiet, strict=True)]
        times = [f"{time} ({factor:.1f}x)" for time, factor in zip(times, factors, strict=True)]
    return ", ".join(times)


def test_soak(
    docker_registry: DockerRegistry,
    tmp_path: Path,
    part_directory: Callable[[], Path],
    running: Callable[[Any], Any],
    measured: Callable[..., None],
) -> None:
    """Through pushes, reloads, outages and kills each answer is right or fails for a reason.

    The quota holds, no reactor iteration is long, each tag is served with its newest image in the
    end, and no ingest is left.
    """
    content = file_of(0, 0, "app.js")
    docker_registry.put(Image.of({"app.js": content}), HOT)
    server = running(Server(tmp_path, *configuration(docker_registry, 0), **slow_turns(LONGEST)))
    hot = f"/{docker_registry.host}/{HOT}/app.js"
    assert server.fetch(hot).body == content
    nginx = running(peer(part_directory(), content))
    urls = server.url + hot, f"http://{nginx.host}/app.js"
    quiet = Probe(content, *urls)
    Event().wait(QUIET)
    before = quiet.stop()
    soak = Soak(server, docker_registry, 1)
    with soak.going_on():
        meanwhile = []
        for soak.pause in PAUSES:
            probe = Probe(content, *urls)
            soak.run(sized(24.0, 240.0, 3600.0) / len(PAUSES))
            meanwhile.append(probe.stop(soak.stood_still))
    figure = (
        f"p99 of a hot file, and of the same from nginx, when all is quiet {said(before)}; "
        + "; ".join(
            f"clients pause {1000 * pause:.0f} ms: {said(each, before)}"
            for pause, each in zip(PAUSES, meanwhile, strict=True)
        )
        + f"; at most {100 * soak.peak / BOUND:.0f} % of the bound are on disk"
    )
    measured(cases=soak.answers, figure=figure)
    assert soak.wrong == []
    assert eventually(lambda: not soak.stragglers())
    assert all(each["wrong"] == 0 for probed in (before, *meanwhile) for each in probed)
    assert server.stop() == -signal.SIGTERM
    assert list((server.space / "ingest").iterdir()) == []
    assert on_disk(server.space) <= BOUND
    assert soak.outcomes["200"] > 100
    assert soak.outcomes["kill"] > 0
    log = server.output.read_text()
    assert not re.search(f"Traceback|Unhandled|{LOGGED}", log), log
