"""Earlier versions, pins, rollbacks and purges of a whole service, with a real registry."""

from __future__ import annotations

import json
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs, formatEvent

from blobserve.errors import (
    Forbidden,
    MalformedReference,
    RegistryFailed,
    StoreClosed,
    VersionPurged,
)
from blobserve.service import Blobserve
from tests.support.parts.images import Image
from tests.support.services import Running, configured, running
from tests.support.sites import Response
from tests.support.within import within

SITE = "*"
HASHES = ("BHxg-xhJ", "CJZrVD6h", "DtGw3Qz1", "Bq81_kZx", "Dk2hX-9a")


def app(number: int) -> Image:
    """Return version `number` of an application."""
    text = b"%d" % number
    return Image.of(
        {
            "index.html": b"<html>" + text + b"</html>",
            f"assets/index-{HASHES[number]}.js": text,
            "app.js": b"app " + text,
        }
    )


def chunk(number: int) -> str:
    """Return the path of the chunk of a version."""
    return f"assets/index-{HASHES[number]}.js"


def config_of(directory: Path, host: str, **own: object) -> dict[str, Any]:
    """Return a configuration with a site, and with its repository."""
    image = f"{host}/team/app:live"
    return configured(
        directory,
        {
            "timeout": "20s",
            "registries": {host: {"insecure": True}},
            "repos": {f"{host}/team/app": {"keepVersions": {"count": 5}}},
            "sites": {SITE: {"image": image, "tagMaxAge": "0s", **own}},
        },
    )


async def deploy(it: Running, registry: Any, *numbers: int) -> list[str]:
    """Push versions, and let the site switch to each; return their digests."""
    for number in numbers:
        registry.push(app(number), "team/app:live")
        assert (await it.fetch("app.js")).body == b"app %d" % number
    return [app(number).digest for number in numbers]


async def bodies(it: Running, *paths: str) -> list[bytes | int]:
    """Return the bodies of files, or the statuses of errors."""
    answers: list[Response] = [await it.fetch(path) for path in paths]
    return [each.body if each.status == 200 else each.status for each in answers]


@within(120)
async def test_restart_with_the_registry_stopped(tmp_path: Path, docker_registry: Any) -> None:
    """After a restart without the registry, versions, pins and rollbacks work."""
    registry, chunks = docker_registry, [chunk(number) for number in range(3)]
    config = config_of(tmp_path, registry.host)
    async with running(config) as it:
        digests = await deploy(it, registry, 0, 1, 2)
        assert await bodies(it, *chunks) == [b"0", b"1", b"2"]
        await it.service.pin(SITE, digests[1])
        assert await bodies(it, "app.js") == [b"app 1"]
    registry.stop()
    async with running(config) as it:
        assert await bodies(it, "app.js", *chunks) == [b"app 1", b"0", b"1", b"2"]
        full = json.loads((await it.probes.fetch("ready?full=1")).body)
        assert full["pins"] == {SITE: digests[1]}
        # A rollback takes effect within 100 ms, without the registry.
        switched = list[tuple[str, str | None, str]]()
        it.service.on_switch(lambda *each: switched.append(each))
        began = monotonic()
        await it.service.pin(SITE, digests[0])
        assert await bodies(it, "app.js") == [b"app 0"]
        assert monotonic() - began < 0.1
        assert switched == [(f"{registry.host}/team/app:live", digests[1], digests[0])]
        assert await bodies(it, *chunks, "assets/other-BHxg-xhJ.js") == [b"0", b"1", b"2", 404]
        with pytest.raises(RegistryFailed):
            await it.service.pin(SITE, app(4).digest)
        assert await bodies(it, "app.js") == [b"app 0"]
    registry.start()
    async with running(config) as it:
        assert await bodies(it, "app.js") == [b"app 0"]
        assert await it.service.unpin(SITE) is True
        assert await bodies(it, "app.js") == [b"app 2"]
        assert await it.service.unpin(SITE) is False
        assert json.loads((await it.probes.fetch("ready?full=1")).body)["pins"] == {}


