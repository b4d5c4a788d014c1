"""The service in this process: reloads, the order of its end, and leftovers."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import treq
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from blobserve.errors import CannotOpen, ConfigError
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference
from blobserve.service import Blobserve
from tests.support.parts.images import Image, write_layout
from tests.support.parts.server import ROOT
from tests.support.services import Door
from tests.support.sites import Client, Response
from tests.support.slack import SLACK
from tests.support.within import within

EXAMPLE = ROOT / "etc" / "example"
REPOSITORY = "blobserve.example/site"
PAGE = f"/{REPOSITORY}:v1/"
LISTEN = "tcp:0:interface=127.0.0.1"


def the_reactor() -> Any:
    """Return the reactor of the tests."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    return reactor


def configured(location: Path, top: Any = None, **own: object) -> dict[str, Any]:
    """Return a configuration that serves the example image on its own port."""
    rules = {REPOSITORY: {"source": f"oci:{EXAMPLE}"}}
    space = {"location": location}
    keys = {"listen": LISTEN, "timeout": "20s", "repos": rules, "blobSpace": space}
    return {"blobserve": {**keys, **own}, "accessLog": {"format": "off"}, **(top or {})}


@asynccontextmanager
async def running(config: dict[str, Any]) -> AsyncIterator[Blobserve]:
    """Start a service, and stop it at the end."""
    service = Blobserve(the_reactor(), config)
    service.startService()
    try:
        await service.when_started()
        yield service
    finally:
        await service.stopService()


async def fetch(service: Blobserve, target: str = PAGE, **more: Any) -> tuple[int, bytes]:
    """Send one request; return status and body."""
    [address] = service.addresses
    url = f"http://127.0.0.1:{address.port}{target}"  # type: ignore[attr-defined]
    response = await treq.get(url, persistent=False, **more)
    return response.code, await response.content()


def counted(service: Blobserve, name: str, **labels: str) -> float:
    """Return the value of a metric of the service."""
    return service.metrics.registry.get_sample_value(name, labels) or 0.0


async def until(is_true: Callable[[], bool]) -> None:
    """Let the reactor run until a condition holds; the time limit of the test bounds it."""
    while not is_true():
        await deferLater(the_reactor(), 0.01)


# --- Reload ---------------------------------------------------------------------------------------


@within(60)
async def test_rules_change_at_once(tmp_path: Path) -> None:
    """After a reload the next request follows the new rules, also for rewriting."""
    async with running(configured(tmp_path)) as service:
        before = await fetch(service)
        replacement = {"path": "index.html", "search": "<html", "replacement": "<HTML"}
        rules = {"source": f"oci:{EXAMPLE}", "replacements": [replacement]}
        service.reload(configured(tmp_path, repos={REPOSITORY: rules}))
        after = await fetch(service)
        assert before[1] != after[1] == before[1].replace(b"<html", b"<HTML")
        service.reload(configured(tmp_path, repos={}))
        assert await fetch(service) == (403, f'forbidden repo: "{REPOSITORY}"\n'.encode())
        service.reload(configured(tmp_path))
        assert await fetch(service) == before


def moved(layout: Path, **tags: str) -> dict[str, Digest]:
    """Write a layout with an image of one file for each tag; return their digests."""
    images = {tag: Image.of({"index.html": text.encode()}) for tag, text in tags.items()}
    write_layout(layout, images)
    return {tag: Digest.of(image.manifest) for tag, image in images.items()}


def image_of(service: Blobserve, reference: str) -> Digest | None:
    """Return the digest of an image of a site that the blob space has; None if it has none."""
    scopes = {site.scope for site in service.config.sites.values()}
    for scope in scopes:
        known = Reference.parse(reference).within(scope)
        lease = service._store.lease_at_once(known, read_only=True)
        if lease is not None:
            with lease:
                return lease.digest
    return None


