"""`verifyOnRead`: a file is verified completely before its first byte is sent."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from blobserve.config import MIB, BlobSpaceRules, Replacement, RepositoryRules
from blobserve.store.blobs.content import CheckedFiles
from blobserve.testing import InlineThreads
from tests.store.blobs.test_damage import blob_of, damaged, pulls
from tests.support.coded_layers import DECODE, text
from tests.support.sites import REPOSITORY, TAG, Serving, serving
from tests.support.within import within

SMALL, LARGE = text(1), random.Random(1).randbytes(20 * MIB)
FILES = {"small.txt": SMALL, "large": LARGE}
ACCEPTING = {"Accept-Encoding": "gzip"}


class Counted(InlineThreads):
    """Threads that count their jobs by the function's name."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}

    def run(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """See `Threads.run`."""
        name = getattr(f, "__name__", "")
        self.done[name] = self.done.get(name, 0) + 1
        return super().run(f, *args, **kwargs)


@asynccontextmanager
async def verifying(
    tmp_path: Path, is_verifying: bool = True, **config: Any
) -> AsyncIterator[Serving]:
    """Run a site with verifyOnRead and its image cached, and no file read yet."""
    async with serving(tmp_path, FILES, **config) as site:
        rules = BlobSpaceRules(tmp_path / "space", verify_on_read=is_verifying)
        site.space.reconfigure(rules)
        assert (await site.fetch(f"/{TAG}/nothing")).status == 404
        yield site


def rot(site: Serving, content: bytes, name: str = "content") -> None:
    """Change one byte in the middle of a file of the image."""
    with blob_of(site, name).open("r+b") as file:
        at = file.read().index(content) + len(content) // 2
        file.seek(at)
        [byte] = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("hot_path", [True, False])
@pytest.mark.parametrize("name", FILES)
@within(30)
async def test_f12_a_changed_byte(tmp_path: Path, name: str, hot_path: bool) -> None:
    """A file with a changed byte is pulled again before any of it is sent."""
    async with verifying(tmp_path, hot_path=hot_path) as site:
        rot(site, FILES[name])
        answer = await site.fetch(f"/{TAG}/{name}")
        assert (answer.status, answer.body) == (200, FILES[name])
        assert (pulls(site), damaged(site, "content")) == (2, 1)


@within(30)
async def test_without_it_the_disk_is_believed(tmp_path: Path) -> None:
    """Without verifyOnRead the bytes on disk are sent unchecked."""
    async with verifying(tmp_path, is_verifying=False) as site:
        rot(site, SMALL)
        answer = await site.fetch(f"/{TAG}/small.txt")
        assert (answer.status, len(answer.body), pulls(site)) == (200, len(SMALL), 1)
        assert answer.body != SMALL


@within(30)
async def test_once_in_a_process(tmp_path: Path) -> None:
    """A file is checked in slices before it is first sent, and not again."""
    threads = Counted()
    async with verifying(tmp_path, disk=threads) as site:
        ranged = {"Range": "bytes=100000-299999"}
        first = await site.fetch(f"/{TAG}/large", headers=ranged)
        assert (first.status, first.body) == (206, LARGE[100000:300000])
        assert threads.done["_has_more"] == 4  # 8, 8, 4 MiB, and the end
        assert (await site.fetch(f"/{TAG}/large")).body == LARGE
        assert threads.done["_has_more"] == 4
        assert pulls(site) == 1


@within(30)
async def test_a_head_reads_nothing(tmp_path: Path) -> None:
    """A HEAD request does not cause a check."""
    threads = Counted()
    async with verifying(tmp_path, disk=threads) as site:
        head = await site.fetch(f"/{TAG}/large", "HEAD")
        assert head.status == 200
        condition = {"If-None-Match": head.headers["etag"]}
        assert (await site.fetch(f"/{TAG}/large", headers=condition)).status == 304
        assert "_has_more" not in threads.done


class Late(Counted):
    """Threads that run their jobs some time later."""

    def __init__(self) -> None:
        super().__init__()
        from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

        self._reactor: IReactorTime = reactor  # type: ignore[assignment]

    def run(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """See `Threads.run`."""
        return deferLater(self._reactor, 0.01, lambda: super(Late, self).run(f, *args, **kwargs))


@within(30)
async def test_one_check_for_all(tmp_path: Path) -> None:
    """Concurrent requests for a file share one check."""
    threads = Late()
    async with verifying(tmp_path, disk=threads) as site:
        ranged = {"Range": "bytes=0-99999"}
        waiting = [site.fetch(f"/{TAG}/large", headers=ranged) for _ in range(20)]
        answers = await gatherResults([Deferred.fromCoroutine(each) for each in waiting])
        assert {answer.body for answer in answers} == {LARGE[:100000]}
        assert threads.done["_has_more"] == 4


@within(30)
async def test_rewritten_files_are_checked(tmp_path: Path) -> None:
    """A rewritten file is made from verified bytes."""
    rule = Replacement("small.txt", SMALL[:20].decode(), "other")
    rules = RepositoryRules(REPOSITORY, replacements=(rule,))
    async with verifying(tmp_path, repos={REPOSITORY: rules}) as site:
        rot(site, SMALL)
        answer = await site.fetch(f"/{TAG}/small.txt")
        assert (answer.status, answer.body) == (200, SMALL.replace(SMALL[:20], b"other"))
        assert pulls(site) == 2


@within(30)
async def test_codings_are_checked(tmp_path: Path) -> None:
    """A coding with a changed byte is made again, and not sent meanwhile."""
    async with verifying(tmp_path) as site:
        await site.fetch(f"/{TAG}/small.txt", headers=ACCEPTING)
        with blob_of(site, "codings").open("rb") as file:
            coded = file.read()[-100:]
        rot(site, coded, "codings")
        plain = await site.fetch(f"/{TAG}/small.txt", headers=ACCEPTING)
        assert (plain.status, plain.body) == (200, SMALL)
        assert (damaged(site, "coding"), pulls(site)) == (1, 1)
        again = await site.fetch(f"/{TAG}/small.txt", headers=ACCEPTING)
        assert again.headers["content-encoding"] == "gzip"
        assert DECODE[b"gzip"](again.body) == SMALL


@within(30)
async def test_a_reload_turns_it_on(tmp_path: Path) -> None:
    """After a reload verifyOnRead applies to the next request, also for open images."""
    async with verifying(tmp_path, is_verifying=False) as site:
        assert (await site.fetch(f"/{TAG}/large")).body == LARGE
        rot(site, LARGE)
        rules = attrs.evolve(site.config.blob_space, verify_on_read=True)
        site.space.reconfigure(rules)
        assert (await site.fetch(f"/{TAG}/large")).body == LARGE
        assert pulls(site) == 2


def test_what_is_remembered_is_small() -> None:
    """The record of a million checked files takes less than a MiB and is exact."""
    checked = CheckedFiles()
    offsets = range(512, 512 * 2_000_000, 1024)
    for offset in offsets:
        checked.add(offset)
    assert all(checked.has(offset) for offset in offsets)
    assert not any(checked.has(offset + 512) for offset in offsets[:-1])
    assert not checked.has(512 * 2_000_001)
    stretches = checked._content
    assert sum(each.__sizeof__() for each in stretches.values()) + stretches.__sizeof__() < MIB
