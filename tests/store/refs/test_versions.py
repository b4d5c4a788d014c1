"""Earlier versions of tags, pins and purges in a ref store."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, capturedLogs, formatEvent

from blobserve.config import KeepVersions, RepositoryRules
from blobserve.errors import BlobNotFound, ImageNotFound, NotCached, RegistryFailed, VersionPurged
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference, Repository
from blobserve.store.blobspace import BlobState
from blobserve.testing import MadeImage, make_image
from tests.support.stores import OTHER, SITE, Stand, an_image, content, now, standing

DOWN = [RegistryFailed("registry.example", "connection refused")] * 50
ALIAS = attrs.evolve(SITE, tag="alias")


def keeping(count: int = 10, seconds: float = 7 * 86400.0) -> dict[Repository, RepositoryRules]:
    """Return rules under which `SITE` keeps earlier versions."""
    keep = KeepVersions(count, seconds)
    return {SITE.repository: RepositoryRules(keep_versions=keep)}


async def deploy(stand: Stand, *names: str, tag: Reference = SITE) -> None:
    """Push one image after the other, and let each be served."""
    for name in names:
        stand.source.push(tag, an_image(name))
        stand.clock.advance(1000)
        assert await stand.read(tag) == name.encode()


def digest(name: str) -> Digest:
    """Return the digest of an image."""
    return an_image(name).digest


def kept(stand: Stand, tag: Reference = SITE) -> list[Digest]:
    """Return the earlier versions of a tag, the newest first."""
    return [each.digest for each in stand.store.references.versions.of(tag)]


def digests(*names: str) -> list[Digest]:
    """Return the digests of images."""
    return [digest(name) for name in names]


def texts(events: list[LogEvent]) -> Iterator[str]:
    """Yield the texts of log events."""
    yield from map(formatEvent, events)


async def read(stand: Stand, name: str) -> bytes | None:
    """Return the index.html of an earlier version; None if it cannot be read."""
    lease = await stand.store.version(SITE, digest(name))
    if lease is None:
        return None
    with lease:
        return content(lease)


@pytest_twisted.ensureDeferred
async def test_newest_first(tmp_path: Path) -> None:
    """An image that a tag leaves is kept; one that is current again is not an earlier version."""
    async with standing(tmp_path, rules=keeping()) as stand:
        await deploy(stand, "a", "b", "c")
        assert kept(stand) == digests("b", "a")
        await deploy(stand, "a")
        assert kept(stand) == digests("c", "b")
        await deploy(stand, "d")
        assert kept(stand) == digests("a", "c", "b")
        assert [await read(stand, name) for name in ("a", "b")] == [b"a", b"b"]


@pytest_twisted.ensureDeferred
async def test_off(tmp_path: Path) -> None:
    """Without `keepVersions`, and with a count of 0, no version is kept."""
    for number, rules in enumerate(({}, keeping(count=0))):
        async with standing(tmp_path / str(number), rules=rules) as stand:
            await deploy(stand, "a", "b")
            assert kept(stand) == []


@pytest_twisted.ensureDeferred
async def test_bounds(tmp_path: Path) -> None:
    """Versions are bounded by number and by age, also after a reload, and without requests."""
    async with standing(tmp_path, rules=keeping(3, 10_000)) as stand:
        await deploy(stand, "a", "b", "c", "d", "e", "f")
        assert kept(stand) == digests("e", "d", "c")
        stand.rules.update(keeping(2, 10_000))
        stand.store.reload()
        assert kept(stand) == digests("e", "d")
        stand.clock.advance(9_100)
        assert kept(stand) == digests("e")
        stand.clock.advance(5_000)
        assert kept(stand) == []
        stand.rules.update(keeping(0))


@pytest_twisted.ensureDeferred
async def test_age_at_a_look_up(tmp_path: Path) -> None:
    """A version that is too old for one reader may still be kept for another."""
    async with standing(tmp_path, rules=keeping()) as stand:
        await deploy(stand, "a", "b", "c")
        stand.clock.advance(100)
        of = stand.store.references.versions.of
        for keep, expected in (
            (KeepVersions(), digests("b", "a")),
            (KeepVersions(count=1), digests("b")),
            (KeepVersions(seconds=500), digests("b")),
            (KeepVersions(seconds=50), []),
        ):
            assert [each.digest for each in of(SITE, keep)] == expected


@pytest_twisted.ensureDeferred
async def test_a_tag_that_moves_all_the_time(tmp_path: Path) -> None:
    """A tag that moves a hundred times a minute keeps ten versions, and its rows stay few."""
    rules = {SITE.repository: RepositoryRules(tag_max_age=0, keep_versions=KeepVersions())}
    async with standing(tmp_path, rules=rules) as stand:
        names = [f"v{number}" for number in range(100)]
        for name in names:
            stand.source.push(SITE, an_image(name))
            stand.clock.advance(0.6)
            assert await stand.read() == name.encode()
        expected = digests(*names[-2:-12:-1])
        assert kept(stand) == expected
        parts = stand.store.references.versions.parts
        assert len(parts) == 10
    async with standing(tmp_path, clock=_at(stand), rules=rules) as again:
        assert kept(again) == expected


def _at(stand: Stand) -> Clock:
    """Return a clock that goes on where the one of a stand has stopped."""
    clock = Clock()
    clock.advance(stand.clock.seconds())
    return clock


@pytest_twisted.ensureDeferred
async def test_restart(tmp_path: Path) -> None:
    """Versions survive a restart, and are read without their source."""
    async with standing(tmp_path, rules=keeping()) as stand:
        await deploy(stand, "a", "b", "c")
    stand.source.fail("resolve", *DOWN)
    stand.source.fail("refresh", *DOWN)
    asked = len(stand.source.requests)
    async with standing(tmp_path, stand.source, _at(stand), rules=keeping()) as again:
        assert kept(again) == digests("b", "a")
        assert [await read(again, name) for name in ("a", "b")] == [b"a", b"b"]
        assert len(stand.source.requests) == asked
        assert len(again.store.references.versions.parts) == 2
    async with standing(tmp_path, stand.source, _at(stand), rules=keeping(1)) as again:
        assert kept(again) == digests("b")


@pytest_twisted.ensureDeferred
async def test_manifests_stay(tmp_path: Path) -> None:
    """The manifest of a version stays, even if its digest is no longer a known reference."""
    async with standing(tmp_path, rules=keeping()) as stand:
        await deploy(stand, "a", "b")
        stand.store.references.forget(SITE.at(digest("a")))
        for _ in range(3):
            await stand.space.reclaim()
        assert await read(stand, "a") == b"a"


def large(name: str) -> MadeImage:
    """Return an image of a little more than 4 MiB."""
    noise = random.Random(name).randbytes(4 << 20)
    return make_image({"index.html": name.encode(), "noise": noise})


@pytest_twisted.ensureDeferred
async def test_eviction(tmp_path: Path) -> None:
    """Eviction takes what nothing refers to, then the oldest versions, then current images."""
    async with standing(tmp_path, max_size=21 << 20, rules=keeping()) as stand:
        images = {name: large(name) for name in ("other", "a", "b", "c", "d", "e", "f")}

        async def serve(name: str, tag: Reference) -> None:
            stand.source.push(tag, images[name])
            stand.clock.advance(1000)
            assert await stand.read(tag) == name.encode()

        def ready() -> set[str]:
            layers = {name: image.layers[0].digest for name, image in images.items()}
            return {
                name for name in images if stand.space.state_of(layers[name]) is BlobState.READY
            }

        await serve("a", SITE)
        await serve("other", OTHER)
        with await stand.ask(stand.source.push(attrs.evolve(OTHER, tag="x"), images["f"])):
            pass
        await serve("b", SITE)
        # The image by digest was used last, but no tag serves it.
        assert ready() == {"other", "a", "f", "b"}
        with capturedLogs() as events:
            await serve("c", SITE)
            assert ready() == {"other", "a", "b", "c"}
            assert not any("no longer kept" in text for text in texts(events))
            await serve("d", SITE)
            assert ready() == {"other", "b", "c", "d"}
        assert [each.digest for each in stand.store.references.versions.of(SITE)] == [
            images[name].digest for name in ("c", "b")
        ]
        [text] = [text for text in texts(events) if "no longer kept" in text]
        assert str(images["a"].digest) in text
        assert "maxSizeBytes" in text
        # A version that was read a moment ago goes before a current image that was not.
        assert await stand.store.version(SITE, images["b"].digest) is not None
        assert await stand.read(OTHER) == b"other"


@pytest_twisted.ensureDeferred
async def test_shared_layers(tmp_path: Path) -> None:
    """A layer that a tag serves now is not evicted because an earlier version has it, too."""
    async with standing(tmp_path, rules=keeping()) as stand:
        await deploy(stand, "a", "b")
        await deploy(stand, "a", tag=OTHER)
        layer = an_image("a").layers[0].digest
        victims = stand.space.blobs.lru.victims(1)
        assert [each.digest for each in victims] != [layer]


@pytest_twisted.ensureDeferred
async def test_damage(tmp_path: Path) -> None:
    """A damaged version cannot be read, is logged, and is pulled again by its digest."""
    async with standing(tmp_path, rules=keeping()) as stand:
        await deploy(stand, "a", "b")
        gate = stand.source.hold("fetch")
        await stand.space.set_aside(an_image("a").layers[0].digest)
        assert await stand.store.version(SITE, digest("a"), read_only=True) is None
        assert gate.waiting == 0
        with capturedLogs() as events:
            assert await read(stand, "a") is None
            assert await read(stand, "a") is None
        [text] = [text for text in texts(events) if "damaged" in text]
        assert str(digest("a")) in text
        assert gate.waiting == 1
        switches = stand.store.references.switches
        gate.open()
        assert stand.store.references.switches > switches
        assert await read(stand, "a") == b"a"
        assert kept(stand) == digests("a")


@pytest_twisted.ensureDeferred
async def test_damage_without_source(tmp_path: Path) -> None:
    """The repair is tried again later while the source is down, and ends if the source lost it."""
    async with standing(tmp_path, rules=keeping()) as stand:
        await deploy(stand, "a", "b")
        stand.source.fail("fetch", *DOWN[:1])
        await stand.space.set_aside(an_image("a").layers[0].digest)
        for _ in range(3):
            assert await read(stand, "a") is None
        fetches = stand.source.count("fetch")
        stand.clock.advance(31)
        stand.source.remove(SITE.at(an_image("a").layers[0].digest))
        assert await read(stand, "a") is None
        assert stand.source.count("fetch") == fetches + 1
        assert kept(stand) == []


# --- Pins -----------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_rollback(tmp_path: Path) -> None:
    """A pin of an earlier version switches its tag at once, without any source."""
    async with standing(tmp_path, rules=keeping()) as stand:
        await deploy(stand, "a", "b", "c")
        switched = list[object]()
        stand.store.references.on_switch(lambda *each: switched.append(each))
        asked = len(stand.source.requests)
        await stand.store.pin(str(SITE), digest("a"))
        assert await stand.read() == b"a"
        assert switched == [(SITE, digest("c"), digest("a"))]
        assert kept(stand) == digests("c", "b")
        stand.clock.advance(10_000)
        assert await stand.read() == b"a"
        assert len(stand.source.requests) == asked


@pytest_twisted.ensureDeferred
async def test_unpin(tmp_path: Path) -> None:
    """A pinned tag does not follow its source; after `unpin` it does."""
    async with standing(tmp_path, rules=keeping()) as stand:
        await deploy(stand, "a", "b")
        await stand.store.pin(str(SITE), digest("a"))
        stand.source.push(SITE, an_image("c"))
        stand.clock.advance(1000)
        assert await stand.read() == b"a"
        assert await stand.store.unpin(str(SITE))
        assert await stand.read() == b"c"
        assert kept(stand) == digests("a", "b")
        assert not await stand.store.unpin(str(SITE))


@pytest_twisted.ensureDeferred
async def test_unpin_without_source(tmp_path: Path) -> None:
    """A tag that is no longer pinned serves on while its source is down."""
    async with standing(tmp_path, rules=keeping()) as stand:
        await deploy(stand, "a", "b")
        await stand.store.pin(str(SITE), digest("a"))
        stand.source.fail("refresh", *DOWN)
        await stand.store.unpin(str(SITE))
        assert await stand.read() == b"a"


@pytest_twisted.ensureDeferred
async def test_pin_of_an_unknown_image(tmp_path: Path) -> None:
    """An image that is not in the blob space is pulled by its digest, and then pinned."""
    async with standing(tmp_path, rules=keeping()) as stand:
        stand.source.push(SITE, an_image("a"))
        await deploy(stand, "b")
        await stand.store.pin(str(SITE), digest("a"))
        assert await stand.read() == b"a"
        with pytest.raises(ImageNotFound):
            await stand.store.pin(str(SITE), digest("none"))
        assert await stand.read() == b"a"
        assert stand.store.references.pins.names == {str(SITE): digest("a")}


@pytest_twisted.ensureDeferred
async def test_pin_of_an_unknown_tag(tmp_path: Path) -> None:
    """A tag that was never requested can be pinned."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image("a"))
        await stand.store.pin(str(ALIAS), digest("a"))
        assert await stand.read(ALIAS) == b"a"


