"""Rows F01 to F18 and G01 to G15 of the cases: faults of the disk, and the cache.

`HELD` lists the rows that other modules test. F16 does not apply: no other process extracts layers.
"""

from __future__ import annotations

import ast
import sqlite3
import time
from pathlib import Path

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from blobserve.config import MIB
from blobserve.names.digest import Digest
from blobserve.store.blobs.blob import ReadyBlob
from blobserve.store.blobspace import BlobState
from blobserve.store.disk.metadata_db import MetadataDb, Record, recorded
from blobserve.store.index.layer_index import VERSION
from blobserve.store.space.quota import Allocator, BlobLru, Quota
from tests.store.blobs.test_recovery import changed, crashed, directory_of, filled
from tests.support.sites import TAG, serving
from tests.support.slack import SLACK
from tests.support.spaces import made, names_in, opened, read, take_in
from tests.support.stores import OTHER, SITE, an_image, now, standing
from tests.support.within import within

HELD = {
    "F01": "faults/test_crash_points.test_f01_f02_f03_killed_at_every_call",
    "F02": "faults/test_crash_points.test_f01_f02_f03_killed_at_every_call",
    "F03": "faults/test_crash_points.test_f01_f02_f03_killed_at_every_call",
    "F05": "store/blobs/test_damage.test_f05_a_disk_that_fails",
    "F06": "store/test_blobspace.test_a_disk_that_loses_what_it_is_given",
    "F07": "faults/test_disk_faults.test_f07_a_full_disk",
    "F08": "faults/test_disk_faults.test_f08_no_inodes",
    "F09": "faults/test_disk_faults.test_f09_no_descriptors",
    "F10": "faults/test_disk_faults.test_f10_a_disk_that_becomes_read_only",
    "F11": "store/blobs/test_recovery.test_foreign_files",
    "F12": "store/blobs/test_verify_on_read.test_f12_a_changed_byte",
    "F14": "store/test_blobspace.test_one_owner",
    "F15": "regressions/test_pulls.test_d17_sigterm_lets_a_response_finish",
    "F17": "faults/test_disk_faults.test_f17_a_disk_that_somebody_fills",
    "G01": "store/test_refstore.test_thousand_parallel",
    "G02": "regressions/test_pulls.test_d09_every_waiter_gets_the_error",
    "G04": "store/test_refstore.test_unlisted_repositories_prove_what_they_share",
    "G05": "store/test_tags.test_registry_down",
    "G06": "store/test_tags.test_ageing",
    "G07": "system/test_promises.test_eviction_while_a_206_is_running",
    "G09": "store/test_blobspace.test_a_storm_stays_within_the_bound",
    "G10": "store/test_blobspace.test_a_descriptor_beyond_the_bound",
    "G11": "store/test_blobspace.test_the_longest_unused_is_evicted",
    "G12": "store/blobs/test_recovery.test_a_smaller_bound",
    "G15": "store/test_blobspace_model.AnyOrder",
}
"""The tests of rows that have no test in this module."""

ONE = made(1)


@pytest.mark.parametrize("row", HELD)
def test_every_row_is_held(row: str) -> None:
    """The test that is listed for a row exists."""
    module, name = HELD[row].split(".")
    tree = ast.parse((Path(__file__).parents[1] / f"{module}.py").read_text())
    assert name in {getattr(node, "name", None) for node in tree.body}


# --- Faults ---------------------------------------------------------------------------------------


