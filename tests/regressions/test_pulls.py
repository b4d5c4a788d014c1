"""Defects of the original server in pulls, with a test for each row.

Each test is named after the number of its row. `tests.regressions.test_http` and
`tests.regressions.test_disk` have the other rows.
"""

from __future__ import annotations

import json
import random
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from twisted.internet.threads import deferToThread

from blobserve.testing import make_image
from tests.support.layers import File, layer
from tests.support.parts.images import Image
from tests.support.parts.registry import DockerRegistry
from tests.support.parts.server import Server
from tests.support.scripted_registry import (
    NOTHING,
    Answer,
    Asked,
    Scripted,
    Step,
    cut,
    listening,
    status,
)
from tests.support.services import Door, allowing, configured, running
from tests.support.sites import TAG, serving
from tests.support.source_fixtures import until
from tests.support.within import within

FILES = {"index.html": b"<html>", "main.js": random.Random(1).randbytes(50_000)}
LARGE = b"0123456789abcdef" * (1 << 20)
"""More bytes than two sockets on loopback can buffer."""


def push_ten(registry: Scripted) -> list[str]:
    """Push ten images with different layers; return their references."""
    chance = random.Random(2)
    return [
        str(registry.push(f"team/ten{n}:v1", make_image({"a": chance.randbytes(50_000)})))
        for n in range(10)
    ]


@attrs.define
class Fault:
    """A fault in every answer while it `is_there`."""

    step: Step
    is_there: bool = True

    def __call__(self, asked: Asked, usual: Answer) -> Answer | bytes:
        return self.step(asked, usual) if self.is_there else usual


# --- D2 -------------------------------------------------------------------------------------------


@within(60)
async def test_d02_ten_broken_references_stop_nobody(tmp_path: Path) -> None:
    """Ten truncated layers fail and leave nothing; another image is served, and then they are."""
    async with listening() as registry:
        broken = push_ten(registry)
        fault = Fault(cut(1000))
        registry.always("team/ten.*/blobs", fault)
        site = registry.push("team/site:v1", make_image(FILES))
        async with running(configured(tmp_path, allowing(registry.host))) as server:
            failed = await server.fetch_all(*(f"{each}/a" for each in broken))
            assert [answer.status for answer in failed] == [502] * 10
            assert not list((tmp_path / "ingest").iterdir())
            assert (await server.fetch(f"{site}/main.js")).body == FILES["main.js"]
            fault.is_there = False
            mended = await server.fetch_all(*(f"{each}/a" for each in broken))
            assert [answer.status for answer in mended] == [200] * 10


@within(60)
async def test_d02_pulls_killed_half_way_leave_nothing(
    tmp_path: Path, serve: Callable[..., Server]
) -> None:
    """Ten pulls that a kill interrupted leave no files after a restart, and can start again."""
    async with listening() as registry:
        broken = push_ten(registry)
        fault = Fault(cut(1000, "silence"))
        registry.always("blobs", fault)
        server = await deferToThread(serve, allowing(registry.host))
        door, ingest = Door(server.port), server.space / "ingest"
        for each in broken:
            await door.begin(f"/{each}/a")
        await until(lambda: len(list(ingest.glob("*/content"))) == 10)
        server.kill()
        assert len(list(ingest.iterdir())) == 10
        await deferToThread(server.start)
        assert not list(ingest.iterdir())
        fault.is_there = False
        answers = await door.fetch_all(*(f"{each}/a" for each in broken))
        assert [answer.status for answer in answers] == [200] * 10


# --- D4 -------------------------------------------------------------------------------------------


def other_bytes(asked: Asked, usual: Answer) -> Answer:
    """Return as many bytes as the usual body, with a change that keeps their meaning."""
    if usual.body.startswith(b"{"):
        return attrs.evolve(usual, body=usual.body.replace(b" ", b"\t", 1))
    # The modification time in the gzip header.
    return attrs.evolve(usual, body=usual.body[:4] + b"\1" + usual.body[5:])


def more_bytes(asked: Asked, usual: Answer) -> Answer:
    """Return the usual body with one more byte."""
    return attrs.evolve(usual, body=usual.body + b"\0")


