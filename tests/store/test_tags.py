"""Tags: their look-ups, their switches, and the images served meanwhile."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import pytest_twisted

from blobserve.config import Limits, RepositoryRules
from blobserve.errors import ImageNotFound, RegistryBusy, RegistryFailed
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference
from blobserve.store.refs.freshness import Freshness, TagState
from blobserve.testing.source import Gate
from tests.support.stores import OTHER, SITE, Stand, an_image, content, now, standing

DOWN = RegistryFailed("registry.example", "connection refused")


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        (0, Freshness.TRUSTED),
        (60, Freshness.TRUSTED),
        (61, Freshness.AGEING),
        (120, Freshness.AGEING),
        (121, Freshness.OLD),
        (-1, Freshness.OLD),
    ],
)
def test_freshness(age: float, expected: Freshness) -> None:
    """A tag is trusted up to tagMaxAge, ageing up to twice that, else old, as a future one is."""
    known = TagState(SITE, Digest.of(b""), checked=1000)
    assert known.freshness(RepositoryRules(tag_max_age=60), 1000 + age) is expected


@pytest.mark.parametrize(
    ("reference", "rules", "expected"),
    [
        (SITE, RepositoryRules(tag_max_age=0), Freshness.OLD),
        (SITE, RepositoryRules(immutable_tags=("v*",)), Freshness.TRUSTED),
        (SITE, RepositoryRules(immutable_tags=("w*",)), Freshness.OLD),
        (SITE.at(Digest.of(b"")), RepositoryRules(tag_max_age=0), Freshness.TRUSTED),
    ],
)
def test_what_never_moves(reference: Reference, rules: RepositoryRules, expected: object) -> None:
    """Digests and immutable tags are never looked up again; with tagMaxAge 0 tags always are."""
    known = TagState(reference, Digest.of(b""), checked=0)
    assert known.freshness(rules, 1e9) is expected


async def _moved(stand: Stand) -> None:
    """Pull version one, and move its tag to version two."""
    stand.source.push(SITE, an_image("one"))
    assert await stand.read() == b"one"
    stand.source.push(SITE, an_image("two"))


@asynccontextmanager
async def ageing(directory: Path) -> AsyncIterator[tuple[Stand, Gate]]:
    """A moved tag past tagMaxAge, and the gate that holds up the answer to its look-up."""
    async with standing(directory) as stand:
        await _moved(stand)
        stand.clock.advance(61)
        yield stand, stand.source.hold("refresh")


@pytest_twisted.ensureDeferred
async def test_trusted(tmp_path: Path) -> None:
    """Within tagMaxAge a tag's digest is served without asking the registry."""
    async with standing(tmp_path) as stand:
        await _moved(stand)
        stand.clock.advance(60)
        with now(stand.ask()) as lease:
            assert (lease.result, content(lease)) == ("hit", b"one")
        assert stand.source.count("refresh") == 0


@pytest_twisted.ensureDeferred
async def test_ageing(tmp_path: Path) -> None:
    """Past tagMaxAge the known digest is served at once, while the tag is looked up once."""
    async with ageing(tmp_path) as (stand, gate):
        for _ in range(100):
            with now(stand.ask()) as lease:
                assert (lease.result, content(lease)) == ("stale", b"one")
        gate.open()
        with now(stand.ask()) as lease:
            assert (lease.result, content(lease)) == ("hit", b"two")
        assert stand.source.count("refresh") == 1
        assert stand.counted("stale_serves_total") == 100


@pytest_twisted.ensureDeferred
async def test_ageing_at_once(tmp_path: Path) -> None:
    """A request that cannot wait gets an ageing tag and starts a look-up, unless read-only."""
    async with ageing(tmp_path) as (stand, gate):
        for read_only, look_ups in ((True, 0), (False, 1), (False, 1)):
            lease = stand.store.lease_at_once(SITE, read_only)
            assert lease is not None
            with lease:
                assert (lease.result, content(lease)) == ("stale", b"one")
            assert stand.source.count("refresh") == look_ups
        gate.open()
        assert content(now(stand.ask())) == b"two"
        stand.clock.advance(121)
        assert stand.store.lease_at_once(SITE) is None