@pytest_twisted.ensureDeferred
async def test_pin_during_a_pull(tmp_path: Path) -> None:
    """A pull that was under way when a tag was pinned does not switch it."""
    async with standing(tmp_path, rules=keeping()) as stand:
        await deploy(stand, "a", "b")
        stand.source.push(SITE, an_image("c"))
        gate = stand.source.hold("fetch")
        stand.clock.advance(1000)
        waiting = stand.ask()
        assert not waiting.called
        await stand.store.pin(str(SITE), digest("a"))
        gate.open()
        with now(waiting) as lease:
            assert content(lease) == b"a"
        assert await stand.read() == b"a"
        assert await stand.read(SITE.at(digest("c"))) == b"c"


@pytest_twisted.ensureDeferred
async def test_pin_and_restart(tmp_path: Path) -> None:
    """A pin survives a restart with its source down, and the log names it."""
    async with standing(tmp_path, rules=keeping()) as stand:
        await deploy(stand, "a", "b")
        await stand.store.pin(str(SITE), digest("a"))
    stand.source.fail("resolve", *DOWN)
    stand.source.fail("refresh", *DOWN)
    with capturedLogs() as events:
        async with standing(tmp_path, stand.source, _at(stand), rules=keeping()) as again:
            again.clock.advance(10_000)
            assert await again.read() == b"a"
            await again.store.pin(str(SITE), digest("b"))
            assert await again.read() == b"b"
    assert f"{SITE} is pinned to {digest('a')}" in list(texts(events))


