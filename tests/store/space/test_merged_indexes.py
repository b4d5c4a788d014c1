"""Images of several layers in a ref store: readiness, restarts, and space."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import attrs
import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred

from blobserve.config import KIB, MIB, Limits, RepositoryRules
from blobserve.errors import (
    BadImage,
    BlobNotFound,
    BlobserveError,
    ImageTooLarge,
    NotCached,
    RegistryFailed,
    SpaceContended,
)
from blobserve.names.digest import Digest
from blobserve.store.blobspace import BlobState
from blobserve.store.disk.codings_file import NoCoding
from blobserve.store.index.entry import Entry
from blobserve.store.index.merged_index import tree_digest
from blobserve.store.lease import Lease
from blobserve.testing import MadeImage, MemorySource, make_image
from tests.store.blobs.test_recovery import changed, flip
from tests.support.spaces import Held, Watched, names_in, on_disk, pool
from tests.support.stores import OTHER, SITE, Stand, content, now, standing
from tests.support.within import within

ALL = RepositoryRules(layers="all")
IMAGE = make_image(
    {"index.html": b"first", "a": b"a", "gone": b"x"}, {"index.html": b"two", ".wh.gone": b""}
)


@asynccontextmanager
async def merging(directory: Path, **parts: Any) -> AsyncIterator[Stand]:
    """Open a stand that serves all layers of every image, at first those of `IMAGE`."""
    source = parts.pop("source", None) or MemorySource()
    rules = {SITE.repository: ALL, OTHER.repository: ALL}
    async with standing(directory, source=source, rules=rules, **parts) as stand:
        source.push(SITE, IMAGE)
        yield stand


def tree_of(image: MadeImage, *others: MadeImage) -> Digest:
    """Return the digest that names the merged index of an image."""
    return tree_digest(tuple(layer.digest for each in (image, *others) for layer in each.layers))


def tree_path(location: Path, image: MadeImage = IMAGE) -> Path:
    """Return the path of the merged index of an image."""
    return location / "trees" / "sha256" / tree_of(image).hex


def junk(name: str, size: int) -> bytes:
    """Return random bytes."""
    return Random(name).randbytes(size)


def taken(stand: Stand) -> int:
    """Return the counted bytes without those of the state file, which grows by itself."""
    return stand.space.size - stand.space._state.size


def names(lease: Lease) -> list[bytes]:
    """Return the names in the root of an image."""
    return lease.filesystem.names(lease.filesystem.lookup(b""))


def read(lease: Lease, path: bytes) -> bytes:
    """Return a file of an image."""
    return lease.filesystem.file(lease.filesystem.lookup(path)).read(0, 1 << 30)


@pytest_twisted.ensureDeferred
async def test_merged(tmp_path: Path) -> None:
    """All layers are pulled and served as one tree, also after a restart."""
    async with merging(tmp_path) as stand:
        with await stand.ask() as lease:
            assert (lease.result, lease.layers, content(lease)) == ("pull", 2, b"two")
            assert names(lease) == [b"a", b"index.html"]
            assert read(lease, b"a") == b"a"
            layers = [lease.filesystem.lookup(path).layer for path in (b"a", b"index.html")]
            assert layers == [0, 1]
        assert now(stand.ask()).result == "hit"
        assert stand.source.count("fetch") == 2
        source = stand.source
    source.requests.clear()
    async with merging(tmp_path, source=source) as stand:
        with now(stand.ask(read_only=True)) as lease:
            assert (lease.result, content(lease)) == ("hit", b"two")
        assert source.requests == []


@pytest_twisted.ensureDeferred
async def test_layers_are_pulled_side_by_side(tmp_path: Path) -> None:
    """The layers of an image are downloaded concurrently, each with its own permit."""
    image = make_image(*({f"{n}": b"%d" % n} for n in range(12)))
    async with merging(tmp_path) as stand:
        stand.source.push(OTHER, image)
        gate = stand.source.hold("fetch")
        asked = stand.ask(OTHER)
        assert (gate.waiting, stand.counted("pulls_in_flight")) == (10, 10)
        gate.open()
        with now(asked) as lease:
            assert len(names(lease)) == 12


@pytest_twisted.ensureDeferred
async def test_the_same_layer_twice(tmp_path: Path) -> None:
    """A layer that is listed twice is stored once, and its files are those of the upper one."""
    first, second = {"a": b"1", "index.html": b"1"}, {"index.html": b"2"}
    image = make_image(first, second, first)
    async with merging(tmp_path) as stand:
        stand.source.push(SITE, image)
        with await stand.ask() as lease:
            assert (content(lease), lease.filesystem.lookup(b"a").layer) == (b"1", 2)
        assert stand.source.count("fetch") == len(names_in(tmp_path, "blobs/sha256")) == 2


@pytest_twisted.ensureDeferred
async def test_images_share_layers(tmp_path: Path) -> None:
    """A layer of two images is downloaded and stored once, also when both are pulled at once."""
    shared = {"shared": b"s"}
    one, two = make_image(shared, {"index.html": b"1"}), make_image(shared, {"index.html": b"2"})
    async with merging(tmp_path) as stand:
        stand.source.push(SITE, one)
        stand.source.push(OTHER, two)
        gate = stand.source.hold("fetch")
        asked = [stand.ask(SITE), stand.ask(OTHER)]
        gate.open()
        for wait, expected in zip(asked, (b"1", b"2"), strict=True):
            with now(wait) as lease:
                assert (content(lease), read(lease, b"shared")) == (expected, b"s")
        assert stand.source.count("fetch") == len(names_in(tmp_path, "blobs/sha256")) == 3
        assert len(names_in(tmp_path, "trees/sha256")) == 2


@pytest_twisted.ensureDeferred
async def test_one_layer_fails(tmp_path: Path) -> None:
    """A failed layer fails its image with the same error, and no other image."""
    shared, lost = {"shared": b"s"}, {"lost": b"l"}
    broken, whole = make_image(shared, lost), make_image(shared, {"index.html": b"whole"})
    async with merging(tmp_path) as stand:
        stand.source.push(SITE, broken)
        stand.source.push(OTHER, whole)
        stand.source.remove(SITE.at(broken.layers[1].digest))
        gate = stand.source.hold("fetch")
        failing, going_on = stand.ask(SITE), stand.ask(OTHER)
        gate.open()
        with pytest.raises(BlobNotFound, match=str(broken.layers[1].digest)):
            now(failing)
        with now(going_on) as lease:
            assert content(lease) == b"whole"
        assert not tree_path(tmp_path, broken).exists()


@pytest_twisted.ensureDeferred
async def test_what_nobody_needs_is_not_begun(tmp_path: Path) -> None:
    """When a layer fails, the queued layers of its image are not downloaded."""
    image = make_image(*({f"{n}": b"%d" % n} for n in range(30)))
    async with merging(tmp_path, limits=Limits(parallel_downloads=2)) as stand:
        stand.source.push(OTHER, image)
        stand.source.fail("fetch", RegistryFailed("registry.example", "no such luck"))
        gate = stand.source.hold("fetch")
        asked = stand.ask(OTHER)
        assert stand.counted("pulls_queued") == 28
        gate.open()
        with pytest.raises(RegistryFailed):
            now(asked)
        assert stand.counted("pulls_queued") == 0
        assert stand.source.count("fetch") <= 3
        with await stand.ask(OTHER) as lease:
            assert len(names(lease)) == 30


@pytest_twisted.ensureDeferred
async def test_one_layer_of_two_is_gone(tmp_path: Path) -> None:
    """An image without one of its layers is not READY; that layer is pulled, the index stays."""
    async with merging(tmp_path) as stand:
        await stand.read()
        before = tree_path(tmp_path).stat()
        stand.source.requests.clear()
        lost = IMAGE.layers[0].digest
        await stand.space.set_aside(lost)
        with pytest.raises(NotCached):
            await stand.ask(read_only=True)
        assert await stand.read() == b"two"
        assert stand.source.requests == [("fetch", str(lost))]
        assert tree_path(tmp_path).stat().st_ino == before.st_ino


@pytest_twisted.ensureDeferred
async def test_the_tree_alone_is_gone(tmp_path: Path) -> None:
    """An evicted merged index is rebuilt from its layers without the registry."""
    async with merging(tmp_path) as stand:
        await stand.read()
        size, own = taken(stand), tree_path(tmp_path).stat().st_size
        await stand.space.set_aside(tree_of(IMAGE))
        assert (tree_path(tmp_path).exists(), taken(stand)) == (False, size - own)
        stand.source.requests.clear()
        assert await stand.read(read_only=True) == b"two"
        assert stand.source.requests == []
        assert (tree_path(tmp_path).exists(), taken(stand)) == (True, size)


def another_version(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:60] + b"\0\0\0\7" + content[64:])


DAMAGES: list[Callable[[Path], object]] = [
    lambda path: flip(path, path.read_bytes().index(b"index.html")),
    lambda path: path.write_bytes(b""),
    lambda path: path.unlink(),
    lambda path: (path.unlink(), path.symlink_to("/etc/passwd")),
    lambda path: (path.unlink(), path.mkdir()),
    another_version,
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest_twisted.ensureDeferred
async def test_damaged(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    """A merged index that is damaged, missing or old is rebuilt without the registry."""
    async with merging(tmp_path) as stand:
        await stand.read()
        source = stand.source
    damage(tree_path(tmp_path))
    source.requests.clear()
    async with merging(tmp_path, source=source) as stand:
        for _ in range(2):
            with await stand.ask() as lease:
                assert (content(lease), names(lease)) == (b"two", [b"a", b"index.html"])
        assert source.requests == []
        assert on_disk(tmp_path) <= stand.space.size


@pytest_twisted.ensureDeferred
async def test_what_stands_where_a_tree_would(tmp_path: Path) -> None:
    """An unknown merged index is removed at the start, and its layers stay."""
    async with merging(tmp_path) as stand:
        await stand.read()
        source = stand.source
    changed(tmp_path, "DELETE FROM trees")
    async with merging(tmp_path, source=source) as stand:
        assert not tree_path(tmp_path).exists()
        assert await stand.read(read_only=True) == b"two"


@pytest_twisted.ensureDeferred
async def test_a_crash_at_any_instant(tmp_path: Path) -> None:
    """A crash at any step of a merge leaves a complete merged index or none."""
    held = Held()
    space, copies = tmp_path / "space", []
    opening = Deferred.fromCoroutine(_ask_once(space, held))
    while not opening.called:
        held.go()
        copies.append(shutil.copytree(space, tmp_path / f"copy{len(copies)}", symlinks=True))
    now(opening)
    present = set()
    for copy in copies:
        if not (copy / "VERSION").exists():
            continue
        async with merging(copy) as stand:
            present.add(tree_path(copy).exists())
            assert await stand.read() == b"two"
            assert names_in(copy, "ingest") == []
            assert on_disk(copy) <= stand.space.size
    assert present == {True, False}


async def _ask_once(location: Path, threads: Held) -> None:
    async with merging(location, threads=threads) as stand:
        assert await stand.read() == b"two"


@within(60)
async def test_the_bound_at_all_times(tmp_path: Path) -> None:
    """The disk stays within the quota while images of many entries come and go."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    bound, seen = 5 * MIB, []
    files = [{f"{image}/{n}": b"" for n in range(1500)} for image in range(4)]
    images = [make_image({"index.html": b"x", **each}, each) for each in files]
    with pool() as threads:
        watched = Watched(threads, lambda: seen.append(on_disk(tmp_path)))
        async with merging(tmp_path, clock=reactor, max_size=bound, threads=watched) as stand:
            for image in [*images, *images]:
                stand.source.push(OTHER, image)
                exact = OTHER.at(image.digest)
                assert await stand.read(exact) == b"x"
            assert stand.counted("evictions_total") > 4
    assert bound // 4 < max(seen) <= bound


