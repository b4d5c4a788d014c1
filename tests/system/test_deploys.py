"""Versions, pins and rollbacks of a process that is killed while its registry is down."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests.support.parts.images import Image
from tests.support.parts.operated import Operated
from tests.support.parts.programs import free_port
from tests.support.parts.registry import DockerRegistry
from tests.support.slack import SLACK

SITE = "app.example.com"
HASHES = ("BHxg-xhJ", "CJZrVD6h", "DtGw3Qz1")
CHUNKS = [f"/assets/index-{each}.js" for each in HASHES]


def app(number: int) -> Image:
    """Return a version of an application."""
    text = b"version %d" % number
    return Image.of({"index.html": text, CHUNKS[number][1:]: text})


def bodies(server: Operated, *paths: str) -> list[bytes | int]:
    """Return the bodies of files of the site, or the statuses of errors."""
    answers = [server.fetch(path, headers={"Host": SITE}) for path in paths]
    return [each.body if each.status == 200 else each.status for each in answers]


@pytest.mark.parametrize("kill", [Operated.kill, Operated.stop], ids=["killed", "stopped"])
def test_restart_with_the_registry_stopped(
    tmp_path: Path,
    docker_registry: DockerRegistry,
    running: Callable[[Any], Any],
    kill: Callable[[Operated], object],
) -> None:
    """Earlier versions, a pin, rollbacks and `unpin` work without the registry after a restart."""
    registry, probes = docker_registry, free_port()
    config = {
        "sites": {SITE: {"image": f"{registry.host}/team/app:live", "tagMaxAge": "0s"}},
        "registries": {registry.host: {"insecure": True}},
        "timeout": "20s",
    }
    digests = [registry.push(app(0), "team/app:live")]
    server = running(Operated(tmp_path, config, {"readinessProbeAddr": f"127.0.0.1:{probes}"}))
    assert bodies(server, "/") == [b"version 0"]
    for number in (1, 2):
        digests.append(registry.push(app(number), "team/app:live"))
        assert bodies(server, "/") == [b"version %d" % number]
    assert server.order("pin", SITE, digests[1]) == "done"
    registry.stop()
    kill(server)
    server.start()

    chunks = [b"version 0", b"version 1", b"version 2"]
    assert bodies(server, "/", *CHUNKS) == [b"version 1", *chunks]
    with urlopen(f"http://127.0.0.1:{probes}/ready?full=1") as answer:
        assert json.load(answer)["pins"] == {SITE: digests[1]}
    assert f"{SITE} is pinned to {digests[1]}" in server.output.read_text()

    for number in (0, 2, 1):
        began = time.monotonic()
        assert server.order("pin", SITE, digests[number]) == "done"
        assert bodies(server, "/") == [chunks[number]]
        assert time.monotonic() - began < 0.1 * SLACK
        assert bodies(server, *CHUNKS) == chunks
    assert server.order("unpin", SITE) == "done"
    assert bodies(server, "/", *CHUNKS) == [b"version 1", *chunks]
    kill(server)
    server.start()
    assert bodies(server, "/", *CHUNKS) == [b"version 1", *chunks]
    registry.start()
    # The failed look-ups are not repeated for up to ten seconds.
    end = time.monotonic() + 30
    while bodies(server, "/") != [b"version 2"]:
        assert time.monotonic() < end
        time.sleep(0.1)  # the test waits for another process
    assert bodies(server, *CHUNKS) == chunks