@pytest_twisted.ensureDeferred
async def test_pin_of_an_evicted_image(tmp_path: Path) -> None:
    """A pinned image that is lost is pulled by its digest, and never by its tag."""
    async with standing(tmp_path, rules=keeping()) as stand:
        await deploy(stand, "a", "b")
        await stand.store.pin(str(SITE), digest("a"))
        await stand.space.set_aside(an_image("a").layers[0].digest)
        assert await stand.read() == b"a"
        await stand.space.set_aside(an_image("a").layers[0].digest)
        stand.source.remove(SITE.at(an_image("a").layers[0].digest))
        for _ in range(2):
            with pytest.raises(BlobNotFound, match="does not have the layer"):
                await stand.read()
        stand.source.push(SITE, an_image("a"))
        assert await stand.read() == b"a"


# --- Purges ---------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_purge(tmp_path: Path) -> None:
    """A purged image is no version, is 404 by digest, and does not come back."""
    async with standing(tmp_path, rules=keeping()) as stand:
        await deploy(stand, "a", "b", "c")
        switches = stand.store.references.switches
        await stand.store.purge(SITE.repository, digest("b"))
        assert stand.store.references.switches > switches
        assert kept(stand) == digests("a")
        assert stand.space.state_of(an_image("b").layers[0].digest) is BlobState.UNKNOWN
        assert stand.space.state_of(an_image("c").layers[0].digest) is BlobState.READY
        assert await read(stand, "b") is None
        assert stand.store.lease_at_once(SITE.at(digest("b"))) is None
        for read_only in (False, True):
            with pytest.raises((VersionPurged, NotCached)):
                await stand.ask(SITE.at(digest("b")), read_only)
        with pytest.raises(VersionPurged):
            await stand.store.pin(str(SITE), digest("b"))
        # A tag does not move to it.
        stand.source.push(SITE, an_image("b"))
        stand.clock.advance(1000)
        assert await stand.read() == b"c"
        with pytest.raises(VersionPurged):
            await stand.ask(attrs.evolve(SITE, tag="unknown-until-now", digest=digest("b")))
        stand.source.push(ALIAS, an_image("b"))
        with pytest.raises(ImageNotFound):
            await stand.read(ALIAS)
        await deploy(stand, "d")
        assert kept(stand) == digests("c", "a")
    async with standing(tmp_path, stand.source, _at(stand), rules=keeping()) as again:
        assert kept(again) == digests("c", "a")
        with pytest.raises(VersionPurged):
            await again.ask(SITE.at(digest("b")))


