"""Codings made in a blob space: once each, in the background, within the quota."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import pytest_twisted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock, deferLater
from twisted.logger import capturedLogs

from blobserve.config import KIB, MIB, BlobSpaceRules
from blobserve.errors import CodingDamaged, NoSpace
from blobserve.metrics import Metrics
from blobserve.store.blobs.blob import BlobLease
from blobserve.store.blobs.compress import SLICE
from blobserve.store.blobspace import BlobSpace, BlobState
from blobserve.store.disk.codings_file import NoCoding
from blobserve.store.index.entry import Entry
from blobserve.store.space.coding_queue import LARGEST, MOST_WANTED, RETRY, SMALLEST
from blobserve.testing import InlineThreads
from tests.support.coded_layers import ask, codings_of, decoded, lease, noise, of_files, site, text
from tests.support.examples import more
from tests.support.layers import File
from tests.support.spaces import Held, Made, Watched, made, names_in, on_disk, opened, pool, take_in
from tests.support.stores import SITE as REFERENCE
from tests.support.stores import an_image, now, standing
from tests.support.within import within

CODINGS = [b"zstd", b"gzip"]
SITE = site(text(0), text(1))


def counted(metrics: Metrics, outcome: str, coding: str = "zstd") -> float:
    """Return the number of codings with this outcome."""
    labels = {"coding": coding, "outcome": outcome}
    return metrics.registry.get_sample_value("blobserve_codings_total", labels) or 0.0


@asynccontextmanager
async def held(
    location: Path, *layers: Made, max_size: int | None = None, metrics: Metrics | None = None
) -> AsyncIterator[tuple[BlobSpace, Held]]:
    """Open a blob space with these layers, in which coding jobs wait for the test."""
    threads = Held()
    async with opened(location, max_size, threads, InlineThreads(), metrics=metrics) as space:
        try:
            for each in layers:
                await coming(space, threads, each)
            yield space, threads
        finally:
            threads.go_all()  # closing would wait for them


async def coming(space: BlobSpace, threads: Held, layer: Made) -> None:
    """Ingest a layer with threads that are held."""
    taken_in = Deferred.fromCoroutine(take_in(space, layer))
    threads.go_all()
    await taken_in


@pytest.mark.parametrize("coding", CODINGS)
@pytest_twisted.ensureDeferred
async def test_first_asked_then_there(tmp_path: Path, coding: bytes) -> None:
    """The first request for a coding finds it pending; a later one gets the coded file."""
    metrics = Metrics()
    async with opened(tmp_path, metrics=metrics) as space:
        await take_in(space, SITE)
        with_lease = lease(space, SITE)
        assert ask(with_lease, coding) is NoCoding.PENDING
        found = ask(with_lease, coding)
        assert isinstance(found, Entry)
        plain = with_lease.filesystem.lookup(b"0")
        same = attrs.evolve(plain, coding=coding, offset=found.offset, size=found.size)
        assert found == attrs.evolve(same, sha256=found.sha256)
        assert found.sha256 != plain.sha256
        assert found.size < plain.size / 2
        assert decoded(with_lease.filesystem, found) == text(0)
        with_lease.release()
        assert counted(metrics, "made", coding.decode()) == 1
        made_bytes = metrics.registry.get_sample_value(
            "blobserve_coded_bytes_total", {"coding": coding.decode()}
        )
        assert made_bytes == found.size


@pytest_twisted.ensureDeferred
async def test_leases_of_images(tmp_path: Path) -> None:
    """The lease of an image has the codings of its files until it is released."""
    async with standing(tmp_path) as stand:
        stand.source.push(REFERENCE, an_image("text " * KIB))
        with await stand.ask(REFERENCE) as image:
            entry = image.filesystem.lookup(b"index.html")
            assert image.coded(entry, b"gzip") is NoCoding.PENDING
            coded = image.coded(entry, b"gzip")
            assert decoded(image.filesystem, coded) == b"text " * KIB
        assert image.coded(entry, b"gzip") is NoCoding.NEVER


@pytest_twisted.ensureDeferred
async def test_made_once(tmp_path: Path) -> None:
    """Concurrent requests for a coding make it once."""
    metrics = Metrics()
    async with held(tmp_path, SITE, metrics=metrics) as (space, threads):
        readers = [lease(space, SITE) for _ in range(5)]
        while not counted(metrics, "made"):
            for each in readers:
                assert ask(each) is NoCoding.PENDING
            threads.go()
        assert all(isinstance(ask(each), Entry) for each in readers)
        threads.go_all()
        assert counted(metrics, "made") == 1
        for each in readers:
            each.release()


@pytest_twisted.ensureDeferred
async def test_one_content_one_coding(tmp_path: Path) -> None:
    """Files with the same content share one coding, each under its own name."""
    twins, metrics = site(text(7), text(7), text(8)), Metrics()
    async with opened(tmp_path, metrics=metrics) as space:
        await take_in(space, twins)
        blob = lease(space, twins)
        ask(blob, b"zstd", b"0")
        one, two = (ask(blob, b"zstd", name) for name in (b"0", b"1"))
        assert isinstance(one, Entry)
        assert two == attrs.evolve(one, path=b"1")
        assert ask(blob, b"zstd", b"2") is NoCoding.PENDING
        assert counted(metrics, "made") == 2
        blob.release()


@pytest_twisted.ensureDeferred
async def test_what_is_never_coded(tmp_path: Path) -> None:
    """A small, large or coded file, a directory, and an unknown coding are never coded."""
    small = of_files(File(b"0", text(0)), File(b"s", text(1, SMALLEST - 1)), File(b"d/e", b"x"))
    async with opened(tmp_path) as space:
        await take_in(space, small)
        blob = lease(space, small)
        assert ask(blob, b"zstd", b"s") is ask(blob, b"zstd", b"d") is NoCoding.NEVER
        entry = blob.filesystem.lookup(b"0")
        assert blob.coded(entry, b"br") is blob.coded(entry, b"") is NoCoding.NEVER
        assert blob.coded(attrs.evolve(entry, size=LARGEST + 1), b"zstd") is NoCoding.NEVER
        ask(blob)
        coded = ask(blob)
        assert isinstance(coded, Entry)
        assert blob.coded(coded, b"gzip") is blob.coded(coded, b"zstd") is NoCoding.NEVER
        assert not codings_of(tmp_path, small).stat().st_size > coded.offset + coded.size
        blob.release()


@pytest_twisted.ensureDeferred
async def test_codings_survive(tmp_path: Path) -> None:
    """After a restart codings are served at once, and useless ones are not tried again."""
    mixed, first, second = site(text(0), noise(0), text(1)), Metrics(), Metrics()
    async with opened(tmp_path, metrics=first) as space:
        await take_in(space, mixed)
        blob = lease(space, mixed)
        for coding in CODINGS:
            ask(blob, coding, b"0")
            assert ask(blob, coding, b"1") is NoCoding.PENDING
            assert ask(blob, coding, b"1") is NoCoding.NEVER
        before = [ask(blob, coding) for coding in CODINGS]
        slack = space.size - on_disk(tmp_path)
        blob.release()
    assert counted(first, "useless") == counted(first, "useless", "gzip") == 1
    async with opened(tmp_path, metrics=second) as space:
        assert space.size - on_disk(tmp_path) == slack
        blob = lease(space, mixed)
        assert [ask(blob, coding) for coding in CODINGS] == before
        assert [decoded(blob.filesystem, each) for each in before] == [text(0)] * 2
        assert ask(blob, b"zstd", b"1") is ask(blob, b"gzip", b"1") is NoCoding.NEVER
        assert counted(second, "made") == counted(second, "useless") == 0
        blob.release()


@pytest_twisted.ensureDeferred
async def test_checked_before_they_are_served(tmp_path: Path) -> None:
    """Codings found at the start are checked, the requested ones first."""
    contents, metrics = [text(n) for n in range(4)], Metrics()
    many = site(*contents)
    async with opened(tmp_path) as space:
        await take_in(space, many)
        blob = lease(space, many)
        for n in range(4):
            ask(blob, b"zstd", b"%d" % n)
        blob.release()
    async with held(tmp_path, metrics=metrics) as (space, threads):
        blob = lease(space, many)
        assert ask(blob, b"zstd", b"3") is ask(blob, b"zstd", b"2") is NoCoding.PENDING
        ready: list[int] = []
        while threads.jobs:
            threads.go()
            for n in range(4):
                is_there = blob.filesystem.file(blob.filesystem.lookup(b"%d" % n)).coded(b"zstd")
                if is_there and n not in ready:
                    ready.append(n)
        assert ready == [0, 2, 3, 1]
        for n, content in enumerate(contents):
            assert decoded(blob.filesystem, ask(blob, b"zstd", b"%d" % n)) == content
        assert metrics.registry.get_sample_value("blobserve_codings_total") is None
        blob.release()


@pytest_twisted.ensureDeferred
async def test_a_changed_byte(tmp_path: Path) -> None:
    """A changed coding is never served: it is made again, and others stay."""
    metrics, before = Metrics(), []
    async with opened(tmp_path) as space:
        await take_in(space, SITE)
        blob = lease(space, SITE)
        for name in (b"0", b"1"):
            ask(blob, b"zstd", name)
            before.append(ask(blob, b"zstd", name))
        blob.release()
    path = codings_of(tmp_path, SITE)
    content = bytearray(path.read_bytes())
    first = before[0]
    assert isinstance(first, Entry)
    content[first.offset + first.size // 2] ^= 1
    path.write_bytes(content)
    async with opened(tmp_path, metrics=metrics) as space:
        blob = lease(space, SITE)
        assert ask(blob) is NoCoding.PENDING
        again = ask(blob)
        assert decoded(blob.filesystem, again) == text(0)
        assert isinstance(again, Entry)
        assert again.offset > first.offset
        assert decoded(blob.filesystem, ask(blob, b"zstd", b"1")) == text(1)
        assert (counted(metrics, "damaged"), counted(metrics, "made")) == (1, 1)
        assert space.size >= on_disk(tmp_path)
        blob.release()
    async with opened(tmp_path, metrics=Metrics()) as space:
        blob = lease(space, SITE)
        assert ask(blob) == again
        blob.release()


# --- Equal files of several layers ----------------------------------------------------------------

OLD, NEW = site(text(0), text(1)), site(text(0), text(2))


def copied(metrics: Metrics) -> tuple[float, float]:
    """Return the number of codings that were made, and of those that were copied."""
    return counted(metrics, "made"), counted(metrics, "copied")


@pytest.mark.parametrize("coding", CODINGS)
@pytest_twisted.ensureDeferred
async def test_equal_files_share_a_coding(tmp_path: Path, coding: bytes) -> None:
    """A file gets the codings of an equal file in another layer at once, and then a copy."""
    metrics = Metrics()
    async with opened(tmp_path, metrics=metrics) as space:
        await take_in(space, OLD)
        await take_in(space, NEW)
        slack = space.size - on_disk(tmp_path)
        old, new = lease(space, OLD), lease(space, NEW)
        ask(old, coding)
        made, lent = ask(old, coding), ask(new, coding)
        assert isinstance(made, Entry)
        assert isinstance(lent, Entry)
        assert (lent.sha256, lent.size) == (made.sha256, made.size)
        assert decoded(new.filesystem, lent) == text(0)
        own = ask(new, coding)
        assert isinstance(own, Entry)
        assert own.codings is None
        assert own.sha256 == made.sha256
        assert decoded(new.filesystem, own) == text(0)
        assert counted(metrics, "made", coding.decode()) == 1
        assert counted(metrics, "copied", coding.decode()) == 1
        assert space.size - on_disk(tmp_path) == slack
        # The other files are not equal.
        assert ask(new, coding, b"1") is NoCoding.PENDING
        assert decoded(new.filesystem, ask(new, coding, b"1")) == text(2)
        old.release()
        new.release()


@pytest_twisted.ensureDeferred
async def test_a_coding_outlives_its_first_layer(tmp_path: Path) -> None:
    """Equal files keep a coding when its first layer is evicted, also after a restart."""
    metrics, again = Metrics(), Metrics()
    async with opened(tmp_path, metrics=metrics) as space:
        await take_in(space, OLD)
        await take_in(space, NEW)
        old, new = lease(space, OLD), lease(space, NEW)
        ask(old)
        made = ask(old)
        ask(new)
        old.release()
        new.release()
        await space.set_aside(OLD.digest)
        new = lease(space, NEW)
        kept = ask(new)
        assert isinstance(made, Entry)
        assert isinstance(kept, Entry)
        assert kept.sha256 == made.sha256
        assert decoded(new.filesystem, kept) == text(0)
        new.release()
        assert copied(metrics) == (1, 1)
    async with opened(tmp_path, metrics=again) as space:
        new = lease(space, NEW)
        assert ask(new) == kept
        assert decoded(new.filesystem, kept) == text(0)
        new.release()
    assert copied(again) == (0, 0)


@pytest_twisted.ensureDeferred
async def test_made_again_with_equal_bytes(tmp_path: Path) -> None:
    """A coding that was evicted with its layer has the same bytes when made again."""
    made = []
    async with opened(tmp_path) as space:
        for each in (OLD, NEW):
            await take_in(space, each)
            blob = lease(space, each)
            ask(blob)
            made.append(ask(blob))
            blob.release()
            await space.set_aside(each.digest)
    first, second = made
    assert isinstance(first, Entry)
    assert isinstance(second, Entry)
    assert first.sha256 == second.sha256


@pytest_twisted.ensureDeferred
async def test_a_lender_stays_while_it_is_read(tmp_path: Path) -> None:
    """Borrowed coded bytes can be read until the lease ends, even if their layer is removed."""
    metrics = Metrics()
    async with held(tmp_path, OLD, NEW, metrics=metrics) as (space, threads):
        old, new = lease(space, OLD), lease(space, NEW)
        ask(old)
        threads.go_all()
        old.release()
        lent = ask(new)
        assert decoded(new.filesystem, lent) == text(0)
        space.reconfigure(BlobSpaceRules(tmp_path, 1))  # everything without readers must go
        removing = Deferred.fromCoroutine(space.set_aside(OLD.digest))
        assert removing.called
        assert space.state_of(OLD.digest) is BlobState.UNKNOWN
        assert decoded(new.filesystem, lent) == text(0)
        size = space.size
        new.release()
        assert space.size < size
        threads.go_all()


@pytest_twisted.ensureDeferred
async def test_a_lender_is_given_back(tmp_path: Path) -> None:
    """A layer that has lent codings can be evicted when they have no more readers."""
    async with opened(tmp_path) as space:
        await take_in(space, OLD)
        await take_in(space, NEW)
        old = lease(space, OLD)
        ask(old)
        old.release()
        for _ in range(3):
            new = lease(space, NEW)
            ask(new)
            ask(new)
            new.release()
        space.reconfigure(BlobSpaceRules(tmp_path, space.size - 1))
        await space.reclaim()
        assert space.state_of(OLD.digest) is BlobState.UNKNOWN
        assert space.state_of(NEW.digest) is BlobState.READY


@pytest_twisted.ensureDeferred
async def test_lent_without_room_for_a_copy(tmp_path: Path) -> None:
    """Without space for a copy the other layer goes on lending."""
    metrics = Metrics()
    async with opened(tmp_path, metrics=metrics) as space:
        for each in (OLD, NEW):
            await take_in(space, each)
        old, new = lease(space, OLD), lease(space, NEW)
        ask(old)
        space.reconfigure(BlobSpaceRules(tmp_path, space.size))
        size = space.size
        for _ in range(3):
            lent = ask(new)
            assert isinstance(lent, Entry)
            assert lent.codings is not None
            assert decoded(new.filesystem, lent) == text(0)
        assert copied(metrics) == (1, 0)
        assert counted(metrics, "no-room") == 1
        assert space.size == size
        old.release()
        new.release()


@pytest_twisted.ensureDeferred
async def test_copied_without_being_checked_before(tmp_path: Path) -> None:
    """A coding found at the start is checked while it is copied, and not made again."""
    metrics = Metrics()
    async with opened(tmp_path) as space:
        for each in (OLD, NEW):
            await take_in(space, each)
        old = lease(space, OLD)
        ask(old)
        old.release()
    async with held(tmp_path, metrics=metrics) as (space, threads):
        new = lease(space, NEW)
        assert ask(new) is NoCoding.PENDING
        threads.go_all()
        assert decoded(new.filesystem, ask(new)) == text(0)
        assert copied(metrics) == (0, 1)
        new.release()


@pytest.mark.parametrize("is_checked", [True, False])
@pytest_twisted.ensureDeferred
async def test_no_damaged_coding_is_copied(tmp_path: Path, is_checked: bool) -> None:
    """A damaged coding is not copied but made again, in either layer."""
    metrics = Metrics()
    async with opened(tmp_path) as space:
        for each in (OLD, NEW):
            await take_in(space, each)
        old = lease(space, OLD)
        ask(old)
        made = ask(old)
        old.release()
    assert isinstance(made, Entry)
    async with held(tmp_path, metrics=metrics) as (space, threads):
        old, new = lease(space, OLD), lease(space, NEW)
        if is_checked:
            threads.go_all()
            assert ask(old) == made
        with codings_of(tmp_path, OLD).open("r+b") as file:
            file.seek(made.offset + made.size // 2)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1]))
        ask(new)
        threads.go_all()
        assert decoded(new.filesystem, ask(new)) == text(0)
        assert decoded(old.filesystem, ask(old)) == text(0)
        threads.go_all()
        assert decoded(old.filesystem, ask(old)) == text(0)
        assert counted(metrics, "damaged") == 1
        assert counted(metrics, "made") == 1
        old.release()
        new.release()


@pytest_twisted.ensureDeferred
async def test_damage_of_a_lender(tmp_path: Path) -> None:
    """Damage in borrowed bytes is reported for the layer that lends them."""
    metrics = Metrics()
    async with held(tmp_path, OLD, NEW, metrics=metrics) as (space, threads):
        space.reconfigure(BlobSpaceRules(tmp_path, verify_on_read=True))
        old, new = lease(space, OLD), lease(space, NEW)
        ask(old)
        threads.go_all()
        made, lent = ask(old), ask(new)
        assert isinstance(made, Entry)
        assert isinstance(lent, Entry)
        with codings_of(tmp_path, OLD).open("r+b") as file:
            file.seek(made.offset + 20)
            file.write(bytes(20))
        assert not new.filesystem.file(lent).is_checked
        with pytest.raises(CodingDamaged) as damaged:
            new.filesystem.file(lent).read(0, 10)
        assert damaged.value.digest == str(OLD.digest)
        new.report(damaged.value)
        assert ask(old) is NoCoding.PENDING
        threads.go_all()
        assert decoded(old.filesystem, ask(old)) == text(0)
        old.release()
        new.release()


@pytest_twisted.ensureDeferred
async def test_useless_for_equal_files(tmp_path: Path) -> None:
    """A useless coding is not tried again for an equal file of another layer."""
    metrics = Metrics()
    layers = [site(noise(0), text(n)) for n in range(2)]
    async with opened(tmp_path, metrics=metrics) as space:
        for each in layers:
            await take_in(space, each)
        old, new = (lease(space, each) for each in layers)
        ask(old)
        assert ask(old) is ask(new) is NoCoding.NEVER
        assert counted(metrics, "useless") == 1
        assert not codings_of(tmp_path, layers[1]).exists()
        old.release()
        new.release()


# --- Damage ---------------------------------------------------------------------------------------


def torn(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"blobcod\x01" + bytes(50_000))


def another_version(path: Path) -> None:
    path.write_bytes(b"blobcod\x02" + bytes(50_000))


def a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


@pytest.mark.parametrize("damage", [torn, another_version, a_link])
@pytest_twisted.ensureDeferred
async def test_damaged_codings(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """Damaged codings are removed and not counted, and the blob is served without them."""
    async with opened(tmp_path) as space:
        await take_in(space, SITE)
        size = space.size - on_disk(tmp_path)
        blob = lease(space, SITE)
        ask(blob)
        blob.release()
    path = codings_of(tmp_path, SITE)
    damage(path)
    async with opened(tmp_path) as space:
        assert space.size - on_disk(tmp_path) == size
        assert not path.is_symlink()
        assert not path.exists() or path.stat().st_size < 20 * KIB
        blob = lease(space, SITE)
        assert blob.filesystem.file(blob.filesystem.lookup(b"0")).read(0, 1 << 20) == text(0)
        ask(blob)
        assert decoded(blob.filesystem, ask(blob)) == text(0)
        assert space.size - on_disk(tmp_path) == size
        blob.release()


@pytest_twisted.ensureDeferred
async def test_a_crash_at_any_step(tmp_path: Path) -> None:
    """After a crash at any step of a coding the earlier codings are still there."""
    large = site(text(0), text(1, MIB))
    copies: list[Path] = []
    async with held(tmp_path / "space", large) as (space, threads):
        blob = lease(space, large)
        ask(blob)
        threads.go_all()
        ask(blob, b"zstd", b"1")
        while threads.jobs:
            threads.go()
            copies.append(tmp_path / f"{len(copies)}")
            shutil.copytree(tmp_path / "space", copies[-1])
        blob.release()
    assert len(copies) > MIB // SLICE
    for copy in copies:
        async with opened(copy) as space:
            assert space.size >= on_disk(copy)
            blob = lease(space, large)
            assert decoded(blob.filesystem, ask(blob)) == text(0)
            ask(blob, b"zstd", b"1")
            assert decoded(blob.filesystem, ask(blob, b"zstd", b"1")) == text(1, MIB)
            blob.release()


def on_disk_of(path: Path) -> int:
    """Return the size of a file on disk, in blocks."""
    return -(-path.stat().st_size // 4096) * 4096


@pytest_twisted.ensureDeferred
async def test_counted_and_given_back(tmp_path: Path) -> None:
    """Codings are counted with their size on disk, which is free again with their layer."""
    layers = [site(*(text(10 * n + m, 50 * KIB) for m in range(4))) for n in range(4)]
    async with opened(tmp_path) as space:
        await take_in(space, SITE)
        await space.set_aside(SITE.digest)
        empty = space.size - on_disk(tmp_path)
        for each in layers:
            await take_in(space, each)
        size, slack = space.size, space.size - on_disk(tmp_path)
        for each in layers:
            blob = lease(space, each)
            for coding in CODINGS:
                for m in range(4):
                    ask(blob, coding, b"%d" % m)
                    assert space.size - on_disk(tmp_path) == slack
            blob.release()
        codings = sum(on_disk_of(codings_of(tmp_path, each)) for each in layers)
        assert space.size == size + codings > size + 4 * 8 * 4096
        blob = lease(space, layers[0])
        for each in layers:
            await space.set_aside(each.digest)
        assert names_in(tmp_path, "blobs/sha256") == []
        assert space.size - on_disk(tmp_path) > empty + codings // 4
        blob.release()
        assert space.size - on_disk(tmp_path) == empty


@pytest_twisted.ensureDeferred
async def test_room_is_made_for_codings(tmp_path: Path) -> None:
    """Space for a coding is made as for a layer, by evicting the least recently used."""
    old, new = made(1, MIB), site(text(0, MIB), noise(0, MIB))
    async with opened(tmp_path, 4 * MIB - 128 * KIB) as space:
        for each in (old, new):
            await take_in(space, each)
        blob = lease(space, new)
        ask(blob)
        assert isinstance(ask(blob), Entry)
        assert space.state_of(old.digest) is BlobState.UNKNOWN
        blob.release()


@pytest_twisted.ensureDeferred
async def test_no_room(tmp_path: Path) -> None:
    """Without space for a coding a file is served uncoded, and the coding is tried later."""
    clock, metrics = Clock(), Metrics()
    full = site(text(0, MIB), noise(0, MIB))
    async with opened(tmp_path, reactor=clock, metrics=metrics) as space:
        await take_in(space, full)
        space.reconfigure(BlobSpaceRules(tmp_path, space.size + 40 * KIB))
        blob, before = lease(space, full), space.size
        assert ask(blob) is NoCoding.PENDING
        assert ask(blob) is NoCoding.NEVER
        assert space.size == before
        assert codings_of(tmp_path, full).stat().st_size == 0
        assert counted(metrics, "no-room") == 1
        space.reconfigure(BlobSpaceRules(tmp_path, None))
        assert ask(blob) is NoCoding.NEVER
        clock.advance(RETRY)
        assert ask(blob) is NoCoding.PENDING
        assert decoded(blob.filesystem, ask(blob)) == text(0, MIB)
        blob.release()


@pytest_twisted.ensureDeferred
async def test_no_room_for_many(tmp_path: Path) -> None:
    """A coding that runs out of space is not tried again for the requests meanwhile."""
    full, metrics = site(text(0, MIB)), Metrics()
    async with held(tmp_path, full, metrics=metrics) as (space, threads):
        space.reconfigure(BlobSpaceRules(tmp_path, space.size + 40 * KIB))
        blob = lease(space, full)
        while threads.jobs or not counted(metrics, "no-room"):
            assert ask(blob) is NoCoding.PENDING
            threads.go()
        assert ask(blob) is NoCoding.NEVER
        assert counted(metrics, "no-room") == 1
        blob.release()


@pytest_twisted.ensureDeferred
async def test_pulls_go_first(tmp_path: Path) -> None:
    """A coding yields to a pull that needs its space, even the layer that is being coded."""
    old, new, metrics = site(text(0, MIB) * 20), made(1, 8 * MIB), Metrics()
    async with held(tmp_path, old, max_size=24 * MIB, metrics=metrics) as (space, threads):
        blob = lease(space, old)
        ask(blob)
        blob.release()
        threads.go()
        threads.go()
        await coming(space, threads, new)
        assert space.state_of(new.digest) is BlobState.READY
        assert space.state_of(old.digest) is BlobState.UNKNOWN
        assert counted(metrics, "no-room") == 1
        assert space.size <= 24 * MIB


class Failing(InlineThreads):
    """Threads on a disk that fails coding jobs while `error` is set."""

    error: Exception | None = None

    def run(self, f: Any, *args: Any, **kwargs: Any) -> Deferred[Any]:
        """See `Threads.run`."""
        is_failing = self.error is not None and getattr(f, "__name__", "") == "begin_coding"
        return fail(self.error) if is_failing else super().run(f, *args, **kwargs)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (OSError(errno.EIO, "I/O error"), "failed"),
        (OSError(errno.ENOSPC, "No space left"), "no-room"),
        (ZeroDivisionError(), "failed"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_failing(tmp_path: Path, error: Exception, outcome: str) -> None:
    """A failed coding affects nothing else, is logged once, and is tried again later."""
    clock, metrics, threads = Clock(), Metrics(), Failing()
    with capturedLogs() as told:
        async with opened(tmp_path, threads=threads, reactor=clock, metrics=metrics) as space:
            await take_in(space, SITE)
            blob = lease(space, SITE)
            threads.error, size = error, space.size
            assert ask(blob) is NoCoding.PENDING
            assert [ask(blob) for _ in range(5)] == [NoCoding.NEVER] * 5
            assert counted(metrics, outcome) == 1
            assert space.size == size
            threads.error = None
            assert ask(blob, b"zstd", b"1") is NoCoding.PENDING
            assert isinstance(ask(blob, b"zstd", b"1"), Entry)
            clock.advance(RETRY)
            assert ask(blob) is NoCoding.PENDING
            assert isinstance(ask(blob), Entry)
            blob.release()
    about = [each for each in told if each.get("coding") == "zstd"]
    assert len(about) == 1


@pytest_twisted.ensureDeferred
async def test_closing(tmp_path: Path) -> None:
    """Closing the blob space ends a running coding, and removes its bytes."""
    large = site(text(0), text(1, 4 * MIB))
    async with held(tmp_path, large) as (space, threads):
        blob = lease(space, large)
        ask(blob)
        threads.go_all()
        size = codings_of(tmp_path, large).stat().st_size
        for name, coding in ((b"1", b"zstd"), (b"0", b"gzip")):
            ask(blob, coding, name)
        for _ in range(10):
            threads.go()
        assert codings_of(tmp_path, large).stat().st_size > size
        closing = Deferred.fromCoroutine(space.close())
        assert not closing.called
        left = 0
        while threads.jobs:
            threads.go()
            left += 1
        assert closing.called
        assert left < 5
        assert codings_of(tmp_path, large).stat().st_size == size
        assert ask(blob, b"gzip") is NoCoding.NEVER
        assert decoded(blob.filesystem, ask(blob)) == text(0)
        blob.release()


@pytest_twisted.ensureDeferred
async def test_removed_while_coded(tmp_path: Path) -> None:
    """A layer that is removed during a coding leaves no file at the end."""
    large, metrics = site(text(1, MIB)), Metrics()
    descriptors = len(os.listdir("/proc/self/fd"))
    async with held(tmp_path, SITE, metrics=metrics) as (space, threads):
        await space.set_aside(SITE.digest)
        empty = space.size - on_disk(tmp_path)
        for jobs in range(16):
            await coming(space, threads, large)
            blob = lease(space, large)
            ask(blob)
            blob.release()
            for _ in range(min(jobs, len(threads.jobs))):
                threads.go()
            await space.set_aside(large.digest)
            assert names_in(tmp_path, "blobs/sha256") == []
            threads.go_all()
            assert space.size - on_disk(tmp_path) == empty
    assert counted(metrics, "failed") == 0
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest_twisted.ensureDeferred
async def test_the_last_asked_for_is_first(tmp_path: Path) -> None:
    """The last requested coding is made first, and beyond a limit the oldest is dropped."""
    count = MOST_WANTED + 3
    many = site(*(text(n, SMALLEST) for n in range(count)))
    metrics = Metrics()
    async with held(tmp_path, many, metrics=metrics) as (space, threads):
        blob = lease(space, many)
        for n in (*range(count), 1):  # the first begins at once
            assert ask(blob, b"zstd", b"%d" % n) is NoCoding.PENDING
        while counted(metrics, "made") < 2:
            threads.go()
        assert isinstance(ask(blob, b"zstd", b"1"), Entry)
        while threads.jobs:
            threads.go()
        assert counted(metrics, "made") == MOST_WANTED + 1
        filesystem = blob.filesystem
        absent = [
            n
            for n in range(count)
            if filesystem.file(filesystem.lookup(b"%d" % n)).coded(b"zstd") is None
        ]
        assert absent == [2, 3]
        assert ask(blob, b"zstd", b"2") is NoCoding.PENDING
        threads.go_all()
        assert isinstance(ask(blob, b"zstd", b"2"), Entry)
        blob.release()


@within(60)
async def test_layers_come_between(tmp_path: Path) -> None:
    """A layer is ingested between the slices of a large coding in the only thread."""
    large, small = site(text(1, 2 * MIB) * 20), made(1, 3 * MIB)
    with pool(1) as threads:
        async with opened(tmp_path, threads=threads, disk=threads) as space:
            await take_in(space, large)
            blob = lease(space, large)
            assert ask(blob, b"gzip") is NoCoding.PENDING
            await take_in(space, small)
            assert blob.filesystem.file(blob.filesystem.lookup(b"0")).coded(b"gzip") is None
            while ask(blob, b"gzip") is NoCoding.PENDING:
                await a_while()
            assert decoded(blob.filesystem, ask(blob, b"gzip")) == text(1, 2 * MIB) * 20
            blob.release()


async def a_while() -> None:
    """Let the reactor run for a moment."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    await deferLater(reactor, 0.01)  # type: ignore[arg-type]