def another_layer(asked: Asked, usual: Answer) -> Answer:
    """Return a valid layer with another digest."""
    return attrs.evolve(usual, body=layer([File(b"main.js", b"evil()")]))


@within(30)
@pytest.mark.parametrize("step", [other_bytes, more_bytes, another_layer])
@pytest.mark.parametrize("part", ["manifests", "blobs"])
async def test_d04_what_does_not_match_its_digest_is_not_served(
    tmp_path: Path, part: str, step: Step
) -> None:
    """A manifest or layer that does not match its digest or size gets a 502 and is not kept."""
    async with listening() as registry:
        image = make_image(FILES)
        registry.push("team/site:v1", image)
        registry.always(f"GET .*{part}", step)
        async with running(configured(tmp_path, allowing(registry.host))) as server:
            for _ in range(2):
                exact = f"{registry.host}/team/site@{image.digest}"
                assert (await server.fetch(f"{exact}/main.js")).status == 502
    assert not list(tmp_path.rglob("content"))


# --- D8 -------------------------------------------------------------------------------------------


@within(60)
async def test_d08_what_is_read_is_not_reclaimed_and_what_is_reclaimed_comes_back(
    tmp_path: Path,
) -> None:
    """A blob that is being sent is not evicted; after its eviction one pull serves all clients."""
    async with listening() as registry:
        large = make_image({"a": LARGE, "small": b"1"})
        other = make_image({"b": LARGE[::-1], "small": b"2"})
        one, two = registry.push("team/one:v1", large), registry.push("team/two:v1", other)
        space = {"blobSpace": {"maxSizeBytes": 2 * len(LARGE) - (1 << 20), "gcInterval": "10ms"}}
        async with running(configured(tmp_path, allowing(registry.host, **space))) as server:
            assert (await server.fetch(f"{one}/a", "HEAD")).status == 200
            reader = await server.begin(f"/{one}/a")
            await reader.some(1)
            reader.transport.pauseProducing()
            assert (await server.fetch(f"{two}/small")).status == 507
            reader.transport.resumeProducing()
            assert (await reader.all()).endswith(LARGE)
            assert (await server.fetch(f"{two}/small")).body == b"2"
            assert server.counted("blobserve_evictions_total") == 1
            again = await server.fetch_all(*[f"{one}/small"] * 50)
            assert {(answer.status, answer.body) for answer in again} == {(200, b"1")}
        assert len(registry.asked(f"GET .*{large.layers[0].digest}")) == 2


# --- D9 -------------------------------------------------------------------------------------------


@within(30)
async def test_d09_every_waiter_gets_the_error(tmp_path: Path) -> None:
    """All waiters of a failed pull get the same error, and the next request starts a new pull."""
    async with listening() as registry:
        site = registry.push("team/site:v1", make_image(FILES))
        fault = Fault(cut(1000))
        registry.always("blobs", fault)
        async with running(configured(tmp_path, allowing(registry.host))) as server:
            failed = await server.fetch_all(*[f"{site}/main.js"] * 50)
            assert {answer.status for answer in failed} == {502}
            assert len({answer.body for answer in failed}) == 1
            assert len(registry.asked("manifests")) == 1
            fault.is_there = False
            assert (await server.fetch(f"{site}/main.js")).body == FILES["main.js"]


# --- D10 ------------------------------------------------------------------------------------------