@pytest_twisted.ensureDeferred
async def test_old(tmp_path: Path) -> None:
    """A request for an old tag waits for the look-up, and gets the confirmed image."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image())
        await stand.read()
        stand.clock.advance(121)
        gate = stand.source.hold("refresh")
        waits = [stand.ask() for _ in range(100)]
        assert not any(wait.called for wait in waits)
        gate.open()
        assert {now(wait).result for wait in waits} == {"hit"}
        assert stand.source.count("refresh") == 1


@pytest_twisted.ensureDeferred
async def test_old_with_slow_registry(tmp_path: Path) -> None:
    """A request for an old tag waits two seconds at most; the look-up goes on and counts."""
    async with standing(tmp_path) as stand:
        await _moved(stand)
        stand.clock.advance(121)
        gate = stand.source.hold("refresh")
        first = stand.ask()
        stand.clock.advance(1.9)
        second = stand.ask()
        assert not first.called
        stand.clock.advance(0.2)
        for wait in (first, second, stand.ask()):
            with now(wait) as lease:
                assert (lease.result, content(lease)) == ("stale", b"one")
        gate.open()
        assert content(now(stand.ask())) == b"two"
        assert stand.source.count("refresh") == 1


@asynccontextmanager
async def old(directory: Path) -> AsyncIterator[Stand]:
    """A tag without requests for a long time, which has moved meanwhile."""
    async with standing(directory) as stand:
        await _moved(stand)
        stand.clock.advance(100_000)
        yield stand


@pytest_twisted.ensureDeferred
async def test_old_and_moved(tmp_path: Path) -> None:
    """The first requests for an old tag that has moved wait for its new image, and get it."""
    async with old(tmp_path) as stand:
        gates = [stand.source.hold(method) for method in ("refresh", "resolve", "fetch")]
        waits = []
        for gate in gates:
            waits.append(stand.ask())
            assert stand.store.lease_at_once(SITE) is None
            stand.clock.advance(0.6)
            assert not any(wait.called for wait in waits)
            gate.open()
        for wait in waits:
            with now(wait) as lease:
                assert (lease.result, content(lease)) == ("hit", b"two")
        lease_at_once = stand.store.lease_at_once(SITE)
        assert lease_at_once is not None
        with lease_at_once:
            assert content(lease_at_once) == b"two"
        assert (stand.source.count("refresh"), stand.source.count("fetch")) == (1, 2)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("look_up", [0, 1.5])
async def test_old_with_slow_pull(tmp_path: Path, look_up: float) -> None:
    """Look-up and pull together delay a request by two seconds; then it gets the old image."""
    async with old(tmp_path) as stand:
        refresh, fetch = stand.source.hold("refresh"), stand.source.hold("fetch", after=10)
        first = stand.ask()
        stand.clock.advance(look_up)
        refresh.open()
        stand.clock.advance(1.9 - look_up)
        second = stand.ask()
        assert (first.called, second.called, fetch.waiting) == (False, False, 1)
        stand.clock.advance(0.2)
        for wait in (first, second):
            with now(wait) as lease:
                assert (lease.result, content(lease)) == ("stale", b"one")
        for _ in range(5):
            assert content(now(stand.ask())) == b"one"
            stand.clock.advance(5)
        fetch.open()
        assert content(now(stand.ask())) == b"two"
        assert (stand.source.count("refresh"), stand.source.count("fetch")) == (1, 2)


@pytest_twisted.ensureDeferred
async def test_old_whose_pull_fails(tmp_path: Path) -> None:
    """The old image is served at once when the new image of an old tag cannot be pulled."""
    async with old(tmp_path) as stand:
        gate = stand.source.hold("fetch")
        stand.source.fail("fetch", DOWN)
        wait = stand.ask()
        stand.clock.advance(0.5)
        assert not wait.called
        gate.open()
        with now(wait) as lease:
            assert (lease.result, content(lease)) == ("stale", b"one")


@pytest_twisted.ensureDeferred
async def test_old_and_short_of_time(tmp_path: Path) -> None:
    """A request with a timeout of a second gets the old image within that time."""
    async with old(tmp_path) as stand:
        gate = stand.source.hold("fetch", after=10)
        wait = stand.store.lease_or_early(SITE, None, timeout=1)
        stand.clock.advance(0.7)
        assert not wait.called
        stand.clock.advance(0.2)
        with now(wait) as lease:
            assert content(lease) == b"one"
        gate.open()
        assert content(now(stand.ask())) == b"two"


@pytest_twisted.ensureDeferred
async def test_old_and_only_read(tmp_path: Path) -> None:
    """A read-only request for an old tag neither waits nor causes a look-up."""
    async with old(tmp_path) as stand:
        stand.source.hold("refresh")
        with now(stand.ask(read_only=True)) as lease:
            assert (lease.result, content(lease)) == ("stale", b"one")
        assert stand.source.count("refresh") == 0


@pytest_twisted.ensureDeferred
async def test_old_that_becomes_urgent(tmp_path: Path) -> None:
    """A pull in the background gets priority once a request waits for it."""
    limits = attrs.evolve(Limits(), parallel_downloads=1)
    async with standing(tmp_path, limits=limits) as stand:
        await _moved(stand)
        stand.clock.advance(119.5)
        gate = stand.source.hold("fetch")
        others = [attrs.evolve(OTHER, tag=f"v{n}") for n in range(3)]
        for tag in others:
            stand.source.push(tag, an_image(str(tag)))
            stand.store.pre_pull(tag)
        now(stand.ask()).release()  # ageing: begins the look-up and the pull
        stand.clock.advance(1)
        wait = stand.ask()
        assert not wait.called
        gate.open()
        assert content(now(wait)) == b"two"
        fetched = [subject for method, subject in stand.source.requests if method == "fetch"]
        assert fetched[2] == str(an_image("two").layers[0].digest)


@pytest_twisted.ensureDeferred
async def test_old_and_reclaimed(tmp_path: Path) -> None:
    """A request for an old tag without a cached image waits as long as the pull takes."""
    async with old(tmp_path) as stand:
        await stand.space.set_aside(an_image("one").layers[0].digest)
        gate = stand.source.hold("fetch", after=10)
        wait = stand.ask()
        stand.clock.advance(4)
        assert not wait.called
        gate.open()
        with now(wait) as lease:
            assert (lease.result, content(lease)) == ("wait", b"two")


@pytest_twisted.ensureDeferred
async def test_switch_when_ready(tmp_path: Path) -> None:
    """A tag that has moved switches when its new image is READY."""
    async with standing(tmp_path) as stand:
        await _moved(stand)
        gate = stand.source.hold("fetch", after=10)
        for age in (61, 60, 1e6):
            stand.clock.advance(age)
            assert content(now(stand.ask())) == b"one"
        assert (stand.source.count("refresh"), stand.source.count("fetch")) == (1, 2)
        gate.open()
        assert content(now(stand.ask())) == b"two"
        assert stand.source.count("fetch") == 2


@pytest_twisted.ensureDeferred
async def test_moved_and_reclaimed(tmp_path: Path) -> None:
    """The evicted old image of a tag that has moved is not pulled again."""
    async with standing(tmp_path) as stand:
        await _moved(stand)
        await stand.space.set_aside(an_image("one").layers[0].digest)
        stand.clock.advance(121)
        gate = stand.source.hold("refresh")
        waits = [stand.ask() for _ in range(3)]
        gate.open()
        assert [content(now(wait)) for wait in waits] == [b"two"] * 3
        assert await stand.read() == b"two"
        assert stand.source.count("fetch") == 2


@pytest_twisted.ensureDeferred
async def test_new_image_fails(tmp_path: Path) -> None:
    """A tag serves its old image while the new one cannot be pulled, and tries again later."""
    async with standing(tmp_path) as stand:
        await _moved(stand)
        stand.source.fail("fetch", DOWN)
        stand.clock.advance(61)
        for _ in range(10):
            assert content(now(stand.ask())) == b"one"
        assert stand.source.count("fetch") == 2
        stand.clock.advance(30)
        now(stand.ask()).release()
        assert content(now(stand.ask())) == b"two"


@pytest_twisted.ensureDeferred
async def test_new_image_is_lost(tmp_path: Path) -> None:
    """A tag that moves to an image that the registry then loses serves the old one."""
    async with standing(tmp_path) as stand:
        await _moved(stand)
        stand.source.remove(SITE.at(an_image("two").digest))
        for _ in range(10):
            stand.clock.advance(61)
            assert await stand.read() == b"one"


@pytest_twisted.ensureDeferred
async def test_tag_is_deleted(tmp_path: Path) -> None:
    """A tag that was removed from the registry is served while its image is cached."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image())
        await stand.read()
        stand.source.remove(SITE)
        for _ in range(10):
            stand.clock.advance(61)
            assert await stand.read() == b"one"


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("tag_max_age", [0, 1, 60])
async def test_moves_under_load(tmp_path: Path, tag_max_age: int) -> None:
    """While a tag moves under load every request is answered, by the old and then the new image."""
    chance = random.Random(tag_max_age)
    rules = {SITE.repository: RepositoryRules(tag_max_age=tag_max_age)}
    async with standing(tmp_path, rules=rules) as stand:
        served = []
        for version in range(30):
            stand.source.push(SITE, an_image(f"{version:02}"))
            gates = [stand.source.hold(method) for method in ("refresh", "fetch", "resolve")]
            waits = []
            for gate in chance.sample(gates, 3):
                waits += [stand.ask() for _ in range(5)]
                stand.clock.advance(chance.random() * 100)
                gate.open()
            waits += [stand.ask() for _ in range(5)]
            served += [content(now(wait)) for wait in waits]
        assert served == sorted(served)
        assert len(set(served)) > 10


