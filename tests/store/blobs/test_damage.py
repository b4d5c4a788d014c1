"""What becomes of requests when the disk has lost what they ask for."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest
from twisted.internet.defer import Deferred

from blobserve.config import MIB, Replacement, RepositoryRules
from blobserve.errors import CodingDamaged, RegistryFailed
from blobserve.names.reference import Reference
from blobserve.testing import InlineThreads
from tests.support.coded_layers import DECODE, text
from tests.support.parts.images import Files
from tests.support.sites import REPOSITORY, TAG, Response, Serving, serving
from tests.support.within import within

SMALL, LARGE = text(1), random.Random(1).randbytes(5 * MIB)
FILES: Files = {"small.txt": SMALL, "large": LARGE, "last.txt": text(2)}


def blob_of(site: Serving, name: str) -> Path:
    """A file of the one layer that is here."""
    [directory] = (site.space._location.root / "blobs" / "sha256").iterdir()
    return directory / name


def damaged(site: Serving, part: str) -> float:
    """How often damage was counted."""
    name = "blobserve_damaged_total"
    return site.metrics.registry.get_sample_value(name, {"part": part}) or 0.0


def pulls(site: Serving) -> int:
    """How often a layer was fetched."""
    return site.source.count("fetch")


@asynccontextmanager
async def warm(tmp_path: Path, files: Files = FILES, **config: object) -> AsyncIterator[Serving]:
    """A site whose image is here, and none of whose files has been asked for."""
    async with serving(tmp_path, files, **config) as site:
        assert (await site.fetch(f"/{TAG}/nothing")).status == 404
        assert pulls(site) == 1
        yield site


@pytest.mark.parametrize("hot_path", [True, False])
@pytest.mark.parametrize(("name", "content"), [("small.txt", SMALL), ("large", LARGE)])
@within(30)
async def test_f05_lost_before_the_response(
    tmp_path: Path, name: str, content: bytes, hot_path: bool
) -> None:
    """A file whose bytes the disk has lost is pulled again, and its request waits for that."""
    async with warm(tmp_path, hot_path=hot_path) as site:
        os.truncate(blob_of(site, "content"), 1024)
        answer = await site.fetch(f"/{TAG}/{name}")
        assert (answer.status, answer.body) == (200, content)
        assert (pulls(site), damaged(site, "content")) == (2, 1)
        assert blob_of(site, "content").stat().st_size > 5 * MIB


@within(30)
async def test_f05_lost_in_mid_response(tmp_path: Path) -> None:
    """A response that has begun when the loss shows is aborted, and the next one is whole."""
    async with warm(tmp_path) as site:
        os.truncate(blob_of(site, "content"), 4 * MIB)
        request = f"GET /{TAG}/large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        broken = Response.parse(await site.exchange(request.encode()))
        assert broken.status == 200
        assert LARGE.startswith(broken.body)
        assert len(broken.body) < len(LARGE)
        assert (await site.fetch(f"/{TAG}/large")).body == LARGE
        assert (pulls(site), damaged(site, "content")) == (2, 1)


@within(30)
async def test_many_meet_the_same_damage(tmp_path: Path) -> None:
    """However many requests meet a loss, the layer is pulled again once."""
    async with warm(tmp_path) as site:
        os.truncate(blob_of(site, "content"), 1024)
        gate = site.source.hold("fetch")
        waiting = [Deferred.fromCoroutine(site.fetch(f"/{TAG}/{name}")) for name in [*FILES] * 5]
        while gate.waiting == 0:
            await site.turn()
        gate.open()
        answers = [await each for each in waiting]
        assert [answer.body for answer in answers] == [*FILES.values()] * 5
        assert (pulls(site), damaged(site, "content")) == (2, 1)


@within(30)
async def test_lost_under_a_rewriting_rule(tmp_path: Path) -> None:
    """A file that is rewritten on its way out is pulled again like any other."""
    rule = Replacement("small.txt", SMALL[:20].decode(), "other")
    rules = RepositoryRules(REPOSITORY, replacements=(rule,))
    async with warm(tmp_path, repos={REPOSITORY: rules}) as site:
        os.truncate(blob_of(site, "content"), 1024)
        answer = await site.fetch(f"/{TAG}/small.txt")
        assert (answer.status, answer.body[:5]) == (200, b"other")
        assert pulls(site) == 2


@within(30)
async def test_lost_and_nowhere_else(tmp_path: Path) -> None:
    """What is lost here and in the registry is refused as that, with nothing of the old answer."""
    async with warm(tmp_path) as site:
        os.truncate(blob_of(site, "content"), 1024)
        site.source.fail("fetch", *[RegistryFailed("registry.example", "it is down")] * 2)
        answer = await site.fetch(f"/{TAG}/large")
        assert answer.status == 502
        assert not {"etag", "accept-ranges", "content-location"} & set(answer.headers)
        read_only = {"X-BlobServe-ReadOnly": "true"}
        assert (await site.fetch(f"/{TAG}/large", headers=read_only)).status == 404
        site.source.fail("fetch")
        assert (await site.fetch(f"/{TAG}/small.txt")).status == 502
        assert (await site.fetch(f"/{TAG}/large")).body == LARGE


@within(30)
async def test_a_disk_that_loses_everything(tmp_path: Path) -> None:
    """While every layer is lost as soon as it is here, requests are told to come again."""
    threads, rule = Losing(), Replacement("small.txt", SMALL[:20].decode(), "other")
    rules = RepositoryRules(REPOSITORY, replacements=(rule,))
    async with serving(tmp_path, FILES, disk=threads, repos={REPOSITORY: rules}) as site:
        threads.location = tmp_path / "space" / "blobs"
        answer = await site.fetch(f"/{TAG}/small.txt")
        assert (answer.status, answer.body) == (503, b"timeout")
        assert (pulls(site), damaged(site, "content")) == (3, 3)
        threads.location = None
        assert (await site.fetch(f"/{TAG}/small.txt")).status == 200


class Losing(InlineThreads):
    """Threads before each job of which all content in `location` is lost."""

    location: Path | None = None

    def run(self, f, *args, **kwargs):  # type: ignore[no-untyped-def]
        """See `Threads.run`."""
        for content in self.location.glob("*/*/content") if self.location else ():
            os.truncate(content, 1024)
        return super().run(f, *args, **kwargs)


@within(30)
async def test_f12_an_index_that_is_damaged_while_open(tmp_path: Path) -> None:
    """An index that cannot be read any more is made again from the content, without a pull."""
    files = {f"{n:05}-{'x' * 100}.txt": b"%d" % n for n in range(5000)}
    async with warm(tmp_path, files) as site:
        index = blob_of(site, "index")
        size = index.stat().st_size
        with index.open("r+b") as file:
            file.seek(4096)
            file.write(bytes(size - 4096))
        names = list(files)[100::500]
        answers = [await site.fetch(f"/{TAG}/{name}") for name in names]
        assert [answer.body for answer in answers] == [files[name] for name in names]
        assert (pulls(site), damaged(site, "index"), damaged(site, "content")) == (1, 1, 0)
        assert site.space.size > 0


@within(30)
async def test_a_damaged_coding(tmp_path: Path) -> None:
    """A coding that is lost is made anew; meanwhile the file is served as it is."""
    accepting = {"Accept-Encoding": "gzip"}
    async with warm(tmp_path) as site:
        await site.fetch(f"/{TAG}/last.txt", headers=accepting)
        coded = await site.fetch(f"/{TAG}/last.txt", headers=accepting)
        assert DECODE[b"gzip"](coded.body) == FILES["last.txt"]
        site.site.images.flush()
        os.truncate(blob_of(site, "codings"), 200)
        plain = await site.fetch(f"/{TAG}/last.txt", headers=accepting)
        assert (plain.status, plain.body) == (200, FILES["last.txt"])
        assert "content-encoding" not in plain.headers
        coded = await site.fetch(f"/{TAG}/last.txt", headers=accepting)
        assert DECODE[b"gzip"](coded.body) == FILES["last.txt"]
        assert (pulls(site), damaged(site, "coding"), damaged(site, "content")) == (1, 1, 0)


@within(30)
async def test_damage_met_while_coding(tmp_path: Path) -> None:
    """Damage that shows while a coding is made has the layer pulled again when it is asked for."""
    async with warm(tmp_path) as site:
        with await site.store.blob_for(Reference.parse(TAG)) as lease:
            entry = lease.filesystem.lookup(b"small.txt")
            os.truncate(blob_of(site, "content"), 1024)
            lease.coded(entry, b"gzip")
        assert damaged(site, "content") == 1
        assert (await site.fetch(f"/{TAG}/small.txt")).body == SMALL
        assert pulls(site) == 2


@within(30)
async def test_damage_is_of_the_blob_it_was_met_in(tmp_path: Path) -> None:
    """Who still reads a lost layer, and says so late, does not harm the one that took its place."""
    async with warm(tmp_path) as site:
        old = await site.store.blob_for(Reference.parse(TAG))
        entry = old.filesystem.lookup(b"large")
        damage = old.filesystem.file(entry).damage("lost")
        old.report(damage)
        with await site.store.blob_for(Reference.parse(TAG)):
            old.report(damage)
            old.report(CodingDamaged(damage.digest, "lost", b"gzip", 100))
            assert old.filesystem.file(entry).read(0, 100) == LARGE[:100]
            old.release()
            old.report(damage)
        assert (pulls(site), damaged(site, "content"), damaged(site, "coding")) == (2, 1, 0)


@contextmanager
def memory_of_another() -> Iterator[BinaryIO]:
    """A file to read which is an I/O error, as there is no memory at low addresses."""
    with subprocess.Popen(["sleep", "60"]) as sleeping:
        try:
            with open(f"/proc/{sleeping.pid}/mem", "rb") as failing:
                yield failing
        finally:
            sleeping.kill()


@pytest.mark.parametrize("name", FILES)
@within(30)
async def test_f05_a_disk_that_fails(tmp_path: Path, name: str) -> None:
    """Where the disk fails instead of giving bytes, no answer is wrong, and the next is right."""
    async with warm(tmp_path) as site:
        with (
            await site.store.blob_for(Reference.parse(TAG)) as lease,
            memory_of_another() as failing,
        ):
            entry = lease.filesystem.lookup(name.encode())
            os.dup2(failing.fileno(), lease.filesystem.file(entry).descriptor)
            raw = await site.exchange(
                f"GET /{TAG}/{name} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
            )
        if raw:
            assert FILES[name].startswith(Response.parse(raw).body)
        assert (await site.fetch(f"/{TAG}/{name}")).body == FILES[name]
        assert (pulls(site), damaged(site, "content")) == (2, 1)


@asynccontextmanager
async def merged(tmp_path: Path) -> AsyncIterator[Serving]:
    """A site whose image of two layers is here, none of whose files has been asked for."""
    rules = RepositoryRules(REPOSITORY, layers="all")
    many: Files = {f"{n:05}-{'x' * 100}.txt": b"%d" % n for n in range(5000)}
    async with serving(tmp_path, many, FILES, repos={REPOSITORY: rules}) as site:
        assert (await site.fetch(f"/{TAG}/nothing")).status == 404
        assert pulls(site) == 2
        yield site


@within(30)
async def test_lost_in_one_of_several_layers(tmp_path: Path) -> None:
    """Of an image of several layers, the one that the disk has lost is pulled again, alone."""
    async with merged(tmp_path) as site:
        contents = (tmp_path / "space" / "blobs").glob("*/*/content")
        os.truncate(min(contents, key=lambda each: each.stat().st_size), 1024)
        assert (await site.fetch(f"/{TAG}/large")).body == LARGE
        assert (pulls(site), damaged(site, "content")) == (3, 1)


@within(30)
async def test_f12_a_tree_that_is_damaged_while_open(tmp_path: Path) -> None:
    """The tree of several layers is made again when it cannot be read, without a pull."""
    async with merged(tmp_path) as site:
        [tree] = (tmp_path / "space" / "trees").glob("*/*")
        size = tree.stat().st_size
        with tree.open("r+b") as file:
            file.seek(4096)
            file.write(bytes(size - 4096))
        for n in range(100, 5000, 500):
            assert (await site.fetch(f"/{TAG}/{n:05}-{'x' * 100}.txt")).body == b"%d" % n
        assert (pulls(site), damaged(site, "index"), damaged(site, "content")) == (2, 1, 0)
