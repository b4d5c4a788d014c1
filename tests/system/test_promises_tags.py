"""Promises on tags, over real sockets: upgrades, moves under load, and a missing registry."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred, gatherResults

from blobserve.testing import make_image
from tests.support.parts.images import Image
from tests.support.parts.registry import DockerRegistry
from tests.support.parts.server import Server
from tests.support.scripted_registry import cut, listening
from tests.support.services import allowing, configured, running
from tests.support.source_fixtures import until
from tests.support.within import within

LOOKED_UP = {"tagMaxAge": "0s"}
"""Rules with which every request looks up its tag."""


def test_an_upgrade_keeps_what_browsers_have(
    docker_registry: DockerRegistry, serve: Callable[..., Server]
) -> None:
    """After an upgrade each unchanged file is a 304, although the image was packed differently."""
    script = b"run()" * 1000
    old = {"index.html": b"old", "assets/app.js": script}
    new = {"more.css": b"more", "assets/app.js": script, "index.html": b"new"}
    docker_registry.push(Image.of(old), "team/site:live")
    server = serve(allowing(docker_registry.host, {**LOOKED_UP, "contentLocation": True}))
    site = f"/{docker_registry.host}/team/site:live"
    before = {name: server.fetch(f"{site}/{name}") for name in old}
    docker_registry.push(Image.of(new, "zstd"), "team/site:live")
    for _ in range(1000):  # the old image is served until the new one is READY
        if server.fetch(f"{site}/index.html").body == b"new":
            break
    again = {
        name: server.fetch(f"{site}/{name}", headers={"If-None-Match": answer.headers["ETag"]})
        for name, answer in before.items()
    }
    assert {name: (each.status, each.body) for name, each in again.items()} == {
        "index.html": (200, b"new"),
        "assets/app.js": (304, b""),
    }
    known, unchanged = before["assets/app.js"], again["assets/app.js"]
    assert known.headers["ETag"] == unchanged.headers["ETag"]
    assert known.headers["Content-Location"] != unchanged.headers["Content-Location"]


def test_the_first_visitor_after_a_deployment(
    docker_registry: DockerRegistry, serve: Callable[..., Server]
) -> None:
    """The first request for an old tag that has moved gets the new page and its script."""
    docker_registry.push(Image.of({"index.html": b"old", "app.1.js": b"1"}), "team/site:live")
    server = serve(allowing(docker_registry.host, LOOKED_UP))
    site = f"/{docker_registry.host}/team/site:live"
    assert [server.fetch(f"{site}/").body for _ in range(3)] == [b"old"] * 3
    docker_registry.push(Image.of({"index.html": b"new", "app.2.js": b"2"}), "team/site:live")
    assert server.fetch(f"{site}/").body == b"new"
    assert server.fetch(f"{site}/app.2.js").body == b"2"


@within(30)
@pytest.mark.parametrize("age", ["0s", "50ms"])
async def test_a_tag_that_moves_under_load(tmp_path: Path, age: str) -> None:
    """While a tag moves under load every answer is 200, from the old and then the new image."""
    chance = random.Random(1)
    images = [
        make_image({"index.html": b"%d" % n, "more": chance.randbytes(300_000)}) for n in range(8)
    ]
    seen = [0]

    async def visit() -> None:
        while seen[-1] < len(images) - 1:
            newest = max(seen)
            page = await server.fetch(f"{site}/")
            assert (page.status, int(page.body) >= newest) == (200, True)
            seen.append(int(page.body))

    async with listening() as registry:
        site = registry.push("team/site:v1", images[0])
        for image in images[1:]:
            registry.script(f"GET .*{image.layers[0].digest}", cut(100_000, "reset"))
        config = configured(tmp_path, allowing(registry.host, {"tagMaxAge": age}))
        async with running(config) as server:
            visitors = gatherResults([Deferred.fromCoroutine(visit()) for _ in range(20)])
            for version, image in enumerate(images):
                registry.push("team/site:v1", image)
                await until(lambda version=version: visitors.called or seen[-1] == version)
            await visitors
    assert set(seen) == set(range(len(images)))


def test_a_restart_without_its_registry(
    docker_registry: DockerRegistry, serve: Callable[..., Server]
) -> None:
    """A server restarted without its registry serves known tags and digests, and nothing else."""
    files = {"index.html": b"here", "assets/app.js": b"run()"}
    digest = docker_registry.push(Image.of(files), "team/site:v1")
    docker_registry.push(Image.of({"index.html": b"there"}), "team/other:v1")
    server = serve(allowing(docker_registry.host, LOOKED_UP))
    team = f"/{docker_registry.host}/team"
    assert server.fetch(f"{team}/site:v1/").body == b"here"
    server.stop()
    docker_registry.stop()
    server.start()
    for reference in ("site:v1", f"site@{digest}", f"site:v1@{digest}", f"site:gone@{digest}"):
        for headers in ({}, {"X-BlobServe-ReadOnly": "true"}):
            for name, content in files.items():
                answer = server.fetch(f"{team}/{reference}/{name}", headers=headers)
                assert (reference, answer.status, answer.body) == (reference, 200, content)
    assert server.fetch(f"{team}/other:v1/").status == 502
    docker_registry.start()
    assert server.fetch(f"{team}/other:v1/").body == b"there"
