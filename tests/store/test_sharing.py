"""Content that several repositories share, after each one's own source has shown it.

`SITE` is the origin of the content; `OTHER` requests it by digest. Both are repositories of one
source in memory, which separates them as a registry does.
"""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.task import Clock

from blobserve.config import KIB, RepositoryRules
from blobserve.errors import (
    BlobNotFound,
    BlobserveError,
    ContentMismatch,
    ImageNotFound,
    NotCached,
    NotFound,
    RegistryFailed,
    RegistryRefused,
)
from blobserve.names.platform import Platform
from blobserve.names.reference import Reference
from blobserve.store.blobspace import BlobState
from blobserve.store.refs.freshness import PATIENCE
from blobserve.store.space.provenance import Access
from blobserve.testing import MadeImage, MemorySource, make_image, make_index
from tests.support.parts.images import Image
from tests.support.sites import packed
from tests.support.spaces import names_in, on_disk
from tests.support.stores import OTHER, SITE, Stand, an_image, content, now, standing

DOWN = RegistryFailed("registry.example", "it is down")
NOISE = random.Random(7).randbytes(350 * KIB)
UNLISTED = RepositoryRules(listed=False)
ALL = RepositoryRules(layers="all")
TWO_LAYERS = make_image({"index.html": b"first"}, {"index.html": b"two"})
OTHERS = {"listed": RepositoryRules(), "unlisted": UNLISTED}


def down(source: MemorySource) -> None:
    """Let the registry fail from now on."""
    for method in ("resolve", "refresh", "holds", "fetch", "read"):
        source.fail(method, *[DOWN] * 100)


def back(source: MemorySource) -> None:
    """Let the registry answer again."""
    source._errors.clear()


def without_blob(
    source: MemorySource, reference: Reference, image: MadeImage, layer: int = 0
) -> None:
    """Push an image without one of its layers, as a client can that knows the digests."""
    source.push(reference, image)
    source.remove(reference.at(image.layers[layer].digest))


def asked(stand: Stand) -> list[str]:
    """Return the kinds of the requests so far."""
    return [method for method, _ in stand.source.requests]


async def refused(stand: Stand, reference: Reference, error: type[BlobserveError]) -> None:
    """Check that a reference is not served in any way."""
    assert stand.store.lease_at_once(reference) is None
    assert stand.store.lease_at_once(reference, read_only=True) is None
    with pytest.raises(NotCached):
        await stand.ask(reference, read_only=True)
    with pytest.raises(error):
        await stand.ask(reference)
    assert stand.store.lease_at_once(reference) is None


# --- A manifest -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OTHERS)
@pytest_twisted.ensureDeferred
async def test_a_manifest_by_digest(tmp_path: Path, kind: str) -> None:
    """A repository does not get an image by its digest if its registry lacks the manifest."""
    rules = {OTHER.repository: OTHERS[kind]}
    async with standing(tmp_path, rules=rules) as stand:
        exact = stand.source.push(SITE, an_image())
        await stand.read()
        await refused(stand, OTHER.at(exact.digest), ImageNotFound)
        assert ("resolve", str(OTHER.at(exact.digest))) in stand.source.requests
        assert await stand.read(exact) == b"one"


@pytest_twisted.ensureDeferred
async def test_a_manifest_while_the_registry_is_down(tmp_path: Path) -> None:
    """While the registry is down its own repository is served, and another gets the error."""
    async with standing(tmp_path) as stand:
        exact = stand.source.push(SITE, an_image())
        stand.source.push(OTHER, an_image())
        await stand.read()
        down(stand.source)
        await refused(stand, OTHER.at(exact.digest), RegistryFailed)
        await refused(stand, OTHER, RegistryFailed)
        for reference in (SITE, exact):
            assert await stand.read(reference) == b"one"
            assert await stand.read(reference, read_only=True) == b"one"


