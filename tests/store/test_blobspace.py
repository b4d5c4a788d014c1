"""The blob space: states, leases, the quota, eviction, one owner."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, DeferredList, fail
from twisted.internet.task import Clock

from blobserve.config import KIB, MIB, BlobSpaceRules
from blobserve.errors import (
    DiskFull,
    ImageTooLarge,
    NoSpace,
    SpaceContended,
    SpaceUnusable,
    StoreClosed,
)
from blobserve.metrics import Metrics
from blobserve.names.digest import Digest
from blobserve.oci.source import Document
from blobserve.store.blobspace import BlobLease, BlobSpace, BlobState
from blobserve.store.space.ready_blobs import MOST_OPEN
from blobserve.testing import InlineThreads, MadeImage, make_image, make_index
from tests.support.coded_layers import of_files
from tests.support.examples import more
from tests.support.layers import File
from tests.support.spaces import Made, Watched, made, names_in, on_disk, opened, pool, read, take_in
from tests.support.stores import now
from tests.support.within import within

BOUND = 3 * MIB


def ready(space: BlobSpace, layers: list[Made]) -> list[int]:
    """Return the numbers of the READY layers."""
    return [n for n, each in enumerate(layers) if space.state_of(each.digest) is BlobState.READY]


def lease(space: BlobSpace, layer: Made) -> BlobLease:
    """Return a lease on a READY layer."""
    blob = space.blobs.acquire(layer.digest)
    assert blob is not None
    return blob


@pytest_twisted.ensureDeferred
async def test_the_longest_unused_is_evicted(tmp_path: Path) -> None:
    """The least recently used layers are evicted for a new one."""
    layers = [made(n, 500 * KIB) for n in range(5)]
    metrics = Metrics()
    async with opened(tmp_path, BOUND, metrics=metrics) as space:
        for each in layers[:4]:
            await take_in(space, each)
        read(space, layers[0].digest)
        await take_in(space, layers[4])
        assert 0 in ready(space, layers)
        assert 1 not in ready(space, layers)
        assert 4 in ready(space, layers)
        assert len(names_in(tmp_path, "blobs/sha256")) == len(ready(space, layers))
        counted = metrics.registry.get_sample_value("blobserve_evictions_total")
        assert counted == 5 - len(ready(space, layers))
        assert metrics.registry.get_sample_value("blobserve_size_bytes") == space.size
        assert metrics.registry.get_sample_value("blobserve_max_size_bytes") == BOUND


@pytest_twisted.ensureDeferred
async def test_what_is_read_is_not_evicted(tmp_path: Path) -> None:
    """A layer that is being read is not evicted while others are."""
    one, two, three = (made(n, MIB) for n in range(3))
    async with opened(tmp_path, BOUND) as space:
        await take_in(space, one)
        blob = lease(space, one)
        await take_in(space, two)
        await take_in(space, three)
        assert ready(space, [one, two, three]) == [0, 2]
        blobs = [blob, lease(space, three)]
        with pytest.raises(DiskFull):
            await take_in(space, two)
        assert ready(space, [one, two, three]) == [0, 2]
        for each in blobs:
            each.release()
            each.release()
        await take_in(space, two)
        assert 1 in ready(space, [one, two, three])


@pytest_twisted.ensureDeferred
async def test_what_tags_serve_goes_last(tmp_path: Path) -> None:
    """A layer that a tag serves outlives one that was used later."""
    layers = [made(n, MIB) for n in range(3)]
    async with opened(tmp_path, BOUND) as space:
        await take_in(space, layers[0])
        space.mark_current(frozenset([layers[0].digest]))
        await take_in(space, layers[1])
        await take_in(space, layers[2])
        assert ready(space, layers) == [0, 2]


@pytest_twisted.ensureDeferred
async def test_a_descriptor_beyond_the_bound(tmp_path: Path) -> None:
    """A layer with a compressed size above the quota is refused before any eviction."""
    one, large = made(1), made(2, 4 * MIB)
    async with opened(tmp_path, BOUND) as space:
        await take_in(space, one)
        with pytest.raises(ImageTooLarge):
            await space.ingest(large.descriptor)
        assert space.state_of(large.digest) is BlobState.UNKNOWN
        assert ready(space, [one]) == [0]


@within(60)
async def test_a_bomb_stays_within_the_bound(tmp_path: Path) -> None:
    """A layer that unpacks to a thousand times its size never exceeds the quota."""
    bomb = of_files(*(File(b"%d" % n, bytes(MIB)) for n in range(64)))
    assert bomb.descriptor.size * 900 < 64 * MIB
    seen: list[int] = []
    with pool(1) as threads:
        watched = Watched(threads, lambda: seen.append(on_disk(tmp_path)))
        async with opened(tmp_path, 8 * MIB, watched, watched) as space:
            await take_in(space, made(2, MIB))
            with pytest.raises(ImageTooLarge):
                await take_in(space, bomb)
            assert names_in(tmp_path, "ingest") == []
    assert 4 * MIB < max(seen) <= 8 * MIB


@pytest_twisted.ensureDeferred
async def test_g10_a_bomb_that_says_so(tmp_path: Path) -> None:
    """A file too large by its own header is refused before any eviction for it."""
    bomb, layers = made(1, content=bytes(64 * MIB)), [made(n, MIB) for n in range(2, 6)]
    seen: list[int] = []
    watched = Watched(InlineThreads(), lambda: seen.append(on_disk(tmp_path)))
    async with opened(tmp_path, 8 * MIB, watched, watched) as space:
        for each in layers:
            await take_in(space, each)
        before = max(seen)
        with pytest.raises(ImageTooLarge):
            await take_in(space, bomb)
        assert len(ready(space, layers)) == len(layers)
        assert names_in(tmp_path, "ingest") == []
        assert max(seen) < before + MIB


@within(60)
async def test_a_large_ratio_that_fits(tmp_path: Path) -> None:
    """Space is reserved for the unpacked size, at any compression ratio."""
    blank = made(1, content=bytes(20 * MIB))
    seen: list[int] = []
    with pool(1) as threads:
        watched = Watched(threads, lambda: seen.append(on_disk(tmp_path)))
        async with opened(tmp_path, 24 * MIB, watched, watched) as space:
            others = [made(n, MIB) for n in range(2, 10)]
            for each in others:
                await take_in(space, each)
            await take_in(space, blank)
            assert read(space, blank.digest) == bytes(20 * MIB)
            assert len(ready(space, others)) < 4
    assert max(seen) <= 24 * MIB


@within(60)
async def test_a_storm_stays_within_the_bound(tmp_path: Path) -> None:
    """With more concurrent pulls than fit some fail, the quota holds, and the oldest is done."""
    layers = [made(n, 900 * KIB) for n in range(12)]
    seen: list[int] = []
    with pool(1) as threads:  # so that nothing changes during a look at the disk
        watched = Watched(threads, lambda: seen.append(on_disk(tmp_path)))
        async with opened(tmp_path, BOUND, watched, watched) as space:
            pulls = [Deferred.fromCoroutine(take_in(space, each)) for each in layers]
            outcomes = await DeferredList(pulls, consumeErrors=True)
            assert outcomes[0][0]
            for succeeded, outcome in outcomes:
                assert succeeded or outcome.check(SpaceContended)
            assert names_in(tmp_path, "ingest") == []
            assert len(names_in(tmp_path, "blobs/sha256")) == len(ready(space, layers)) > 0
            await take_in(space, layers[-1])
    assert max(seen) <= BOUND


@pytest_twisted.ensureDeferred
async def test_small_layers_in_a_small_bound(tmp_path: Path) -> None:
    """A layer that fits is ingested even if less than an extent of space is left."""
    one = made(1, 400 * KIB)
    async with opened(tmp_path, MIB) as space:
        await take_in(space, one)
        assert ready(space, [one]) == [0]


@pytest_twisted.ensureDeferred
async def test_what_is_counted_is_what_is_there(tmp_path: Path) -> None:
    """The counted size is at least that on disk, and hardly more when nothing runs."""
    async with opened(tmp_path, BOUND) as space:
        empty = space.size - on_disk(tmp_path)
        for n in range(30):
            await take_in(space, made(n, n * 10 * KIB))
            await space.manifests.put(Document(Digest.of(b"%d" % n), "text/plain", b"%d" % n))
            assert 0 <= space.size - on_disk(tmp_path) <= empty + 10 * 8192


@pytest_twisted.ensureDeferred
async def test_others_reserve_too(tmp_path: Path) -> None:
    """Space for additional files of a blob is made by eviction, and released again."""
    layers = [made(n, MIB) for n in range(2)]
    async with opened(tmp_path, BOUND) as space:
        for each in layers:
            await take_in(space, each)
        size = space.size
        await space.reserve(MIB)
        assert ready(space, layers) == [1]
        assert space.size <= BOUND
        with pytest.raises(NoSpace):
            await space.reserve(BOUND)
        space.release(MIB)
        assert space.size < size


@pytest_twisted.ensureDeferred
async def test_a_damaged_layer_is_set_aside(tmp_path: Path) -> None:
    """A damaged layer is set aside for new readers, and its current readers go on."""
    one = made(1)
    async with opened(tmp_path) as space:
        await take_in(space, one)
        size, blob = space.size, lease(space, one)
        await space.set_aside(one.digest)
        assert space.state_of(one.digest) is BlobState.UNKNOWN
        assert names_in(tmp_path, "blobs/sha256") == []
        entry = blob.filesystem.lookup(b"index.html")
        assert len(blob.filesystem.file(entry).read(0, entry.size)) == 100 * KIB
        assert space.size >= size
        blob.release()
        assert space.size <= size - 100 * KIB
        await take_in(space, one)
        assert ready(space, [one]) == [0]


@pytest_twisted.ensureDeferred
async def test_a_lease_outlives_the_blob_space(tmp_path: Path) -> None:
    """A lease remains readable after the blob space has closed."""
    one = made(1)
    async with opened(tmp_path) as space:
        await take_in(space, one)
        blob = lease(space, one)
    entry = blob.filesystem.lookup(b"index.html")
    assert len(blob.filesystem.file(entry).read(0, 5)) == 5
    blob.release()
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(blob.filesystem.file(entry).descriptor)


class Failing(InlineThreads):
    """Threads with jobs that fail while `error` is set."""

    error: Exception | None = None

    def run(self, f: Any, *args: Any, **kwargs: Any) -> Deferred[Any]:
        """See `Threads.run`."""
        return fail(self.error) if self.error else super().run(f, *args, **kwargs)


@pytest_twisted.ensureDeferred
async def test_reclaiming_never_stops(tmp_path: Path) -> None:
    """A failed pass of the garbage collection is logged, and the next one comes on time."""
    layers, clock, disk = [made(n, MIB) for n in range(2)], Clock(), Failing()
    async with opened(tmp_path, reactor=clock, disk=disk) as space:
        for each in layers:
            await take_in(space, each)
        disk.error = OSError("read-only")
        space.reconfigure(BlobSpaceRules(tmp_path, 2 * MIB, gc_interval=100))
        clock.advance(100)
        assert ready(space, layers) == [0, 1]
        disk.error = None
        clock.advance(99)
        assert ready(space, layers) == [0, 1]
        clock.advance(1)
        assert len(ready(space, layers)) == 1
        assert space.size <= 2 * MIB


@pytest_twisted.ensureDeferred
async def test_another_bound_takes_effect_at_once(tmp_path: Path) -> None:
    """Lowering the quota at run time evicts layers down to it."""
    layers = [made(n, MIB) for n in range(3)]
    async with opened(tmp_path) as space:
        for each in layers:
            await take_in(space, each)
        space.reconfigure(BlobSpaceRules(tmp_path, 2 * MIB))
        assert ready(space, layers) == [2]
        assert (space.size <= 2 * MIB, space.bound) == (True, 2 * MIB)


@pytest_twisted.ensureDeferred
async def test_only_so_many_stay_open(tmp_path: Path) -> None:
    """Beyond a number of open layers idle ones are closed, and opened again when used."""
    layers = [made(n, 10) for n in range(MOST_OPEN + 2)]
    async with opened(tmp_path) as space:
        descriptors = len(os.listdir("/proc/self/fd"))
        for each in layers:
            await take_in(space, each)
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 2 * MOST_OPEN
        assert ready(space, layers) == list(range(MOST_OPEN + 2))
        assert space.blobs.acquire(layers[0].digest) is None
        blob = await space.blobs.mount(layers[0].digest)
        assert blob is not None
        assert len(blob.filesystem.file(blob.filesystem.lookup(b"index.html")).read(0, 99)) == 10
        blob.release()
        assert await space.blobs.mount(made(-1).digest) is None


@pytest_twisted.ensureDeferred
async def test_a_layer_that_was_opened_again_is_evicted(tmp_path: Path) -> None:
    """A layer that was closed, mounted and released can be evicted as usual."""
    async with opened(tmp_path) as space:
        for n in range(MOST_OPEN + 1):
            await take_in(space, made(n, 10))
        first = made(0, 10).digest
        assert space.blobs.acquire(first) is None, "it is not closed"
        blob = await space.blobs.mount(first)
        assert blob is not None
        space.reconfigure(BlobSpaceRules(tmp_path, 1))
        assert space.state_of(first) is BlobState.READY
        blob.release()
        space.reconfigure(BlobSpaceRules(tmp_path, 2))
        assert space.state_of(first) is BlobState.UNKNOWN


class Unsyncing(InlineThreads):
    """Threads on a disk that fails to sync blobs."""

    def run(self, f: Any, *args: Any, **kwargs: Any) -> Deferred[Any]:
        """See `Threads.run`."""
        failing = getattr(f, "__name__", "") == "settle"
        return fail(OSError("fsync failed")) if failing else super().run(f, *args, **kwargs)


@pytest_twisted.ensureDeferred
async def test_a_disk_that_loses_what_it_is_given(tmp_path: Path) -> None:
    """A layer that cannot be synced is not READY."""
    one = made(1)
    async with opened(tmp_path, disk=Unsyncing()) as space:
        await take_in(space, one)
        assert space.state_of(one.digest) is BlobState.UNKNOWN
        assert names_in(tmp_path, "blobs/sha256") == []


MANIFEST = make_image({"index.html": b"one"})
SEVERAL = make_index({"linux/amd64": MANIFEST, "linux/arm64": make_image({"index.html": b"two"})})


async def put(space: BlobSpace, image: MadeImage) -> None:
    """Store the manifests of an image."""
    for each in image.documents:
        await space.manifests.put(each)


@pytest_twisted.ensureDeferred
async def test_manifests_survive(tmp_path: Path) -> None:
    """A manifest is read back unchanged, also after a restart."""
    [document] = MANIFEST.documents
    async with opened(tmp_path) as space:
        assert await space.manifests.get(document.digest) is None
        await put(space, MANIFEST)
        await put(space, MANIFEST)
        assert await space.manifests.get(document.digest) == document
    async with opened(tmp_path) as space:
        assert await space.manifests.get(document.digest) == document


@pytest_twisted.ensureDeferred
async def test_a_damaged_manifest(tmp_path: Path) -> None:
    """A manifest that does not match its digest is removed and not served."""
    digest = MANIFEST.digest
    path = tmp_path / "manifests" / digest.algorithm / digest.hex
    async with opened(tmp_path) as space:
        await put(space, MANIFEST)
        path.write_bytes(path.read_bytes().replace(b"2", b"3", 1))
        assert await space.manifests.get(digest) is None
        assert not path.exists()
        await put(space, MANIFEST)
        path.write_bytes(b"")
    async with opened(tmp_path) as space:
        assert await space.manifests.get(digest) is None
        assert not path.exists()


@pytest_twisted.ensureDeferred
async def test_manifests_that_nothing_needs(tmp_path: Path) -> None:
    """Manifests that references need, directly or through an index, stay; others are removed."""
    async with opened(tmp_path) as space:
        await put(space, SEVERAL)
        space.references.remember("registry.example/site:v1", SEVERAL.digest, 1.0)
        for _ in range(3):
            await space.reclaim()
        for each in SEVERAL.documents:
            assert await space.manifests.get(each.digest) == each
        space.references.forget("registry.example/site:v1")
        await space.reclaim()
        assert await space.manifests.get(SEVERAL.digest) is not None
        await space.reclaim()
        for each in SEVERAL.documents:
            assert await space.manifests.get(each.digest) is None
        assert names_in(tmp_path, "manifests/sha256") == []


@pytest_twisted.ensureDeferred
async def test_manifests_have_a_share(tmp_path: Path) -> None:
    """Manifests take no more than their share of the quota."""
    digests = []
    async with opened(tmp_path, 2 * MIB) as space:
        one = made(1, MIB)
        await take_in(space, one)
        for n in range(100):
            content = b"%d" % n * 5000
            digests.append(Digest.of(content))
            await space.manifests.put(Document(digests[-1], "text/plain", content))
        assert ready(space, [one]) == [0]
        assert on_disk(tmp_path / "manifests") <= MIB // 4 + 8192
        assert await space.manifests.get(digests[-1]) is not None
        assert await space.manifests.get(digests[0]) is None


@pytest_twisted.ensureDeferred
async def test_layout(tmp_path: Path) -> None:
    """The files of a blob space have the documented layout and are private to its user."""
    one = made(1)
    location = tmp_path / "missing" / "space"
    async with opened(location) as space:
        await take_in(space, one)
        await put(space, MANIFEST)
        blob = f"blobs/sha256/{one.digest.hex}"
        files = {"VERSION", "lock", "state", f"{blob}/content", f"{blob}/index"}
        files.add(f"manifests/sha256/{MANIFEST.digest.hex}")
        found = [path for path in location.rglob("*") if "state-" not in path.name]
        assert {str(path.relative_to(location)) for path in found if path.is_file()} == files
        for path in [location, *location.rglob("*")]:
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
        assert (location / "VERSION").read_text() == "1\n"
        assert (location / "lock").read_text() == f"{os.getpid()}\n"


@pytest_twisted.ensureDeferred
async def test_one_owner(tmp_path: Path) -> None:
    """A second owner is refused with the first one's process id, until that has ended."""
    async with opened(tmp_path) as space:
        with pytest.raises(SpaceUnusable, match=f"already used by process {os.getpid()}: stop it"):
            async with opened(tmp_path):
                pass
        await take_in(space, made(1))
        await space.close()
    async with opened(tmp_path) as space:
        assert space.state_of(made(1).digest) is BlobState.READY


