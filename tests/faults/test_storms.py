"""Long storms over real sockets: more images than fit, and clients that leave."""

from __future__ import annotations

import gc
import os
import random
from collections import Counter
from contextlib import suppress
from pathlib import Path

from twisted.internet import defer
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from blobserve.concurrency.singleflight import Call
from blobserve.config import KIB, MIB, BlobSpaceRules
from blobserve.store.blobs.blob import BlobLease
from blobserve.store.ingest.ingest import Ingest
from blobserve.store.lease import Lease
from blobserve.testing import make_image
from blobserve.web.content.leased_body import SharedLease
from tests.faults.scale import sized
from tests.faults.storms import Storm, storming
from tests.support.scripted_registry import Scripted, listening
from tests.support.sites import Client
from tests.support.source_fixtures import until
from tests.support.spaces import names_in
from tests.support.within import within

# --- More images than fit -------------------------------------------------------------------------

FITS = 10
BOUND = 13 * MIB + 512 * KIB
"""Ten images of one MiB each, and the share of the manifests."""


def content_of(n: int) -> bytes:
    """Return the file of an image."""
    return random.Random(n).randbytes(KIB) * KIB


class ImageHistory:
    """The images of a registry, and the order of their last use."""

    def __init__(self, registry: Scripted, count: int) -> None:
        images = [make_image({"a": content_of(n)}) for n in range(count)]
        self.registry = registry
        self.layers = [image.layers[0].digest for image in images]
        self.names = [registry.push(f"team/i{n}:v1", each) for n, each in enumerate(images)]
        self.used: list[int] = []
        self.fits: list[int] = []
        """The number of READY images after each use."""

    def use(self, n: int, storm: Storm) -> None:
        """Record the use of image `n`; check that the READY images are the last used ones."""
        if n in self.used:
            self.used.remove(n)
        self.used.append(n)
        ready = {each for each in self.used if storm.is_ready(self.layers[each])}
        assert ready == set(self.used[-len(ready) :])
        self.fits.append(len(ready))


@within(sized(120, 1800))
async def test_g09_g11_a_thousand_images_where_ten_fit(tmp_path: Path) -> None:
    """With more images than fit, each is served, and the least recently used ones are evicted.

    Rows G09 and G11.
    """
    count, chance = sized(60, 1000), random.Random(11)
    async with listening() as registry:
        history = ImageHistory(registry, count)
        async with storming(tmp_path, registry.host, BOUND) as storm:
            for fresh in range(count):
                # A new image, and two that may be cached or evicted.
                for n in (fresh, *(chance.choice(history.used or [0]) for _ in range(2))):
                    answer = await storm.door.fetch(f"{history.names[n]}/a")
                    assert (answer.status, answer.body == content_of(n)) == (200, True)
                    history.use(n, storm)
        assert max(history.fits) == FITS
        assert min(history.fits[3 * FITS :]) >= FITS - 2
        assert storm.counted("evictions_total") >= count - FITS
        for seen, booked in zip(storm.seen, storm.booked, strict=True):
            assert seen <= booked <= BOUND


# --- Clients that leave ---------------------------------------------------------------------------

TRIES = 20
"""The number of requests of a client that stays, if all but the last get a 503."""

KINDS = (Deferred, Lease, BlobLease, Call, Ingest, SharedLease, Client)

SPARE = 20
"""The objects of one kind that may be more than before. Some objects live until the next of their
kind; a leak grows with the number of clients."""