@pytest_twisted.ensureDeferred
async def test_what_is_read_stays(tmp_path: Path) -> None:
    """While an image is read its layers and its merged index stay; later they may be evicted."""
    half = {"half": junk("half", MIB)}
    image = make_image(half, {"index.html": b"x", "other": junk("other", MIB)})
    large = make_image({"index.html": b"large", "junk": junk("large", 2 * MIB)})
    async with merging(tmp_path, max_size=4 * MIB) as stand:
        stand.source.push(SITE, image)
        stand.source.push(OTHER, large)
        with await stand.ask() as lease:
            with pytest.raises(BlobserveError):
                await stand.ask(OTHER)
            assert (content(lease), read(lease, b"half")) == (b"x", half["half"])
        assert await stand.read(OTHER) == b"large"
        assert not stand.space.is_ready(tuple(layer.digest for layer in image.layers))


@pytest_twisted.ensureDeferred
async def test_what_tags_serve_goes_last(tmp_path: Path) -> None:
    """The layers and the index of an image that a tag serves outlive later used ones."""
    tagged = make_image({"index.html": b"t"}, {"a": junk("a", 2 * MIB)})
    async with merging(tmp_path, max_size=7 * MIB) as stand:
        stand.source.push(SITE, tagged)
        await stand.read(SITE)
        for name in ("one", "two"):
            image = make_image({"index.html": b"x", name: junk(name, 2 * MIB)}, {name: b"y"})
            await stand.read(stand.source.push(attrs.evolve(OTHER, tag=None), image))
        assert stand.counted("evictions_total") > 0
        assert stand.space.is_ready(tuple(layer.digest for layer in tagged.layers))
        assert now(stand.ask(SITE)).result == "hit"