@within(120)
async def test_lazy_loads_over_deploys(tmp_path: Path, docker_registry: Any) -> None:
    """While one version after the other is deployed, no chunk of any of them is missing."""
    registry = docker_registry
    async with running(config_of(tmp_path, registry.host, tagMaxAge="1s")) as it:
        await deploy(it, registry, 0)
        failed, loaded = list[object](), 0
        for number in range(1, 5):
            registry.push(app(number), "team/app:live")
            end = monotonic() + 15
            while monotonic() < end:
                answers = await it.fetch_all(*(chunk(each) for each in range(number)))
                loaded += len(answers)
                for each, answer in enumerate(answers):
                    if (answer.status, answer.body) != (200, b"%d" % each):
                        failed.append((number, each, answer))
                if (await it.fetch("app.js")).body == b"app %d" % number:
                    break
        assert failed == []
        assert loaded >= 10
        assert await bodies(it, *(chunk(each) for each in range(5))) == [
            b"0",
            b"1",
            b"2",
            b"3",
            b"4",
        ]


@within(120)
async def test_purge(tmp_path: Path, docker_registry: Any) -> None:
    """A purged version is unreachable by every URL, also after a restart."""
    registry = docker_registry
    repository = f"{registry.host}/team/app"
    config = config_of(tmp_path, registry.host)
    async with running(config) as it:
        digests = await deploy(it, registry, 0, 1, 2)
        urls = (
            chunk(1),
            f"assets/index-{HASHES[1]}.js?dpl={digests[1]}",
            f"{repository}@{digests[1]}/app.js",
            f"{repository}:live/{chunk(1)}",
        )
        assert (await bodies(it, f"app.js?dpl={digests[1]}")) == [b"app 1"]
        await it.service.pin(f"{repository}:live", digests[1])
        await it.service.purge(SITE, digests[1])
        assert await bodies(it, *urls) == [404] * 4
        assert await bodies(it, f"app.js?dpl={digests[1]}", chunk(0)) == [b"app 2", b"0"]
        with pytest.raises(VersionPurged):
            await it.service.pin(SITE, digests[1])
    async with running(config) as it:
        assert await bodies(it, *urls) == [404] * 4
        registry.push(app(1), "team/app:live")
        assert await bodies(it, "app.js", *urls) == [b"app 2"] + [404] * 4


@within(60)
async def test_names(tmp_path: Path, docker_registry: Any) -> None:
    """A pin of a tag is a pin of its sites; names and digests that are none are errors."""
    registry = docker_registry
    tag = f"{registry.host}/team/app:live"
    config = config_of(tmp_path, registry.host)
    config["blobserve"]["sites"]["*.preview.localhost"] = f"{registry.host}/team/app:{{1}}"
    config["blobserve"]["sites"]["fixed.localhost"] = f"{registry.host}/team/app@{app(0).digest}"
    service = Blobserve(_reactor(), config)
    for call in (service.pin(SITE, app(0).digest), service.unpin(SITE)):
        with pytest.raises(StoreClosed):
            await call
    async with running(config) as it:
        digests = await deploy(it, registry, 0, 1)
        await it.service.pin(tag, digests[0])
        assert await bodies(it, "app.js", f"{tag}/app.js") == [b"app 0", b"app 0"]
        await it.service.pin(SITE, digests[1])
        assert await bodies(it, "app.js", f"{tag}/app.js") == [b"app 1", b"app 0"]
        await it.service.unpin(SITE)
        assert await bodies(it, "app.js", f"{tag}/app.js") == [b"app 0", b"app 0"]
        for name in ("*.preview.localhost", "fixed.localhost", "no.such.site", "", tag + "@x"):
            with pytest.raises(MalformedReference):
                await it.service.pin(name, digests[0])
        with pytest.raises(Forbidden):
            await it.service.pin("registry.example.com/other:v1", digests[0])
        for digest in ("", "sha256:00", digests[0][:19], digests[0].upper()):
            for call in (it.service.pin, it.service.purge):
                with pytest.raises(MalformedReference):
                    await call(SITE, digest)
        assert json.loads((await it.probes.fetch("ready?full=1")).body)["pins"] == {tag: digests[0]}
        # A reload that gives the site another scope keeps the pin.
        config["blobserve"]["sites"][SITE]["tagMaxAge"] = "90s"
        it.service.reload(config)
        assert await bodies(it, "app.js") == [b"app 0"]
        # A reload without the site does not forget its pins.
        await it.service.pin(SITE, digests[1])
        sites = dict(config["blobserve"]["sites"])
        del sites[SITE]
        it.service.reload({**config, "blobserve": {**config["blobserve"], "sites": sites}})
        it.service.reload(config)
        assert await bodies(it, "app.js") == [b"app 1"]
        # Neither do `purge` and `unpin` fail for a name that the configuration has no more.
        it.service.reload({**config, "blobserve": {**config["blobserve"], "sites": sites}})
        await it.service.purge(tag, digests[0])
        assert await it.service.unpin(SITE) is True
        with pytest.raises(MalformedReference):
            await it.service.unpin(SITE)


