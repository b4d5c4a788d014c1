"""Pushes that a registry has announced: when tags are looked up, and how often."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import pytest_twisted

from blobserve.config import RepositoryRules
from blobserve.errors import NotFound, RegistryBusy, RegistryFailed, StoreClosed
from blobserve.names.reference import Reference, Repository
from blobserve.store.pull.pushes import SETTLE
from tests.support.stores import OTHER, SITE, Stand, an_image, standing

V2 = Reference.tagged(SITE.repository, "v2")
DOWN = RegistryFailed("registry.example", "connection refused")


def announce(stand: Stand, *tags: str, expected: tuple[Reference, ...] = ()) -> int:
    """Announce a push of tags of the site, or of any tag; go on to the first look-up."""
    count = stand.store.announce({SITE.repository}, tags or None, expected)
    stand.clock.advance(SETTLE)
    return count


def look_ups(stand: Stand) -> int:
    """Return the number of look-ups so far."""
    return stand.source.count("refresh")


async def current(stand: Stand) -> bytes:
    """Return the file that the tag serves, without a look-up."""
    return await stand.read(read_only=True)


@pytest_twisted.ensureDeferred
async def test_look_now(tmp_path: Path) -> None:
    """A trusted tag is looked up at once, and its new image is pulled without a request."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image("one"))
        await stand.read()
        stand.source.push(SITE, an_image("two"))
        assert announce(stand, "v1") == 1
        assert await current(stand) == b"two"
        stand.clock.pump([0.1] * 40)
        assert look_ups(stand) == 1


@pytest_twisted.ensureDeferred
async def test_repeated_until_new(tmp_path: Path) -> None:
    """A look-up that finds nothing new is repeated after 0.2, 0.5 and 2 seconds."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image("one"))
        await stand.read()
        announce(stand, "v1")
        seen = []
        for _ in range(400):
            seen.append(look_ups(stand))
            stand.clock.advance(0.01)
        changes = [at for at in range(1, 400) if seen[at] != seen[at - 1]]
        assert seen[0] == 1
        assert [round(at / 100, 1) for at in changes] == [0.2, 0.5, 2.0]
        assert not stand.store._pushes._watches


@pytest.mark.parametrize("late", [0.19, 0.49, 1.9])
@pytest_twisted.ensureDeferred
async def test_tag_written_late(tmp_path: Path, late: float) -> None:
    """A tag that the registry writes after its notification is found by a repetition."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image("one"))
        await stand.read()
        announce(stand, "v1")
        stand.clock.pump([late / 10] * 10)
        stand.source.push(SITE, an_image("two"))
        assert await current(stand) == b"one"
        stand.clock.pump([0.1] * 18)
        assert await current(stand) == b"two"


@pytest_twisted.ensureDeferred
async def test_during_a_look_up(tmp_path: Path) -> None:
    """A notification that comes while a look-up runs causes another one after it."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image("one"))
        await stand.read()
        gate = stand.source.hold("refresh", after=1)
        announce(stand, "v1")
        assert gate.waiting == 1
        announce(stand, "v1")
        announce(stand, "v1")
        gate.open()
        assert look_ups(stand) == 1
        stand.source.push(SITE, an_image("two"))
        stand.clock.advance(0.2)
        assert look_ups(stand) == 2
        assert await current(stand) == b"two"


@pytest_twisted.ensureDeferred
async def test_look_up_of_a_request(tmp_path: Path) -> None:
    """A look-up that a request began before the notification does not count for it."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image("one"))
        await stand.read()
        stand.clock.advance(61)
        gate = stand.source.hold("refresh", after=1)
        await stand.read()
        assert gate.waiting == 1
        stand.source.push(SITE, an_image("two"))
        announce(stand, "v1")
        assert look_ups(stand) == 1
        gate.open()
        assert look_ups(stand) == 2
        assert await current(stand) == b"two"