@pytest_twisted.ensureDeferred
async def test_layers_too_large_together(tmp_path: Path) -> None:
    """An image with layers that are too large together is refused before a fetch."""
    image = make_image(*({f"{n}": junk(str(n), MIB)} for n in range(5)))
    async with merging(tmp_path, max_size=4 * MIB) as stand:
        await stand.read()
        stand.source.push(OTHER, image)
        fetched = stand.source.count("fetch")
        with pytest.raises(ImageTooLarge, match=str(image.digest)):
            await stand.ask(OTHER)
        assert stand.source.count("fetch") == fetched
        assert now(stand.ask()).result == "hit"


@pytest.mark.parametrize("parallel", [1, 10])
@pytest_twisted.ensureDeferred
async def test_layers_that_unpack_too_large(tmp_path: Path, parallel: int) -> None:
    """Layers that unpack to more than the quota are refused permanently, without leftovers."""
    image = make_image(*({f"{n}": bytes([n]) * MIB} for n in range(5)))
    limits = Limits(parallel_downloads=parallel)
    async with merging(tmp_path, max_size=4 * MIB, limits=limits) as stand:
        stand.source.push(OTHER, image)
        for _ in range(2):
            with pytest.raises(ImageTooLarge, match=str(image.digest)):
                await stand.ask(OTHER)
            assert names_in(tmp_path, "ingest") == []
            assert stand.counted("pulls_in_flight") == stand.counted("pulls_queued") == 0
        assert await stand.read() == b"two"