@within(120)
async def test_a_storm_stays_within_the_bound(tmp_path: Path) -> None:
    """The quota holds at every moment during concurrent pulls and codings."""
    bound = 4 * MIB
    layers = [site(text(n, 500 * KIB), text(-n, 300 * KIB), noise(n)) for n in range(1, 13)]
    seen: list[int] = []
    metrics = Metrics()
    with pool(1) as threads:  # so that nothing changes during a look at the disk
        watched = Watched(threads, lambda: seen.append(on_disk(tmp_path)))
        async with opened(tmp_path, bound, watched, watched, metrics=metrics) as space:
            for each in layers * 2:
                if space.state_of(each.digest) is BlobState.UNKNOWN:
                    await take_in(space, each)
                blob = lease(space, each)
                wanted = [(coding, name) for coding in CODINGS for name in (b"0", b"1", b"2")]
                for coding, name in wanted:
                    ask(blob, coding, name)
                    await a_while()
                blob.release()
            assert space.size <= bound
    assert counted(metrics, "made") > 5
    assert max(seen) <= bound


STEPS = st.tuples(
    st.sampled_from(["take", "code", "code", "hold", "drop", "restart"]), st.integers(0, 5)
)
LAYERS = [site(text(n, (100 + 100 * n) * KIB), noise(n), text(-1, 60 * KIB)) for n in range(6)]
BOUND = 2 * MIB