@pytest_twisted.ensureDeferred
async def test_always_look_up(tmp_path: Path) -> None:
    """With tagMaxAge 0 every request asks the registry first, and no answer is stale."""
    rules = {SITE.repository: RepositoryRules(tag_max_age=0)}
    async with standing(tmp_path, rules=rules) as stand:
        stand.source.push(SITE, an_image())
        await stand.read()
        for n in range(5):
            stand.clock.advance(0.001)
            assert now(stand.ask()).result == "hit"
            assert stand.source.count("refresh") == n + 1


@pytest_twisted.ensureDeferred
async def test_registry_down(tmp_path: Path) -> None:
    """While the registry is down the known digest is served, without a look-up each time."""
    async with standing(tmp_path) as stand:
        await _moved(stand)
        stand.source.fail("refresh", *[DOWN] * 4)
        stand.clock.advance(1000)
        for _ in range(10):
            assert now(stand.ask()).result == "stale"
        assert stand.source.count("refresh") == 1
        for _ in range(4):
            stand.clock.advance(60)
            now(stand.ask()).release()
        assert content(now(stand.ask())) == b"two"


@pytest_twisted.ensureDeferred
async def test_registry_busy(tmp_path: Path) -> None:
    """The Retry-After of a registry is respected."""
    async with standing(tmp_path) as stand:
        await _moved(stand)
        stand.source.fail("refresh", RegistryBusy("registry.example", retry_after=500))
        stand.clock.advance(121)
        for _ in range(10):
            assert content(now(stand.ask())) == b"one"
            stand.clock.advance(49)
        assert stand.source.count("refresh") == 1
        stand.clock.advance(11)
        now(stand.ask()).release()
        assert stand.source.count("refresh") == 2