@pytest_twisted.ensureDeferred
async def test_images_that_need_each_others_room(tmp_path: Path) -> None:
    """If two images do not fit together, the first is served and the other later."""
    images = [make_image(*({f"{m}{n}": junk(f"{m}{n}", MIB)} for n in range(3))) for m in "ab"]
    async with merging(tmp_path, max_size=5 * MIB) as stand:
        for reference, image in zip((SITE, OTHER), images, strict=True):
            stand.source.push(reference, image)
        gate = stand.source.hold("fetch", after=600 * KIB)
        first, second = stand.ask(SITE), stand.ask(OTHER)
        gate.open()
        with now(first) as lease:
            assert len(names(lease)) == 3
        with pytest.raises(SpaceContended):
            now(second)
        with await stand.ask(OTHER) as lease:
            assert len(names(lease)) == 3


@pytest_twisted.ensureDeferred
async def test_from_first_to_all_and_back(tmp_path: Path) -> None:
    """A changed `layers` applies to the next request, and only missing layers are fetched."""
    async with merging(tmp_path) as stand:
        expected = {"first": b"first", "all": b"two"}
        for layers in ("first", "all", "first", "all"):
            stand.rules[SITE.repository] = RepositoryRules(layers=layers)
            stand.store.reload()
            assert await stand.read() == expected[layers]
        assert stand.source.count("fetch") == 2
        assert stand.source.count("resolve") == 1