@settings(max_examples=more(25), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=30))
def test_any_order(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]) -> None:
    """In any order of pulls, codings and restarts the quota holds and codings fit their files."""
    now(Deferred.fromCoroutine(_any_order(tmp_path_factory.mktemp("space"), steps)))


async def _any_order(location: Path, steps: list[tuple[str, int]]) -> None:
    readers: dict[int, BlobLease] = {}
    rounds: list[list[tuple[str, int]]] = [[]]
    for step in steps:
        rounds.append([]) if step[0] == "restart" else rounds[-1].append(step)
    for each in rounds:
        async with opened(location, BOUND) as space:
            for action, n in each:
                await _step(space, action, n, readers)
                assert on_disk(location) <= space.size <= BOUND
            for blob in readers.values():
                blob.release()
            readers.clear()


async def _step(space: BlobSpace, action: str, n: int, readers: dict[int, BlobLease]) -> None:
    layer = LAYERS[n]
    is_ready = space.state_of(layer.digest) is BlobState.READY
    if action == "take" and not is_ready:
        with suppress(NoSpace):
            await take_in(space, layer)
    elif action == "code" and is_ready:
        blob = lease(space, layer)
        for name in (b"0", b"1", b"2"):
            ask(blob, b"zstd", name)
        shared = ask(blob, b"zstd", b"2")
        if shared is not NoCoding.NEVER:
            assert decoded(blob.filesystem, shared) == text(-1, 60 * KIB)
        assert ask(blob, b"zstd", b"1") is NoCoding.NEVER
        coded = ask(blob)
        if coded is not NoCoding.NEVER:
            assert decoded(blob.filesystem, coded) == text(n, (100 + 100 * n) * KIB)
        blob.release()
    elif action == "hold" and is_ready and n not in readers:
        readers[n] = lease(space, layer)
    elif action == "drop" and n in readers:
        readers.pop(n).release()
