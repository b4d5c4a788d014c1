"""blobserve inside other applications."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import treq
from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred, gatherResults
from twisted.web.resource import IResource, Resource
from twisted.web.server import Site

from blobserve import Blobserve, Config, load
from blobserve.errors import ConfigError, SpaceUnusable
from tests.support.parts.server import ROOT
from tests.support.within import within

EXAMPLE = ROOT / "etc" / "example"
PAGE = "/blobserve.example/site:v1/"


def configured(location: Path, **rules: object) -> dict[str, Any]:
    """Return a configuration that serves the example image."""
    rules = {"source": f"oci:{EXAMPLE}", **rules}
    own = {
        "repos": {"blobserve.example/site": rules},
        "blobSpace": {"location": location},
        "timeout": "20s",
    }
    return {"blobserve": own, "accessLog": {"format": "off"}}


@asynccontextmanager
async def started(*services: Blobserve) -> AsyncIterator[Resource]:
    """Start services, mounted below /0, /1 and so on, and stop them at the end."""
    parent, root = MultiService(), Resource()
    for number, service in enumerate(services):
        service.setServiceParent(parent)
        root.putChild(str(number).encode(), service.resource)
    parent.startService()
    try:
        await gatherResults([service.when_started() for service in services])
        yield root
    finally:
        await parent.stopService()


async def fetch(root: IResource, path: str) -> tuple[int, bytes]:
    """Request a path from a resource on the application's own server; return status and body."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    port = reactor.listenTCP(0, Site(root), interface="127.0.0.1")  # type: ignore[attr-defined]
    try:
        url = f"http://127.0.0.1:{port.getHost().port}{path}"
        response = await treq.get(url, persistent=False)
        return response.code, await response.content()
    finally:
        await port.stopListening()


def service(config: Mapping[str, Any] | Config | str | Path) -> Blobserve:
    """Return a service on the reactor of the tests."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    return Blobserve(reactor, config)


def test_the_example_runs(tmp_path: Path) -> None:
    """The example of the documentation serves the example image, and ends on SIGTERM."""
    process = subprocess.Popen(
        [sys.executable, ROOT / "docs" / "embedding.py", tmp_path / "cache", "0"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with urlopen(url, timeout=20) as answer:
            assert b"<html" in answer.read()
        with urlopen(url.partition("/sites/")[0], timeout=20) as answer:
            assert answer.read() == b"My own page.\n"
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert not list((tmp_path / "cache" / "ingest").iterdir())


@within(60)
async def test_two_services_in_one_process(tmp_path: Path) -> None:
    """Several services work in one process, each with its blob space and at its own path."""
    one = service(configured(tmp_path / "one"))
    other = service(configured(tmp_path / "other", workdir="/docs"))
    async with started(one, other) as root:
        status, page = await fetch(root, "/0" + PAGE)
        assert (status, b"<html" in page) == (200, True)
        status, docs = await fetch(root, "/1" + PAGE)
        assert (status, docs != page) == (200, True)
        assert (await fetch(root, "/0" + PAGE + "docs/"))[1] == docs


@within(60)
async def test_a_service_and_a_resource(tmp_path: Path) -> None:
    """A service is an IService, its resource an IResource, and it opens no port by default."""
    embedded = service(configured(tmp_path / "cache"))
    assert IService.providedBy(embedded)
    assert IResource.providedBy(embedded.resource)
    assert embedded.resource is embedded.resource
    async with started(embedded):
        assert embedded.addresses == []


@within(60)
async def test_a_configuration_in_every_form(tmp_path: Path) -> None:
    """A mapping, a path and a Config give the same configuration."""
    mapping = configured(tmp_path / "cache")
    path = tmp_path / "b.yaml"
    path.write_text(
        f"blobserve: {{timeout: 20s, blobSpace: {{location: {tmp_path}/cache}}, repos:"
        f" {{blobserve.example/site: {{source: 'oci:{EXAMPLE}'}}}}}}\naccessLog: {{format: off}}\n"
    )
    config = load(path)
    assert [service(each).config for each in (mapping, str(path), path)] == [config] * 3
    assert service(config).config is config


def test_a_wrong_configuration_is_an_error_at_once() -> None:
    """An unusable configuration is an error before anything starts."""
    with pytest.raises(ConfigError, match="nearest known one is repos"):
        service({"blobserve": {"repo": {}}})


@within(60)
async def test_what_prevents_a_start_reaches_the_application(tmp_path: Path) -> None:
    """A blob space in use fails `when_started` for every waiter."""
    owner = service(configured(tmp_path / "cache"))
    second = service(configured(tmp_path / "cache"))
    async with started(owner) as root:
        second.startService()
        for waiting in [second.when_started(), second.when_started()]:
            with pytest.raises(SpaceUnusable):
                await waiting
        await second.stopService()
        assert (await fetch(root, "/0" + PAGE))[0] == 200


@within(60)
async def test_stopping_a_service_that_was_never_started(tmp_path: Path) -> None:
    """A service that was never started can be stopped, and leaves nothing on the disk."""
    await service(configured(tmp_path / "cache")).stopService()
    assert not (tmp_path / "cache").exists()


@within(60)
async def test_a_location_may_be_used_again(tmp_path: Path) -> None:
    """After a service has stopped another one may use its blob space and the layers in it."""
    for _ in range(2):
        async with started(service(configured(tmp_path / "cache"))) as root:
            assert (await fetch(root, "/0" + PAGE))[0] == 200


@within(60)
async def test_requests_after_the_end(tmp_path: Path) -> None:
    """A resource of a stopped service answers 503."""
    embedded = service(configured(tmp_path / "cache"))
    async with started(embedded) as root:
        pass
    status, body = await fetch(root, "/0" + PAGE)
    assert (status, body) == (503, b"timeout")


@within(60)
async def test_waiting_for_a_start_may_be_given_up(tmp_path: Path) -> None:
    """Cancelling a wait for the start cancels that wait alone."""
    embedded = service(configured(tmp_path / "cache"))
    given_up: Deferred[None] = embedded.when_started()
    given_up.addErrback(lambda _: None)
    given_up.cancel()
    async with started(embedded) as root:
        assert (await fetch(root, "/0" + PAGE))[0] == 200
