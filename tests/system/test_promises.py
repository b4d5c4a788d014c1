"""Promises on quotas, connections and rules, over real sockets.

`tests.system.test_promises_pulls` and `tests.system.test_promises_tags` have the others.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest

from blobserve.config import MIB
from blobserve.testing import make_image
from tests.support.parts.images import Image
from tests.support.parts.registry import DockerRegistry
from tests.support.parts.server import Server
from tests.support.scripted_registry import listening, redirect, status
from tests.support.services import allowing, configured, running
from tests.support.sites import Response
from tests.support.source_fixtures import until
from tests.support.spaces import on_disk
from tests.support.within import within

LARGE = 16 * MIB
"""More bytes than the sockets on loopback can buffer."""


# --- The quota ------------------------------------------------------------------------------------


@contextmanager
def sampled(directory: Path) -> Iterator[list[int]]:
    """Measure the bytes of `directory` on disk again and again; return the growing list."""
    seen: list[int] = []
    enough = Event()

    def look() -> None:
        while not enough.is_set():
            seen.append(on_disk(directory))

    looking = Thread(target=look)
    looking.start()
    try:
        yield seen
    finally:
        enough.set()
        looking.join()


def test_a_layer_that_unpacks_a_thousandfold(
    docker_registry: DockerRegistry, serve: Callable[..., Server]
) -> None:
    """A layer that unpacks a thousandfold gets a 507; the quota holds and nothing is left."""
    bound = 16 * MIB
    bomb = Image.of({f"{n}": bytes(MIB) for n in range(128)})
    assert len(bomb.layers[0].blob) * 900 < 128 * MIB
    docker_registry.put(bomb, "team/bomb:v1")
    docker_registry.put(Image.of({"a": b"good"}), "team/site:v1")
    server = serve(allowing(docker_registry.host, blobSpace={"maxSizeBytes": bound}))
    with sampled(server.space) as seen:
        for _ in range(3):
            assert server.fetch(f"/{docker_registry.host}/team/bomb:v1/a").status == 507
            assert not list((server.space / "ingest").iterdir())
    assert bound / 2 < max(seen) <= bound
    assert on_disk(server.space) < MIB
    assert server.fetch(f"/{docker_registry.host}/team/site:v1/a").body == b"good"


@within(30)
async def test_eviction_while_a_206_is_running(tmp_path: Path) -> None:
    """A response to a slow client is complete although its blob is due for eviction."""
    content = random.Random(1).randbytes(LARGE)
    async with listening() as registry:
        one = registry.push("team/one:v1", make_image({"a": content}))
        two = registry.push("team/two:v1", make_image({"a": content[::-1]}))
        space = {"maxSizeBytes": 2 * LARGE - MIB, "gcInterval": "10ms"}
        own = allowing(registry.host, blobSpace=space, drainTimeout="1s")
        async with running(configured(tmp_path, own)) as server:
            reader = await server.begin(f"/{one}/a", headers={"Range": "bytes=1000-"})
            await reader.some(1)
            reader.transport.pauseProducing()
            assert (await server.fetch(f"{two}/a")).status == 507
            read_only = {"X-BlobServe-ReadOnly": "true"}
            assert (await server.fetch(f"{one}/a", "HEAD", read_only)).status == 200
            reader.transport.resumeProducing()
            answer = Response.parse(await reader.all())
            assert (answer.status, answer.body == content[1000:]) == (206, True)
            assert (await server.fetch(f"{two}/a")).body == content[::-1]
            assert (await server.fetch(f"{one}/a", "HEAD", read_only)).status == 404


# --- Connections ----------------------------------------------------------------------------------


@within(30)
@pytest.mark.usefixtures("inward")
@pytest.mark.parametrize("way", ["manifest", "redirect", "realm"])
async def test_a_name_that_resolves_to_a_private_address(tmp_path: Path, way: str) -> None:
    """No host name leads to a private address unless the configuration allows it."""
    async with listening() as registry, listening() as inner:
        name = f"inner.example:{inner.host.partition(':')[2]}"
        site = str(registry.push("team/site:v1", make_image({"a": b"a"})))
        key = f'add "{name}" to registries."{registry.host}".allowHosts'
        if way == "redirect":
            registry.always("blobs", redirect(f"https://{name}/a"))
        elif way == "realm":
            registry.always("/v2/", status(401, WWW_Authenticate=f'Bearer realm="https://{name}/"'))
        else:
            site = f"{name}/team/site:v1"
            key = f'set allowAnyRepo: true in registries."{name}"'
        own = allowing(registry.host, allowAnyRepo=True)
        async with running(configured(tmp_path, own)) as server:
            refused = await server.fetch(f"{site}/a")
            assert (refused.status, key in refused.body.decode()) == (502, True)
            assert inner.accepted == 0
            own["registries"][registry.host]["allowHosts"] = [name]
            own["registries"][name] = {"allowAnyRepo": True}
            server.service.reload(configured(tmp_path, own))
            await server.begin(f"/{site}/a")
            await until(lambda: inner.accepted > 0)


# --- Rules ----------------------------------------------------------------------------------------


@within(30)
async def test_two_repositories_with_one_layer_at_once(tmp_path: Path) -> None:
    """Two repositories with one layer share a concurrent download, each with its own rules."""
    async with listening() as registry:
        image = make_image({"index.html": b"<html>BASE</html>"})
        names = ["one", "two"]
        sites = [registry.push(f"team/{name}:v1", image) for name in names]
        repos = {
            f"{registry.host}/team/{name}": {
                "replacements": [{"path": "index.html", "search": "BASE", "replacement": name}],
                "headers": {"X-Site": name},
            }
            for name in names
        }
        config = configured(tmp_path, allowing(registry.host, repos=repos))
        async with running(config) as server:
            pages = await server.fetch_all(*[f"{site}/" for site in sites] * 20)
        for name, page in zip(names * 20, pages, strict=True):
            assert (page.status, page.body) == (200, b"<html>%b</html>" % name.encode())
            assert page.headers["x-site"] == name
        assert len({page.headers["etag"] for page in pages}) == 2
        assert len(registry.asked("GET .*blobs")) == 1
