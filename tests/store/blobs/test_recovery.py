"""Recovery of a blob space when it opens."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock

from blobserve.config import KIB, MIB, BlobSpaceRules
from blobserve.errors import DiskFailed
from blobserve.metrics import Metrics
from blobserve.names.digest import Digest
from blobserve.store.blobspace import BlobSpace, BlobState
from blobserve.store.disk.files import footprint
from blobserve.store.disk.metadata_db import MetadataDb, Record, recorded
from blobserve.testing import InlineThreads
from tests.support.layers import File, descriptor, tar
from tests.support.parts.server import ROOT
from tests.support.slack import SLACK
from tests.support.spaces import Made, made, names_in, on_disk, opened, pool, read, take_in
from tests.support.within import within

ONE = made(1)


def directory_of(location: Path, layer: Made) -> Path:
    """Return the directory of a layer."""
    return location / "blobs" / layer.digest.algorithm / layer.digest.hex


def crashed(location: Path, copy: Path) -> Path:
    """Return a copy of a blob space in the state that a crash now would leave."""
    shutil.copytree(location, copy, symlinks=True)
    return copy


def changed(location: Path, statement: str) -> None:
    """Change the state file of a closed blob space."""
    database = sqlite3.connect(location / "state")
    with database:
        database.execute(statement)
    database.close()


def flip(path: Path, at: int) -> None:
    """Change one byte of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


async def filled(location: Path) -> None:
    """Make a closed blob space with a durable layer."""
    async with opened(location) as space:
        await take_in(space, ONE)


@pytest_twisted.ensureDeferred
async def test_layers_survive_a_restart(tmp_path: Path) -> None:
    """A READY layer is READY after a restart, without being read."""
    await filled(tmp_path)
    async with opened(tmp_path) as space:
        assert len(read(space, ONE.digest)) == 100 * KIB


@pytest_twisted.ensureDeferred
async def test_a_crash_in_the_middle(tmp_path: Path) -> None:
    """After a crash during a pull its files are removed, and READY layers stay."""
    two = made(2, MIB)
    async with opened(tmp_path / "space") as space:
        await take_in(space, ONE)
        ingest = await space.ingest(two.descriptor)
        ingest.write(two.blob[:-1])
        copy = crashed(tmp_path / "space", tmp_path / "copy")
        assert len(names_in(copy, "ingest")) == 1
        await ingest.abandon()
    async with opened(copy) as space:
        assert names_in(copy, "ingest") == []
        assert space.state_of(two.digest) is BlobState.UNKNOWN
        assert read(space, ONE.digest)
        await take_in(space, two)


def damaged_content(directory: Path) -> None:
    flip(directory / "content", 5000)


def damaged_index(directory: Path) -> None:
    flip(directory / "index", 5000)


def short_content(directory: Path) -> None:
    with (directory / "content").open("r+b") as file:
        file.truncate(4096)


def empty_index(directory: Path) -> None:
    (directory / "index").write_bytes(b"")


def no_index(directory: Path) -> None:
    (directory / "index").unlink()


def a_linked_content(directory: Path) -> None:
    (directory / "content").rename(directory.parent / "elsewhere")
    (directory / "content").symlink_to("../elsewhere")


