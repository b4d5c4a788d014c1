"""Requests for files that the disk has lost."""

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
    """Return the path of a file of the only layer."""
    [directory] = (site.space._location.root / "blobs" / "sha256").iterdir()
    return directory / name


def damaged(site: Serving, part: str) -> float:
    """Return the number of damages that were counted."""
    name = "blobserve_damaged_total"
    return site.metrics.registry.get_sample_value(name, {"part": part}) or 0.0


def pulls(site: Serving) -> int:
    """Return the number of downloads of layers."""
    return site.source.count("fetch")


@asynccontextmanager
async def warm(tmp_path: Path, files: Files = FILES, **config: object) -> AsyncIterator[Serving]:
    """Run a site with its image cached, and no file read yet."""
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
    """A request for a file with lost bytes waits until its layer is pulled again."""
    async with warm(tmp_path, hot_path=hot_path) as site:
        os.truncate(blob_of(site, "content"), 1024)
        answer = await site.fetch(f"/{TAG}/{name}")
        assert (answer.status, answer.body) == (200, content)
        assert (pulls(site), damaged(site, "content")) == (2, 1)
        assert blob_of(site, "content").stat().st_size > 5 * MIB


@within(30)
async def test_f05_lost_in_mid_response(tmp_path: Path) -> None:
    """A response that meets a loss is aborted, and the next one is complete."""
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
    """A loss that many requests meet causes one pull."""
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
    """A loss in a file that is rewritten causes a pull as well."""
    rule = Replacement("small.txt", SMALL[:20].decode(), "other")
    rules = RepositoryRules(REPOSITORY, replacements=(rule,))
    async with warm(tmp_path, repos={REPOSITORY: rules}) as site:
        os.truncate(blob_of(site, "content"), 1024)
        answer = await site.fetch(f"/{TAG}/small.txt")
        assert (answer.status, answer.body[:5]) == (200, b"other")
        assert pulls(site) == 2


@within(30)
async def test_lost_and_nowhere_else(tmp_path: Path) -> None:
    """A file lost on disk and in the registry gets the registry's error, without old headers."""
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
    """If each new copy of a layer is lost at once, requests get a 503."""
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
    """Threads that truncate all content in `location` before each job."""

    location: Path | None = None

    def run(self, f, *args, **kwargs):  # type: ignore[no-untyped-def]
        """See `Threads.run`."""
        for content in self.location.glob("*/*/content") if self.location else ():
            os.truncate(content, 1024)
        return super().run(f, *args, **kwargs)


@within(30)
async def test_f12_an_index_that_is_damaged_while_open(tmp_path: Path) -> None:
    """An index that becomes unreadable is rebuilt from the content, without a pull."""
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
    """A lost coding is made again, and the file is served uncoded meanwhile."""
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
    """Damage that is found while coding causes a pull at the next request."""
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
    """A late report about a lost layer does not affect its replacement."""
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
    """A file with an I/O error at each read, since no memory is at low addresses."""
    with subprocess.Popen(["sleep", "60"]) as sleeping:
        try:
            with open(f"/proc/{sleeping.pid}/mem", "rb") as failing:
                yield failing
        finally:
            sleeping.kill()


@pytest.mark.parametrize("name", FILES)
@within(30)
async def test_f05_a_disk_that_fails(tmp_path: Path, name: str) -> None:
    """Failing reads from the disk cause no wrong answer, and the next one is right."""
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
    """Run a site with an image of two layers cached, and no file read yet."""
    rules = RepositoryRules(REPOSITORY, layers="all")
    many: Files = {f"{n:05}-{'x' * 100}.txt": b"%d" % n for n in range(5000)}
    async with serving(tmp_path, many, FILES, repos={REPOSITORY: rules}) as site:
        assert (await site.fetch(f"/{TAG}/nothing")).status == 404
        assert pulls(site) == 2
        yield site


@within(30)
async def test_lost_in_one_of_several_layers(tmp_path: Path) -> None:
    """A loss in one of several layers causes a pull of that layer alone."""
    async with merged(tmp_path) as site:
        contents = (tmp_path / "space" / "blobs").glob("*/*/content")
        os.truncate(min(contents, key=lambda each: each.stat().st_size), 1024)
        assert (await site.fetch(f"/{TAG}/large")).body == LARGE
        assert (pulls(site), damaged(site, "content")) == (3, 1)


@within(30)
async def test_f12_a_tree_that_is_damaged_while_open(tmp_path: Path) -> None:
    """A merged index that becomes unreadable is rebuilt without a pull."""
    async with merged(tmp_path) as site:
        [tree] = (tmp_path / "space" / "trees").glob("*/*")
        size = tree.stat().st_size
        with tree.open("r+b") as file:
            file.seek(4096)
            file.write(bytes(size - 4096))
        for n in range(100, 5000, 500):
            assert (await site.fetch(f"/{TAG}/{n:05}-{'x' * 100}.txt")).body == b"%d" % n
        assert (pulls(site), damaged(site, "index"), damaged(site, "content")) == (2, 1, 0)