@pytest_twisted.ensureDeferred
async def test_registry_asks_for_a_pause(tmp_path: Path) -> None:
    """Low rate-limit figures stretch the interval between look-ups."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image())
        await stand.read()
        stand.source.pause = 300
        for age, look_ups in ((121, 1), (299, 1), (2, 2)):
            stand.clock.advance(age)
            now(stand.ask()).release()
            assert stand.source.count("refresh") == look_ups


@pytest_twisted.ensureDeferred
async def test_pre_pulled_tags_are_refreshed_unasked(tmp_path: Path) -> None:
    """A prePull tag is revalidated without requests, also after failures."""
    rules = {SITE.repository: RepositoryRules(pre_pull=("v1",))}
    async with standing(tmp_path, rules=rules) as stand:
        stand.source.push(SITE, an_image("one"))
        await stand.store.pre_pull(SITE)
        assert stand.source.count("fetch") == 1
        stand.source.fail("refresh", DOWN, ImageNotFound("x"))
        stand.source.fail("fetch", DOWN)
        stand.source.push(SITE, an_image("two"))
        stand.clock.pump([1] * 200)
        with now(stand.ask(read_only=True)) as lease:
            assert (lease.result, content(lease)) == ("hit", b"two")


@pytest_twisted.ensureDeferred
async def test_pre_pull_fails(tmp_path: Path) -> None:
    """A failed prePull is logged, tried again, and affects no other."""
    rules = {SITE.repository: RepositoryRules(pre_pull=("v1", "v2"))}
    async with standing(tmp_path, rules=rules) as stand:
        second = attrs.evolve(SITE, tag="v2")
        stand.source.push(second, an_image("two"))
        tries = [stand.store.pre_pull(reference) for reference in (SITE, second)]
        with pytest.raises(ImageNotFound):
            now(tries[0])
        now(tries[1])
        stand.source.push(SITE, an_image("one"))
        stand.clock.advance(10)
        assert content(now(stand.ask(read_only=True))) == b"one"


@pytest_twisted.ensureDeferred
async def test_pre_pull_of_a_digest_fails(tmp_path: Path) -> None:
    """A digest of a site is tried again until it is pulled, and never looked up after that."""
    image = an_image("one")
    digest = image.digest
    rules = {SITE.repository: RepositoryRules(pre_pull=(str(digest),))}
    async with standing(tmp_path, rules=rules) as stand:
        with pytest.raises(ImageNotFound):
            now(stand.store.pre_pull(attrs.evolve(SITE, digest=digest)))
        stand.source.push(SITE, image)
        stand.clock.advance(10)
        assert content(now(stand.ask(SITE.at(digest), read_only=True))) == b"one"
        fetched = stand.source.count("fetch")
        stand.clock.advance(1000)
        assert stand.source.count("fetch") == fetched
        assert stand.source.count("refresh") == 0


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    "without",
    [RepositoryRules(), RepositoryRules(pre_pull=("v1",), immutable_tags=("v*",))],
    ids=["removed", "immutable"],
)
async def test_pre_pull_ends_with_its_rule(tmp_path: Path, without: RepositoryRules) -> None:
    """A tag is revalidated no more when it leaves prePull or is immutable."""
    rules = {SITE.repository: RepositoryRules(pre_pull=("v1",))}
    async with standing(tmp_path, rules=rules) as stand:
        stand.source.push(SITE, an_image())
        await stand.store.pre_pull(SITE)
        stand.clock.advance(61)
        assert stand.source.count("refresh") == 1
        stand.rules[SITE.repository] = without
        stand.store.reload()
        stand.clock.advance(1000)
        assert stand.source.count("refresh") == 1


@pytest_twisted.ensureDeferred
async def test_close_while_looking_up(tmp_path: Path) -> None:
    """Closing ends look-ups and timers: nothing is asked, and no timer is left."""
    rules = {SITE.repository: RepositoryRules(pre_pull=("v1",))}
    async with standing(tmp_path, rules=rules) as stand:
        stand.source.push(SITE, an_image())
        await stand.store.pre_pull(SITE)
        gate = stand.source.hold("refresh")
        stand.clock.advance(61)
        assert gate.waiting == 1
        await stand.store.close()
        assert gate.waiting == 0
        stand.clock.advance(1000)
        assert stand.source.count("refresh") == 1
