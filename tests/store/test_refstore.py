"""The ref store on a real blob space."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock, deferLater

from blobserve.concurrency.threads import OwnThreads
from blobserve.config import Limits, RepositoryRules
from blobserve.errors import (
    BadImage,
    BlobNotFound,
    ContentMismatch,
    Forbidden,
    ImageNotFound,
    NoLayers,
    NoSpace,
    NotCached,
    PathNotFound,
    RegistryFailed,
    StoreClosed,
)
from blobserve.names.digest import Digest
from blobserve.names.platform import Platform
from blobserve.names.reference import Reference, Repository
from blobserve.store.blobspace import BlobState
from blobserve.store.disk.metadata_db import MOST_REFERENCES
from blobserve.store.refs.freshness import TagState
from blobserve.store.refs.image import Image, ImageReader
from blobserve.store.refs.reference_table import ReferenceTable
from blobserve.store.space.ready_blobs import MOST_OPEN
from blobserve.testing import MadeImage, MemorySource, make_image, make_index
from tests.support.slack import SLACK
from tests.support.stores import OTHER, SITE, Stand, an_image, content, now, standing
from tests.support.within import within

DOWN = RegistryFailed("registry.example", "connection refused")


@pytest_twisted.ensureDeferred
async def test_cached_fetch(tmp_path: Path) -> None:
    """An image is pulled once, and then served at once without its registry."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image())
        with await stand.ask() as first:
            assert (first.result, content(first)) == ("pull", b"one")
        asked = list(stand.source.requests)
        with now(stand.ask()) as second:
            assert (second.result, content(second)) == ("hit", b"one")
        assert stand.source.requests == asked
        assert stand.counted("lookups_total", result="pull") == 1
        assert stand.counted("lookups_total", result="hit") == 1


@pytest_twisted.ensureDeferred
async def test_only_what_is_served_is_fetched(tmp_path: Path) -> None:
    """Only the manifest of an image and its served layer are fetched (M17)."""
    async with standing(tmp_path) as stand:
        image = an_image()
        stand.source.push(SITE, image)
        await stand.read()
        fetched = ("fetch", str(image.layers[0].digest))
        assert stand.source.requests == [("resolve", str(SITE)), fetched]


@pytest_twisted.ensureDeferred
async def test_layer_of_no_bytes(tmp_path: Path) -> None:
    """An image with a layer of 0 bytes is pulled; the layer has no files."""
    async with standing(tmp_path) as stand:
        image = an_image()
        empty = attrs.evolve(image.layers[0], digest=Digest.of(b""), size=0)
        text = image.documents[0].content.decode()
        for old, new in (
            (str(image.layers[0].digest), str(empty.digest)),
            (f'"size": {image.layers[0].size}', '"size": 0'),
        ):
            assert old in text
            text = text.replace(old, new)
        manifest = text.encode()
        document = attrs.evolve(image.documents[0], digest=Digest.of(manifest), content=manifest)
        blobs = {**image.blobs, empty.digest: b""}
        stand.source.push(
            SITE, attrs.evolve(image, documents=(document,), layers=(empty,), blobs=blobs)
        )
        with await stand.ask() as lease, pytest.raises(PathNotFound):
            lease.filesystem.lookup(b"index.html")


