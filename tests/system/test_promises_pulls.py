"""Promises on pulls, over real sockets: bounded memory, permits, and a quick end."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic

import attrs
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from blobserve.config import MIB, Limits, RepositoryRules
from blobserve.metrics import Metrics
from blobserve.names.reference import Reference
from blobserve.store.blobspace import BlobSpace, BlobState
from blobserve.store.lease import Lease
from blobserve.store.refstore import RefStore
from blobserve.testing import make_image
from tests.support.parts.images import Image
from tests.support.parts.programs import free_port
from tests.support.parts.registry import DockerRegistry
from tests.support.parts.server import Server
from tests.support.scripted_registry import Scripted, cut, listening
from tests.support.services import Door, allowing
from tests.support.sites import Client, Response
from tests.support.slack import SLACK
from tests.support.source_fixtures import registry_at, until
from tests.support.spaces import Held, opened
from tests.support.within import within

LARGE = 8 * MIB


@attrs.frozen
class Pulling:
    """A ref store between a registry on a socket and a disk that the test holds up."""

    space: BlobSpace
    store: RefStore
    disk: Held
    """The jobs of unpacking and writing, which wait until the test runs them."""
    metrics: Metrics

    def ask(self, reference: Reference | str) -> Deferred[Lease]:
        """Request a lease."""
        return self.store.blob_for(Reference.parse(str(reference)))

    def counted(self, name: str) -> float:
        """Return the value of a metric."""
        return self.metrics.registry.get_sample_value(f"blobserve_{name}") or 0.0


@asynccontextmanager
async def pulling(directory: Path, host: str) -> AsyncIterator[Pulling]:
    """Open a ref store that pulls from the registry at `host`, and close it at the end."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    disk, metrics, rules = Held(), Metrics(), RepositoryRules()
    async with (
        registry_at(host, metrics=metrics) as registry,
        opened(directory, threads=disk, reactor=reactor, metrics=metrics) as space,
    ):
        store = RefStore(space, lambda _: registry, lambda _: rules, reactor, metrics, Limits)
        await store.open()
        try:
            yield Pulling(space, store, disk, metrics)
        finally:
            closing = Deferred.fromCoroutine(store.close())
            disk.go_all()
            await closing


async def settled(value: Callable[[], float]) -> float:
    """Return `value` when it is not zero and has not changed for a while."""
    while True:
        before = value()
        await turn(0.3)
        if before == value() != 0:
            return before


async def turn(seconds: float = 0.002) -> None:
    """Let the reactor run for a moment."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs
    from twisted.internet.task import deferLater

    await deferLater(reactor, seconds)


# --- Back-pressure --------------------------------------------------------------------------------


def push_large(registry: DockerRegistry) -> list[tuple[str, bytes]]:
    """Push ten images of one random file; return their names and these files."""
    pushed = []
    for n in range(10):
        content = random.Random(n).randbytes(LARGE)
        registry.put(Image.of({"a": content}, "none"), f"team/large{n}:v1")
        pushed.append((f"{registry.host}/team/large{n}:v1", content))
    return pushed


@within(60)
async def test_memory_while_the_disk_stands_still(
    tmp_path: Path, docker_registry: DockerRegistry
) -> None:
    """With a slow disk ten pulls hold little more than a mebibyte each in memory."""
    images = push_large(docker_registry)
    async with pulling(tmp_path, docker_registry.host) as it:
        tracemalloc.start()
        try:
            waits = [it.ask(name) for name, _ in images]
            taken = await settled(lambda: it.counted("pulled_bytes_total"))
            assert it.counted("pulls_in_flight") == 10
            assert taken < 12 * MIB
            while not all(wait.called for wait in waits):
                it.disk.go_all()
                await turn()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 20 * MIB
        assert it.counted("pulled_bytes_total") > 10 * LARGE
        for wait, (_, content) in zip(waits, images, strict=True):
            with await wait as lease:
                entry = lease.filesystem.lookup(b"a")
                assert lease.filesystem.file(entry).read(0, LARGE) == content


def test_memory_of_the_process(
    docker_registry: DockerRegistry, serve: Callable[..., Server]
) -> None:
    """Ten concurrent pulls raise the memory of the process by less than the layers' size."""
    images = push_large(docker_registry)
    small = docker_registry.put(Image.of({"a": b"a"}), "team/small:v1")
    server = serve(allowing(docker_registry.host))
    assert server.fetch(f"/{docker_registry.host}/team/small@{small}/a").status == 200
    before = server.peak_memory()
    with ThreadPoolExecutor(10) as clients:
        answers = clients.map(lambda each: server.fetch(f"/{each[0]}/a", "HEAD"), images)
        assert {answer.status for answer in answers} == {200}
    assert server.peak_memory() - before < 5 * LARGE
    for name, content in images:
        assert server.fetch(f"/{name}/a").body == content