@pytest_twisted.ensureDeferred
async def test_the_image_of_an_index(tmp_path: Path) -> None:
    """A repository with an index does not get a manifest of it that its registry lacks."""
    index = make_index({"linux/amd64": an_image()})
    async with standing(tmp_path) as stand:
        exact = stand.source.push(SITE, index)
        await stand.read()
        stand.source.push(OTHER, index)
        stand.source.remove(OTHER.at(an_image().digest))
        for reference in (OTHER, OTHER.at(exact.digest), OTHER.at(an_image().digest)):
            await refused(stand, reference, ImageNotFound)
        stand.source.push(OTHER, index)
        stand.clock.advance(10)  # past the time of the negative cache
        for reference in (OTHER, OTHER.at(exact.digest), OTHER.at(an_image().digest)):
            assert await stand.read(reference) == b"one"
        assert asked(stand).count("fetch") == 1


@pytest_twisted.ensureDeferred
async def test_another_platform(tmp_path: Path) -> None:
    """After a change of rules another image of an index must be shown as well."""
    arm = RepositoryRules(platform=Platform.parse("linux/arm64"))
    index = make_index({"linux/amd64": an_image(), "linux/arm64": an_image("arm")})
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, index)
        stand.source.push(OTHER, index)
        assert await stand.read(OTHER) == b"one"
        stand.rules[SITE.repository] = arm
        assert await stand.read(SITE) == b"arm"
        stand.source.remove(OTHER.at(an_image("arm").digest))
        stand.rules[OTHER.repository] = arm
        stand.store.reload()
        await refused(stand, OTHER, ImageNotFound)


# --- A layer --------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_layer_of_a_listed_repository(tmp_path: Path) -> None:
    """A listed repository shares a layer if its registry has it, without a second pull."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image())
        await stand.read()
        without_blob(stand.source, OTHER, an_image())
        await refused(stand, OTHER, BlobNotFound)
        stand.source.push(OTHER, an_image())
        assert await stand.read(OTHER) == b"one"
        assert (asked(stand).count("holds"), asked(stand).count("fetch")) == (2, 1)
        exact = OTHER.at(an_image().digest)
        assert await stand.read(exact) == b"one"
        assert (asked(stand).count("holds"), asked(stand).count("fetch")) == (2, 1)


@pytest_twisted.ensureDeferred
async def test_tags_of_one_repository(tmp_path: Path) -> None:
    """Images of one repository share a layer that it has shown, without a request."""
    first, second = an_image(), make_image({"index.html": b"one"}, {"more": b"more"})
    assert first.layers[0].digest == second.layers[0].digest
    tagged = Reference(SITE.repository, "v2")
    for rules in (RepositoryRules(), UNLISTED):
        async with standing(tmp_path / str(rules.listed), rules={SITE.repository: rules}) as stand:
            stand.source.push(SITE, first)
            stand.source.push(tagged, second)
            gate = stand.source.hold("fetch")
            pulls = [stand.ask(), stand.ask(tagged)]
            gate.open()
            for pull in pulls:
                now(pull).release()
            assert sorted(asked(stand)) == ["fetch", "resolve", "resolve"]


@pytest_twisted.ensureDeferred
async def test_an_unlisted_registry_that_lies(tmp_path: Path) -> None:
    """An unlisted registry that claims a layer and sends other bytes gets nothing."""
    async with standing(tmp_path, rules={OTHER.repository: UNLISTED}) as stand:
        stand.source.push(SITE, an_image())
        stand.source.push(OTHER, an_image())
        await stand.read()
        stand.source.corrupt(an_image().layers[0].digest, 2)
        await refused(stand, OTHER, ContentMismatch)
        assert await stand.read(SITE) == b"one"


@pytest_twisted.ensureDeferred
async def test_an_unlisted_repository_proves_the_content(tmp_path: Path) -> None:
    """An unlisted repository's layer is read to its end once to prove it, and not stored."""
    image = make_image({"index.html": b"one", "noise": bytes(300 * KIB)})
    async with standing(tmp_path, rules={OTHER.repository: UNLISTED}) as stand:
        stand.source.push(SITE, image)
        exact = stand.source.push(OTHER, image)
        await stand.read()
        stand.clock.advance(2)
        blobs, taken = names_in(tmp_path, "blobs/sha256"), on_disk(tmp_path / "blobs")
        gate = stand.source.hold("fetch", after=100)
        proving = [stand.ask(OTHER), stand.ask(exact)]
        assert names_in(tmp_path, "ingest") == []
        gate.open()
        for each in proving:
            now(each).release()
        assert (names_in(tmp_path, "blobs/sha256"), on_disk(tmp_path / "blobs")) == (blobs, taken)
        assert asked(stand).count("fetch") == 2
        assert stand.counted("pulls_total", outcome="proved") == 1
        assert stand.counted("pulls_total", outcome="ready") == 1
        down(stand.source)
        assert await stand.read(exact) == await stand.read(OTHER) == b"one"


