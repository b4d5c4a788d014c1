"""Downloads: permits, order and retries; and single flights, which many callers share."""

from __future__ import annotations

import gc
import random
from pathlib import Path

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred

from blobserve.concurrency.singleflight import Call, SingleFlight
from blobserve.config import Limits
from blobserve.errors import ImageTooLarge, QueueFull, RegistryFailed, StoreClosed
from blobserve.store.blobspace import BlobState
from blobserve.store.pull.downloads import Downloads
from blobserve.store.space.provenance import Access
from blobserve.testing import MadeImage, make_image
from tests.support.stores import OTHER, SITE, Stand, an_image, now, standing


@attrs.define
class _Pulled:
    """Downloads apart from those of a stand, and the list of requests for them."""

    stand: Stand
    downloads: Downloads
    pulls: list[Call[None]] = attrs.field(factory=list)

    def pull(self, image: MadeImage, urgent: bool = True) -> Deferred[None]:
        self.stand.source.push(SITE, image)
        flight: Call[None] = Call()
        flight.urgent = urgent
        self.pulls.append(flight)
        layer = image.layers[0]
        return Deferred.fromCoroutine(
            self.downloads.pull(self.stand.source, SITE.repository, layer, Access.LISTED, flight)
        )

    def fetched(self) -> list[str]:
        return [subject for method, subject in self.stand.source.requests if method == "fetch"]


def _pulled(stand: Stand, limits: Limits | None = None) -> _Pulled:
    return _Pulled(stand, Downloads(stand.space, stand.metrics, lambda: limits or Limits()))


def _layer(image: MadeImage) -> str:
    return str(image.layers[0].digest)


@pytest_twisted.ensureDeferred
async def test_ten_at_a_time(tmp_path: Path) -> None:
    """Ten layers are downloaded at a time; the eleventh begins when one of them has ended (C41)."""
    async with standing(tmp_path) as stand:
        pulled = _pulled(stand)
        gate = stand.source.hold("fetch", after=10)
        waits = [pulled.pull(an_image(str(n))) for n in range(25)]
        assert (gate.waiting, len(pulled.fetched())) == (10, 10)
        assert stand.counted("pulls_in_flight") == 10
        assert stand.counted("pulls_queued") == 15
        gate.open()
        for wait in waits:
            now(wait)
        assert stand.counted("pulls_in_flight") == stand.counted("pulls_queued") == 0
        assert stand.counted("pulls_total", outcome="ready") == 25
        await pulled.downloads.close()


@pytest_twisted.ensureDeferred
async def test_one_per_layer(tmp_path: Path) -> None:
    """A layer with many callers is downloaded once, and its bytes are counted once."""
    async with standing(tmp_path) as stand:
        pulled = _pulled(stand)
        image = an_image()
        gate = stand.source.hold("fetch")
        waits = [pulled.pull(image) for _ in range(100)]
        digest = image.layers[0].digest
        assert not pulled.downloads.is_foreign(digest, SITE.repository, Access.LISTED)
        assert pulled.downloads.is_foreign(digest, OTHER.repository, Access.LISTED)
        assert pulled.downloads.is_foreign(digest, SITE.repository, Access.ANONYMOUS)
        gate.open()
        for wait in waits:
            now(wait)
        assert pulled.fetched() == [_layer(image)]
        assert stand.counted("pulled_bytes_total") == image.layers[0].size
        await pulled.downloads.close()


@pytest_twisted.ensureDeferred
async def test_foreground_first(tmp_path: Path) -> None:
    """A download with a waiter runs before one without, in any order of arrival."""
    async with standing(tmp_path) as stand:
        pulled = _pulled(stand, Limits(parallel_downloads=1))
        gate = stand.source.hold("fetch")
        images = [an_image(name) for name in ("running", "back 1", "back 2", "front", "joined")]
        for image, urgent in zip(images, (False, False, False, True, False), strict=True):
            pulled.pull(image, urgent)
        pulled.pull(images[4], urgent=True)
        pulled.pulls[2].wait()
        gate.open()
        running, back_1, back_2, front, joined = map(_layer, images)
        assert pulled.fetched() == [running, back_2, front, joined, back_1]
        await pulled.downloads.close()


@pytest_twisted.ensureDeferred
async def test_queue_full(tmp_path: Path) -> None:
    """A new layer is refused if the queue is full, but a queued one may be joined."""
    async with standing(tmp_path) as stand:
        pulled = _pulled(stand, Limits(parallel_downloads=1, queued_downloads=2))
        gate = stand.source.hold("fetch")
        waits = [pulled.pull(an_image(str(n))) for n in range(3)]
        with pytest.raises(QueueFull):
            now(pulled.pull(an_image("3")))
        waits.append(pulled.pull(an_image("2")))
        gate.open()
        for wait in waits:
            now(wait)
        now(pulled.pull(an_image("3")))
        await pulled.downloads.close()