@pytest_twisted.ensureDeferred
async def test_digest_names_the_same_for_ever(tmp_path: Path) -> None:
    """A reference with the digest of a lease stands for the same bytes, without the registry."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image())
        with await stand.ask() as lease:
            exact = SITE.at(lease.digest)
        asked = list(stand.source.requests)
        with now(stand.ask(exact)) as again:
            assert (again.digest, content(again)) == (exact.digest, b"one")
        both = attrs.evolve(exact, tag="no-such-tag")
        assert now(stand.ask(both)).digest == exact.digest
        assert stand.source.requests == asked


@pytest_twisted.ensureDeferred
async def test_ref_not_found(tmp_path: Path) -> None:
    """A tag that the registry does not have is a missing image, and is not stored."""
    async with standing(tmp_path) as stand:
        with pytest.raises(ImageNotFound, match=str(SITE)):
            await stand.ask()
        assert not stand.space.references.all()


@pytest_twisted.ensureDeferred
async def test_manifest_not_found(tmp_path: Path) -> None:
    """An index with a manifest that the registry lacks is a missing image."""
    async with standing(tmp_path) as stand:
        image = an_image()
        stand.source.push(SITE, make_index({"linux/amd64": image}))
        stand.source.remove(SITE.at(image.digest))
        with pytest.raises(ImageNotFound, match=str(image.digest)):
            await stand.ask()


@pytest_twisted.ensureDeferred
async def test_layer_not_found(tmp_path: Path) -> None:
    """An error for a missing layer names the layer."""
    async with standing(tmp_path) as stand:
        image = an_image()
        stand.source.push(SITE, image)
        stand.source.remove(SITE.at(image.layers[0].digest))
        with pytest.raises(BlobNotFound, match=str(image.layers[0].digest)):
            await stand.ask()


@pytest_twisted.ensureDeferred
async def test_no_layers(tmp_path: Path) -> None:
    """An image without layers has nothing to serve (M15)."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, make_image())
        with pytest.raises(NoLayers):
            await stand.ask()


@pytest_twisted.ensureDeferred
async def test_two_layers(tmp_path: Path, warnings: list[str]) -> None:
    """The first of several layers is served, with one warning that names the setting."""
    async with standing(tmp_path) as stand:
        image = make_image({"index.html": b"first"}, {"index.html": b"second"})
        for tag in ("v1", "v2"):
            stand.source.push(attrs.evolve(SITE, tag=tag), image)
            with await stand.ask(attrs.evolve(SITE, tag=tag)) as lease:
                assert (lease.layers, content(lease)) == (2, b"first")
        assert [
            text for text in warnings if 'repos."registry.example/team/site".layers' in text
        ] == (warnings)
        assert len(warnings) == 1


@pytest_twisted.ensureDeferred
async def test_layer_on_second_attempt(tmp_path: Path) -> None:
    """A layer that arrives corrupt is fetched once more from its first byte (C17)."""
    async with standing(tmp_path) as stand:
        image = an_image()
        stand.source.push(SITE, image)
        stand.source.corrupt(image.layers[0].digest, times=1)
        assert await stand.read() == b"one"
        assert stand.source.count("fetch") == 2


@pytest_twisted.ensureDeferred
async def test_layer_corrupt_for_good(tmp_path: Path) -> None:
    """A layer that is corrupt twice fails without leftovers, and the next request retries.

    Row C16.
    """
    async with standing(tmp_path) as stand:
        image = an_image()
        stand.source.push(SITE, image)
        stand.source.corrupt(image.layers[0].digest, times=2)
        gate = stand.source.hold("resolve")
        waits = [stand.ask() for _ in range(3)]
        gate.open()
        for wait in waits:
            with pytest.raises(ContentMismatch):
                now(wait)
        assert not any((tmp_path / "ingest").iterdir())
        assert await stand.read() == b"one"


@pytest_twisted.ensureDeferred
async def test_thousand_parallel(tmp_path: Path) -> None:
    """A thousand requests for one cold image cause one manifest look-up and one download."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image())
        gate = stand.source.hold("fetch")
        waits = [stand.ask() for _ in range(1000)]
        gate.open()
        results = []
        for wait in waits:
            with await wait as lease:
                assert content(lease) == b"one"
                results.append(lease.result)
        assert results == ["pull"] + ["wait"] * 999
        assert (stand.source.count("resolve"), stand.source.count("fetch")) == (1, 1)


@pytest_twisted.ensureDeferred
async def test_first_download_fails(tmp_path: Path) -> None:
    """Every waiter gets its own copy of an error, and the next request starts again."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image())
        stand.source.fail("fetch", DOWN)
        gate = stand.source.hold("fetch")
        waits = [stand.ask() for _ in range(3)]
        gate.open()
        errors = []
        for wait in waits:
            with pytest.raises(RegistryFailed) as caught:
                now(wait)
            assert attrs.astuple(caught.value) == attrs.astuple(DOWN)
            errors.append(caught.value)
        assert len(set(map(id, errors))) == 3
        assert stand.source.count("fetch") == 1
        assert await stand.read() == b"one"