# --- Permits --------------------------------------------------------------------------------------


@within(30)
async def test_a_permit_is_held_until_a_layer_is_verified(tmp_path: Path) -> None:
    """An eleventh layer is requested only when one of ten is verified."""
    async with listening() as scripted, pulling(tmp_path, scripted.host) as it:
        images = [make_image({"a": b"%d" % n}) for n in range(11)]
        layers = [image.layers[0] for image in images]
        waits = [it.ask(scripted.push(f"team/site:v{n}", each)) for n, each in enumerate(images)]
        # Any of them may be the one that waits.
        sizes = [layer.size for layer in layers]
        all_but_one = {sum(sizes) - size for size in sizes}
        await until(lambda: it.counted("pulls_queued") == 1)
        await until(lambda: it.counted("pulled_bytes_total") in all_but_one)
        while not any(it.space.state_of(each.digest) is BlobState.READY for each in layers):
            await turn(0.02)  # enough for a request to arrive
            assert len(scripted.asked("GET .*blobs")) == 10
            it.disk.go()
        await until(lambda: len(scripted.asked("GET .*blobs")) == 11)
        while not all(wait.called for wait in waits):
            it.disk.go_all()
            await turn()
        for wait in waits:
            (await wait).release()


# --- The end --------------------------------------------------------------------------------------


def push_stalling(registry: Scripted) -> list[str]:
    """Push ten images with layers that never arrive completely."""
    registry.always("blobs", cut(1000, "silence"))
    chance = random.Random(1)
    images = [make_image({"a": chance.randbytes(50_000)}) for _ in range(10)]
    return [str(registry.push(f"team/site:v{n}", image)) for n, image in enumerate(images)]


@within(60)
async def test_a_thousand_waiters_are_told_at_the_end(
    serve: Callable[..., Server],
) -> None:
    """With ten stalled pulls SIGTERM ends a server in a second; a thousand clients get a 503."""
    async with listening() as registry:
        images = push_stalling(registry)
        metrics = Door(free_port())
        top = {"prometheusAddr": f"127.0.0.1:{metrics.port}", "accessLog": {"format": "off"}}
        server = await deferToThread(serve, allowing(registry.host), top)
        door = Door(server.port)
        clients: list[Client] = []
        for _ in range(25):  # in steps, since the queue of a listening socket is short
            begun = [Deferred.fromCoroutine(door.begin(f"/{each}/a")) for each in images * 4]
            clients += await gatherResults(begun)
            waiting = b"\nblobserve_requests_in_flight %d.0\n" % len(clients)
            while waiting not in (await metrics.fetch("metrics")).body:
                await turn(0.01)
        await until(lambda: len(list(server.space.glob("ingest/*/content"))) == 10)
        began = monotonic()
        ended = deferToThread(server.stop)
        told = [Response.parse(await client.all()) for client in clients]
        await ended
        assert monotonic() - began < 1.0 + 0.5 * SLACK  # half a second for the end of the process
        assert {(each.status, each.body) for each in told} == {(503, b"timeout")}
        assert not list((server.space / "ingest").iterdir())
