"""The work of each scenario, which makes the same system calls in every run.

Each scenario has a part that prepares the blob space and a part that is watched. There is no
reactor: time stands still and blocking code runs at once in the one thread, so that the calls are
the same each time.
"""

from __future__ import annotations

import gzip
import random
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
from twisted.internet.task import Clock

from blobserve.config import KIB, MIB, BlobSpaceRules, Limits, RepositoryRules
from blobserve.metrics import Metrics
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference
from blobserve.store.blobspace import BlobSpace
from blobserve.store.index.entry import Entry
from blobserve.store.refstore import RefStore
from blobserve.testing import InlineThreads, MemorySource, make_image

TEXT = b"".join(b"line %d of a text that compresses\n" % n for n in range(300))
BOUND = 3 * MIB


def _files(seed: int) -> dict[str, bytes]:
    draw = random.Random(seed)
    small = {f"d{n % 7}/{n:04}.txt": b"%d" % n for n in range(200)}
    return {"index.html": draw.randbytes(300 * KIB), "text.txt": TEXT, **small}


HOT, COLD, THIRD, MERGED = "hot", "cold", "third", "merged"
FILES = {name: _files(seed) for seed, name in enumerate((HOT, COLD, THIRD))}
IMAGES = {name: make_image(files) for name, files in FILES.items()}
FILES[MERGED] = {**_files(7), "text.txt": b"of the second layer"}
IMAGES[MERGED] = make_image(_files(7), {"text.txt": b"of the second layer"})


def reference(name: str) -> Reference:
    """Return the reference of an image."""
    return Reference.parse(f"registry.example/site:{name}")


def a_source() -> MemorySource:
    """Return a registry that has all the images."""
    source = MemorySource()
    for name, image in IMAGES.items():
        source.push(reference(name), image)
    return source


@attrs.frozen
class Stand:
    """A blob space and its ref store, both open."""

    location: Path
    space: BlobSpace
    store: RefStore
    source: MemorySource

    async def read(self, name: str) -> None:
        """Request an image, which may pull it, and check every byte of some files."""
        with await self.store.blob_for(reference(name)) as lease:
            for path in ("index.html", "text.txt", "d3/0003.txt", "d1/0197.txt"):
                entry = lease.filesystem.lookup(path.encode())
                content = lease.filesystem.file(entry).read(0, entry.size)
                assert content == FILES[name][path], f"{path} of {name} is wrong"

    async def code(self, name: str) -> None:
        """Request the coding of a text, and check it if it is ready."""
        with await self.store.blob_for(reference(name)) as lease:
            entry = lease.filesystem.lookup(b"text.txt")
            lease.coded(entry, b"gzip")
            coded = lease.filesystem.file(entry).coded(b"gzip")
            if isinstance(coded, Entry):
                content = lease.filesystem.file(coded).read(0, coded.size)
                assert gzip.decompress(content) == TEXT


@asynccontextmanager
async def opened(location: Path, bound: int | None = BOUND) -> AsyncIterator[Stand]:
    """Open a blob space, and close it at the end."""
    clock, source, threads, metrics = Clock(), a_source(), InlineThreads(), Metrics()
    space = BlobSpace(clock, BlobSpaceRules(location, bound), Limits, threads, metrics)
    await space.open()
    rules = RepositoryRules(layers="all")
    store = RefStore(space, lambda _: source, lambda _: rules, clock, metrics, Limits)
    try:
        await store.open()
        yield Stand(location, space, store, source)
    finally:
        await store.close()
        await space.close()


Deed = Callable[[Stand], Awaitable[None]]


@attrs.frozen
class Scenario:
    """A prepared blob space and the watched `deed`; without a deed, opening it is watched."""

    prepare: Callable[[Path], Awaitable[None]]
    deed: Deed | None
    bound: int = BOUND


async def _nothing(location: Path) -> None:
    """Leave the location missing."""


async def _empty(location: Path) -> None:
    """Make an empty blob space."""
    async with opened(location):
        pass


async def _hot(location: Path) -> None:
    """Make a blob space with one image."""
    async with opened(location) as stand:
        await stand.read(HOT)


async def _two(location: Path) -> None:
    """Make a blob space with two images."""
    async with opened(location) as stand:
        await stand.read(COLD)
        await stand.read(HOT)
        await stand.code(HOT)


async def _crashed(location: Path) -> None:
    """Make a blob space with leftovers, a lost row and an image that is not known to be durable."""
    await _two(location)
    database = sqlite3.connect(location / "state")
    with database:
        database.execute("UPDATE blobs SET durable = 0 WHERE digest = ?", (str(layer(COLD)),))
        database.execute("DELETE FROM blobs WHERE digest = ?", (str(layer(HOT)),))
        gone = str(Digest.of(b"gone"))
        database.execute("INSERT INTO blobs VALUES (?, 1, 1, X'00', 1.0, 1)", (gone,))
    database.close()
    left = location / "ingest" / "left"
    left.mkdir()
    (left / "content").write_bytes(bytes(10_000))
    (left / "index").write_bytes(bytes(10_000))


async def _lost_index(location: Path) -> None:
    """Make a blob space with an image and a damaged index."""
    await _hot(location)
    index = location / "blobs" / "sha256" / layer(HOT).hex / "index"
    content = bytearray(index.read_bytes())
    content[5000] ^= 1
    index.write_bytes(content)


def layer(name: str) -> Digest:
    """Return the digest of the one layer of an image."""
    return IMAGES[name].layers[0].digest


async def _merge(stand: Stand) -> None:
    await stand.read(MERGED)


async def _pull(stand: Stand) -> None:
    await stand.read(COLD)


async def _evict(stand: Stand) -> None:
    await stand.read(THIRD)


async def _reclaim(stand: Stand) -> None:
    stand.space.reconfigure(BlobSpaceRules(stand.location, MIB))
    await stand.space.reclaim()


async def _manifest(stand: Stand) -> None:
    for image in IMAGES.values():
        for document in image.documents:
            await stand.space.manifests.put(document)


async def _coding(stand: Stand) -> None:
    await stand.code(HOT)


async def _mend(stand: Stand) -> None:
    await stand.read(HOT)


async def _set_aside(stand: Stand) -> None:
    """Report damage, then pull the layer again."""
    with await stand.store.blob_for(reference(HOT)) as lease:
        entry = lease.filesystem.lookup(b"index.html")
        lease.report(lease.filesystem.file(entry).damage("of a test"))
    await stand.read(HOT)


SCENARIOS = {
    "birth": Scenario(_nothing, None),
    "pull": Scenario(_hot, _pull),
    "alone": Scenario(_empty, _pull),
    "merge": Scenario(_hot, _merge),
    "evict": Scenario(_two, _evict, 2 * MIB),
    "reclaim": Scenario(_two, _reclaim),
    "recovery": Scenario(_crashed, None),
    "manifest": Scenario(_hot, _manifest),
    "coding": Scenario(_hot, _coding),
    "mend": Scenario(_lost_index, None),
    "set-aside": Scenario(_hot, _set_aside),
}