@within(30)
async def test_d10_it_needs_no_auth_file(
    tmp_path: Path, docker_registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a credentials file a registry is used anonymously, over plain HTTP if configured."""
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "DOCKER_AUTH_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    docker_registry.push(Image.of(FILES), "team/site:v1")
    async with running(configured(tmp_path, allowing(docker_registry.host))) as server:
        answer = await server.fetch(f"{docker_registry.host}/team/site:v1/main.js")
        assert (answer.status, answer.body) == (200, FILES["main.js"])


@within(30)
async def test_d10_a_malformed_auth_file_keeps_the_last_good_one(tmp_path: Path) -> None:
    """A credentials file that becomes malformed changes nothing, with or without a reload."""
    async with listening() as registry:
        registry.user = "reader:secret"
        login = {"username": "reader", "password": "secret"}
        good, file = json.dumps({"auths": {registry.host: login}}), tmp_path / "auth.json"
        file.write_text(good)
        config = configured(tmp_path / "space", allowing(registry.host), dockerAuth=str(file))
        images = push_ten(registry)
        async with running(config) as server:
            for content in (good, good[:-9], "[]"):
                file.write_text(content)
                assert (await server.fetch(f"{images.pop()}/a")).status == 200
                server.service.reload(config)
                assert (await server.fetch(f"{images.pop()}/a")).status == 200
            registry.user = "reader:rotated"
            file.write_text(good.replace("secret", "rotated"))
            assert (await server.fetch(f"{images.pop()}/a")).status == 200


# --- D11 ------------------------------------------------------------------------------------------


@within(30)
async def test_d11_a_registry_outage_leaves_the_server_ready(tmp_path: Path) -> None:
    """A server without its registry is ready and serves cached images, also after a restart."""
    async with listening() as registry:
        site = registry.push("team/site:v1", make_image(FILES))
        repos = {str(site.repository): {"prePull": ["v1"], "tagMaxAge": "0s"}}
        config = configured(tmp_path, allowing(registry.host, repos=repos))
        async with running(config) as server:
            assert (await server.fetch(f"{site}/main.js")).status == 200
    for _ in range(2):
        async with running(config) as server:
            while (await server.probes.fetch("ready")).status != 200:
                pass  # until prePull was attempted
            assert (await server.fetch(f"{site}/main.js")).body == FILES["main.js"]
            assert (await server.probes.fetch("ready")).status == 200


# --- D17 ------------------------------------------------------------------------------------------


@within(60)
async def test_d17_sigterm_lets_a_response_finish(
    tmp_path: Path, serve: Callable[..., Server]
) -> None:
    """On SIGTERM a process accepts no more connections and finishes its responses."""
    async with listening() as registry:
        site = registry.push("team/site:v1", make_image({"a": LARGE}))
        server = await deferToThread(serve, allowing(registry.host))
        door = Door(server.port)
        reader = await door.begin(f"/{site}/a")
        await reader.some(1)
        reader.transport.pauseProducing()
        end = deferToThread(server.stop)
        await until(lambda: door.is_shut())
        reader.transport.resumeProducing()
        assert (await reader.all()).endswith(LARGE)
        assert await end == -signal.SIGTERM


def received(connection: socket.socket) -> bytes:
    """Receive everything up to the end of a connection."""
    connection.settimeout(20)
    return b"".join(iter(lambda: connection.recv(4096), b""))


@within(30)
async def test_d17_the_end_waits_for_what_is_written_and_not_sent(tmp_path: Path) -> None:
    """A drain lasts until the last byte was sent, long after the response was written."""
    content = random.Random(3).randbytes(60_000)
    async with serving(tmp_path, {"a": content}) as site:
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(("127.0.0.1", site.port))
            await until(lambda: site.site.channels)
            [channel] = site.site.channels
            channel.transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            slow.sendall(f"GET /{TAG}/a HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            await until(lambda: site.log)  # the request has been answered
            drained = site.site.drain(20)
            await site.turn()
            assert not drained.called
            assert (await deferToThread(received, slow)).endswith(content)
            await drained


@within(30)
async def test_d17_prepull_is_parallel_and_its_failure_is_not_fatal(tmp_path: Path) -> None:
    """Every prePull starts at once; while one hangs and one fails, the others are served."""
    async with listening() as registry:
        images = push_ten(registry)
        repos: dict[str, Any] = {f"{registry.host}/*": {}}
        repos |= {image.removesuffix(":v1"): {"prePull": ["v1"]} for image in images}
        registry.always("team/ten0/blobs", lambda asked, usual: NOTHING)
        registry.always("team/ten1/manifests", status(404))
        config = configured(tmp_path, allowing(registry.host, repos=repos))
        async with running(config) as server:
            ready = "blobserve_pulls_total"
            await until(lambda: server.counted(ready, outcome="ready") == 8)
            assert (await server.probes.fetch("ready")).status == 503
            read_only = {"X-BlobServe-ReadOnly": "true"}
            for image in images[2:]:
                assert (await server.fetch(f"{image}/a", headers=read_only)).status == 200
            assert (await server.fetch(f"{images[1]}/a")).status == 404