@pytest_twisted.ensureDeferred
async def test_two_pushes_at_once(tmp_path: Path) -> None:
    """The second of two pushes is found, though the first one was found by its look-up."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image("one"))
        await stand.read()
        announce(stand, "v1")
        stand.clock.advance(0.1)
        stand.source.push(SITE, an_image("two"))
        announce(stand, "v1")
        stand.clock.advance(0.1)
        assert await current(stand) == b"two"
        stand.source.push(SITE, an_image("three"))
        stand.clock.pump([0.1] * 30)
        assert await current(stand) == b"three"


@pytest_twisted.ensureDeferred
async def test_flood(tmp_path: Path) -> None:
    """Any number of notifications for a tag causes at most five look-ups a second."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image("one"))
        await stand.read()
        for _ in range(1000):
            stand.store.announce({SITE.repository}, ["v1"], ())
            stand.store.announce({SITE.repository}, None, ())
            stand.clock.advance(0.001)
        assert 4 <= look_ups(stand) <= 6
        assert len(stand.store._pushes._watches) == 1


@pytest_twisted.ensureDeferred
async def test_moves_often(tmp_path: Path) -> None:
    """A tag that moves a hundred times a minute ends at the newest image, and nothing piles up."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image("0"))
        await stand.read()
        for number in range(1, 101):
            stand.source.push(SITE, an_image(str(number)))
            announce(stand, "v1")
            stand.clock.pump([0.1] * 6)
            assert await current(stand) == b"%d" % number
        stand.clock.pump([0.1] * 30)
        assert not stand.store._pushes._watches


@pytest_twisted.ensureDeferred
async def test_slow_pull(tmp_path: Path) -> None:
    """A push during the pull of the image before it is looked up when that pull has ended."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image("one"))
        await stand.read()
        stand.source.push(SITE, an_image("two"))
        gate = stand.source.hold("fetch")
        announce(stand, "v1")
        stand.clock.advance(5)
        stand.source.push(SITE, an_image("three"))
        announce(stand, "v1")
        stand.clock.advance(5)
        assert await current(stand) == b"one"
        gate.open()
        stand.clock.advance(0.2)
        assert await current(stand) == b"three"


@pytest_twisted.ensureDeferred
async def test_failures(tmp_path: Path) -> None:
    """A registry that fails is asked again after 1, 2 and 4 seconds; no notification is lost."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image("one"))
        await stand.read()
        stand.source.push(SITE, an_image("two"))
        stand.source.fail("refresh", DOWN, DOWN, DOWN)
        announce(stand, "v1")
        stand.clock.pump([0.1] * 65)
        assert look_ups(stand) == 3
        assert await current(stand) == b"one"
        stand.clock.pump([0.1] * 10)
        assert await current(stand) == b"two"


@pytest_twisted.ensureDeferred
async def test_retry_after(tmp_path: Path) -> None:
    """A registry that asks for a pause gets it."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image("one"))
        await stand.read()
        stand.source.push(SITE, an_image("two"))
        stand.source.fail("refresh", RegistryBusy("registry.example", retry_after=20.0))
        announce(stand, "v1")
        stand.clock.pump([1] * 19)
        assert look_ups(stand) == 1
        stand.clock.advance(2)
        assert await current(stand) == b"two"