class Crowd:
    """Clients of a storm, which mostly leave before they are served."""

    def __init__(self, storm: Storm, history: ImageHistory, location: Path) -> None:
        self.storm = storm
        self._history = history
        self._location = location
        self._chance = random.Random(9)
        self.stayed = 0
        self.cut = 0
        """The number of clients that left with part of an answer."""

    async def come(self, count: int) -> None:
        """Let this number of clients come, at most sixty at a time."""
        left = iter(range(count))

        async def one_after_another() -> None:
            for _ in left:
                await self._come_and_go()

        await gatherResults([Deferred.fromCoroutine(one_after_another()) for _ in range(60)])

    async def _come_and_go(self) -> None:
        from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

        chance, n = self._chance, self._chance.randrange(len(self._history.names))
        if chance.random() < 0.1:
            await self._stay(n)
            return
        client = await self.storm.door.connect()
        head = f"GET /{self._history.names[n]}/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        whole = chance.random() < 0.8
        client.send(head.encode()[: None if whole else chance.randrange(len(head))])
        # Some leave at any time, and some with a part of the answer, however slow the machine is.
        moment = chance.choice([0.0, chance.random() / 20, chance.random(), None])
        received = client.some(chance.randrange(1, MIB))
        if moment is not None or not whole:
            received.addTimeout(moment or 0.0, reactor)
        with suppress(defer.TimeoutError):
            await received
        client.transport.abortConnection()
        raw = await client.all()
        self.cut += 0 < len(raw) < MIB

    async def _stay(self, n: int) -> None:
        """Request image `n` until it is served, and try again after a 503.

        All pulls together need more than the blob space. Some give way to older ones, and some wait
        for longer than the timeout on a slow machine.
        """
        from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

        for _ in range(TRIES):
            answer = await self.storm.door.fetch(f"{self._history.names[n]}/a")
            if answer.status != 503:
                break
            await deferLater(reactor, int(answer.headers["retry-after"]))
        assert (answer.status, answer.body == content_of(n)) == (200, True)
        self.stayed += 1

    async def gone(self) -> dict[str, int]:
        """Evict everything; return the numbers of descriptors and objects that are left."""
        storm = self.storm
        await until(
            lambda: storm.counted("pulls_in_flight") == storm.counted("pulls_queued") == 0, 60
        )
        storm.space.reconfigure(BlobSpaceRules(self._location, 1))
        # A leased image would stay, with its files.
        await until(lambda: not any(map(storm.is_ready, self._history.layers)), 60)
        await until(lambda: not open_layers(self._location), 60)
        storm.space.reconfigure(BlobSpaceRules(self._location, BOUND))
        await until(lambda: storm.counted("connections") == 0)
        # Idle connections to a registry are kept on purpose.
        for connection in list(self._history.registry.connections):
            connection.transport.loseConnection()
        await until(lambda: not self._history.registry.connections)
        assert storm.counted("requests_in_flight") == 0
        assert names_in(self._location, "ingest") == []
        gc.collect()
        kinds = Counter(type(each) for each in gc.get_objects())
        alive = {kind.__name__: kinds[kind] for kind in KINDS}
        return {"descriptors": len(os.listdir("/proc/self/fd")), **alive}


def open_layers(location: Path) -> list[str]:
    """List the files of layers that this process has open, removed ones included."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            path = os.readlink(f"/proc/self/fd/{number}").removesuffix(" (deleted)")
            is_layer = path.endswith(("/content", "/index"))
            found += [path] if is_layer and path.startswith(str(location)) else []
    return found


@within(sized(120, 1800))
async def test_s09_clients_that_leave_a_pull(tmp_path: Path) -> None:
    """Clients that leave at any moment of a pull or of its answer leave nothing behind.

    Row S09: no descriptor, lease, temporary file, wait or connection.
    """
    async with listening() as registry:
        history = ImageHistory(registry, 3 * FITS)
        async with storming(tmp_path, registry.host, BOUND) as storm:
            crowd = Crowd(storm, history, tmp_path)
            await crowd.come(200)
            before = await crowd.gone()
            await crowd.come(sized(1000, 10_000))
            after = await crowd.gone()
            assert after.pop("descriptors") <= before.pop("descriptors")
            assert {kind: n for kind, n in after.items() if n > before[kind] + SPARE} == {}
        assert crowd.stayed > 50
        assert crowd.cut > 50
        assert storm.counted("evictions_total") > 5 * FITS
        assert max(storm.seen) <= BOUND