@pytest_twisted.ensureDeferred
async def test_limits_change(tmp_path: Path) -> None:
    """A changed number of parallel downloads applies from the next one on."""
    parallel = 1
    async with standing(tmp_path) as stand:
        limits = lambda: Limits(parallel_downloads=parallel)  # noqa: E731
        pulled = _Pulled(stand, Downloads(stand.space, stand.metrics, limits))
        gate = stand.source.hold("fetch", after=10)
        for parallel, under_way in ((1, 1), (3, 3), (2, 3)):
            for n in range(4):
                pulled.pull(an_image(f"{parallel} {n}"))
            assert gate.waiting == under_way
        first = gate
        gate = stand.source.hold("fetch", after=10)
        first.open()
        assert (first.waiting, gate.waiting) == (0, 2)
        gate.open()
        assert stand.counted("pulls_total", outcome="ready") == 12
        await pulled.downloads.close()


@pytest_twisted.ensureDeferred
async def test_thousand_fail_at_once(tmp_path: Path) -> None:
    """A full queue of downloads that fail at once is worked off as usual (C41)."""
    async with standing(tmp_path) as stand:
        pulled = _pulled(stand)
        gate = stand.source.hold("fetch")
        waits = [pulled.pull(an_image(str(n))) for n in range(1010)]
        stand.source.fail("fetch", *[RegistryFailed("registry.example", "down")] * 1000)
        gate.open()
        failed = 0
        for wait in waits:
            try:
                now(wait)
            except RegistryFailed:
                failed += 1
        assert failed == 1000
        await pulled.downloads.close()


@pytest_twisted.ensureDeferred
async def test_failure_stops_the_fetch(tmp_path: Path) -> None:
    """A layer that proves too large is not fetched to its end."""
    async with standing(tmp_path, max_size=8 << 20) as stand:
        pulled = _pulled(stand)
        noise = random.Random(0).randbytes(6 << 20)
        image = make_image({"zeros": bytes(32 << 20), "noise": noise})
        stand.source.hold("fetch", after=1 << 20)
        with pytest.raises(ImageTooLarge):
            now(pulled.pull(image))
        assert 0 < stand.counted("pulled_bytes_total") <= 1 << 20
        assert stand.space.state_of(image.layers[0].digest) is BlobState.UNKNOWN
        assert stand.counted("pulls_total", outcome="failed") == 1
        await pulled.downloads.close()


@pytest_twisted.ensureDeferred
async def test_close(tmp_path: Path) -> None:
    """Closing ends running and queued downloads, empties ingest, and refuses new ones."""
    async with standing(tmp_path) as stand:
        pulled = _pulled(stand)
        gate = stand.source.hold("fetch", after=10)
        waits = [pulled.pull(an_image(str(n))) for n in range(1000)]
        await pulled.downloads.close()
        assert gate.waiting == 0
        for wait in [*waits, pulled.pull(an_image("late"))]:
            with pytest.raises(StoreClosed):
                now(wait)
        assert not any((tmp_path / "ingest").iterdir())
        assert stand.counted("pulls_total", outcome="cancelled") == 10
        await pulled.downloads.close()


def test_flight_waits_are_independent() -> None:
    """Cancelling one wait on a flight affects no other, even while results are delivered."""
    flight: Call[str] = Call()
    first, second, third = (flight.wait() for _ in range(3))
    first.addCallback(lambda _: second.cancel())
    flight.succeed("done")
    with pytest.raises(CancelledError):
        now(second)
    assert now(third) == now(flight.wait()) == "done"


def test_flight_errors_are_copies() -> None:
    """Each waiter may raise its error without growing the traceback of another."""
    flight: Call[None] = Call()
    waits = [flight.wait() for _ in range(100)]
    flight.fail(RegistryFailed("registry.example", "down"))
    depths = []
    for wait in waits:
        with pytest.raises(RegistryFailed) as caught:
            now(wait)
        depths.append(len(caught.traceback))
    assert len(set(depths)) == 1


def test_flight_failure_without_waiters() -> None:
    """A flight that fails without waiters is not an unhandled error."""
    flights: SingleFlight[str, None] = SingleFlight()

    async def fail(_: Call[None]) -> None:
        raise RegistryFailed("registry.example", "down")

    flights.start("key", fail)
    assert flights.get("key") is None
    gc.collect()


@pytest_twisted.ensureDeferred
async def test_flights_end() -> None:
    """Closing fails the waiters before the work has ended, waits for it, and starts no more."""
    flights: SingleFlight[str, None] = SingleFlight()
    steps: list[str] = []
    lingering: Deferred[None] = Deferred()

    async def work(_: Call[None]) -> None:
        try:
            await Deferred()
        finally:
            await lingering
            steps.append("ended")

    waiting = flights.start("key", work).wait()
    closing = Deferred.fromCoroutine(flights.close(StoreClosed()))
    with pytest.raises(StoreClosed):
        now(waiting)
    assert not closing.called
    lingering.callback(None)
    now(closing)
    assert steps == ["ended"]
    with pytest.raises(StoreClosed):
        flights.start("key", work)
    assert steps == ["ended"]


def test_flights_do_not_meet() -> None:
    """Running work of a key is not started a second time, and goes on."""
    flights: SingleFlight[str, int] = SingleFlight()
    work: Deferred[int] = Deferred()

    async def wait(_: Call[int]) -> int:
        return await work

    waiting = flights.start("key", wait).wait()
    with pytest.raises(RuntimeError):
        flights.start("key", wait)
    work.callback(7)
    assert now(waiting) == 7
    assert flights.get("key") is None