def lose(path: Path, how: str) -> None:
    """Truncate or zero a file, as a power cut may do to a file that was not synced."""
    size = path.stat().st_size
    kept = {"all": b"", "half": path.read_bytes()[: size // 2], "zeros": bytes(size)}
    path.write_bytes(kept[how])


@pytest.mark.parametrize("how", ["all", "half", "zeros"])
@pytest.mark.parametrize("name", ["content", "index"])
@pytest_twisted.ensureDeferred
async def test_f04_a_power_cut(tmp_path: Path, name: str, how: str) -> None:
    """A blob that was not durable at a power cut is not served, and is pulled again."""
    async with opened(tmp_path / "space") as space:
        await take_in(space, ONE)
        copy = crashed(tmp_path / "space", tmp_path / "copy")
    changed(copy, "UPDATE blobs SET durable = 0")
    lose(directory_of(copy, ONE) / name, how)
    async with opened(copy) as space:
        assert space.state_of(ONE.digest) is BlobState.UNKNOWN
        assert names_in(copy, "ingest") == []
        await take_in(space, ONE)
        assert len(read(space, ONE.digest)) == 100 * 1024


@pytest.mark.parametrize("days", [[1, -2, 1], [-1, 2, -1], [365, -365, 1]])
@pytest_twisted.ensureDeferred
async def test_f13_a_clock_that_jumps(tmp_path: Path, days: list[int]) -> None:
    """Images are served and tags are looked up at their age even if the clock jumps."""
    clock = Clock()
    clock.advance(86400 * 1000)
    async with standing(tmp_path, clock=clock) as stand:
        stand.source.push(SITE, an_image("0"))
        assert await stand.read() == b"0"
        for n, jump in enumerate(days, 1):
            clock.rightNow += 86400 * jump
            stand.source.push(SITE, an_image(f"{n}"))
            for _ in range(5):
                await stand.read()
                clock.advance(61)
            assert await stand.read() == b"%d" % n


@pytest_twisted.ensureDeferred
async def test_f13_last_use_under_a_clock_that_jumps(tmp_path: Path) -> None:
    """Eviction spares the last used blob even if the clock was set back meanwhile."""
    layers, clock = [made(n, MIB) for n in range(4)], Clock()
    clock.advance(86400 * 1000)
    async with opened(tmp_path, 6 * MIB, reactor=clock) as space:
        for layer in layers[:3]:
            await take_in(space, layer)
            clock.rightNow -= 86400
        read(space, layers[0].digest)
        await take_in(space, layers[3])
        states = [space.state_of(each.digest) is BlobState.READY for each in layers]
        assert (states[0], states[1], states[3]) == (True, False, True)


@pytest_twisted.ensureDeferred
async def test_f18_an_index_of_another_release(tmp_path: Path) -> None:
    """An index of another format, as after an upgrade, is rebuilt without a pull."""
    await filled(tmp_path)
    index = directory_of(tmp_path, ONE) / "index"
    database = sqlite3.connect(index)
    with database:
        database.execute(f"PRAGMA user_version = {VERSION + 1}")
    database.close()
    state = MetadataDb(tmp_path / "state")
    state.open()
    [record] = state.blobs()
    checksum = Digest.of(index.read_bytes()).hex
    state.change(
        recorded(
            attrs.evolve(
                record,
                index_size=index.stat().st_size,
                index_sha256=bytes.fromhex(checksum),
            )
        )
    )
    state.close()
    async with opened(tmp_path) as space:
        blob = await space.blobs.mount(ONE.digest)
        if blob is not None:
            blob.release()
        assert len(read(space, ONE.digest)) == 100 * 1024


# --- The cache ------------------------------------------------------------------------------------


@within(30)
async def test_g03_a_leader_that_is_slow(tmp_path: Path) -> None:
    """A request that waits too long gets a 503; the download goes on and serves the next one."""
    async with serving(tmp_path, {"a": b"content"}, timeout=0.05) as site:
        gate = site.source.hold("fetch")
        slow = await site.fetch(f"/{TAG}/a")
        assert (slow.status, slow.body) == (503, b"timeout")
        assert "retry-after" in slow.headers
        gate.open()
        assert (await site.fetch(f"/{TAG}/a")).body == b"content"
        assert site.source.count("fetch") == 1


@pytest_twisted.ensureDeferred
async def test_g08_reclaiming_while_extracting(tmp_path: Path) -> None:
    """An ingest is never reclaimed, however old it is."""
    clock, layer = Clock(), made(1, 500 * 1024)
    async with opened(tmp_path, 4 * MIB, reactor=clock) as space:
        ingest = await space.ingest(layer.descriptor)
        ingest.write(layer.blob[:-1])
        for _ in range(10):
            clock.advance(86400)
            await space.reclaim()
        ingest.write(layer.blob[-1:])
        await ingest.finish()
        assert len(read(space, layer.digest)) == 500 * 1024


@pytest_twisted.ensureDeferred
async def test_g13_eviction_of_a_shared_layer(tmp_path: Path) -> None:
    """A layer of two images is evicted for both, and one more pull serves both."""
    async with standing(tmp_path) as stand:
        for reference in (SITE, OTHER):
            stand.source.push(reference, an_image())
            assert await stand.read(reference) == b"one"
        [layer] = an_image().layers
        await stand.space.set_aside(layer.digest)
        assert await stand.read(OTHER) == await stand.read(SITE) == b"one"
        assert stand.source.count("fetch") == 2


def test_g14_a_hundred_thousand_blobs() -> None:
    """Choosing among a hundred thousand leased blobs takes little time on the reactor."""
    lru, quota = BlobLru(), Quota(None)
    for n in range(100_000):
        kept = ReadyBlob(Record(Digest("sha256", f"{n:064}"), 0, 0, b"", 0.0), 4096)
        kept.leases = 1
        lru.add(kept)
        quota.take(kept.size)
    quota.limit = quota.size - 1
    evicted: list[list[ReadyBlob]] = []

    async def evict(blobs: list[ReadyBlob]) -> None:
        evicted.append(blobs)

    allocator, took = Allocator(quota, lru, evict), []
    for _ in range(5):
        begun = time.thread_time()
        now(Deferred.fromCoroutine(allocator.shrink()))
        took.append(time.thread_time() - begun)
    assert evicted == []
    # Fifty times less without coverage measurement.
    assert min(took) < SLACK