@pytest_twisted.ensureDeferred
async def test_down_for_long(tmp_path: Path) -> None:
    """A registry that stays away is no longer asked after some minutes."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image("one"))
        await stand.read()
        stand.source.fail("refresh", *[DOWN] * 100)
        announce(stand, "v1")
        stand.clock.pump([1] * 2000)
        assert look_ups(stand) == 9
        assert not stand.store._pushes._watches


@pytest_twisted.ensureDeferred
async def test_named_tags_alone(tmp_path: Path) -> None:
    """Only the named tags are looked up, of this repository alone; without names, all of them."""
    async with standing(tmp_path) as stand:
        for reference in (SITE, V2, OTHER):
            stand.source.push(reference, an_image(str(reference)))
            await stand.read(reference)
        assert announce(stand, "v2") == 1
        assert announce(stand, "v3") == 0
        assert announce(stand) == 2


@pytest_twisted.ensureDeferred
async def test_all_scopes(tmp_path: Path) -> None:
    """The tag of a site, which has a scope of its own, is looked up as well."""
    async with standing(tmp_path) as stand:
        scoped = SITE.within("site")
        for reference in (SITE, scoped):
            stand.source.push(reference, an_image("one"))
            await stand.read(reference)
            stand.source.push(reference, an_image("two"))
        both: set[Repository] = {SITE.repository, scoped.repository}
        assert stand.store.announce(both, ["v1"], ()) == 2
        stand.clock.advance(SETTLE)
        assert await stand.read(SITE, read_only=True) == b"two"
        assert await stand.read(scoped, read_only=True) == b"two"


@pytest_twisted.ensureDeferred
async def test_expected(tmp_path: Path) -> None:
    """An image that the configuration names is pulled, though its tag is not known yet."""
    async with standing(tmp_path) as stand:
        assert announce(stand, "v1", expected=(SITE, V2)) == 1
        stand.clock.advance(0.1)
        stand.source.push(SITE, an_image("one"))
        stand.clock.advance(0.1)
        assert await current(stand) == b"one"


@pytest_twisted.ensureDeferred
async def test_unknown_tag(tmp_path: Path) -> None:
    """A tag that nothing asks for is not pulled, but its 404 ends at once."""
    async with standing(tmp_path) as stand:
        with pytest.raises(NotFound):
            await stand.read()
        stand.source.push(SITE, an_image("one"))
        with pytest.raises(NotFound):
            await stand.read()
        assert announce(stand, "v1") == 0
        assert stand.source.count("resolve") == 1
        assert await stand.read() == b"one"


@pytest_twisted.ensureDeferred
async def test_immutable(tmp_path: Path) -> None:
    """A tag that never moves is not looked up."""
    rules = {SITE.repository: RepositoryRules(immutable_tags=("v*",))}
    async with standing(tmp_path, rules=rules) as stand:
        stand.source.push(SITE, an_image("one"))
        await stand.read()
        announce(stand, "v1")
        stand.clock.pump([0.1] * 30)
        assert look_ups(stand) == 0


@pytest_twisted.ensureDeferred
async def test_pinned(tmp_path: Path) -> None:
    """A pinned tag is not looked up; the end of the pin finds the push."""
    async with standing(tmp_path) as stand:
        reference = stand.source.push(SITE, an_image("one"))
        await stand.read()
        assert reference.digest
        await stand.store.pin(str(SITE), reference.digest)
        stand.source.push(SITE, an_image("two"))
        announce(stand, "v1")
        stand.clock.pump([0.1] * 50)
        assert look_ups(stand) == 0
        assert not stand.store._pushes._watches
        await stand.store.unpin(str(SITE))
        assert await stand.read() == b"two"


@pytest_twisted.ensureDeferred
async def test_bounded_at_once(tmp_path: Path) -> None:
    """Ten look-ups run at a time, however many tags a notification concerns."""
    async with standing(tmp_path) as stand:
        stand.rules[SITE.repository] = attrs.evolve(RepositoryRules(), tag_max_age=1e6)
        tags = [Reference.tagged(SITE.repository, f"t{number}") for number in range(50)]
        for tag in tags:
            stand.source.push(tag, an_image())
            await stand.read(tag)
        gate = stand.source.hold("refresh")
        assert announce(stand) == 50
        assert gate.waiting == 10
        gate.open()
        stand.clock.advance(0.1)
        assert look_ups(stand) == 50


@pytest_twisted.ensureDeferred
async def test_restart(tmp_path: Path) -> None:
    """A notification that a stop leaves unfinished counts after the next start."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image("one"))
        await stand.read()
        announce(stand, "v1")
    async with standing(tmp_path, stand.source, stand.clock) as again:
        again.source.push(SITE, an_image("two"))
        assert await again.read() == b"two"


@pytest_twisted.ensureDeferred
async def test_close(tmp_path: Path) -> None:
    """A store that closes stops all repetitions, and takes no further notification."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image("one"))
        await stand.read()
        announce(stand, "v1")
        await stand.store.close()
        stand.clock.pump([0.1] * 30)
        assert look_ups(stand) == 1
        with pytest.raises(StoreClosed):
            announce(stand, "v1")