@pytest_twisted.ensureDeferred
async def test_read_only_pre_existing(tmp_path: Path) -> None:
    """A read-only request gets a cached image, by tag and by digest, without the registry."""
    async with standing(tmp_path) as stand:
        exact = stand.source.push(SITE, an_image())
        await stand.read()
        asked = list(stand.source.requests)
        stand.clock.advance(1e6)
        assert await stand.read(read_only=True) == await stand.read(exact, read_only=True) == b"one"
        assert stand.source.requests == asked


@pytest_twisted.ensureDeferred
async def test_read_only_non_existent(tmp_path: Path) -> None:
    """A read-only request for an uncached image fails without asking the registry."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image())
        with pytest.raises(NotCached, match=str(SITE)):
            now(stand.ask(read_only=True))
        assert (stand.source.requests, stand.provided) == ([], [])
        assert not stand.space.references.all()


@pytest_twisted.ensureDeferred
async def test_read_only_waits(tmp_path: Path) -> None:
    """A read-only request waits for a pull of another request."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image())
        gate = stand.source.hold("fetch")
        pulling = stand.ask()
        waiting = stand.ask(read_only=True)
        gate.open()
        with now(pulling), now(waiting) as lease:
            assert (lease.result, content(lease)) == ("wait", b"one")


@pytest_twisted.ensureDeferred
async def test_first_waiter_leaves(tmp_path: Path) -> None:
    """A client that leaves cancels its own wait, and another one still gets the image (C40)."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image())
        gate = stand.source.hold("fetch")
        first, second = stand.ask(), stand.ask()
        first.cancel()
        with pytest.raises(CancelledError):
            now(first)
        gate.open()
        assert content(now(second)) == b"one"


@pytest_twisted.ensureDeferred
async def test_all_waiters_leave(tmp_path: Path) -> None:
    """A pull without waiters goes on, and serves the next request (C39)."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image())
        gate = stand.source.hold("fetch")
        for wait in [stand.ask() for _ in range(3)]:
            wait.cancel()
            with pytest.raises(CancelledError):
                now(wait)
        gate.open()
        assert now(stand.ask()).result == "hit"
        assert stand.source.count("fetch") == 1


def _large(name: str) -> MadeImage:
    """Return an image that fits into the blob space of `_small_space`, but not with a second."""
    return make_image({"index.html": name.encode(), "junk": random.Random(name).randbytes(5 << 20)})


@asynccontextmanager
async def _reclaimed(directory: Path) -> AsyncIterator[Stand]:
    """Open a stand that has served SITE and lost its layer to OTHER."""
    async with standing(directory, max_size=8 << 20) as stand:
        stand.source.push(SITE, _large("one"))
        stand.source.push(OTHER, _large("other"))
        assert await stand.read(SITE) == b"one"
        assert await stand.read(OTHER) == b"other"
        assert stand.space.state_of(_large("one").layers[0].digest) is BlobState.UNKNOWN
        stand.source.requests.clear()
        yield stand


@pytest_twisted.ensureDeferred
async def test_reclaimed(tmp_path: Path) -> None:
    """An evicted image is pulled again by its known digest, even if its tag has moved."""
    async with _reclaimed(tmp_path) as stand:
        stand.source.push(SITE, an_image("two"))
        assert await stand.read() == b"one"
        fetched = ("fetch", str(_large("one").layers[0].digest))
        assert stand.source.requests == [fetched]


@pytest_twisted.ensureDeferred
async def test_reclaimed_is_no_look_up(tmp_path: Path) -> None:
    """Pulling a tag's known digest again does not make the tag any fresher."""
    async with _reclaimed(tmp_path) as stand:
        stand.source.fail("refresh", DOWN)
        stand.clock.advance(61)
        results = []
        for _ in range(2):
            with await stand.ask() as lease:
                results.append(lease.result)
        assert results == ["pull", "stale"]


@pytest_twisted.ensureDeferred
async def test_reclaimed_and_lost(tmp_path: Path) -> None:
    """The tag of an evicted image that the registry has lost is resolved again; a digest fails."""
    async with _reclaimed(tmp_path) as stand:
        image = _large("one")
        for digest in (image.digest, image.layers[0].digest):
            stand.source.remove(SITE.at(digest))
        stand.source.push(SITE, an_image("two"))
        with pytest.raises(BlobNotFound):
            await stand.ask(SITE.at(image.digest))
        assert await stand.read() == b"two"
        assert stand.source.requests.count(("resolve", str(SITE))) == 1


