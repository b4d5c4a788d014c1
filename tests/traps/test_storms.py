"""Hostile clients and storms, over real sockets: rows S06, S08, S10 and S12."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred, gatherResults

from blobserve.config import KIB, MIB, Limits
from blobserve.testing import MadeImage, make_image
from tests.faults.scale import sized
from tests.faults.storms import storming
from tests.support.layers import File, layer
from tests.support.parts.images import Image, Layer
from tests.support.parts.registry import DockerRegistry
from tests.support.parts.wire import Reply, lint, replies
from tests.support.scripted_registry import listening
from tests.support.services import Door, allowing, configured, running
from tests.support.sites import Response
from tests.support.spaces import on_disk
from tests.support.within import within
from tests.system.test_promises_pulls import turn

# --- S06 ------------------------------------------------------------------------------------------


async def pipelined(server: Door, targets: Sequence[str]) -> list[Reply]:
    """Send all these requests at once on one connection; return the replies."""
    client = await server.connect()
    heads = [f"GET /{target} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for target in targets]
    client.send(b"".join(heads)[:-2] + b"Connection: close\r\n\r\n")
    found = replies(await client.all(), ["GET"] * len(targets))
    for reply in found:
        lint(reply)
    return found


@within(sized(300, 1800))
async def test_s06_thousands_of_names_that_do_not_exist(tmp_path: Path) -> None:
    """Each of 10,000 missing tags, digests or repositories is looked up once and leaves nothing."""
    count = sized(700, 3500)
    async with listening() as registry:
        site = registry.push("team/site:v1", make_image({"a": b"a"}))
        team = f"{registry.host}/team"
        names = [
            *(f"{team}/site:none{n}" for n in range(count)),
            *(f"{team}/site@sha256:{n:064x}" for n in range(count)),
            *(f"{team}/none{n}:v1" for n in range(count - 100)),
        ]
        async with running(configured(tmp_path, allowing(registry.host))) as server:
            for start in range(0, len(names), 100):
                twice = [f"{name}/a" for name in names[start : start + 100] for _ in range(2)]
                found = await pipelined(server, twice)
                assert [reply.status for reply in found] == [404] * 200
            assert (await server.fetch(f"{site}/a")).body == b"a"
        assert len(registry.asked("manifests")) == len(names) + 1
    with closing(sqlite3.connect(tmp_path / "state")) as state:
        remembered = {reference for (reference,) in state.execute("SELECT reference FROM refs")}
    assert len(remembered) == 2  # the one image that exists, by its tag and by its digest
    assert str(site) in remembered
    assert len(list(tmp_path.glob("manifests/*/*"))) == 1


# --- S08 ------------------------------------------------------------------------------------------

LARGE = 512 * KIB
BOUND = 4 * MIB
QUEUE = 20


def large_images(count: int) -> list[tuple[bytes, MadeImage]]:
    """Return images of one large file each, and these files."""
    contents = [random.Random(n).randbytes(LARGE) for n in range(count)]
    return [(content, make_image({"a": content})) for content in contents]


@within(sized(60, 1800))
async def test_s08_many_clients_on_many_large_cold_images(tmp_path: Path) -> None:
    """1,000 clients of images that do not all fit get the right file or a 503."""
    async with listening() as registry:
        sites = {
            registry.push(f"team/large{n}:v1", image): content
            for n, (content, image) in enumerate(large_images(sized(60, 340)))
        }
        asked, pulling, queued = [site for site in sites for _ in range(3)], {0.0}, {0.0}
        async with storming(
            tmp_path, registry.host, BOUND, Limits(queued_downloads=QUEUE)
        ) as storm:
            fetch = storm.door.fetch
            waits = [Deferred.fromCoroutine(fetch(f"{site}/a")) for site in asked]
            while not all(wait.called for wait in waits):
                pulling.add(storm.counted("pulls_in_flight"))
                queued.add(storm.counted("pulls_queued"))
                await turn()
            answers: list[Response] = await gatherResults(waits)
            for site, content in sites.items():
                while (again := await fetch(f"{site}/a")).status == 503:
                    await turn()
                assert (again.status, again.body == content) == (200, True)
        assert 1 < max(pulling) <= 10
        assert 1 < max(queued) <= QUEUE
        assert BOUND / 2 < max(storm.seen) <= BOUND
    for site, answer in zip(asked, answers, strict=True):
        if answer.status == 503:
            assert (answer.body, int(answer.headers["retry-after"]) > 0) == (b"timeout", True)
        else:
            assert (answer.status, answer.body == sites[site]) == (200, True)
    statuses = [answer.status for answer in answers]
    assert 0 < statuses.count(503) < len(statuses)


# --- S10 ------------------------------------------------------------------------------------------


@within(60)
async def test_s10_references_to_what_is_inside(tmp_path: Path) -> None:
    """With `allowAnyRepo`, no reference leads to a private address."""
    async with listening() as inner:
        port = inner.host.partition(":")[2]
        inner.push("x/y:v1", make_image({"a": b"inside"}))
        hosts = [
            "127.0.0.1", "127.0.0.2", "localhost", "x.localhost", "[::1]", "[::ffff:127.0.0.1]",
            "[64:ff9b::7f00:1]", "0.0.0.0", "[::]", "169.254.0.1", "10.0.0.1", "192.168.0.1",
            "[fd00::1]", "[fe80::1]", "192.0.2.1", "192.0.513", "3221225985", "127.0.0.1.",
            "internal.invalid",
        ]  # fmt: skip
        config = configured(tmp_path, {"allowAnyRepo": True, "timeout": "30s"})
        async with running(config) as server:
            targets = [f"{host}:{at}/x/y:v1/a" for host in hosts for at in (port, "443")]
            answers = await server.fetch_all(*targets, *(f"{host}/x/y:v1/a" for host in hosts))
        assert {answer.status for answer in answers} == {404, 502}
        assert not any(b"inside" in answer.body for answer in answers)
        assert inner.accepted == 0


# --- S12 ------------------------------------------------------------------------------------------


def bomb(kind: str) -> tuple[Image, int]:
    """Return an image that is expensive to unpack, and the expected result."""
    if kind == "zeros":
        return Image.of({f"{n}": bytes(MIB) for n in range(256)}), 507
    entries = [File(b"%d" % n) for n in range(60_000)]
    return Image((Layer(layer(entries), "sha256:" + "0" * 64),)), 502


@pytest.mark.parametrize("kind", ["zeros", "entries"])
@within(60)
async def test_s12_a_bomb_while_files_are_served(
    tmp_path: Path, docker_registry: DockerRegistry, kind: str
) -> None:
    """Cached files are served while a decompression bomb is pulled, refused and removed."""
    image, status = bomb(kind)
    docker_registry.put(image, "team/bomb:v1")
    docker_registry.put(Image.of({"a": b"hot"}), "team/site:v1")
    bound = 128 * MIB
    limits = {"entries": 50_000}
    own = allowing(docker_registry.host, blobSpace={"maxSizeBytes": bound}, limits=limits)
    team = f"{docker_registry.host}/team"
    async with running(configured(tmp_path, own)) as server:
        assert (await server.fetch(f"{team}/site:v1/a")).body == b"hot"
        pull = Deferred.fromCoroutine(server.fetch(f"{team}/bomb:v1/a"))
        served = 0
        while not pull.called:
            assert (await server.fetch(f"{team}/site:v1/a")).body == b"hot"
            served += server.counted("blobserve_pulls_in_flight") > 0
        assert (await pull).status == status
        assert served >= 10
        assert not list(tmp_path.glob("ingest/*"))
        assert on_disk(tmp_path) < MIB
        assert (await server.fetch(f"{team}/site:v1/a")).body == b"hot"