@pytest.mark.parametrize("kind", OTHERS)
@pytest_twisted.ensureDeferred
async def test_a_layer_on_its_way(tmp_path: Path, kind: str) -> None:
    """A repository joins another's download only after its own registry has shown the layer."""
    async with standing(tmp_path, rules={OTHER.repository: OTHERS[kind]}) as stand:
        stand.source.push(SITE, an_image())
        without_blob(stand.source, OTHER, an_image())
        gate = stand.source.hold("fetch", after=10)
        first, second = stand.ask(), stand.ask(OTHER)
        if kind == "listed":
            with pytest.raises(BlobNotFound):
                now(second)
        gate.open()
        now(first).release()
        if kind == "unlisted":
            with pytest.raises(BlobNotFound):
                now(second)
        await refused(stand, OTHER, BlobNotFound)


@pytest_twisted.ensureDeferred
async def test_a_download_that_both_may_share(tmp_path: Path) -> None:
    """Two listed repositories with the same layer cause one download and one question."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image())
        stand.source.push(OTHER, an_image())
        gate = stand.source.hold("fetch", after=10)
        first, second = stand.ask(), stand.ask(OTHER)
        gate.open()
        with now(first) as one, now(second) as two:
            assert content(one) == content(two) == b"one"
        assert sorted(asked(stand)) == ["fetch", "holds", "resolve", "resolve"]


@pytest_twisted.ensureDeferred
async def test_many_layers_are_asked_for_in_portions(tmp_path: Path) -> None:
    """A registry is asked for ten shared layers at a time."""
    image = make_image(*({f"{n}": b"%d" % n} for n in range(40)))
    rules = {SITE.repository: ALL, OTHER.repository: ALL}
    async with standing(tmp_path, rules=rules) as stand:
        stand.source.push(SITE, image)
        stand.source.push(OTHER, image)
        now(stand.ask()).release()
        gate = stand.source.hold("holds")
        pull = stand.ask(OTHER)
        assert gate.waiting == 10
        gate.open()
        now(pull).release()
        assert asked(stand).count("holds") == 40


@pytest.mark.parametrize("missing", [0, 1])
@pytest.mark.parametrize("kind", OTHERS)
@pytest_twisted.ensureDeferred
async def test_a_merged_tree(tmp_path: Path, kind: str, missing: int) -> None:
    """A merged index is served to a repository that has shown each of its layers."""
    other = RepositoryRules(layers="all", listed=OTHERS[kind].listed)
    rules = {SITE.repository: ALL, OTHER.repository: other}
    async with standing(tmp_path, rules=rules) as stand:
        exact = stand.source.push(SITE, TWO_LAYERS)
        assert await stand.read() == b"two"
        without_blob(stand.source, OTHER, TWO_LAYERS, missing)
        for reference in (OTHER, OTHER.at(exact.digest)):
            await refused(stand, reference, BlobNotFound)
        stand.source.push(OTHER, TWO_LAYERS)
        assert await stand.read(OTHER) == b"two"
        down(stand.source)
        assert await stand.read(OTHER.at(exact.digest)) == b"two"


@pytest_twisted.ensureDeferred
async def test_more_layers_than_before(tmp_path: Path) -> None:
    """After a change of rules additional layers of an image must be shown as well."""
    rules = {SITE.repository: ALL}
    async with standing(tmp_path, rules=rules) as stand:
        stand.source.push(SITE, TWO_LAYERS)
        without_blob(stand.source, OTHER, TWO_LAYERS, 1)
        assert await stand.read() == b"two"
        assert await stand.read(OTHER) == b"first"
        stand.rules[OTHER.repository] = ALL
        stand.store.reload()
        await refused(stand, OTHER, BlobNotFound)


# --- Lasting proofs -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("image", [an_image(), make_index({"linux/amd64": an_image()})])
@pytest_twisted.ensureDeferred
async def test_restart(tmp_path: Path, kind: str, image: MadeImage) -> None:
    """After a restart each repository is served the content that it has shown, and no other."""
    third = Reference.parse("registry.example/team/third:v1")
    rules = {OTHER.repository: OTHERS[kind]}
    async with standing(tmp_path, rules=rules) as stand:
        exact = stand.source.push(SITE, image)
        stand.source.push(OTHER, image)
        await stand.read()
        await stand.read(OTHER)
    source = MemorySource()
    down(source)
    for _ in range(2):
        async with standing(tmp_path, source, stand.clock, rules=rules) as again:
            for reference in (SITE, exact, OTHER, OTHER.at(exact.digest)):
                for read_only in (True, False):
                    assert await again.read(reference, read_only) == b"one"
            await refused(again, third.at(exact.digest), RegistryFailed)


@pytest_twisted.ensureDeferred
async def test_eviction(tmp_path: Path) -> None:
    """An evicted layer that another repository pulls again is served to those that had shown it."""
    third = Reference.parse("registry.example/team/third:v1")
    async with standing(tmp_path) as stand:
        exact = stand.source.push(SITE, an_image())
        stand.source.push(OTHER, an_image())
        without_blob(stand.source, third, an_image())
        layer = an_image().layers[0].digest
        assert await stand.read() == b"one"
        assert await stand.space.relieve(KIB)
        assert stand.space.state_of(layer) is BlobState.UNKNOWN
        stand.source.remove(SITE.at(layer))
        assert await stand.read(OTHER) == b"one"
        await refused(stand, third, BlobNotFound)
        down(stand.source)
        assert await stand.read(exact) == b"one", "it has shown the layer before"
        assert await stand.read(OTHER.at(exact.digest)) == b"one"
        await refused(stand, third.at(exact.digest), RegistryFailed)
    async with standing(tmp_path, stand.source, stand.clock) as again:
        assert await again.read(OTHER) == b"one"
        await refused(again, third.at(exact.digest), RegistryFailed)


@pytest_twisted.ensureDeferred
async def test_no_longer_listed(tmp_path: Path) -> None:
    """Content pulled with credentials is not served once its repository is unlisted."""
    async with standing(tmp_path) as stand:
        exact = stand.source.push(SITE, an_image())
        await stand.read()
        stand.rules[SITE.repository] = UNLISTED
        stand.store.reload()
        stand.source.fail("resolve", *[RegistryRefused("registry.example/team/site")] * 9)
        for reference in (SITE, exact):
            await refused(stand, reference, RegistryRefused)
    async with standing(tmp_path, stand.source, stand.clock, rules=stand.rules) as again:
        await refused(again, exact, RegistryRefused)
        again.rules[SITE.repository] = RepositoryRules()
        again.store.reload()
        assert await again.read(exact) == b"one"


@pytest_twisted.ensureDeferred
async def test_listed_while_a_tag_is_looked_up(tmp_path: Path) -> None:
    """A pull has the credentials of the rules at its beginning."""
    rules = {SITE.repository: UNLISTED}
    async with standing(tmp_path, rules=rules) as stand:
        stand.source.push(SITE, an_image())
        await stand.read()
        stand.clock.advance(100)
        exact = stand.source.push(SITE, an_image("two"))
        gate = stand.source.hold("refresh")
        assert await stand.read() == b"one"
        stand.rules[SITE.repository] = RepositoryRules()
        stand.store.reload()
        gate.open()
        assert await stand.read() == b"two"
        stand.rules[SITE.repository] = UNLISTED
        stand.store.reload()
        down(stand.source)
        await refused(stand, exact, RegistryFailed)


@pytest_twisted.ensureDeferred
async def test_kept_versions(tmp_path: Path) -> None:
    """An image that a tag has left is served by its digest, to that repository alone."""
    async with standing(tmp_path) as stand:
        exact = stand.source.push(SITE, an_image())
        await stand.read()
        stand.source.push(SITE, an_image("two"))
        stand.clock.advance(1000)
        assert await stand.read() in (b"one", b"two")
        assert await stand.read() == b"two"
        stand.source.remove(exact)
        assert await stand.read(exact) == b"one"
        await refused(stand, OTHER.at(exact.digest), ImageNotFound)


# --- A blob space of an older release -------------------------------------------------------------


def made_old(location: Path) -> None:
    """Turn a closed blob space into one of a release without provenance."""
    with closing(sqlite3.connect(location / "state")) as state:
        state.execute("DROP TABLE IF EXISTS provenance")
        state.commit()


async def left_by_the_build_before(location: Path, source: MemorySource, clock: Clock) -> Reference:
    """Make such a blob space with `SITE` as a tag and `OTHER` served by its digest alone."""
    async with standing(location, source, clock) as stand:
        exact = source.push(SITE, an_image())
        source.push(OTHER, an_image())
        await stand.read()
        await stand.read(OTHER.at(exact.digest))
    made_old(location)
    source.requests.clear()
    return exact


@pytest_twisted.ensureDeferred
async def test_an_old_blob_space(tmp_path: Path) -> None:
    """The first request for a tag of an older release confirms it, without a pull."""
    source, clock = MemorySource(), Clock()
    exact = await left_by_the_build_before(tmp_path, source, clock)
    async with standing(tmp_path, source, clock) as stand:
        assert asked(stand) == []
        assert await stand.read() == b"one"
        assert asked(stand) == ["resolve", "holds"]
        assert await stand.read(OTHER.at(exact.digest)) == b"one"
        assert asked(stand) == ["resolve", "holds"] * 2
    down(source)
    async with standing(tmp_path, source, clock) as again:
        assert await again.read() == await again.read(OTHER.at(exact.digest)) == b"one"
        assert asked(again) == ["resolve", "holds"] * 2


@pytest_twisted.ensureDeferred
async def test_an_old_blob_space_while_the_registry_is_down(tmp_path: Path) -> None:
    """Tags of an older release are served until their registry answers; digests are not."""
    source, clock = MemorySource(), Clock()
    exact = await left_by_the_build_before(tmp_path, source, clock)
    down(source)
    for _ in range(2):
        async with standing(tmp_path, source, clock) as stand:
            for reference in (SITE, exact):
                assert await stand.read(reference, read_only=True) == b"one"
            assert asked(stand) == [], "read-only requests ask nobody"
            for reference in (SITE, exact):
                assert await stand.read(reference) == b"one"
            tries = len(asked(stand))
            assert tries == 2
            lease = stand.store.lease_at_once(SITE)
            assert lease is not None, "the next ones wait for nothing"
            lease.release()
            assert len(asked(stand)) == tries
            clock.advance(11)
            assert await stand.read() == b"one"
            assert len(asked(stand)) == tries + 1, "the registry is asked again"
            await refused(stand, OTHER.at(exact.digest), RegistryFailed)
            source.requests.clear()
    back(source)
    async with standing(tmp_path, source, clock) as stand:
        assert await stand.read() == b"one"
        down(source)
        assert await stand.read() == b"one"
    async with standing(tmp_path, source, clock) as stand:
        clock.advance(11)
        count = len(asked(stand))
        assert await stand.read() == b"one"
        assert len(asked(stand)) == count


@pytest.mark.parametrize("denial", ["manifest", "layer", "refused"])
@pytest_twisted.ensureDeferred
async def test_an_old_tag_that_its_registry_denies(tmp_path: Path, denial: str) -> None:
    """A tag of an older release is no longer served when its registry denies it."""
    source, clock = MemorySource(), Clock()
    exact = await left_by_the_build_before(tmp_path, source, clock)
    down(source)
    async with standing(tmp_path, source, clock) as stand:
        switches = stand.store.references.switches
        assert await stand.read() == b"one"
        back(source)
        error: type[BlobserveError] = ImageNotFound
        if denial == "manifest":
            source.remove(SITE)
            source.remove(exact)
        elif denial == "layer":
            error = BlobNotFound
            source.remove(SITE.at(an_image().layers[0].digest))
        else:
            error = RegistryRefused
            source.fail("resolve", *[RegistryRefused("registry.example/team/site")] * 20)
        clock.advance(11)
        lease = stand.store.lease_at_once(SITE)  # the last one, during the request to the registry
        assert lease is not None
        lease.release()
        assert stand.store.references.switches > switches, (
            "what is ready of it in memory is not believed"
        )
        for reference in (SITE, exact):
            await refused(stand, reference, error)
    async with standing(tmp_path, source, clock) as again:
        for reference in (SITE, exact):
            await refused(again, reference, error)


@pytest_twisted.ensureDeferred
async def test_an_old_tag_with_a_slow_registry(tmp_path: Path) -> None:
    """The first request for a tag of an older release waits two seconds for the registry."""
    source, clock = MemorySource(), Clock()
    await left_by_the_build_before(tmp_path, source, clock)
    async with standing(tmp_path, source, clock) as stand:
        gate = source.hold("resolve")
        first = stand.ask()
        clock.advance(PATIENCE - 0.1)
        assert not first.called
        clock.advance(0.2)
        now(first).release()
        lease = stand.store.lease_at_once(SITE)
        assert lease is not None
        lease.release()
        gate.open()
        assert asked(stand) == ["resolve", "holds"]


@pytest_twisted.ensureDeferred
async def test_an_old_tag_that_is_not_listed(tmp_path: Path) -> None:
    """A tag of an older release in an unlisted repository needs a proof by its registry."""
    source, clock = MemorySource(), Clock()
    exact = await left_by_the_build_before(tmp_path, source, clock)
    rules = {SITE.repository: UNLISTED}
    async with standing(tmp_path, source, clock, rules=rules) as stand:
        down(source)
        for reference in (SITE, exact):
            await refused(stand, reference, RegistryFailed)
        back(source)
        assert await stand.read() == b"one"
        assert asked(stand).count("fetch") == 1


@pytest_twisted.ensureDeferred
async def test_an_old_tag_in_pre_pull(tmp_path: Path) -> None:
    """A prePull tag of an older release is confirmed at the start, and served if that fails."""
    source, clock = MemorySource(), Clock()
    await left_by_the_build_before(tmp_path, source, clock)
    rules = {SITE.repository: RepositoryRules(pre_pull=("v1",))}
    down(source)
    async with standing(tmp_path, source, clock, rules=rules) as stand:
        with pytest.raises(RegistryFailed):
            await stand.store.pre_pull(SITE)
        assert await stand.read() == b"one"
    back(source)
    async with standing(tmp_path, source, clock, rules=rules) as stand:
        source.requests.clear()
        await stand.store.pre_pull(SITE)
        assert asked(stand) == ["resolve", "holds"]
        down(source)
        assert await stand.read() == b"one"


@pytest_twisted.ensureDeferred
async def test_an_old_tag_that_has_moved(tmp_path: Path) -> None:
    """A tag of an older release is resolved again when its digest is missing."""
    source, clock = MemorySource(), Clock()
    exact = await left_by_the_build_before(tmp_path, source, clock)
    source.remove(exact)
    source.push(SITE, an_image("two"))
    async with standing(tmp_path, source, clock) as stand:
        assert await stand.read() == b"two"
        with pytest.raises(NotFound):
            await stand.ask(exact)


async def moved_after_the_build_before(
    location: Path, source: MemorySource, clock: Clock, ages: float
) -> Reference:
    """Make a blob space of an older release, let `ages` maximum ages pass, and move its tag."""
    exact = await left_by_the_build_before(location, source, clock)
    source.push(SITE, an_image("two"))
    clock.advance(ages * RepositoryRules().tag_max_age)
    return exact


@pytest.mark.parametrize("ages", [1.5, 3])
@pytest_twisted.ensureDeferred
async def test_an_old_tag_that_moved_is_confirmed_by_its_digest(
    tmp_path: Path, ages: float
) -> None:
    """While a new image is pulled, the source confirms the old one, and both are proved."""
    source, clock = MemorySource(), Clock()
    exact = await moved_after_the_build_before(tmp_path, source, clock, ages)
    gate = source.hold("fetch")
    async with standing(tmp_path, source, clock) as stand:
        first = stand.ask()
        clock.advance(PATIENCE)
        with now(first) as lease:
            assert content(lease) == b"one"
        assert ("resolve", str(exact)) in source.requests
        assert stand.space.provenance.covers(exact.digest, SITE.repository, Access.LISTED)
        gate.open()
        assert await stand.read() == b"two"
    down(source)
    async with standing(tmp_path, source, clock) as again:
        assert await again.read() == b"two"
        assert await again.read(exact) == b"one"
        for digest in (an_image("two").digest, an_image("two").layers[0].digest):
            assert again.space.provenance.covers(digest, SITE.repository, Access.LISTED)


@pytest.mark.parametrize("ages", [1.5, 3])
@pytest.mark.parametrize("denial", ["manifest", "layer"])
@pytest_twisted.ensureDeferred
async def test_an_old_tag_that_moved_and_is_denied(
    tmp_path: Path, denial: str, ages: float
) -> None:
    """While a new image is pulled, an old one that its source denies is not served."""
    source, clock = MemorySource(), Clock()
    exact = await moved_after_the_build_before(tmp_path, source, clock, ages)
    source.remove(exact if denial == "manifest" else SITE.at(an_image().layers[0].digest))
    gate = source.hold("fetch")
    async with standing(tmp_path, source, clock) as stand:
        pulls = [stand.ask(), stand.ask(), stand.ask(SITE, read_only=True)]
        clock.advance(PATIENCE + 1)
        assert stand.store.lease_at_once(SITE, read_only=True) is None
        await refused(stand, exact, NotFound)
        gate.open()
        for pull in pulls:
            with now(pull) as lease:
                assert content(lease) == b"two"
    down(source)
    async with standing(tmp_path, source, clock) as again:
        assert await again.read() == b"two"
        await refused(again, exact, RegistryFailed)


@pytest.mark.parametrize("is_pre_pulled", [False, True])
@pytest_twisted.ensureDeferred
async def test_an_old_tag_that_is_denied_while_the_new_image_fails(
    tmp_path: Path, is_pre_pulled: bool
) -> None:
    """An old image that its source denies is not served even if the new one cannot be pulled."""
    source, clock = MemorySource(), Clock()
    exact = await moved_after_the_build_before(tmp_path, source, clock, 3)
    source.remove(exact)
    source.fail("fetch", *[DOWN] * 100)
    async with standing(tmp_path, source, clock) as stand:
        with pytest.raises(RegistryFailed):
            await (stand.store.pre_pull(SITE) if is_pre_pulled else stand.ask())
        for _ in range(3):
            await refused(stand, SITE, RegistryFailed)
            await refused(stand, exact, NotFound)
            clock.advance(11)
    async with standing(tmp_path, source, clock) as again:
        await refused(again, SITE, RegistryFailed)
        back(source)
        assert await again.read() == b"two"


@pytest_twisted.ensureDeferred
async def test_an_old_tag_that_moved_while_its_registry_is_slow(tmp_path: Path) -> None:
    """A request for an old tag waits two seconds in all for its look-up and its confirmation."""
    source, clock = MemorySource(), Clock()
    await moved_after_the_build_before(tmp_path, source, clock, 3)
    gates = [source.hold("refresh"), source.hold("resolve")]
    async with standing(tmp_path, source, clock) as stand:
        first = stand.ask()
        assert [gate.waiting for gate in gates] == [1, 1]
        clock.advance(PATIENCE - 0.1)
        assert not first.called
        clock.advance(0.2)
        with now(first) as lease:
            assert content(lease) == b"one"
        for gate in gates:
            gate.open()
        assert await stand.read() == b"two"


@pytest_twisted.ensureDeferred
async def test_an_image_that_may_not_be_served_is_not_waited_for(tmp_path: Path) -> None:
    """A READY image that may not be served does not prevent early files of a new pull."""
    image = packed(Image.of({"index.html": b"two", "z": NOISE}, "none"))
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image())
        await stand.read()
        stand.rules[SITE.repository] = RepositoryRules(listed=False, early_serve=True)
        stand.store.reload()
        stand.source.push(SITE, image)
        stand.clock.advance(3 * RepositoryRules().tag_max_age)
        gate = stand.source.hold("fetch", after=300 * KIB)
        early = now(stand.store.lease_or_early(SITE, b"index.html"))
        assert early.image == image.digest
        early.close()
        gate.open()
        assert await stand.read() == b"two"


@pytest_twisted.ensureDeferred
async def test_old_layers_that_are_merged(tmp_path: Path) -> None:
    """Each layer of an older release's image is asked for, and none is pulled."""
    source, clock, rules = MemorySource(), Clock(), {SITE.repository: ALL}
    async with standing(tmp_path, source, clock, rules=rules) as stand:
        source.push(SITE, TWO_LAYERS)
        await stand.read()
    made_old(tmp_path)
    source.requests.clear()
    async with standing(tmp_path, source, clock, rules=rules) as stand:
        assert await stand.read() == b"two"
        assert asked(stand) == ["resolve", "holds", "holds"]
        source.remove(SITE.at(TWO_LAYERS.layers[1].digest))
    made_old(tmp_path)
    async with standing(tmp_path, source, clock, rules=rules) as stand:
        await refused_after_asking(stand)