@within(60)
async def test_bad_input(tmp_path: Path, docker_registry: Any) -> None:
    """Forged versions in queries, header fields and cookies are ignored, however many there are."""
    registry = docker_registry
    flags = {"versionHeader": True, "versionCookie": True}
    async with running(config_of(tmp_path, registry.host, tagMaxAge="60s", **flags)) as it:
        registry.push(app(0), "team/app:live")
        assert await bodies(it, "app.js") == [b"app 0"]
        values = [f"{number:064x}" for number in range(300)]
        values += ["", "%", "%00", "sha256:", "a" * 4000, "../../etc", "0" * 11, ";", "\\"]
        for value in values[::7] + values[-9:]:
            query = it.fetch(f"app.js?dpl={value}&dpl={value}")
            header = it.fetch("app.js", headers={"X-Deployment-Id": value})
            cookie = it.fetch("app.js", headers={"Cookie": f"__vdpl={value}; __vdpl=x"})
            both = it.fetch("nothing-here", headers={"X-Deployment-Id": value, "Cookie": "__vdpl"})
            first, *rest = await gatherResults(
                [Deferred.fromCoroutine(each) for each in (query, header, cookie)]
            )
            for answer in (first, *rest):
                assert (answer.status, answer.body) == (200, b"app 0"), value
                assert "immutable" not in answer.headers["cache-control"]
                assert answer.headers["vary"] == "X-Deployment-Id, Cookie"
            assert (await both).status in (200, 404)
        responses = it.service._site.images.responder._responses
        assert responses.size < 100_000


def _reactor() -> Any:
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    return reactor


@within(60)
async def test_a_disk_too_small_for_versions(tmp_path: Path, docker_registry: Any) -> None:
    """With a quota for little more than one image, the current image stays, and it alone."""
    registry = docker_registry
    config = config_of(tmp_path, registry.host)
    config["blobserve"]["blobSpace"]["maxSizeBytes"] = "7MiB"
    async with running(config) as it:
        for number in range(4):
            noise = bytes(_noise(number))
            files = {"app.js": b"app %d" % number, chunk(number): b"%d" % number, "noise": noise}
            registry.push(Image.of(files), "team/app:live")
            for _ in range(100):
                if (await it.fetch("app.js")).body == b"app %d" % number:
                    break
                await deferLater(_reactor(), 0.05)
            assert await bodies(it, "app.js", chunk(number)) == [b"app %d" % number, b"%d" % number]
        assert await bodies(it, chunk(0)) == [404]
        assert it.counted("blobserve_evictions_total") >= 2


def _noise(number: int) -> bytes:
    from random import Random

    return Random(number).randbytes(2 << 20)


@within(120)
async def test_damage_on_the_disk(tmp_path: Path, docker_registry: Any) -> None:
    """A version that the disk damaged is skipped, logged, and repaired when the registry is up."""
    registry = docker_registry
    config = config_of(tmp_path, registry.host, tagMaxAge="60s")
    async with running(config) as it:
        for number in range(3):
            registry.push(app(number), "team/app:live")
            await it.service.pin(SITE, app(number).digest)
            assert await bodies(it, "app.js") == [b"app %d" % number]
    layer = app(0).layers[0].digest.partition(":")[2]
    content = tmp_path / "blobs" / "sha256" / layer / "content"
    content.write_bytes(content.read_bytes()[:-512])
    registry.stop()
    with capturedLogs() as events:
        async with running(config) as it:
            for _ in range(3):
                assert await bodies(it, "app.js", chunk(0), chunk(1)) == [b"app 2", 404, b"1"]
    texts = [text for text in map(formatEvent, events) if "earlier version" in text]
    assert any(app(0).digest in text and "damaged" in text for text in texts)
    registry.start()
    async with running(config) as it:
        for _ in range(200):
            if await bodies(it, chunk(0)) == [b"0"]:
                break
            await deferLater(_reactor(), 0.05)
        assert await bodies(it, "app.js", chunk(0), chunk(1)) == [b"app 2", b"0", b"1"]