@within(60)
async def test_sites_are_pulled_at_start(tmp_path: Path) -> None:
    """The fixed image of a site is pulled at start and refreshed; others wait for a request."""
    layout, repository = tmp_path / "layout", "r.example/site"
    digests = moved(layout, v1="one", v2="two", v3="three", v4="four")
    own: dict[str, Any] = {"source": f"oci:{layout}", "tagMaxAge": "100ms"}
    sites = {
        "a.example": {**own, "image": f"{repository}:v1"},
        "b.example": {**own, "image": f"{repository}@{digests['v2']}"},
        "c.example": {**own, "image": f"{repository}:v3", "prePull": False},
        "*.p.example": {**own, "image": f"{repository}:v4"},
        "*.q.example": {**own, "image": f"{repository}:{{1}}"},
        "d.example": {"redirect": "a.example"},
    }
    async with running(configured(tmp_path / "space", repos={}, sites=sites)) as service:
        await until(lambda: image_of(service, f"{repository}:v1") == digests["v1"])
        by_digest = f"{repository}@{digests['v2']}"
        await until(lambda: image_of(service, by_digest) == digests["v2"])
        later = moved(layout, v1="new", v2="two", v3="three", v4="four")["v1"]
        await until(lambda: image_of(service, f"{repository}:v1") == later)
        for tag in ("v3", "v4"):
            assert image_of(service, f"{repository}:{tag}") is None
        refused = (403, f'forbidden repo: "{repository}"\n'.encode())
        assert await fetch(service, f"/{repository}:v1/") == refused


@within(60)
async def test_sites_change_at_once(tmp_path: Path) -> None:
    """A reload pulls the images of new sites, and an error in a site leaves all as it was."""
    layout, repository = tmp_path / "layout", "r.example/site"
    digests = moved(layout, v1="one", v2="two")
    own = {"source": f"oci:{layout}"}
    space = tmp_path / "space"
    async with running(configured(space, repos={})) as service:
        sites: dict[str, Any] = {"a.example": {**own, "image": f"{repository}:v1"}}
        service.reload(configured(space, repos={}, sites=sites))
        await until(lambda: image_of(service, f"{repository}:v1") == digests["v1"])
        sites["a.example"] = {**own, "image": f"{repository}:v2"}
        with pytest.raises(ConfigError):
            service.reload(configured(space, repos={}, sites={**sites, "b.example:80": "x"}))
        assert [str(site.image) for site in service.config.sites.values()] == [f"{repository}:v1"]
        service.reload(configured(space, repos={}, sites=sites))
        await until(lambda: image_of(service, f"{repository}:v2") == digests["v2"])
        assert (await fetch(service, f"/{repository}:v2/"))[0] == 403
        service.reload(configured(space, repos={repository: own}, sites=sites))
        assert await fetch(service, f"/{repository}:v2/") == (200, b"two")


@within(60)
async def test_limits_change_at_once(tmp_path: Path) -> None:
    """After a reload the next pull has the new limits."""
    async with running(configured(tmp_path, limits={"entries": 1})) as service:
        status, body = await fetch(service)
        assert (status, b"more than 1 entries" in body) == (502, True)
        service.reload(configured(tmp_path))
        assert (await fetch(service))[0] == 200


@within(60)
async def test_limits_reach_open_connections(tmp_path: Path) -> None:
    """New limits apply to connections that were open before a reload."""
    async with running(configured(tmp_path)) as service:
        [address] = service.addresses
        endpoint = TCP4ClientEndpoint(the_reactor(), "127.0.0.1", address.port)  # type: ignore[attr-defined]
        client = await connectProtocol(endpoint, Client())
        await until(lambda: counted(service, "blobserve_connections") == 1)
        service.reload(configured(tmp_path, limits={"clientIdleTimeout": "1ms"}))
        assert await client.all().addTimeout(10, the_reactor()) == b""