@pytest_twisted.ensureDeferred
async def test_reclaimed_and_gone(tmp_path: Path) -> None:
    """If the tag of an evicted image is missing too, it is resolved once and forgotten."""
    async with _reclaimed(tmp_path) as stand:
        stand.source.remove(SITE.at(_large("one").layers[0].digest))
        stand.source.remove(SITE)
        with pytest.raises(ImageNotFound, match=str(SITE)):
            await stand.ask()
        assert stand.source.count("resolve") == 1
        assert str(SITE) not in [remembered for remembered, *_ in stand.space.references.all()]


@pytest_twisted.ensureDeferred
async def test_slow_look_up_moves_nothing_back(tmp_path: Path) -> None:
    """The result of a slow look-up is dropped if its tag was resolved again meanwhile."""
    async with _reclaimed(tmp_path) as stand:
        stand.source.push(SITE, an_image("two"))
        stand.source.remove(SITE.at(_large("one").layers[0].digest))
        look_up, fetch = stand.source.hold("refresh"), stand.source.hold("fetch")
        stand.clock.advance(61)
        asked = stand.ask()
        assert (look_up.waiting, fetch.waiting) == (1, 1)
        stand.source.push(SITE, an_image("three"))
        fetch.open()
        assert content(now(asked)) == b"three"
        look_up.open()
        assert content(now(stand.ask())) == b"three"
        assert stand.source.count("fetch") == 2


@pytest_twisted.ensureDeferred
async def test_reclaimed_read_only(tmp_path: Path) -> None:
    """A read-only request for an evicted image starts no pull of it."""
    async with _reclaimed(tmp_path) as stand:
        with pytest.raises(NotCached, match=str(SITE)):
            now(stand.ask(read_only=True))
        assert stand.source.requests == []


@pytest_twisted.ensureDeferred
async def test_what_tags_serve_goes_last(tmp_path: Path) -> None:
    """An image that a tag serves outlives a later used one that no tag serves."""
    async with standing(tmp_path, max_size=14 << 20) as stand:
        tagged, moved, new = map(_large, ("tagged", "moved", "new"))
        stand.source.push(SITE, tagged)
        await stand.read(SITE)
        exact = stand.source.push(attrs.evolve(OTHER, tag=None), moved)
        await stand.read(exact)
        stand.source.push(OTHER, new)
        await stand.read(OTHER)
        assert stand.space.state_of(tagged.layers[0].digest) is BlobState.READY
        assert stand.space.state_of(moved.layers[0].digest) is BlobState.UNKNOWN


@pytest_twisted.ensureDeferred
async def test_close_with_thousand_waiters(tmp_path: Path) -> None:
    """Closing fails a thousand waiters of ten stalled pulls, and removes their ingests."""
    async with standing(tmp_path) as stand:
        references = [attrs.evolve(SITE, tag=f"v{n}") for n in range(10)]
        for reference in references:
            stand.source.push(reference, an_image(str(reference)))
        stand.source.hold("fetch", after=20)
        waits = [stand.ask(reference) for reference in references for _ in range(100)]
        assert len(list((tmp_path / "ingest").iterdir())) == 10
        await stand.store.close()
        for wait in waits:
            with pytest.raises(StoreClosed):
                now(wait)
        assert not any((tmp_path / "ingest").iterdir())
        with pytest.raises(StoreClosed):
            now(stand.ask())
        await stand.store.close()