@pytest_twisted.ensureDeferred
async def test_purge_of_the_current_version(tmp_path: Path) -> None:
    """A tag that serves a purged image is 404 until it moves or is pinned to another one."""
    async with standing(tmp_path, rules=keeping()) as stand:
        await deploy(stand, "a", "b")
        await stand.store.purge(SITE.repository, digest("b"))
        assert stand.store.lease_at_once(SITE) is None
        for _ in range(2):
            with pytest.raises(VersionPurged):
                await stand.ask()
            stand.clock.advance(1000)
        await stand.store.pin(str(SITE), digest("a"))
        assert await stand.read() == b"a"
        await stand.store.unpin(str(SITE))
        assert await stand.read() == b"a"
        await deploy(stand, "c")
        assert kept(stand) == digests("a")


@pytest_twisted.ensureDeferred
async def test_purge_of_a_pinned_version(tmp_path: Path) -> None:
    """A purge removes the pins of its image."""
    async with standing(tmp_path, rules=keeping()) as stand:
        await deploy(stand, "a", "b")
        await stand.store.pin(str(SITE), digest("a"))
        await stand.store.purge(SITE.repository, digest("a"))
        assert stand.store.references.pins.names == {}
        stand.clock.advance(1000)
        assert await stand.read() == b"b"
        assert kept(stand) == []