@within(60)
async def test_a_reload_changes_the_bound(tmp_path: Path) -> None:
    """After a reload the blob space obeys its new quota."""
    async with running(configured(tmp_path)) as service:
        location = str(service.config.blob_space.location)
        space = {"location": location, "maxSizeBytes": "64MiB"}
        service.reload(configured(tmp_path, blobSpace=space))
        assert counted(service, "blobserve_max_size_bytes") == 64 << 20
        assert (await fetch(service))[0] == 200


@within(60)
@pytest.mark.parametrize(
    ("own", "top", "said"),
    [
        ({"listen": "tcp:1"}, {}, "listen"),
        ({"blobSpace": {"location": "/x"}}, {}, "blobSpace.location"),
        ({"limits": {"parallelDownloads": 3}}, {}, "limits.parallelDownloads"),
        ({"limits": {"parallelChunkReads": 3}}, {}, "limits.parallelChunkReads"),
        ({"webhooks": {"listen": "tcp:1", "secretFile": "s"}}, {}, "webhooks.listen"),
        ({}, {"accessLog": {"format": "json"}}, "accessLog"),
        ({}, {"prometheusAddr": "127.0.0.1:0"}, "prometheusAddr"),
        ({}, {"readinessProbeAddr": "127.0.0.1:0"}, "readinessProbeAddr"),
    ],
)
async def test_what_needs_a_restart_is_refused(
    tmp_path: Path, own: dict[str, Any], top: dict[str, Any], said: str
) -> None:
    """A reload that needs a restart is refused and changes nothing."""
    async with running(configured(tmp_path)) as service:
        config = service.config
        with pytest.raises(ConfigError) as caught:
            service.reload(configured(tmp_path, top, **{"repos": {}, **own}))
        assert caught.value.problems == (f"{said}: needs a restart",)
        assert service.config is config
        assert (await fetch(service))[0] == 200


@within(60)
async def test_a_wrong_configuration_changes_nothing(tmp_path: Path) -> None:
    """A reload with an error raises it and changes nothing."""
    async with running(configured(tmp_path)) as service:
        with pytest.raises(ConfigError, match="nearest known one"):
            service.reload(configured(tmp_path, repos={}, colour="red"))
        assert (await fetch(service))[0] == 200


@within(60)
async def test_prepull(tmp_path: Path) -> None:
    """Tags of prePull are pulled at the start, and at a reload that adds them."""
    rules = {"source": f"oci:{EXAMPLE}", "prePull": ["v1"]}
    for first, second in ((rules, rules), ({"source": f"oci:{EXAMPLE}"}, rules)):
        config = configured(tmp_path / str(len(first)), repos={REPOSITORY: first})
        async with running(config) as service:
            service.reload(
                {**config, "blobserve": {**config["blobserve"], "repos": {REPOSITORY: second}}}
            )
            await until(lambda: counted(service, "blobserve_pulls_total", outcome="ready") == 1)
            status, _ = await fetch(service, headers={"X-BlobServe-ReadOnly": "true"})
            assert status == 200


@within(60)
async def test_a_prepull_that_fails_is_not_fatal(tmp_path: Path) -> None:
    """A failed prePull is logged, and the server becomes ready."""
    rules = {"source": f"oci:{EXAMPLE}", "prePull": ["none", "v1"]}
    top = {"readinessProbeAddr": "127.0.0.1:0"}
    async with running(configured(tmp_path, top, repos={REPOSITORY: rules})) as service:
        [probes] = service.probe_addresses
        url = f"http://127.0.0.1:{probes.port}/ready"  # type: ignore[attr-defined]
        while (await treq.get(url, persistent=False)).code != 200:
            await deferLater(the_reactor(), 0.01)
        assert (await fetch(service))[0] == 200


# --- The end --------------------------------------------------------------------------------------


class Silent(Protocol):
    """A registry that accepts a connection and never answers."""

    def connectionMade(self) -> None:
        """Count the connection."""
        self.factory.connected += 1  # type: ignore[union-attr]