@within(30)
async def test_with_real_threads(tmp_path: Path) -> None:
    """With real threads a thousand requests share one download, and closing is quick."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    threads = OwnThreads(reactor, 2, "test")
    threads.start()
    try:
        async with standing(tmp_path, clock=reactor, threads=threads) as stand:
            stand.source.push(SITE, _large("one"))
            for wait in [stand.ask() for _ in range(1000)]:
                with await wait as lease:
                    assert content(lease) == b"one"
            assert (stand.source.count("resolve"), stand.source.count("fetch")) == (1, 1)
            stand.source.hold("fetch", after=4 << 20)
            stalled = [attrs.evolve(OTHER, tag=f"v{n}") for n in range(10)]
            for reference in stalled:
                stand.source.push(reference, _large(str(reference)))
            waits = [stand.ask(reference) for reference in stalled for _ in range(100)]
            await deferLater(reactor, 0.1)
            closing_at = reactor.seconds()
            await stand.store.close()
            assert reactor.seconds() - closing_at < SLACK
            for wait in waits:
                with pytest.raises(StoreClosed):
                    await wait
            assert not any((tmp_path / "ingest").iterdir())
    finally:
        threads.stop()


@pytest_twisted.ensureDeferred
async def test_closed_serves_nothing(tmp_path: Path) -> None:
    """After close no image is served, cached or not, and no registry is asked."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image())
        stand.source.push(OTHER, an_image("two"))
        await stand.read()
        await stand.store.close()
        for reference in (SITE, OTHER):
            for read_only in (False, True):
                with pytest.raises(StoreClosed):
                    now(stand.ask(reference, read_only))
        assert stand.source.count("resolve") == 1


@pytest_twisted.ensureDeferred
async def test_forbidden(tmp_path: Path) -> None:
    """An image of a forbidden repository is not served, even if it is cached."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, an_image())
        await stand.read()
        stand.rules[SITE.repository] = None
        stand.store.reload()
        with pytest.raises(Forbidden, match="team/site"):
            await stand.ask()


@pytest_twisted.ensureDeferred
async def test_source_anew_for_each_pull(tmp_path: Path) -> None:
    """Each pull gets its repository's source again, so that changed settings apply at once."""
    async with standing(tmp_path) as stand:
        second = attrs.evolve(SITE, tag="v2")
        stand.source.push(SITE, an_image())
        stand.source.push(second, an_image("two"))
        await stand.read()
        await stand.read()
        await stand.read(second)
        assert stand.provided == [SITE.repository] * 2


@pytest_twisted.ensureDeferred
async def test_tag_moves_while_resolving(tmp_path: Path) -> None:
    """A tag that moves while its image is pulled does not mix two images (M16)."""
    async with standing(tmp_path) as stand:
        first = make_index({"linux/amd64": an_image()})
        stand.source.push(SITE, first)
        gate = stand.source.hold("resolve")
        pulling = stand.ask()
        stand.source.push(SITE, an_image("two"))
        gate.open()
        with now(pulling) as lease:
            assert (lease.digest, content(lease)) == (first.digest, b"one")


@pytest_twisted.ensureDeferred
async def test_platforms(tmp_path: Path, warnings: list[str]) -> None:
    """The image of the configured platform is served from an index, also right after a change.

    Row M08.
    """
    async with standing(tmp_path) as stand:
        images = {"linux/amd64": an_image("amd"), "linux/arm64": an_image("arm")}
        index = make_index(images)
        stand.source.push(SITE, index)
        with await stand.ask() as lease:
            assert (lease.digest, content(lease)) == (index.digest, b"amd")
        stand.rules[SITE.repository] = RepositoryRules(platform=Platform.parse("linux/arm64"))
        stand.store.reload()
        assert await stand.read() == b"arm"
        assert not warnings


@pytest_twisted.ensureDeferred
async def test_arbitrary_platform(tmp_path: Path, warnings: list[str]) -> None:
    """Without a configured platform and linux/amd64 the first image is served, with a warning."""
    async with standing(tmp_path) as stand:
        stand.source.push(SITE, make_index({"linux/s390x": an_image()}))
        assert await stand.read() == b"one"
        assert len(warnings) == 1
        assert "linux/s390x" in warnings[0]


@pytest_twisted.ensureDeferred
async def test_nested_index(tmp_path: Path) -> None:
    """An index may be nested in another one, once (M09)."""
    async with standing(tmp_path) as stand:
        nested = make_index({"": make_index({"linux/amd64": an_image()})})
        stand.source.push(SITE, nested)
        assert await stand.read() == b"one"
        stand.source.push(OTHER, make_index({"": nested}))
        with pytest.raises(BadImage, match="nested"):
            await stand.ask(OTHER)