@pytest_twisted.ensureDeferred
async def test_purge_of_one_repository(tmp_path: Path) -> None:
    """Another repository that has the same image serves it on."""
    async with standing(tmp_path, rules=keeping()) as stand:
        await deploy(stand, "a", "b")
        await deploy(stand, "a", tag=OTHER)
        await stand.store.purge(SITE.repository, digest("a"))
        assert await stand.read(OTHER) == b"a"


@pytest_twisted.ensureDeferred
async def test_purge_looks_tags_up(tmp_path: Path) -> None:
    """A tag that serves a purged image is looked up at once, for it may have moved already."""
    async with standing(tmp_path, rules=keeping()) as stand:
        await deploy(stand, "a", "b")
        stand.source.push(SITE, an_image("c"))
        assert await stand.read() == b"b"
        await stand.store.purge(SITE.repository, digest("b"))
        assert await stand.read() == b"c"
        assert kept(stand) == digests("a")


@pytest_twisted.ensureDeferred
async def test_purge_during_a_pull(tmp_path: Path) -> None:
    """An image that is purged while its tag pulls it is not served after that."""
    async with standing(tmp_path, rules=keeping()) as stand:
        await deploy(stand, "a", "b")
        stand.source.push(SITE, an_image("c"))
        gate = stand.source.hold("fetch")
        stand.clock.advance(1000)
        waiting = stand.ask()
        await stand.store.purge(SITE.repository, digest("c"))
        gate.open()
        stand.clock.advance(10)
        with await waiting as lease:
            assert content(lease) == b"b"
        assert await stand.read() == b"b"
        with pytest.raises(VersionPurged):
            await stand.ask(SITE.at(digest("c")))
        assert stand.space.state_of(an_image("c").layers[0].digest) is BlobState.UNKNOWN
        assert kept(stand) == digests("a")


@pytest_twisted.ensureDeferred
async def test_purge_during_a_pin(tmp_path: Path) -> None:
    """A pin of an image that is purged while it is pulled fails, and changes nothing."""
    async with standing(tmp_path, rules=keeping()) as stand:
        stand.source.push(SITE, an_image("c"))
        await deploy(stand, "a", "b")
        gate = stand.source.hold("fetch")
        pinning = Deferred.fromCoroutine(stand.store.pin(str(SITE), digest("c")))
        assert not pinning.called
        await stand.store.purge(SITE.repository, digest("c"))
        gate.open()
        with pytest.raises(VersionPurged):
            await pinning
        assert stand.store.references.pins.names == {}
        assert await stand.read() == b"b"


@pytest_twisted.ensureDeferred
async def test_a_failed_pin_holds_no_image(tmp_path: Path) -> None:
    """If one of the tags of a name cannot have the image, no lease on the others stays."""
    async with standing(tmp_path, rules=keeping()) as stand:
        await deploy(stand, "a", "b")
        blob = an_image("a").layers[0].digest
        missing = attrs.evolve(SITE, repository=OTHER.repository)
        stand.store.references.pins.tags_named = lambda name: (SITE, missing)
        with pytest.raises(ImageNotFound):
            await stand.store.pin(str(SITE), digest("a"))
        assert await stand.read() == b"b"
        stand.store.references.versions.drop(SITE, digest("a"))
        await stand.space.evict_unused([blob])
        assert stand.space.state_of(blob) is BlobState.UNKNOWN