@asynccontextmanager
async def silent_registry() -> AsyncIterator[tuple[str, Any]]:
    """A registry that never answers: its name, and its factory, which counts connections."""
    factory = Factory.forProtocol(Silent)
    factory.connected = 0  # type: ignore[attr-defined]
    port = the_reactor().listenTCP(0, factory, interface="127.0.0.1")
    try:
        yield f"127.0.0.1:{port.getHost().port}", factory
    finally:
        await port.stopListening()


@within(60)
async def test_prepulls_run_side_by_side(tmp_path: Path) -> None:
    """A stalled prePull delays no other prePull and no request."""
    async with silent_registry() as (registry, factory):
        own = {
            "repos": {
                f"{registry}/a": {"prePull": ["v1", "v2"]},
                REPOSITORY: {"source": f"oci:{EXAMPLE}", "prePull": ["v1"]},
            },
            "registries": {registry: {"insecure": True}},
        }
        async with running(configured(tmp_path, **own)) as service:
            await until(lambda: factory.connected >= 2)
            await until(lambda: counted(service, "blobserve_pulls_total", outcome="ready") == 1)
            assert (await fetch(service))[0] == 200


@within(60)
async def test_ten_stalled_pulls(tmp_path: Path) -> None:
    """Ten stalled pulls do not delay the end by a second, and their waiters get a 503."""
    async with silent_registry() as (registry, factory):
        own = {"repos": {f"{registry}/*": {}}, "registries": {registry: {"insecure": True}}}
        async with running(configured(tmp_path, **own)) as service:
            waiting = gatherResults(
                [Deferred.fromCoroutine(fetch(service, f"/{registry}/x{n}:v1/")) for n in range(10)]
            )
            await until(lambda: factory.connected >= 2)
            began = the_reactor().seconds()
            await service.stopService()
            assert the_reactor().seconds() - began < SLACK
            assert await waiting == [(503, b"timeout")] * 10