@pytest_twisted.ensureDeferred
async def test_no_warning_where_all_are_served(tmp_path: Path, warnings: list[str]) -> None:
    """The warning that only the first layer is served appears only if that is so."""
    async with merging(tmp_path) as stand:
        await stand.read()
        assert warnings == []
        stand.rules.clear()
        stand.source.push(OTHER, IMAGE)
        await stand.read(OTHER)
        [warning] = warnings
        assert 'repos."registry.example/team/other".layers: all serves' in warning


@pytest_twisted.ensureDeferred
async def test_too_many_entries(tmp_path: Path) -> None:
    """An image with too many entries in all layers is refused, and holds no lease meanwhile."""
    async with merging(tmp_path, limits=Limits(entries=4)) as stand:
        for _ in range(2):
            with pytest.raises(BadImage, match="5 entries together, more than 4"):
                await stand.ask()
        assert names_in(tmp_path, "ingest") == names_in(tmp_path, "trees") == []
        assert on_disk(tmp_path) <= stand.space.size
        stand.rules[SITE.repository] = RepositoryRules()
        assert await stand.read() == b"first"


@pytest_twisted.ensureDeferred
async def test_waits_for_a_tree(tmp_path: Path) -> None:
    """A merge with many waiters runs once, and goes on after all have left."""
    held = Held()
    async with merging(tmp_path) as stand:
        await stand.read()
        await stand.space.set_aside(tree_of(IMAGE))
        stand.space.images._threads = held
        asked = [stand.ask() for _ in range(5)]
        assert len(held.jobs) == 1
        for wait in asked[:4]:
            wait.cancel()
            with pytest.raises(CancelledError):
                now(wait)
        held.go_all()
        assert content(now(asked[4])) == b"two"


@pytest_twisted.ensureDeferred
async def test_a_tree_is_wanted_while_it_goes(tmp_path: Path) -> None:
    """A merged index that is requested during its removal is rebuilt afterwards."""
    held = Held()
    async with merging(tmp_path) as stand:
        await stand.read()
        keep, inline = stand.space.blobs, stand.space.blobs._threads
        keep._threads = held
        removing = Deferred.fromCoroutine(stand.space.set_aside(tree_of(IMAGE)))
        asked = stand.ask()
        held.go_all()
        now(removing)
        with now(asked) as lease:
            assert content(lease) == b"two"
        assert tree_path(tmp_path).exists()
        keep._threads = inline


@pytest_twisted.ensureDeferred
async def test_closing_while_a_tree_is_made(tmp_path: Path) -> None:
    """A merge is abandoned when the blob space closes, and done after the next start."""
    held = Held()
    async with merging(tmp_path) as stand:
        await stand.read()
        await stand.space.set_aside(tree_of(IMAGE))
        stand.space.images._threads = held
        asked = stand.ask()
        asked.addErrback(lambda failure: failure.trap(BlobserveError))
        closing = Deferred.fromCoroutine(stand.space.close())
        held.go_all()
        now(closing)
        assert names_in(tmp_path, "ingest") == []
        source = stand.source
    async with merging(tmp_path, source=source) as stand:
        assert await stand.read(read_only=True) == b"two"