@pytest_twisted.ensureDeferred
async def test_shared_layer(tmp_path: Path) -> None:
    """Two repositories with the same layer cause one download, cached or running."""
    async with standing(tmp_path) as stand:
        third = Reference.parse("elsewhere.example/site:v1")
        for reference in (SITE, OTHER, third):
            stand.source.push(reference, an_image())
        gate = stand.source.hold("fetch")
        first, second = stand.ask(SITE), stand.ask(OTHER)
        gate.open()
        assert content(now(first)) == content(now(second)) == await stand.read(third) == b"one"
        assert (stand.source.count("resolve"), stand.source.count("fetch")) == (3, 1)


@pytest_twisted.ensureDeferred
async def test_failure_of_another_registry(tmp_path: Path) -> None:
    """A shared download that fails at another registry is tried at the caller's own."""
    async with standing(tmp_path) as stand:
        for reference in (SITE, OTHER):
            stand.source.push(reference, an_image())
        stand.source.fail("fetch", DOWN)
        gate = stand.source.hold("fetch")
        first, second = stand.ask(SITE), stand.ask(OTHER)
        gate.open()
        with pytest.raises(RegistryFailed):
            now(first)
        assert content(now(second)) == b"one"


@pytest_twisted.ensureDeferred
async def test_unlisted_repositories_prove_what_they_share(tmp_path: Path) -> None:
    """An unlisted repository gets a cached layer only after its own registry has sent it."""
    rules = {OTHER.repository: RepositoryRules(listed=False)}
    async with standing(tmp_path, rules=rules) as stand:
        image = an_image()
        stand.source.push(SITE, image)
        gate = stand.source.hold("fetch")
        pulling = stand.ask()
        stand.source.push(OTHER, image)
        stand.source.remove(OTHER.at(image.layers[0].digest))
        on_its_way = stand.ask(OTHER)
        gate.open()
        now(pulling).release()
        for wait in (on_its_way, stand.ask(OTHER)):
            with pytest.raises(BlobNotFound):
                now(wait)
        stand.source.push(OTHER, image)
        assert await stand.read(OTHER) == b"one"
        fetched = stand.source.count("fetch")
        assert await stand.read(OTHER) == b"one"
        assert (stand.source.count("holds"), stand.source.count("fetch")) == (0, fetched)


@pytest_twisted.ensureDeferred
async def test_restart_without_registry(tmp_path: Path) -> None:
    """After a restart without the registry tag and digest are served, also read-only."""
    index = make_index({"linux/amd64": an_image()})
    async with standing(tmp_path) as stand:
        exact = stand.source.push(SITE, index)
        await stand.read()
    down = MemorySource()
    for method in ("resolve", "refresh", "fetch"):
        down.fail(method, *[DOWN] * 100)
    async with standing(tmp_path, source=down, clock=stand.clock) as again:
        again.clock.advance(1e6)
        for reference in (exact, SITE):
            for read_only in (True, False):
                assert await again.read(reference, read_only) == b"one"
        with pytest.raises(RegistryFailed):
            await again.ask(OTHER)


@pytest_twisted.ensureDeferred
async def test_ages_across_restarts_are_of_the_time_of_day(tmp_path: Path) -> None:
    """The age of a tag after a restart is measured by the time of day."""
    day = Clock()
    day.advance(1_800_000_000)
    async with standing(tmp_path, wall=day.seconds) as stand:
        stand.source.push(SITE, an_image())
        await stand.read()
        # The time of day is set back, and the clock of the process goes on.
        for seconds in (-3600, 59):
            day.rightNow += seconds
            stand.clock.advance(max(0, seconds))
            assert await stand.read() == b"one"
        assert stand.source.count("refresh") == 0
        [(_, _, checked), *_] = stand.space.references.all()
        assert checked == 1_800_000_000
        stand.clock.advance(2)
        await stand.read()
        assert stand.source.count("refresh") == 1
        assert {at for *_, at in stand.space.references.all()} >= {day.seconds()}
    source = stand.source
    clock = Clock()
    clock.advance(12_345)
    day.advance(50)
    async with standing(tmp_path, source, clock, wall=day.seconds) as again:
        assert await again.read() == b"one"
        assert source.count("refresh") == 1
        clock.advance(20)
        assert await again.read() == b"one"
        assert source.count("refresh") == 2