class Reader(Protocol):
    """A client that requests one path, and reads only when the test resumes it."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.received = 0
        self.gone: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        """Send the request."""
        self.transport.write(f"GET {self.target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

    def dataReceived(self, received: bytes) -> None:
        """Stop reading after the first piece."""
        if self.received == 0:
            self.transport.pauseProducing()
        self.received += len(received)

    def connectionLost(self, reason: Failure) -> None:
        """Fire the Deferred of the end."""
        self.gone.callback(None)


def large(tmp_path: Path, **own: object) -> dict[str, Any]:
    """Return a configuration with an image of a file larger than the buffers of sockets."""
    layout = write_layout(tmp_path / "layout", {"v1": Image.of({"big": os.urandom(LARGE)})})
    rules = {REPOSITORY: {"source": f"oci:{layout}"}}
    return configured(tmp_path / "cache", repos=rules, **own)


LARGE = 32 << 20


@within(60)
@pytest.mark.parametrize(("drain_timeout", "is_whole"), [("30s", True), ("200ms", False)])
async def test_a_response_that_is_being_sent(
    tmp_path: Path, drain_timeout: str, is_whole: bool
) -> None:
    """A response in progress may finish within drainTimeout, and is cut off after it."""
    async with running(large(tmp_path, drainTimeout=drain_timeout)) as service:
        [address] = service.addresses
        reader = Reader(f"/{REPOSITORY}:v1/big")
        endpoint = TCP4ClientEndpoint(the_reactor(), "127.0.0.1", address.port)  # type: ignore[attr-defined]
        await connectProtocol(endpoint, reader)
        await until(lambda: reader.received > 0)
        stopped = service.stopService()
        with pytest.raises(ConnectError):
            await connectProtocol(endpoint, Reader("/"))
        if is_whole:
            assert not stopped.called
            reader.transport.resumeProducing()
        await stopped
        reader.transport.resumeProducing()
        await reader.gone
        assert (reader.received > LARGE) is is_whole


@within(60)
async def test_ready_does_not_need_a_registry(tmp_path: Path) -> None:
    """A restarted server with an image is ready at once although its registry hangs."""
    probe = {"readinessProbeAddr": "127.0.0.1:0"}
    async with silent_registry() as (registry, factory):
        here = {"source": f"oci:{EXAMPLE}", "prePull": ["v1"]}
        async with running(configured(tmp_path, repos={f"{registry}/x": here})) as service:
            assert (await fetch(service, f"/{registry}/x:v1/"))[0] == 200
        own = {
            "repos": {f"{registry}/x": {"prePull": ["v1"], "tagMaxAge": "0s"}},
            "registries": {registry: {"insecure": True}},
        }
        async with running(configured(tmp_path, probe, **own)) as service:
            await until(lambda: factory.connected > 0)
            [probes] = service.probe_addresses
            url = f"http://127.0.0.1:{probes.port}/ready"  # type: ignore[attr-defined]
            assert (await treq.get(url, persistent=False)).code == 200


@within(60)
async def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """A stopped service leaves no thread, no timer and no open port."""
    threads = {thread.ident for thread in threading.enumerate()}
    calls = set(the_reactor().getDelayedCalls())
    async with running(configured(tmp_path)) as service:
        assert (await fetch(service))[0] == 200
        ports = [address.port for address in service.addresses]  # type: ignore[attr-defined]
    left = [t.name for t in threading.enumerate() if t.ident not in threads]
    assert [name for name in left if "blobserve" in name] == []
    ours = [str(call) for call in set(the_reactor().getDelayedCalls()) - calls]
    assert [call for call in ours if "blobserve" in call] == []
    for number in ports:
        the_reactor().listenTCP(number, Factory(), interface="127.0.0.1").stopListening()


@within(60)
async def test_a_start_that_fails_half_way(tmp_path: Path) -> None:
    """A start fails when one address is in use, and stopping releases everything."""
    async with running(configured(tmp_path / "one")) as first:
        [address] = first.addresses
        taken = f"tcp:{address.port}:interface=127.0.0.1"  # type: ignore[attr-defined]
        second = Blobserve(the_reactor(), configured(tmp_path / "two", listen=[LISTEN, taken]))
        second.startService()
        try:
            with pytest.raises(CannotOpen, match="listen: cannot open tcp:"):
                await second.when_started()
        finally:
            await second.stopService()
        async with running(configured(tmp_path / "two")) as third:
            assert (await fetch(third))[0] == 200


@within(60)
async def test_a_stop_in_the_middle_of_a_start(tmp_path: Path) -> None:
    """A service may be stopped during its start, and its blob space is free again."""
    service = Blobserve(the_reactor(), configured(tmp_path))
    service.startService()
    await service.stopService()
    async with running(configured(tmp_path)) as again:
        assert (await fetch(again))[0] == 200


@within(30)
async def test_the_ports_of_operators_take_no_bodies(tmp_path: Path) -> None:
    """The ports of probes and metrics refuse a body before it comes; a reload sets their limits."""
    ports = {"prometheusAddr": "127.0.0.1:0", "readinessProbeAddr": "127.0.0.1:0"}
    config = configured(tmp_path, ports)
    async with running(config) as service:
        for address, page in zip(service.probe_addresses, ("metrics", "live"), strict=True):
            door = Door(address.port)  # type: ignore[attr-defined]
            assert (await door.fetch(page)).status == 200
            client = await door.connect()
            client.send(
                f"POST /{page} HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n"
                "Content-Type: application/x-www-form-urlencoded\r\n\r\n".encode()
            )
            assert Response.parse(await client.all()).status == 405
            idle = await door.connect()
            service.reload(configured(tmp_path, ports, limits={"clientIdleTimeout": "200ms"}))
            assert await idle.all() == b""
            service.reload(config)