@pytest_twisted.ensureDeferred
async def test_codings_of_every_layer(tmp_path: Path) -> None:
    """A file of any layer can be coded, and the coding is stored with its layer."""
    texts = {name: name.encode() * 4 * KIB for name in ("low", "high")}
    image = make_image({"low": texts["low"]}, {"high": texts["high"]})
    async with merging(tmp_path) as stand:
        stand.source.push(SITE, image)
        with await stand.ask() as lease:
            for layer, name in enumerate(texts):
                entry = lease.filesystem.lookup(name.encode())
                assert lease.coded(entry, b"gzip") is NoCoding.PENDING
                coded = lease.coded(entry, b"gzip")
                assert isinstance(coded, Entry)
                assert (coded.layer, coded.coding, coded.path) == (layer, b"gzip", name.encode())
                assert lease.filesystem.file(entry).coded(b"gzip") == coded
                assert lease.filesystem.file(coded).read(0, 2) == b"\x1f\x8b"
                digest = image.layers[layer].digest
                assert (tmp_path / "blobs" / "sha256" / digest.hex / "codings").exists()


@pytest_twisted.ensureDeferred
async def test_codings_of_equal_files(tmp_path: Path) -> None:
    """Equal files in several layers, of one image or of two, share a coding."""
    text = b"text " * 4 * KIB
    first = make_image({"low": text}, {"high": text, "a": b"1"})
    second = make_image({"b": b"2"}, {"new": text})
    other = attrs.evolve(SITE, tag="v2")
    async with merging(tmp_path) as stand:
        stand.source.push(SITE, first)
        stand.source.push(other, second)
        with await stand.ask() as one, await stand.ask(other) as two:
            low = one.filesystem.lookup(b"low")
            assert one.coded(low, b"gzip") is NoCoding.PENDING
            made = one.coded(low, b"gzip")
            for lease, layer, name in ((one, 1, b"high"), (two, 1, b"new")):
                entry = lease.filesystem.lookup(name)
                for _ in range(2):  # borrowed, and then its own
                    coded = lease.coded(entry, b"gzip")
                    assert isinstance(made, Entry)
                    assert isinstance(coded, Entry)
                    assert (coded.layer, coded.path) == (layer, name)
                    assert coded.sha256 == made.sha256
                    assert gzip.decompress(lease.filesystem.file(coded).read(0, coded.size)) == text
                assert coded.codings is None


@pytest_twisted.ensureDeferred
async def test_as_many_layers_as_there_may_be(tmp_path: Path) -> None:
    """An image of 256 layers is pulled, and served at once and after a restart."""
    image = make_image({"index.html": b"x"}, *({f"{n}": b"%d" % n} for n in range(255)))
    async with merging(tmp_path) as stand:
        stand.source.push(SITE, image)
        assert len(names(await stand.ask())) == 256
        assert now(stand.ask()).result == "hit"
        source = stand.source
    async with merging(tmp_path, source=source) as stand:
        stand.source.push(SITE, image)
        for _ in range(2):
            with await stand.ask(read_only=True) as lease:
                assert read(lease, b"200") == b"200"


@pytest_twisted.ensureDeferred
async def test_a_foreign_layer(tmp_path: Path) -> None:
    """A repository with access to one layer of an image gets no layer that its registry lacks."""
    async with merging(tmp_path) as stand:
        await stand.read()
        stand.rules[OTHER.repository] = RepositoryRules(layers="all", listed=False)
        stand.source.push(OTHER, IMAGE)
        stand.source.remove(OTHER.at(IMAGE.layers[1].digest))
        with pytest.raises(BlobNotFound, match=str(IMAGE.layers[1].digest)):
            await stand.ask(OTHER)
        assert stand.space.state_of(IMAGE.layers[1].digest) is BlobState.READY