def another_version(location: Path) -> None:
    location.mkdir()
    (location / "VERSION").write_text("2\n")


def somebody_elses(location: Path) -> None:
    (location / "ingest" / "precious").mkdir(parents=True)


def a_link_inside(location: Path) -> None:
    location.mkdir()
    (location / "VERSION").write_text("1\n")
    (location / "blobs").symlink_to("/tmp")


def a_linked_lock(location: Path) -> None:
    location.mkdir()
    (location / "lock").symlink_to("/dev/null")


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (another_version, "its VERSION is '2', this blobserve reads '1'"),
        (somebody_elses, "it holds 'ingest' but no VERSION"),
        (a_link_inside, "blobs is a link or a file: remove it"),
        (a_linked_lock, "cannot be used"),
        (lambda location: location.write_text("a file"), "not a directory"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_unusable(tmp_path: Path, prepare: Callable[[Path], object], says: str) -> None:
    """A location that cannot be a blob space is refused with advice, and nothing is removed."""
    location = tmp_path / "parent" / "space"
    location.parent.mkdir()
    prepare(location)
    before = set(location.rglob("*"))
    with pytest.raises(SpaceUnusable, match=says) as refused:
        async with opened(location):
            pass
    assert str(location) in str(refused.value)
    assert before <= set(location.rglob("*"))


@pytest_twisted.ensureDeferred
async def test_not_writable(tmp_path: Path) -> None:
    """A location without write permission is refused as such."""
    tmp_path.chmod(0o500)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        with pytest.raises(SpaceUnusable, match="this user may not write to it"):
            async with opened(tmp_path / "space"):
                pass
    finally:
        if is_root:
            os.seteuid(0)


@pytest_twisted.ensureDeferred
async def test_whether_it_can_be_read(tmp_path: Path) -> None:
    """Readiness notices a missing blob space."""
    async with opened(tmp_path) as space:
        assert await space.is_readable()
        (tmp_path / "VERSION").unlink()
        assert not await space.is_readable()


@pytest_twisted.ensureDeferred
async def test_closing_twice(tmp_path: Path) -> None:
    """Closing twice is harmless, and a closed blob space refuses requests."""
    async with opened(tmp_path) as space:
        await space.close()
        await space.close()
        with pytest.raises(StoreClosed):
            await space.ingest(made(1).descriptor)


LAYERS = [made(n, (200 + 100 * n) * KIB) for n in range(8)]
STEPS = st.tuples(st.sampled_from(["take", "read", "hold", "drop", "restart"]), st.integers(0, 7))


@settings(max_examples=more(25), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=25))
def test_any_order(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]) -> None:
    """In any order of pulls, reads and restarts layers are whole and the quota holds."""
    now(Deferred.fromCoroutine(_any_order(tmp_path_factory.mktemp("space"), steps)))


