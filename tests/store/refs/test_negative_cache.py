"""Missing images: a registry is asked once in a while, for any number of requests."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.task import Clock

from blobserve.config import RepositoryRules
from blobserve.errors import BlobNotFound, ImageNotFound, NotCached, RegistryFailed
from blobserve.names.reference import Reference
from blobserve.store.refs.reference_table import MISSING_LIFE, MOST_MISSING, NegativeCache
from tests.support.stores import OTHER, SITE, Stand, an_image, now, standing


def resolves(stand: Stand) -> int:
    """Return the number of manifest look-ups by name."""
    return stand.source.count("resolve")


@pytest_twisted.ensureDeferred
async def test_asked_once(tmp_path: Path) -> None:
    """A missing image is looked up once in two seconds, and every caller has its own error.

    Row C25.
    """
    async with standing(tmp_path) as stand:
        errors = []
        for _ in range(3):
            with pytest.raises(ImageNotFound, match=str(SITE)) as raised:
                await stand.ask()
            errors.append(raised.value)
        assert len(set(map(id, errors))) == 3
        assert resolves(stand) == 1
        stand.clock.advance(MISSING_LIFE - 0.01)
        with pytest.raises(ImageNotFound):
            now(stand.ask())
        assert resolves(stand) == 1
        stand.source.push(SITE, an_image())
        stand.clock.advance(0.01)
        assert await stand.read() == b"one"
        assert resolves(stand) == 2


@pytest_twisted.ensureDeferred
async def test_one_name_alone(tmp_path: Path) -> None:
    """A missing tag says nothing about another tag, nor about its image by digest."""
    async with standing(tmp_path) as stand:
        exact = stand.source.push(OTHER, an_image())
        with pytest.raises(ImageNotFound):
            await stand.ask(SITE)
        assert await stand.read(OTHER) == b"one"
        assert await stand.read(exact) == b"one"
        with pytest.raises(NotCached):
            await stand.ask(SITE, read_only=True)


@pytest_twisted.ensureDeferred
async def test_reload(tmp_path: Path) -> None:
    """After a reload a missing image is looked up again."""
    async with standing(tmp_path) as stand:
        with pytest.raises(ImageNotFound):
            await stand.ask()
        stand.source.push(SITE, an_image())
        stand.store.reload()
        assert await stand.read() == b"one"


@pytest_twisted.ensureDeferred
async def test_other_failures(tmp_path: Path) -> None:
    """Other errors are not cached: the next request starts again."""
    async with standing(tmp_path) as stand:
        image = an_image()
        stand.source.push(SITE, image)
        stand.source.fail("resolve", RegistryFailed("r", "it is down"))
        stand.source.fail("fetch", BlobNotFound("sha256:00"))
        for failure in (RegistryFailed, BlobNotFound):
            with pytest.raises(failure):
                await stand.ask()
        assert await stand.read() == b"one"


@pytest_twisted.ensureDeferred
async def test_pre_pull_finds_it(tmp_path: Path) -> None:
    """An image that prePull has pulled is served, even if it was just missing."""
    rules = {SITE.repository: RepositoryRules(pre_pull=("v1",))}
    async with standing(tmp_path, rules=rules) as stand:
        with pytest.raises(ImageNotFound):
            await stand.ask()
        stand.source.push(SITE, an_image())
        await stand.store.pre_pull(SITE)
        assert await stand.read() == b"one"


@pytest_twisted.ensureDeferred
async def test_what_was_served_before(tmp_path: Path) -> None:
    """An image that was served is still served when its tag is missing in the registry."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image())
        await stand.read()
        stand.source.remove(SITE)
        for _ in range(3):
            stand.clock.advance(200)
            assert await stand.read() == b"one"


def test_bound() -> None:
    """The cache remembers a bounded number of references, the last requested ones."""
    missing, clock = NegativeCache(Clock()), Clock()
    names = [Reference.parse(f"registry.example/site:v{n}") for n in range(MOST_MISSING + 100)]
    for name in names:
        missing.note(name, ImageNotFound(str(name)))
        missing.note(name, ImageNotFound(str(name)))
    assert len(missing) == MOST_MISSING
    assert missing.get(names[99]) is None
    assert missing.get(names[100]) is not None
    missing = NegativeCache(clock)
    missing.note(names[0], ImageNotFound("x"))
    clock.advance(MISSING_LIFE)
    assert missing.get(names[0]) is None
    assert len(missing) == 0