DAMAGES = [
    damaged_content, damaged_index, short_content, empty_index, no_index, a_linked_content,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
@pytest_twisted.ensureDeferred
async def test_torn_by_a_crash(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """A layer that a crash has torn before it was durable is detected and pulled again."""
    await filled(tmp_path)
    changed(tmp_path, "UPDATE blobs SET durable = 0")
    damage(directory_of(tmp_path, ONE))
    async with opened(tmp_path) as space:
        assert space.state_of(ONE.digest) is BlobState.UNKNOWN
        assert not directory_of(tmp_path, ONE).exists()
        assert names_in(tmp_path, "ingest") == []
        await take_in(space, ONE)
        assert len(read(space, ONE.digest)) == 100 * KIB


@pytest_twisted.ensureDeferred
async def test_whole_after_a_crash(tmp_path: Path) -> None:
    """A layer that was not durable at a crash is READY after its hashes have been checked."""
    await filled(tmp_path)
    changed(tmp_path, "UPDATE blobs SET durable = 0")
    async with opened(tmp_path) as space:
        assert len(read(space, ONE.digest)) == 100 * KIB
    state = MetadataDb(tmp_path / "state")
    state.open()
    assert [record.durable for record in state.blobs()] == [True]
    state.close()


@pytest_twisted.ensureDeferred
async def test_the_state_is_lost(tmp_path: Path) -> None:
    """Without the state file every layer is verified again, and the intact ones stay."""
    await filled(tmp_path)
    two = made(2)
    async with opened(tmp_path) as space:
        await take_in(space, two)
    (tmp_path / "state").write_bytes(b"no database" * 1000)
    flip(directory_of(tmp_path, two) / "content", 5000)
    async with opened(tmp_path) as space:
        assert space.state_of(two.digest) is BlobState.UNKNOWN
        assert len(read(space, ONE.digest)) == 100 * KIB
        assert "state.damaged" in names_in(tmp_path, ".")
    async with opened(tmp_path) as space:
        assert len(read(space, ONE.digest)) == 100 * KIB


@pytest.mark.parametrize("damage", [damaged_index, empty_index, no_index])
@pytest_twisted.ensureDeferred
async def test_a_damaged_index_is_made_again(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """An index that differs from its record is rebuilt from the content, without a pull."""
    await filled(tmp_path)
    damage(directory_of(tmp_path, ONE))
    async with opened(tmp_path) as space:
        assert len(read(space, ONE.digest)) == 100 * KIB
        assert names_in(directory_of(tmp_path, ONE), ".") == ["content", "index"]
    async with opened(tmp_path) as space:
        assert len(read(space, ONE.digest)) == 100 * KIB


@pytest_twisted.ensureDeferred
async def test_an_index_of_another_size(tmp_path: Path) -> None:
    """A rebuilt index of another size is counted with its new size."""
    await filled(tmp_path)
    directory = directory_of(tmp_path, ONE)
    async with opened(tmp_path) as space:
        counted = space.size
    index = directory / "index"
    index.write_bytes(index.read_bytes() + bytes(MIB))
    changed(tmp_path, f"UPDATE blobs SET index_size = {index.stat().st_size}")
    async with opened(tmp_path) as space:
        assert len(read(space, ONE.digest)) == 100 * KIB
        assert index.stat().st_size < MIB
        layer = footprint(directory)
        assert counted <= space.size < counted + 64 * KIB, "but for the state file"
        assert space.blobs.lru.size == layer
        space.reconfigure(BlobSpaceRules(tmp_path, 1))
        assert space.state_of(ONE.digest) is BlobState.UNKNOWN
        assert space.size < counted - layer + 64 * KIB
        assert space.size >= counted - layer


@pytest_twisted.ensureDeferred
async def test_damaged_beyond_repair(tmp_path: Path) -> None:
    """A layer with damaged content is removed when it is opened, and pulled again."""
    await filled(tmp_path)
    content = directory_of(tmp_path, ONE) / "content"
    content.write_bytes(b"x" * content.stat().st_size)
    no_index(directory_of(tmp_path, ONE))
    async with opened(tmp_path) as space:
        assert space.state_of(ONE.digest) is BlobState.UNKNOWN
        assert await space.blobs.mount(ONE.digest) is None
        assert names_in(tmp_path, "ingest") == []
        await take_in(space, ONE)
        assert len(read(space, ONE.digest)) == 100 * KIB


@pytest_twisted.ensureDeferred
async def test_out_of_descriptors(tmp_path: Path) -> None:
    """A layer that cannot be opened for lack of descriptors stays, and is opened later."""
    await filled(tmp_path)
    disk = OutOfDescriptors()
    async with opened(tmp_path, disk=disk) as space:
        with pytest.raises(DiskFailed, match="Too many open files"):
            await space.blobs.mount(ONE.digest)
        assert space.state_of(ONE.digest) is BlobState.READY
        disk.are_out = False
        blob = await space.blobs.mount(ONE.digest)
        assert blob is not None
        blob.release()
        assert len(read(space, ONE.digest)) == 100 * KIB


class OutOfDescriptors(InlineThreads):
    """Threads that fail to open blobs while `are_out` is set."""

    are_out = True

    def run(self, f: Any, *args: Any, **kwargs: Any) -> Deferred[Any]:
        """See `Threads.run`."""
        if self.are_out and getattr(f, "__qualname__", "") == "BlobFiles.open":
            return fail(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
        return super().run(f, *args, **kwargs)


@pytest_twisted.ensureDeferred
async def test_foreign_files(tmp_path: Path) -> None:
    """Foreign files in a blob space are not served, followed or removed."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "content").write_bytes(b"a secret")
    location, layer = tmp_path / "space", made(2)
    await filled(location)
    foreign = [
        location / "README",
        location / "blobs" / "README",
        location / "blobs" / "sha256" / "README",
        location / "manifests" / "README",
    ]
    for path in foreign:
        path.write_text("foreign")
    directory_of(location, layer).symlink_to(elsewhere)
    (location / "ingest" / "link").symlink_to(elsewhere)
    async with opened(location) as space:
        assert space.state_of(layer.digest) is BlobState.UNKNOWN
        assert names_in(location, "ingest") == []
        await take_in(space, layer)
        assert len(read(space, layer.digest)) == 100 * KIB
    assert all(path.read_text() == "foreign" for path in foreign)
    assert (elsewhere / "content").read_bytes() == b"a secret"
    assert not directory_of(location, layer).is_symlink()


@pytest_twisted.ensureDeferred
async def test_a_smaller_bound(tmp_path: Path) -> None:
    """After a restart with a smaller quota the last used layers that fit are READY."""
    layers, clock = [made(n, 500 * KIB) for n in range(6)], Clock()
    async with opened(tmp_path, reactor=clock) as space:
        for each in layers:
            await take_in(space, each)
            clock.advance(1)
        for n in (1, 3):
            read(space, layers[n].digest)
            clock.advance(-5)  # a clock that is set back does not change the order
    async with opened(tmp_path, 2 * MIB) as space:
        left = [n for n, e in enumerate(layers) if space.state_of(e.digest) is BlobState.READY]
        assert left == [1, 3, 5]
        assert max(space.size, on_disk(tmp_path)) <= 2 * MIB


@within(120)
async def test_ten_thousand_blobs(tmp_path: Path) -> None:
    """Opening a blob space with ten thousand layers does not block the reactor."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs
    from twisted.internet.task import LoopingCall

    location = tmp_path / "space"
    await filled(location)
    template = directory_of(location, ONE)
    state = MetadataDb(location / "state")
    state.open()
    [record] = state.blobs()
    digests = [Digest.of(b"%d" % n) for n in range(10_000)]
    for digest in digests:
        directory = template.parent / digest.hex
        directory.mkdir()
        for name in ("content", "index"):
            (directory / name).hardlink_to(template / name)
    own = [Record(each, *_fields(record)) for each in digests]
    state.change(*map(recorded, own))
    state.close()
    ticks: list[float] = []
    ticking = LoopingCall(lambda: ticks.append(reactor.seconds()))  # type: ignore[attr-defined]
    with pool() as threads:
        ticking.start(0.005)
        async with opened(location, threads=threads, disk=threads) as space:
            ticking.stop()
            assert all(space.state_of(each) is BlobState.READY for each in digests)
            blob = await space.blobs.mount(digests[5000])
            assert blob is not None
            blob.release()
    pauses = sorted(after - before for before, after in itertools.pairwise(ticks))
    assert len(ticks) > 20
    assert pauses[-1] < 0.5 * SLACK


def _fields(record: Record) -> tuple[int, int, bytes, float, bool]:
    return record.content_size, record.index_size, record.index_sha256, 0.0, True


CHILD = """
import sys
from pathlib import Path
from typing import Any
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred
from blobserve.config import BlobSpaceRules, Limits
from blobserve.metrics import Metrics
from blobserve.store.blobspace import BlobSpace
from blobserve.concurrency.threads import OwnThreads
from tests.support.spaces import made, take_in

async def main():
    threads = OwnThreads(reactor, 2, "child")
    threads.start()
    rules = BlobSpaceRules(Path(sys.argv[1]), 8 << 20)
    space = BlobSpace(reactor, rules, Limits, threads, Metrics())
    await space.open()
    print("open", flush=True)
    for n in range(1000):
        layer = made(n, 700_000)
        await take_in(space, layer)
        space.references.remember(f"registry.example/site:{n}", layer.digest, float(n))
        print(n, flush=True)

reactor.callWhenRunning(lambda: ensureDeferred(main()).addErrback(print))
reactor.run()
"""


@pytest.mark.parametrize("after", [0, 1, 2, 5, 9, 14, 20])
@within(60)
async def test_killed(tmp_path: Path, after: int) -> None:
    """A process that is killed while it pulls and evicts leaves only whole layers."""
    location = tmp_path / "space"
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(location)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        said = [child.stdout.readline().strip() for _ in range(after + 1)]
        child.kill()
    assert len(said) == after + 1
    assert all(said)
    async with opened(location, 8 * MIB) as space:
        await _is_whole(location, space, after)


async def _is_whole(location: Path, space: BlobSpace, after: int) -> None:
    layers = [made(n, 700_000) for n in range(after + 2)]
    present = [e for e in layers if space.state_of(e.digest) is BlobState.READY]
    assert len(present) >= min(after, 7)
    for each in present:
        assert len(read(space, each.digest)) == 700_000
    assert names_in(location, "ingest") == []
    if present:
        assert names_in(location, "blobs/sha256") == sorted(e.digest.hex for e in present)
    assert on_disk(location) <= space.size <= 8 * MIB


@pytest.mark.parametrize("durable", [1, 0])
@within(20)
async def test_index_of_version_1(tmp_path: Path, durable: int) -> None:
    """An index that does not say which files are text is made again, from the content alone."""
    blob = tar([File(b"LICENSE", b"MIT"), File(b"x", b"\xff")])
    layer = Made(blob, descriptor(blob, "none"))
    async with opened(tmp_path) as space:
        await take_in(space, layer)
    path = directory_of(tmp_path, layer) / "index"
    index = sqlite3.connect(path, isolation_level=None)
    index.execute("ALTER TABLE entry DROP COLUMN is_text")
    index.execute("PRAGMA user_version = 1")
    index.close()
    checksum = Digest.of(path.read_bytes()).hex
    changed(
        tmp_path,
        f"UPDATE blobs SET index_size = {path.stat().st_size}, index_sha256 = X'{checksum}',"
        f" durable = {durable}",
    )
    metrics = Metrics()
    async with opened(tmp_path, metrics=metrics) as space:
        assert space.state_of(layer.digest) is BlobState.READY
        lease = await space.blobs.mount(layer.digest)
        assert lease is not None
        assert lease.filesystem.lookup(b"LICENSE").is_text == 1
        assert lease.filesystem.lookup(b"x").is_text == 0
        lease.release()
    value = metrics.registry.get_sample_value("blobserve_damaged_total", {"part": "index"})
    assert not value