@pytest_twisted.ensureDeferred
async def test_bounded_memory(tmp_path: Path) -> None:
    """A bounded number of references is remembered, the last used ones."""
    async with standing(tmp_path) as stand:
        rules = RepositoryRules()
        known = ReferenceTable(stand.space, ImageReader(stand.space, Limits), lambda _: rules)
        image = Image(an_image().digest, an_image().layers[:1], 1, None, ())
        used = TagState(SITE, image.digest, 0, image)
        known.learn(used)
        others = [Digest.of(str(n).encode()) for n in range(MOST_REFERENCES)]
        for digest in others:
            known.learn(TagState(OTHER.at(digest), digest, 0, attrs.evolve(image, digest=digest)))
            assert known.get(SITE) == used
        assert known.get(OTHER.at(others[0])) is None
        assert known.get(OTHER.at(others[-1])) is not None
        remembered = {reference for reference, *_ in stand.space.references.all()}
        assert len(remembered) == MOST_REFERENCES
        assert str(SITE) in remembered


@pytest_twisted.ensureDeferred
async def test_many_tags_cost_a_pull_nothing(tmp_path: Path) -> None:
    """Learning the new digest of a tag does not look at all other tags."""
    async with standing(tmp_path) as stand:
        asked = []

        def rules(repository: Repository) -> RepositoryRules:
            asked.append(repository)
            return RepositoryRules()

        known = ReferenceTable(stand.space, ImageReader(stand.space, Limits), rules)
        for n in range(2, 200):
            image = Image(Digest.of(str(n).encode()), an_image().layers[:1], 1, None, ())
            tag = Reference.parse(f"registry.example/team/number-{n}:v1")
            known.learn(TagState(tag, image.digest, 0, image))
        asked.clear()
        image = Image(an_image().digest, an_image().layers[:1], 1, None, ())
        known.learn(TagState(SITE, image.digest, 0, image))
        assert set(asked) == {SITE.repository}


@pytest_twisted.ensureDeferred
async def test_what_allowed_tags_serve_goes_last(tmp_path: Path) -> None:
    """The image of a tag outlives later used ones while its repository is allowed."""
    async with standing(tmp_path, max_size=20 << 20) as stand:
        images = [_large(str(n)) for n in range(5)]
        stand.source.push(SITE, images[0])
        await stand.read()
        for n, image in enumerate(images[1:], 1):
            stand.source.push(attrs.evolve(OTHER, tag=f"v{n}"), image)
            await stand.read(OTHER.at(image.digest))
            if n == 3:
                assert _ready(stand, images) == [0, 2, 3]
                stand.rules[SITE.repository] = None
                stand.store.reload()
        assert _ready(stand, images) == [2, 3, 4]


def _ready(stand: Stand, images: list[MadeImage]) -> list[int]:
    states = [stand.space.state_of(image.layers[0].digest) for image in images]
    return [n for n, state in enumerate(states) if state is BlobState.READY]


@pytest_twisted.ensureDeferred
async def test_idle_blobs(tmp_path: Path) -> None:
    """An image with files that were closed, since many others were used, is still served."""
    async with standing(tmp_path) as stand:
        references = [attrs.evolve(SITE, tag=f"v{n}") for n in range(MOST_OPEN + 1)]
        for reference in references:
            stand.source.push(reference, an_image(str(reference)))
            await stand.read(reference)
        assert stand.space.blobs.acquire(an_image(str(references[0])).layers[0].digest) is None
        with await stand.ask(references[0], read_only=True) as lease:
            assert (lease.result, content(lease)) == ("hit", str(references[0]).encode())


@pytest_twisted.ensureDeferred
async def test_lease_is_released_once(tmp_path: Path) -> None:
    """A lease releases its reader once, however often it is released."""
    async with standing(tmp_path, max_size=8 << 20) as stand:
        stand.source.push(SITE, _large("one"))
        stand.source.push(OTHER, _large("other"))
        first, second = await stand.ask(), await stand.ask()
        first.release()
        first.release()
        with second, pytest.raises(NoSpace):
            await stand.ask(OTHER)
        assert await stand.read(OTHER) == b"other"