async def _any_order(location: Path, steps: list[tuple[str, int]]) -> None:
    held: dict[int, BlobLease] = {}
    rounds: list[list[tuple[str, int]]] = [[]]
    for step in steps:
        rounds.append([]) if step[0] == "restart" else rounds[-1].append(step)
    for each in rounds:
        async with opened(location, BOUND) as space:
            for action, n in each:
                await _step(space, action, n, held)
                assert max(space.size, on_disk(location)) <= BOUND
                assert set(held) <= set(ready(space, LAYERS))
            for blob in held.values():
                blob.release()
            held.clear()
        assert on_disk(location) <= BOUND


async def _step(space: BlobSpace, action: str, n: int, held: dict[int, BlobLease]) -> None:
    layer = LAYERS[n]
    is_ready = space.state_of(layer.digest) is BlobState.READY
    if action == "take" and not is_ready:
        try:
            await take_in(space, layer)
        except NoSpace:
            assert held
    elif action == "read" and is_ready:
        assert len(read(space, layer.digest)) == (200 + 100 * n) * KIB
    elif action == "hold" and is_ready and n not in held:
        held[n] = lease(space, layer)
    elif action == "drop" and n in held:
        held.pop(n).release()


@pytest_twisted.ensureDeferred
async def test_a_bound_lowered_under_a_pull(tmp_path: Path) -> None:
    """A pull that holds more than a lowered quota allows fails at once, the youngest first."""
    one, two = made(1, 3 * MIB), made(2, 3 * MIB)
    async with opened(tmp_path, 20 * MIB) as space:
        old, young = await space.ingest(one.descriptor), await space.ingest(two.descriptor)
        for ingest, layer in ((old, one), (young, two)):
            ingest.failure.addErrback(lambda _: None)
            ingest.write(layer.blob[:-1])
        assert space.size > 9 * MIB
        space.reconfigure(BlobSpaceRules(tmp_path, 9 * MIB))
        assert max(space.size, on_disk(tmp_path)) <= 9 * MIB
        with pytest.raises(SpaceContended):
            await young.finish()
        old.write(one.blob[-1:])
        await old.finish()
        assert len(read(space, one.digest)) == 3 * MIB
        space.reconfigure(BlobSpaceRules(tmp_path, MIB))
        assert max(space.size, on_disk(tmp_path)) <= MIB