async def refused_after_asking(stand: Stand) -> None:
    """Check that the first request for an old tag is refused."""
    for _ in range(2):
        with pytest.raises(BlobNotFound):
            await stand.ask()


# --- Early files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OTHERS)
@pytest_twisted.ensureDeferred
async def test_early_files(tmp_path: Path, kind: str) -> None:
    """A repository that has not shown a layer gets no early files of it."""
    image = packed(Image.of({"index.html": b"one", "z": NOISE}, "none"))
    early = RepositoryRules(early_serve=True, listed=OTHERS[kind].listed)
    rules = {SITE.repository: RepositoryRules(early_serve=True), OTHER.repository: early}
    async with standing(tmp_path, rules=rules) as stand:
        stand.source.push(SITE, image)
        without_blob(stand.source, OTHER, image)
        gate = stand.source.hold("fetch", after=300 * KIB)
        own = stand.store.lease_or_early(SITE, b"index.html")
        now(own).close()
        foreign = stand.store.lease_or_early(OTHER, b"index.html")
        if kind == "unlisted":
            assert not foreign.called
            gate.open()
        with pytest.raises(BlobNotFound):
            now(foreign)
        gate.open()


@pytest_twisted.ensureDeferred
async def test_early_files_of_a_listed_repository_that_has_shown_the_layer(tmp_path: Path) -> None:
    """A repository gets early files of another one's download if its registry has the layer."""
    image = packed(Image.of({"index.html": b"one", "z": NOISE}, "none"))
    early = RepositoryRules(early_serve=True)
    rules = {SITE.repository: early, OTHER.repository: early}
    async with standing(tmp_path, rules=rules) as stand:
        stand.source.push(SITE, image)
        stand.source.push(OTHER, image)
        gate = stand.source.hold("fetch", after=300 * KIB)
        now(stand.store.lease_or_early(SITE, b"index.html")).close()
        now(stand.store.lease_or_early(OTHER, b"index.html")).close()
        assert asked(stand).count("holds") == 1
        gate.open()
