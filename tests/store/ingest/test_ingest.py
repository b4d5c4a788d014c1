"""The ingest of one layer."""

from __future__ import annotations

import errno
import tracemalloc
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import Clock
from zope.interface import implementer

from blobserve.config import KIB, MIB
from blobserve.errors import BadImage, ContentMismatch, DiskFull, ImageTooLarge, StoreClosed
from blobserve.names.digest import Digest
from blobserve.store.blobspace import BlobState
from blobserve.store.ingest.ingest import Ingest
from blobserve.store.ingest.pipeline import CHUNK, MOST_WAITING
from blobserve.testing import InlineThreads
from tests.support.spaces import Held, Made, made, names_in, on_disk, opened, pool, read, take_in
from tests.support.stores import now
from tests.support.within import within


@implementer(IPushProducer)
class Producer:
    """A producer that records its calls."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pauseProducing(self) -> None:
        """See `IPushProducer.pauseProducing`."""
        self.told.append("pause")

    def resumeProducing(self) -> None:
        """See `IPushProducer.resumeProducing`."""
        self.told.append("resume")

    def stopProducing(self) -> None:
        """See `IProducer.stopProducing`."""
        self.told.append("stop")


@pytest_twisted.ensureDeferred
async def test_from_unready_to_ready(tmp_path: Path) -> None:
    """A layer is UNREADY during its ingest, READY when verified, and readable from then on."""
    one = made(1)
    async with opened(tmp_path) as space:
        assert space.state_of(one.digest) is BlobState.UNKNOWN
        ingest = await space.ingest(one.descriptor)
        ingest.write(one.blob)
        assert space.state_of(one.digest) is BlobState.UNREADY
        assert space.blobs.acquire(one.digest) is None
        await ingest.finish()
        assert space.state_of(one.digest) is BlobState.READY
        assert len(read(space, one.digest)) == 100 * KIB
        assert names_in(tmp_path, "ingest") == []


@pytest_twisted.ensureDeferred
async def test_chunks_are_joined(tmp_path: Path) -> None:
    """Small chunks that arrive slowly become jobs of half a megabyte, one at a time."""
    one, held = made(1, 1200 * KIB), Held()
    async with opened(tmp_path, threads=held) as space:
        ingest = await space.ingest(one.descriptor)
        held.go()
        for at in range(0, len(one.blob), 1000):
            ingest.write(one.blob[at : at + 1000])
            assert len(held.jobs) == (at + 1000 >= CHUNK)
        finished = Deferred.fromCoroutine(ingest.finish())
        jobs = 0
        while held.jobs:
            assert len(held.jobs) == 1
            held.go()
            jobs += 1
        now(finished)
        assert jobs <= 2 * (len(one.blob) // CHUNK + 1) + 2


@pytest_twisted.ensureDeferred
async def test_what_waits_is_unpacked_meanwhile(tmp_path: Path) -> None:
    """While one chunk is extracted the next is decompressed, two jobs at most."""
    one, held = made(1, 3 * MIB), Held()
    async with opened(tmp_path, threads=held) as space:
        ingest = await space.ingest(one.descriptor)
        held.go()
        for at in range(0, len(one.blob), CHUNK):
            ingest.write(one.blob[at : at + CHUNK])
        finished = Deferred.fromCoroutine(ingest.finish())
        seen = set()
        while held.jobs:
            seen.add(tuple(sorted(name for name, _ in held.jobs)))
            held.go()
        now(finished)
        assert ("advance", "unpack") in seen
        assert max(map(len, seen)) == 2
        assert len(read(space, one.digest)) == 3 * MIB


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("backwards", [False, True])
async def test_neither_of_two_jobs_is_left_behind(tmp_path: Path, backwards: bool) -> None:
    """A pull that fails in one of its two threads is removed when the other has ended too."""
    one, held = made(1, 4 * MIB), Held()
    described = attrs.evolve(one.descriptor, size=2 * CHUNK)
    async with opened(tmp_path, threads=held) as space:
        ingest = await space.ingest(described)
        told: list[Any] = []
        ingest.failure.addErrback(told.append)
        held.go()
        ingest.write(one.blob)
        while "wipe" not in [name for name, _ in held.jobs]:
            assert told == []
            held.jobs.sort(key=lambda job: job[0], reverse=backwards)
            held.go()
        assert [name for name, _ in held.jobs] == ["wipe"]
        assert [each.type for each in told] == [ContentMismatch]
        held.go_all()
        assert names_in(tmp_path, "ingest") == []


@pytest_twisted.ensureDeferred
async def test_the_producer_is_paused(tmp_path: Path) -> None:
    """The producer is paused while more than two chunks wait, and resumed afterwards."""
    one, held, producer = made(1, 2 * MIB), Held(), Producer()
    async with opened(tmp_path, threads=held) as space:
        ingest = await space.ingest(one.descriptor)
        ingest.registerProducer(producer, True)
        ingest.write(one.blob[:MOST_WAITING])
        assert producer.told == []
        ingest.write(one.blob[MOST_WAITING : MOST_WAITING + 1])
        assert producer.told == ["pause"]
        held.go_all()
        assert producer.told == ["pause", "resume"]
        ingest.unregisterProducer()
        ingest.write(one.blob[MOST_WAITING + 1 :])
        finished = Deferred.fromCoroutine(ingest.finish())
        held.go_all()
        now(finished)
        assert producer.told == ["pause", "resume"]


@pytest_twisted.ensureDeferred
async def test_only_streams(tmp_path: Path) -> None:
    """A pull producer is refused."""
    async with opened(tmp_path) as space:
        ingest = await space.ingest(made(1).descriptor)
        with pytest.raises(TypeError):
            ingest.registerProducer(Producer(), False)


async def fails(tmp_path: Path, layer: Made, error: type[Exception], **space_has: Any) -> None:
    """Check that the ingest of `layer` fails early and leaves nothing."""
    async with opened(tmp_path, **space_has) as space:
        size = space.size
        ingest = await space.ingest(layer.descriptor)
        told: list[Any] = []
        ingest.failure.addErrback(told.append)
        ingest.write(layer.blob)
        with pytest.raises(error):
            await ingest.finish()
        assert [each.type for each in told] == [error]
        with pytest.raises(error):  # every time, not once
            await ingest.finish()
        await ingest.abandon()
        assert space.state_of(layer.digest) is BlobState.UNKNOWN
        assert names_in(tmp_path, "ingest") == []
        assert names_in(tmp_path, "blobs") in ([], ["sha256"])
        assert space.size == size


@pytest_twisted.ensureDeferred
async def test_wrong_content(tmp_path: Path) -> None:
    """A layer that does not match its digest or size is never published."""
    one, other = made(1), made(2)
    await fails(tmp_path, attrs.evolve(one, blob=other.blob), ContentMismatch)
    await fails(tmp_path, attrs.evolve(one, blob=one.blob[:-1]), ContentMismatch)
    await fails(tmp_path, attrs.evolve(one, blob=one.blob + b"x"), ContentMismatch)


@pytest_twisted.ensureDeferred
async def test_no_layer_at_all(tmp_path: Path) -> None:
    """Bytes that match their digest but are not a tar archive are refused without leftovers."""
    junk = b"this is no layer" * 1000
    described = attrs.evolve(made(1).descriptor, digest=Digest.of(junk), size=len(junk))
    await fails(tmp_path, Made(junk, described), BadImage)


@pytest_twisted.ensureDeferred
async def test_too_large_for_the_bound(tmp_path: Path) -> None:
    """A layer that unpacks to more than the quota is refused during its ingest."""
    await fails(tmp_path, made(1, content=bytes(8 * MIB)), ImageTooLarge, max_size=4 * MIB)


@pytest_twisted.ensureDeferred
async def test_failure_comes_early(tmp_path: Path) -> None:
    """An impossible layer is reported and removed before its last byte has arrived."""
    bomb = made(1, content=bytes(20 * MIB), compression="none")
    described = attrs.evolve(bomb.descriptor, size=1 * MIB)
    async with opened(tmp_path, max_size=4 * MIB) as space:
        ingest = await space.ingest(described)
        told: list[Any] = []
        ingest.failure.addErrback(told.append)
        ingest.write(bomb.blob[: 2 * MIB])
        assert len(told) == 1
        assert names_in(tmp_path, "ingest") == []
        ingest.write(bomb.blob[2 * MIB :])
        assert space.state_of(bomb.digest) is BlobState.UNKNOWN


@pytest_twisted.ensureDeferred
async def test_abandoning(tmp_path: Path) -> None:
    """An ingest may be abandoned repeatedly; it is removed, and the layer can be pulled again."""
    one = made(1, 600 * KIB)
    async with opened(tmp_path) as space:
        size = space.size
        ingest = await space.ingest(one.descriptor)
        ingest.write(one.blob[:-1])
        await gatherResults([Deferred.fromCoroutine(ingest.abandon()) for _ in range(3)])
        assert space.state_of(one.digest) is BlobState.UNKNOWN
        assert names_in(tmp_path, "ingest") == []
        assert space.size == size
        with pytest.raises(CancelledError):
            await ingest.finish()
        await take_in(space, one)
        await ingest.abandon()
        assert space.state_of(one.digest) is BlobState.READY


@pytest_twisted.ensureDeferred
async def test_abandoning_waits_for_the_running_job(tmp_path: Path) -> None:
    """An abandoned ingest waits for its running job, and then its directory is removed."""
    one, held = made(1, 600 * KIB), Held()
    async with opened(tmp_path, threads=held) as space:
        ingest = await space.ingest(one.descriptor)
        held.go()
        ingest.write(one.blob)
        abandoned = Deferred.fromCoroutine(ingest.abandon())
        assert not abandoned.called
        assert len(names_in(tmp_path, "ingest")) == 1
        assert space.state_of(one.digest) is BlobState.UNREADY
        held.go_all()
        now(abandoned)
        assert names_in(tmp_path, "ingest") == []


@pytest_twisted.ensureDeferred
async def test_what_is_published_stays(tmp_path: Path) -> None:
    """Abandoning an ingest during its publication has no effect: the layer is READY."""
    one, held = made(1), Held()
    async with opened(tmp_path, threads=held) as space:
        ingest = await space.ingest(one.descriptor)
        ingest.write(one.blob)
        finished = Deferred.fromCoroutine(ingest.finish())
        finished.addErrback(lambda failure: failure.trap(CancelledError))
        held.go_on_until("publish")
        finished.cancel()
        abandoned = Deferred.fromCoroutine(ingest.abandon())
        held.go_all()
        now(abandoned)
        assert space.state_of(one.digest) is BlobState.READY
        assert len(read(space, one.digest)) == 100 * KIB


@pytest_twisted.ensureDeferred
async def test_cancelling_a_wait(tmp_path: Path) -> None:
    """Cancelling a wait for the end of an ingest does not stop the ingest."""
    one, held = made(1), Held()
    async with opened(tmp_path, threads=held) as space:
        ingest = await space.ingest(one.descriptor)
        ingest.write(one.blob)
        waits = [Deferred.fromCoroutine(ingest.finish()) for _ in range(2)]
        waits[0].addErrback(lambda failure: failure.trap(CancelledError))
        waits[0].cancel()
        assert waits[0].called
        held.go_all()
        now(waits[1])
        assert space.state_of(one.digest) is BlobState.READY


@pytest_twisted.ensureDeferred
async def test_the_same_layer_twice_at_once(tmp_path: Path) -> None:
    """A second ingest of the same layer is an error, and does not affect the first."""
    one = made(1)
    async with opened(tmp_path) as space:
        ingest = await space.ingest(one.descriptor)
        with pytest.raises(RuntimeError):
            await space.ingest(one.descriptor)
        ingest.write(one.blob)
        await ingest.finish()
        assert space.state_of(one.digest) is BlobState.READY


@pytest_twisted.ensureDeferred
async def test_a_ready_layer_again(tmp_path: Path) -> None:
    """A repeated ingest replaces a READY layer, which its readers can still read."""
    one = made(1)
    async with opened(tmp_path) as space:
        await take_in(space, one)
        size, lease = space.size, space.blobs.acquire(one.digest)
        assert lease is not None
        await take_in(space, one)
        assert len(lease.filesystem.file(lease.filesystem.lookup(b"index.html")).read(0, 10)) == 10
        lease.release()
        assert len(read(space, one.digest)) == 100 * KIB
        assert space.size < size + 100 * KIB
        assert names_in(tmp_path, "ingest") == []


@pytest_twisted.ensureDeferred
async def test_closing_abandons(tmp_path: Path) -> None:
    """Closing a blob space fails and removes its ingests, and refuses later ones."""
    one = made(1, 600 * KIB)
    async with opened(tmp_path) as space:
        ingest = await space.ingest(one.descriptor)
        ingest.failure.addErrback(lambda failure: failure.trap(StoreClosed))
        ingest.write(one.blob[:-1])
    with pytest.raises(StoreClosed):
        await ingest.finish()
    assert names_in(tmp_path, "ingest") == []
    with pytest.raises(StoreClosed):
        await space.ingest(one.descriptor)


@pytest_twisted.ensureDeferred
async def test_closing_waits_ten_seconds_at_most(tmp_path: Path) -> None:
    """A job that hangs delays the closing of a blob space by ten seconds at most."""
    one, held, clock = made(1, 600 * KIB), Held(), Clock()
    async with opened(tmp_path, threads=held, reactor=clock) as space:
        ingest = await space.ingest(one.descriptor)
        ingest.failure.addErrback(lambda failure: failure.trap(StoreClosed))
        held.go()
        ingest.write(one.blob)
        closed = Deferred.fromCoroutine(space.close())
        clock.advance(9.9)
        assert not closed.called
        clock.advance(0.2)
        now(closed)
        held.go_all()


class FullDisk(InlineThreads):
    """Threads on a disk of `size` bytes, which fail the jobs that would exceed it."""

    def __init__(self, location: Path, size: int) -> None:
        self.location, self.size = location, size

    def run(self, f: Any, *args: Any, **kwargs: Any) -> Deferred[Any]:
        """See `Threads.run`."""

        def job() -> Any:
            if getattr(f, "__name__", "") == "begin" and on_disk(self.location) > self.size:
                raise OSError(errno.ENOSPC, "full")
            return f(*args, **kwargs)

        return InlineThreads().run(job)


@pytest_twisted.ensureDeferred
async def test_a_full_disk_evicts(tmp_path: Path) -> None:
    """On a full disk old layers are evicted, and the pull continues."""
    layers = [made(n, 500 * KIB) for n in range(8)]
    async with opened(tmp_path, threads=FullDisk(tmp_path, 2 * MIB)) as space:
        for each in layers:
            await take_in(space, each)
        states = [space.state_of(each.digest) for each in layers]
        assert states[0] is BlobState.UNKNOWN
        assert states[-2:] == [BlobState.READY, BlobState.READY]


@pytest_twisted.ensureDeferred
async def test_a_disk_that_stays_full(tmp_path: Path) -> None:
    """If the disk is full and nothing can be evicted, the pull fails as such without leftovers."""
    one, two = made(1, 500 * KIB), made(2, 500 * KIB)
    async with opened(tmp_path, threads=FullDisk(tmp_path, 400 * KIB)) as space:
        await take_in(space, one)
        lease = space.blobs.acquire(one.digest)
        assert lease is not None
        with pytest.raises(DiskFull):
            await take_in(space, two)
        lease.release()
        assert space.state_of(two.digest) is BlobState.UNKNOWN
        assert names_in(tmp_path, "ingest") == []


@implementer(IPushProducer)
class Flood:
    """A producer that writes a blob as fast as possible."""

    def __init__(self, ingest: Ingest, blob: bytes) -> None:
        self._ingest = ingest
        self._rest = memoryview(blob)
        self._resumed: Deferred[None] | None = None
        self.pauses = 0

    async def flow(self) -> None:
        """Write the whole blob."""
        while self._rest:
            if self._resumed is not None:
                await self._resumed
            self._ingest.write(bytes(self._rest[: 64 * KIB]))
            self._rest = self._rest[64 * KIB :]

    def pauseProducing(self) -> None:
        """See `IPushProducer.pauseProducing`."""
        self.pauses += 1
        self._resumed = Deferred()

    def resumeProducing(self) -> None:
        """See `IPushProducer.resumeProducing`."""
        resumed, self._resumed = self._resumed, None
        if resumed is not None:
            resumed.callback(None)

    def stopProducing(self) -> None:
        """See `IProducer.stopProducing`."""


@within(60)
async def test_memory_stays_flat(tmp_path: Path) -> None:
    """A fast layer never fills the memory."""
    one = made(1, 16 * MIB)
    with pool() as threads:
        async with opened(tmp_path, threads=threads) as space:
            ingest = await space.ingest(one.descriptor)
            flood = Flood(ingest, one.blob)
            tracemalloc.start()
            try:
                ingest.registerProducer(flood, True)
                await flood.flow()
                ingest.unregisterProducer()
                await ingest.finish()
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert flood.pauses > 10
            assert peak < 4 * MIB
            assert len(read(space, one.digest)) == 16 * MIB
