"""Lazy pulls: images that are read by their tables of contents."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from hashlib import sha256, shake_128
from pathlib import Path
from typing import Any

import attrs
import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import LogEvent, capturedLogs, formatEvent

from blobserve.config import Limits, RepositoryRules
from blobserve.errors import (
    BlobNotFound,
    ContentMismatch,
    NotCached,
    PathNotFound,
    RegistryFailed,
    StoreClosed,
)
from blobserve.names.reference import Reference
from blobserve.store.blobspace import BlobState
from blobserve.store.disk.codings_file import NoCoding
from blobserve.store.lazy.availability import HEAD_START
from blobserve.store.lazy.chunk_cache import LARGEST_READ
from blobserve.store.lazy.lazy_indexes import TAIL
from blobserve.store.lazy.lazy_layer import LazyFile
from blobserve.store.lease import Lease
from blobserve.testing import InlineThreads
from blobserve.web.content.leased_body import FileBody, SharedLease
from tests.support.layers import zstd
from tests.support.stores import OTHER, SITE, now, standing
from tests.support.within import within
from tests.testdata.toc import NAMES, Layer, chunked, image_of, retold

ANY_SIZE = Limits(published_index_min_size=1)
LAYERS = {name: Layer.named(name) for name in NAMES}
THIRD = Reference.parse("registry.example/team/third:v1")
CHUNKED, CURRENT = LAYERS["chunked.tar.zst"], LAYERS["current.tar.gz"]


async def read(reading: LazyFile, size: int, start: int = 0, piece: int = 4096) -> bytes:
    """Read a file in order."""
    content = b""
    while len(content) < size:
        content += await reading.read(start + len(content), min(piece, size - len(content)))
    return content


async def fetched(lease: Lease, path: str) -> bytes:
    """Return the content of a file in an image that is not cached."""
    entry = lease.filesystem.lookup(path.encode())
    if not entry.size:
        return b""
    with closing(lease.filesystem.file(entry)) as reading:
        return await read(reading, entry.size)


def wiped(directory: Path) -> bool:
    """Return whether all temporary files of lazy pulls are removed."""
    return not list((directory / "ingest").iterdir())


@pytest.fixture
def caught() -> Iterator[Sequence[LogEvent]]:
    """The logged events."""
    with capturedLogs() as events:
        yield events


def log(caught: Sequence[LogEvent]) -> str:
    """Return the logged events as text."""
    return "\n".join(formatEvent(each) for each in caught)


@within(20)
@pytest.mark.parametrize("name", NAMES)
async def test_before_it_is_here(name: str, tmp_path: Path) -> None:
    """Every file of a layer with a table of contents can be read before the layer is downloaded."""
    layer = LAYERS[name]
    async with standing(tmp_path, limits=ANY_SIZE) as stand:
        stand.source.push(SITE, layer.image)
        gate = stand.source.hold("fetch")
        with now(stand.ask()) as lease:
            assert (lease.result, lease.filesystem.is_complete) == ("pull", False)
            assert lease.digest == layer.image.digest
            for path, content in layer.files.items():
                assert await fetched(lease, path) == content
            with pytest.raises(PathNotFound):
                lease.filesystem.lookup(b"nowhere")
        with now(stand.ask()) as lease:
            assert (lease.result, lease.filesystem.is_complete) == ("wait", False)
        assert stand.store.lease_at_once(SITE) is None
        gate.open()
        with now(stand.ask()) as lease:
            assert (lease.result, lease.filesystem.is_complete) == ("hit", True)
        assert stand.counted("published_indexes_total", outcome="used") == 1
        assert stand.source.count("fetch") == 1
        assert wiped(tmp_path)
        size = stand.space.size
    async with standing(tmp_path / "other", limits=ANY_SIZE) as stand:
        stand.source.push(SITE, attrs.evolve(layer, annotations={}).image)
        now(stand.ask()).release()
        assert stand.space.size == size, "what was counted for the index has been given back"


@within(20)
@pytest.mark.parametrize("name", ["chunked.tar.zst", "current.tar.gz"])
async def test_round_trips(name: str, tmp_path: Path) -> None:
    """A first file costs three requests: the manifest, the table of contents and a chunk."""
    async with standing(tmp_path, limits=ANY_SIZE, pulls_behind=False) as stand:
        stand.source.push(SITE, LAYERS[name].image)
        with now(stand.ask()) as lease:
            await fetched(lease, "docs/deep/er/index.html")
        asked = [method for method, _ in stand.source.requests if method != "fetch"]
        assert asked == ["resolve", "read", "read"]


@within(20)
@pytest.mark.parametrize("name", NAMES)
async def test_what_is_asked_for_goes_first(name: str, tmp_path: Path) -> None:
    """A request during the look-up of a table gets its file from a partial index first."""
    layer = LAYERS[name]
    async with standing(tmp_path, limits=ANY_SIZE) as stand:
        stand.source.push(SITE, layer.image)
        index, layer_ = stand.source.hold("read"), stand.source.hold("fetch")
        asked = stand.store.lease_or_early(SITE, b"index.html")
        absent = stand.store.lease_or_early(SITE, b"nowhere")
        anything = stand.ask()
        assert not any(each.called for each in (asked, absent, anything))
        index.open()
        with now(asked) as first, now(absent) as second, now(anything) as third:  # type: ignore[union-attr]
            assert isinstance(first, Lease)
            assert first.filesystem is not third.filesystem
            assert second.filesystem is third.filesystem
            assert await fetched(first, "index.html") == layer.files["index.html"]
            assert await fetched(third, "last.txt") == layer.files["last.txt"]
            for lease, path in ((first, b"last.txt"), (second, b"nowhere")):
                with pytest.raises(PathNotFound):
                    lease.filesystem.lookup(path)
        with now(stand.store.lease_or_early(SITE, b"last.txt")) as later:  # type: ignore[union-attr]
            assert isinstance(later, Lease)
            assert await fetched(later, "last.txt") == layer.files["last.txt"]
        assert stand.counted("published_indexes_total", outcome="used") == 1
        layer_.open()
        assert wiped(tmp_path)


@within(20)
async def test_many_are_not_looked_up_one_by_one(tmp_path: Path) -> None:
    """Only a few of many early requests are looked up before the complete index."""
    async with standing(tmp_path, limits=ANY_SIZE) as stand:
        stand.source.push(SITE, CHUNKED.image)
        index, layer = stand.source.hold("read"), stand.source.hold("fetch")
        names = [b"d/" * 30 + b"f", b"f" * 2000, *(b"no/%d" % n for n in range(100)), b"index.html"]
        asked = [stand.store.lease_or_early(SITE, name) for name in names]
        index.open()
        leases = [now(each) for each in asked]
        assert len({id(lease.filesystem) for lease in leases if isinstance(lease, Lease)}) == 1
        for lease in leases:
            assert isinstance(lease, Lease)
            lease.release()
        layer.open()
        assert wiped(tmp_path)


@within(20)
async def test_an_index_longer_than_the_end(tmp_path: Path) -> None:
    """An eStargz table that begins before the end that was read costs one more request."""
    layer = retold(CURRENT, lambda entries: entries[0].update(xattrs={"user.x": _noise(TAIL)}))
    async with standing(tmp_path, limits=ANY_SIZE, pulls_behind=False) as stand:
        stand.source.push(SITE, layer.image)
        with now(stand.ask()) as lease:
            assert await fetched(lease, "index.html") == CURRENT.files["index.html"]
        (start, length), (more, rest), _ = stand.source.parts
        assert start + length == len(layer.blob)
        assert more + rest == start


def _noise(size: int) -> str:
    return shake_128(b"noise").hexdigest(size)


@within(20)
async def test_the_index_goes_first(tmp_path: Path) -> None:
    """A layer is not fetched until its table was read, or a head start is over."""
    async with standing(tmp_path, limits=ANY_SIZE) as stand:
        stand.source.push(SITE, CHUNKED.image)
        index, layer = stand.source.hold("read"), stand.source.hold("fetch")
        asked = stand.ask()
        assert stand.source.count("fetch") == 0
        stand.clock.advance(HEAD_START)
        assert stand.source.count("fetch") == 1
        assert not asked.called
        index.open()
        with now(asked) as lease:
            assert not lease.filesystem.is_complete
        layer.open()
        assert wiped(tmp_path)


@within(20)
async def test_an_index_that_comes_too_late(tmp_path: Path) -> None:
    """A table that arrives after its layer is not used, and its files are removed."""
    async with standing(tmp_path, limits=ANY_SIZE) as stand:
        stand.source.push(SITE, CHUNKED.image)
        index = stand.source.hold("read")
        asked = stand.ask()
        stand.clock.advance(HEAD_START)
        with now(asked) as lease:
            assert lease.filesystem.is_complete
        index.open()
        assert wiped(tmp_path)


@within(20)
async def test_read_only(tmp_path: Path) -> None:
    """A read-only request waits for the layer and causes no lazy read."""
    async with standing(tmp_path, limits=ANY_SIZE) as stand:
        stand.source.push(SITE, CHUNKED.image)
        with pytest.raises(NotCached):
            now(stand.ask(read_only=True))
        gate = stand.source.hold("fetch")
        now(stand.ask()).release()
        asked = stand.ask(read_only=True)
        assert not asked.called
        reads = stand.source.count("read")
        gate.open()
        with now(asked) as lease:
            assert lease.filesystem.is_complete
        assert stand.source.count("read") == reads


@within(20)
@pytest.mark.parametrize("case", ["small", "no digest", "another digest"])
async def test_not_used(case: str, tmp_path: Path) -> None:
    """The table of a small layer, or one without a trusted digest, is not used."""
    layer, limits = CHUNKED, ANY_SIZE
    if case == "small":
        limits = Limits(published_index_min_size=len(layer.blob) + 1)
    elif case == "no digest":
        layer = attrs.evolve(layer, annotations={})
    else:
        name = next(each for each in layer.annotations if each.endswith("manifest-checksum"))
        wrong = {**layer.annotations, name: "sha256:" + "0" * 64}
        layer = attrs.evolve(layer, annotations=wrong)
    async with standing(tmp_path, limits=limits) as stand:
        stand.source.push(SITE, layer.image)
        with now(stand.ask()) as lease:
            assert lease.filesystem.is_complete
        is_refused = case == "another digest"
        assert stand.source.count("read") == is_refused
        assert stand.counted("published_indexes_total", outcome="refused") == is_refused
        assert wiped(tmp_path)


@within(20)
async def test_an_index_that_lies(tmp_path: Path, caught: Sequence[LogEvent]) -> None:
    """A refused table of contents is logged with the reason, and the layer is pulled as usual."""
    layer = retold(CHUNKED, lambda entries: entries[-1].update(offset=1 << 40))
    async with standing(tmp_path, limits=ANY_SIZE) as stand:
        stand.source.push(SITE, layer.image)
        with now(stand.ask()) as lease:
            assert lease.filesystem.is_complete
        assert stand.counted("published_indexes_total", outcome="refused") == 1
        assert "is not used: a chunk lies outside" in log(caught)
        assert wiped(tmp_path)


@within(20)
async def test_a_source_that_fails(tmp_path: Path) -> None:
    """A source that cannot read a table of contents does not affect the pull of the layer."""
    async with standing(tmp_path, limits=ANY_SIZE) as stand:
        stand.source.push(SITE, CHUNKED.image)
        stand.source.fail("read", RegistryFailed("registry.example", "it has no ranges"))
        with now(stand.ask()) as lease:
            assert lease.filesystem.is_complete
        assert stand.counted("published_indexes_total", outcome="failed") == 1


@within(20)
async def test_no_room_for_the_index(tmp_path: Path) -> None:
    """A table of contents for which there is no space is not used, and the quota holds."""
    async with standing(tmp_path, limits=ANY_SIZE, max_size=756_000) as stand:
        stand.source.push(SITE, CHUNKED.image)
        with now(stand.ask()) as lease:
            assert lease.filesystem.is_complete
        assert stand.counted("published_indexes_total", outcome="failed") == 1
        assert stand.space.size <= 756_000
        assert wiped(tmp_path)


@within(20)
async def test_a_chunk_that_was_damaged_once(tmp_path: Path) -> None:
    """A chunk that does not match its digest is read once more."""
    async with standing(tmp_path, limits=ANY_SIZE, pulls_behind=False) as stand:
        stand.source.push(SITE, CHUNKED.image)
        with now(stand.ask()) as lease:
            stand.source.corrupt(CHUNKED.descriptor.digest, 1, 150)
            assert await fetched(lease, "index.html") == CHUNKED.files["index.html"]


@within(20)
async def test_a_chunk_that_is_wrong(tmp_path: Path) -> None:
    """No byte of a chunk that stays wrong is served, and its table is no longer used."""
    async with standing(tmp_path, limits=ANY_SIZE) as stand:
        stand.source.push(SITE, CHUNKED.image)
        gate = stand.source.hold("fetch")
        with now(stand.ask()) as lease:
            stand.source.corrupt(CHUNKED.descriptor.digest, 4, 150)
            with pytest.raises(ContentMismatch):
                await fetched(lease, "index.html")
            assert await fetched(lease, "last.txt") == CHUNKED.files["last.txt"]
        asked = stand.ask()
        assert not asked.called
        gate.open()
        with now(asked) as lease:
            assert lease.filesystem.is_complete


@within(20)
async def test_one_digest_for_two_sizes(tmp_path: Path) -> None:
    """A chunk with the digest of another but not its size is refused."""

    def change(entries: list[dict[str, Any]]) -> None:
        page, last = entries[1], entries[-1]
        assert (page["name"], last["name"]) == ("index.html", "last.txt")
        last["digest"] = page["digest"]

    async with standing(tmp_path, limits=ANY_SIZE, pulls_behind=False) as stand:
        stand.source.push(SITE, retold(CHUNKED, change).image)
        with now(stand.ask()) as lease:
            assert await fetched(lease, "index.html") == CHUNKED.files["index.html"]
            with pytest.raises(ContentMismatch):
                await fetched(lease, "last.txt")


def _false_digest(entries: list[dict[str, Any]]) -> None:
    next(each for each in entries if each["name"] == "assets/holes.bin")["digest"] = "sha256:" + (
        "0" * 64
    )


@within(20)
@pytest.mark.parametrize("layer", [CHUNKED, CURRENT], ids=["chunked", "estargz"])
async def test_a_file_that_is_wrong(layer: Layer, tmp_path: Path) -> None:
    """A file of right chunks with a wrong digest is never served to its end."""
    async with standing(tmp_path, limits=ANY_SIZE, pulls_behind=False) as stand:
        stand.source.push(SITE, retold(layer, _false_digest).image)
        content = layer.files["assets/holes.bin"]
        with now(stand.ask()) as lease:
            entry = lease.filesystem.lookup(b"assets/holes.bin")
            with closing(lease.filesystem.file(entry)) as reading:
                assert await read(reading, 4096) == content[:4096]
                with pytest.raises(ContentMismatch, match="file"):
                    await read(reading, entry.size - 4096, 4096)
        assert not stand.ask().called


def _another_name(entries: list[dict[str, Any]]) -> None:
    next(each for each in entries if each["name"] == "index.html")["name"] = "index.htm"


@within(20)
@pytest.mark.parametrize("layer", [CHUNKED, CURRENT], ids=["chunked", "estargz"])
async def test_other_names_than_the_tar(layer: Layer, tmp_path: Path) -> None:
    """When a layer is READY its own index is used, even if the table had other names."""
    async with standing(tmp_path, limits=ANY_SIZE) as stand:
        stand.source.push(SITE, retold(layer, _another_name).image)
        gate = stand.source.hold("fetch")
        with now(stand.ask()) as lease:
            assert await fetched(lease, "index.htm") == layer.files["index.html"]
        gate.open()
        with now(stand.ask()) as lease:
            assert lease.filesystem.lookup(b"index.html").size
            with pytest.raises(PathNotFound):
                lease.filesystem.lookup(b"index.htm")


@within(20)
async def test_in_the_middle_of_a_file(tmp_path: Path) -> None:
    """A reader continues in the READY layer, without further requests to the source."""
    async with standing(tmp_path, limits=ANY_SIZE) as stand:
        stand.source.push(SITE, CURRENT.image)
        gate = stand.source.hold("fetch")
        lease = now(stand.ask())
        entry = lease.filesystem.lookup(b"assets/large.txt")
        with closing(lease.filesystem.file(entry)) as reading:
            content = await read(reading, 5000, piece=100)
            reads = stand.source.count("read")
            gate.open()
            assert not wiped(tmp_path)
            content += await read(reading, entry.size - 5000, 5000)
            assert content == CURRENT.files["assets/large.txt"]
        assert stand.source.count("read") == reads
        lease.release()
        assert wiped(tmp_path)


@within(20)
async def test_in_the_middle_of_a_file_that_is_another(tmp_path: Path) -> None:
    """A reader of a file that the READY layer does not have gets an error."""
    async with standing(tmp_path, limits=ANY_SIZE) as stand:
        stand.source.push(SITE, retold(CURRENT, _another_name).image)
        gate = stand.source.hold("fetch")
        with now(stand.ask()) as lease:
            entry = lease.filesystem.lookup(b"index.htm")
            with closing(lease.filesystem.file(entry)) as reading:
                await reading.read(0, 5)
                gate.open()
                with pytest.raises(ContentMismatch, match="another file"):
                    await reading.read(5, 5)


@within(20)
async def test_a_pull_that_fails(tmp_path: Path) -> None:
    """If the pull fails open files can still be read, and the next request starts a new pull."""
    async with standing(tmp_path, limits=ANY_SIZE) as stand:
        stand.source.push(SITE, CHUNKED.image)
        gate = stand.source.hold("fetch")
        stand.source.fail("fetch", RegistryFailed("registry.example", "it fell over"))
        with now(stand.ask()) as lease:
            gate.open()
            assert await fetched(lease, "last.txt") == CHUNKED.files["last.txt"]
        assert wiped(tmp_path)
        with now(stand.ask()) as lease:
            assert lease.filesystem.is_complete
        assert stand.source.count("fetch") == 2


@within(20)
async def test_closing(tmp_path: Path) -> None:
    """Closing the store reports an error to readers and removes the temporary files."""
    async with standing(tmp_path, limits=ANY_SIZE, pulls_behind=False) as stand:
        stand.source.push(SITE, CHUNKED.image)
        lease = now(stand.ask())
        gate = stand.source.hold("read")
        waiting = Deferred.fromCoroutine(fetched(lease, "index.html"))
        assert gate.waiting == 1
        await stand.store.close()
        assert gate.waiting == 0
        for reading in (waiting, Deferred.fromCoroutine(fetched(lease, "last.txt"))):
            with pytest.raises(StoreClosed):
                now(reading)
        lease.release()
        assert wiped(tmp_path)


@within(20)
async def test_closing_while_an_index_is_read(tmp_path: Path) -> None:
    """Closing the store ends the read of a table, and the waits for it."""
    async with standing(tmp_path, limits=ANY_SIZE) as stand:
        stand.source.push(SITE, CHUNKED.image)
        gate = stand.source.hold("read")
        asked = stand.ask()
        assert gate.waiting == 1
        await stand.store.close()
        assert gate.waiting == 0
        with pytest.raises(StoreClosed):
            now(asked)
        assert stand.counted("published_indexes_total", outcome="failed") == 0
        assert wiped(tmp_path)


@within(20)
async def test_cancelling(tmp_path: Path) -> None:
    """A reader that cancels its wait for a chunk does not affect other readers."""
    async with standing(tmp_path, limits=ANY_SIZE, pulls_behind=False) as stand:
        stand.source.push(SITE, CHUNKED.image)
        with now(stand.ask()) as lease:
            gate = stand.source.hold("read")
            one = Deferred.fromCoroutine(fetched(lease, "index.html"))
            other = Deferred.fromCoroutine(fetched(lease, "index.html"))
            assert gate.waiting == 1, "a chunk is read once, however many want it"
            one.cancel()
            with pytest.raises(CancelledError):
                now(one)
            gate.open()
            assert now(other) == CHUNKED.files["index.html"]


@within(20)
async def test_neighbours_are_fetched_together(tmp_path: Path) -> None:
    """Adjacent chunks of a file are fetched in few requests."""
    async with standing(tmp_path, limits=ANY_SIZE, pulls_behind=False) as stand:
        stand.source.push(SITE, CURRENT.image)
        with now(stand.ask()) as lease:
            entry = lease.filesystem.lookup(b"assets/large.txt")
            before = len(stand.source.parts)
            with closing(lease.filesystem.file(entry)) as reading:
                content = await read(reading, entry.size, piece=64 << 10)
            assert content == CURRENT.files["assets/large.txt"]
            assert len(stand.source.parts) == before + 1


@within(20)
async def test_a_range_fetches_little(tmp_path: Path) -> None:
    """A small range of a file causes a small fetch, at any offset."""
    async with standing(tmp_path, limits=ANY_SIZE, pulls_behind=False) as stand:
        stand.source.push(SITE, CURRENT.image)
        with now(stand.ask()) as lease:
            entry = lease.filesystem.lookup(b"assets/large.txt")
            first = lease.filesystem._layer.index.chunk(entry, 0)  # type: ignore[attr-defined]
            for start in (0, first.size - 3, 99_999, entry.size - 1):
                with closing(lease.filesystem.file(entry)) as reading:
                    size = min(10, entry.size - start)
                    expected = CURRENT.files["assets/large.txt"][start : start + size]
                    assert await read(reading, size, start) == expected
            assert all(length < 8192 for _, length in stand.source.parts[1:])


def large(count: int, size: int) -> Layer:
    """Return a layer of one file in random chunks of this size."""
    contents = [shake_128(b"%d" % n).digest(size) for n in range(count)]
    entries: list[dict[str, Any]] = []
    before = b"\0" * 9  # not a skippable frame, and not examined
    for n, content in enumerate(contents):
        entries.append({"type": "chunk", "name": "large", "offset": len(before), "chunkSize": size})
        entries[-1] |= {
            "chunkOffset": n * size,
            "chunkDigest": f"sha256:{sha256(content).hexdigest()}",
        }
        before += zstd.compress(content)
    whole = b"".join(contents)
    entries[0] |= {"type": "reg", "size": len(whole), "endOffset": len(before)}
    entries[0]["digest"] = "sha256:" + sha256(whole).hexdigest()
    return chunked(before, json.dumps({"version": 1, "entries": entries}).encode())


@within(20)
async def test_nothing_is_read_from_the_records(tmp_path: Path) -> None:
    """The records of chunks are never returned as the bytes of a file."""
    async with standing(tmp_path, limits=ANY_SIZE, pulls_behind=False) as stand:
        stand.source.push(SITE, CURRENT.image)
        with now(stand.ask()) as lease:
            entry = lease.filesystem.lookup(b"index.html")
            with closing(lease.filesystem.file(entry)) as file:
                assert file.size == entry.size
                assert file.read_cached(0, 10) is None
                assert file.stored is None
            assert lease.coded(entry, b"gzip") is NoCoding.NEVER


@within(60)
async def test_reading_ahead(tmp_path: Path) -> None:
    """A large file is fetched a little ahead of its reader, in requests of bounded size."""
    layer = large(60, 500_000)
    async with standing(tmp_path, limits=ANY_SIZE, pulls_behind=False) as stand:
        stand.source.push(SITE, layer.image)
        with now(stand.ask()) as lease:
            entry = lease.filesystem.lookup(b"large")
            before = len(stand.source.parts)
            with closing(lease.filesystem.file(entry)) as reading:
                for at in range(0, entry.size, 50_000):
                    await read(reading, 50_000, at, piece=50_000)
                    parts = stand.source.parts[before:]
                    ahead = max(start + length for start, length in parts) - at
                    assert ahead < 9 << 20
                    assert max(length for _, length in parts) <= LARGEST_READ
            assert len(stand.source.parts) - before < 15


@within(20)
async def test_small_chunks(tmp_path: Path) -> None:
    """Small chunks are requested and served in bounded numbers per reactor iteration."""
    layer = large(1000, 600)
    async with standing(tmp_path, limits=ANY_SIZE, pulls_behind=False) as stand:
        stand.source.push(SITE, layer.image)
        with now(stand.ask()) as lease:
            hold = SharedLease(lease, InlineThreads(), stand.clock, stand.clock.seconds() + 5.0)
            body = FileBody(hold, lease.filesystem.file(lease.filesystem.lookup(b"large")))
            reads = [body.read(600 * n, 64 << 10) for n in range(40)]
            assert max(length for _, length in stand.source.parts[1:]) < 256 * 700
            assert sum(bool(read.paused) for read in reads) == 2
            stand.clock.advance(0)
            assert [len(now(read)) for read in reads] == [600] * 40
            body.close()


@within(20)
async def test_chunks_are_bounded(tmp_path: Path) -> None:
    """Chunks stay within the memory limit, and a reader without space waits for earlier ones."""
    layer, limits = large(12, 10_000), attrs.evolve(ANY_SIZE, chunk_cache_size=25_000)
    async with standing(tmp_path, limits=limits, pulls_behind=False) as stand:
        stand.source.push(SITE, layer.image)
        with now(stand.ask()) as lease:
            entry = lease.filesystem.lookup(b"large")
            cache = lease.filesystem.file(entry)._chunks._cache
            first, second, third = (lease.filesystem.file(entry) for _ in range(3))
            now(Deferred.fromCoroutine(first.read(0, 10)))
            now(Deferred.fromCoroutine(second.read(50_000, 10)))
            waiting = Deferred.fromCoroutine(third.read(100_000, 10))
            assert not waiting.called
            assert cache.held == 20_000
            # A cached chunk needs no space.
            now(Deferred.fromCoroutine(lease.filesystem.file(entry).read(0, 10)))
            second.close()
            assert len(now(waiting)) == 10
            assert cache.size <= 25_000


@within(20)
async def test_a_chunk_beyond_the_bound(tmp_path: Path) -> None:
    """A file is served chunk by chunk even if the limit is smaller than one chunk."""
    layer, limits = large(3, 10_000), attrs.evolve(ANY_SIZE, chunk_cache_size=1)
    async with standing(tmp_path, limits=limits, pulls_behind=False) as stand:
        stand.source.push(SITE, layer.image)
        with now(stand.ask()) as lease:
            entry = lease.filesystem.lookup(b"large")
            with closing(lease.filesystem.file(entry)) as reading:
                cache = reading._chunks._cache
                for chunk in range(3):
                    got = Deferred.fromCoroutine(reading.read(10_000 * chunk, 10_000))
                    assert now(got) == shake_128(b"%d" % chunk).digest(10_000)
                assert cache.size == 0


@within(20)
async def test_a_chunk_that_comes_too_late_to_be_kept(tmp_path: Path) -> None:
    """A chunk that arrives after its layer is READY is not cached."""
    async with standing(tmp_path, limits=ANY_SIZE) as stand:
        stand.source.push(SITE, CHUNKED.image)
        layer = stand.source.hold("fetch")
        with now(stand.ask()) as lease:
            entry = lease.filesystem.lookup(b"index.html")
            with closing(lease.filesystem.file(entry)) as reading:
                cache, chunks = reading._chunks._cache, stand.source.hold("read")
                got = Deferred.fromCoroutine(reading.read(0, entry.size))
                layer.open()
                assert not got.called
                chunks.open()
                assert now(got) == CHUNKED.files["index.html"]
                assert cache.size == 0


@within(20)
async def test_dropped_when_it_is_here(tmp_path: Path) -> None:
    """When a layer is READY all its chunks are dropped."""
    async with standing(tmp_path, limits=ANY_SIZE) as stand:
        stand.source.push(SITE, CHUNKED.image)
        gate = stand.source.hold("fetch")
        with now(stand.ask()) as lease:
            await fetched(lease, "assets/large.txt")
            entry = lease.filesystem.lookup(b"index.html")
            with closing(lease.filesystem.file(entry)) as reading:
                cache = reading._chunks._cache
                assert cache.size == 150_000 + 512
                gate.open()
                assert cache.size == 0


@within(20)
async def test_reads_do_not_wait_for_downloads(tmp_path: Path) -> None:
    """Tables and chunks are read even if every permit for downloads is taken."""
    limits = attrs.evolve(ANY_SIZE, parallel_downloads=1)
    async with standing(tmp_path, limits=limits) as stand:
        stand.source.push(OTHER, attrs.evolve(CHUNKED, annotations={}).image)
        stand.source.push(SITE, CURRENT.image)
        stand.source.hold("fetch")
        assert not stand.ask(OTHER).called
        with now(stand.ask()) as lease:
            assert await fetched(lease, "last.txt") == CURRENT.files["last.txt"]
        assert stand.source.count("fetch") == 1


@within(20)
async def test_reads_at_once(tmp_path: Path) -> None:
    """The number of concurrent range reads stays within the limit."""
    limits = attrs.evolve(ANY_SIZE, parallel_chunk_reads=2)
    async with standing(tmp_path, limits=limits, pulls_behind=False) as stand:
        stand.source.push(SITE, CURRENT.image)
        with now(stand.ask()) as lease:
            gate = stand.source.hold("read")
            names = ["index.html", "last.txt", "assets/exact.bin", "docs/deep/er/index.html"]
            reading = [Deferred.fromCoroutine(fetched(lease, name)) for name in names]
            assert gate.waiting == 2
            gate.open()
            assert [now(each) for each in reading] == [CURRENT.files[name] for name in names]


@within(20)
@pytest.mark.parametrize("is_listed", [True, False])
async def test_repositories_do_not_share(tmp_path: Path, is_listed: bool) -> None:
    """A repository does not get the chunks that another has read."""
    async with standing(tmp_path, limits=ANY_SIZE) as stand:
        for each in (SITE, OTHER, THIRD):
            stand.rules[each.repository] = RepositoryRules(listed=is_listed or each == SITE)
            stand.source.push(each, CHUNKED.image)
        gate = stand.source.hold("fetch")
        with now(stand.ask()) as lease:
            await fetched(lease, "index.html")
        reads = stand.source.count("read")
        with now(stand.ask(OTHER)) as lease:
            assert not lease.filesystem.is_complete
            await fetched(lease, "index.html")
        assert stand.source.count("read") == 2 * reads
        stand.source.remove(THIRD.at(CHUNKED.descriptor.digest))
        refused = stand.ask(THIRD)
        gate.open()
        with pytest.raises(BlobNotFound):
            now(refused)
        assert stand.counted("published_indexes_total", outcome="failed") == 1


@within(20)
async def test_a_tag_that_moves(tmp_path: Path) -> None:
    """The cached image of a moved tag is served, and no table of the new one is read."""
    async with standing(tmp_path, limits=ANY_SIZE) as stand:
        stand.source.push(SITE, attrs.evolve(CURRENT, annotations={}).image)
        now(stand.ask()).release()
        stand.source.push(SITE, CHUNKED.image)
        gate = stand.source.hold("fetch")
        stand.clock.advance(61)
        for _ in range(2):
            with now(stand.ask()) as lease:
                assert lease.filesystem.is_complete
                assert lease.filesystem.digest == CURRENT.descriptor.digest
        assert stand.source.count("read") == 0
        gate.open()
        with now(stand.ask()) as lease:
            assert lease.filesystem.digest == CHUNKED.descriptor.digest


@within(20)
async def test_before_early_serving(tmp_path: Path) -> None:
    """A file in a table of contents is read lazily and not served early unverified."""
    async with standing(tmp_path, limits=ANY_SIZE) as stand:
        stand.source.push(SITE, CURRENT.image)
        stand.source.hold("fetch", after=30_000)
        now(stand.ask()).release()
        found = now(stand.store.lease_or_early(SITE, b"index.html"))
        assert isinstance(found, Lease)
        assert not found.filesystem.is_complete
        found.release()


@within(20)
async def test_several_layers(tmp_path: Path) -> None:
    """An image of several layers is never read lazily."""
    image = image_of(CURRENT, CHUNKED)
    async with standing(tmp_path, limits=ANY_SIZE) as stand:
        stand.rules[SITE.repository] = RepositoryRules(layers="all")
        stand.source.push(SITE, image)
        with now(stand.ask()) as lease:
            assert lease.filesystem.is_complete
            assert lease.filesystem.lookup(b"stargz.index.json").layer == 0
        assert stand.source.count("read") == 0


@within(20)
async def test_an_image_that_was_reclaimed(tmp_path: Path) -> None:
    """An image that was evicted is read lazily while it is pulled again."""
    async with standing(tmp_path, limits=ANY_SIZE) as stand:
        stand.source.push(SITE, CHUNKED.image)
        with now(stand.ask()):
            pass
        now(stand.ask()).release()
        await stand.space.set_aside(CHUNKED.descriptor.digest)
        assert stand.space.state_of(CHUNKED.descriptor.digest) is BlobState.UNKNOWN
        stand.source.hold("fetch")
        with now(stand.ask()) as lease:
            assert not lease.filesystem.is_complete
            assert await fetched(lease, "last.txt") == CHUNKED.files["last.txt"]


@within(60)
async def test_how_much_is_read(tmp_path: Path) -> None:
    """Serving one in a hundred files of a layer reads a twentieth of it, table included."""
    layer = _of_files(500, 40_000)
    async with standing(tmp_path, limits=ANY_SIZE, pulls_behind=False) as stand:
        stand.source.push(SITE, layer.image)
        with now(stand.ask()) as lease:
            for n in range(0, 500, 100):
                assert len(await fetched(lease, f"file{n}")) == 40_000
        pulled = sum(length for _, length in stand.source.parts)
        assert pulled == stand.counted("chunk_bytes_total")
        assert pulled < 0.05 * len(layer.blob)


def _of_files(count: int, size: int) -> Layer:
    import json

    entries, blob = [], bytearray(b"\0" * 9)
    for n in range(count):
        content = shake_128(b"%d" % n).digest(size)
        packed = zstd.compress(content)
        digest = f"sha256:{sha256(content).hexdigest()}"
        begin = len(blob)
        blob += packed
        entry = {"type": "reg", "name": f"file{n}", "size": size, "digest": digest}
        entries.append({**entry, "offset": begin, "endOffset": len(blob)})
    return chunked(bytes(blob), json.dumps({"version": 1, "entries": entries}).encode())
