"""The contract of every `Source`: a suite that each real one and the fake must pass."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

import attrs
import pytest
from twisted.internet.defer import CancelledError, Deferred

from blobserve.errors import BlobNotFound, ContentMismatch, ImageNotFound
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference
from blobserve.oci.manifest import Descriptor
from blobserve.oci.source import Source
from blobserve.testing import MadeImage, make_image
from tests.support.source_fixtures import Sink, until
from tests.support.within import within

IMAGE = make_image({"index.html": b"a page", "noise": bytes(range(256)) * 8192})
LAYER = IMAGE.layers[0]
BLOB = IMAGE.blobs[LAYER.digest]
NOWHERE = Digest.of(b"nobody has this")


class SourceContract:
    """The base class of the suites; a subclass named `Test...` provides `holding`."""

    def holding(self, image: MadeImage, **fixtures: Any) -> AbstractAsyncContextManager[Any]:
        """Yield a source that has `image`, and its reference by tag."""
        raise NotImplementedError

    @within(20)
    async def test_tag(self) -> None:
        """A tag resolves to its manifest, with the digest of the bytes."""
        async with self.holding(IMAGE) as (source, tagged):
            document = await source.resolve(tagged)
            assert document == IMAGE.documents[0]
            assert document.digest == Digest.of(document.content)

    @within(20)
    async def test_digest(self) -> None:
        """A digest resolves to the manifest with that digest."""
        async with self.holding(IMAGE) as (source, tagged):
            document = await source.resolve(tagged.at(IMAGE.digest))
            assert document.content == IMAGE.documents[0].content

    @within(20)
    async def test_tag_and_digest(self) -> None:
        """The digest in a reference counts, even if there is no such tag (N03)."""
        async with self.holding(IMAGE) as (source, tagged):
            both = Reference(tagged.repository, "no-such-tag", IMAGE.digest)
            assert (await source.resolve(both)).digest == IMAGE.digest

    @within(20)
    async def test_no_such_image(self) -> None:
        """A missing tag or digest is an `ImageNotFound` that names it."""
        async with self.holding(IMAGE) as (source, tagged):
            for missing in (Reference(tagged.repository, "no-such-tag"), tagged.at(NOWHERE)):
                with pytest.raises(ImageNotFound, match=str(missing)):
                    await source.resolve(missing)

    @within(20)
    async def test_refresh(self) -> None:
        """`refresh` finds the digest of a tag, moved or not, and a removed tag is not found."""
        async with self.holding(IMAGE) as (source, tagged):
            assert (await source.refresh(tagged, IMAGE.digest)).digest == IMAGE.digest
            assert (await source.refresh(tagged, NOWHERE)).digest == IMAGE.digest
            with pytest.raises(ImageNotFound):
                await source.refresh(Reference(tagged.repository, "no-such-tag"), IMAGE.digest)

    @within(20)
    async def test_holds(self) -> None:
        """A source tells whether it has a blob."""
        async with self.holding(IMAGE) as (source, tagged):
            missing = Descriptor("", NOWHERE, 10)
            assert await source.holds(tagged.repository, LAYER)
            assert not await source.holds(tagged.repository, missing)

    @within(20)
    async def test_fetch(self) -> None:
        """A blob is written unchanged by one producer, which is unregistered at the end."""
        async with self.holding(IMAGE) as (source, tagged):
            sink = Sink()
            await source.fetch(tagged.repository, LAYER, sink)
            assert sink.content == BLOB
            assert sink.registered == 1
            assert sink.producer is None

    @within(20)
    async def test_no_such_blob(self) -> None:
        """Fetching a missing blob is a `BlobNotFound`, and writes nothing."""
        async with self.holding(IMAGE) as (source, tagged):
            sink = Sink()
            with pytest.raises(BlobNotFound, match=str(NOWHERE)):
                await source.fetch(tagged.repository, Descriptor("", NOWHERE, 10), sink)
            assert (sink.chunks, sink.producer) == ([], None)

    @within(20)
    async def test_pause(self) -> None:
        """A consumer that pauses gets nothing until it resumes, and then the rest."""
        noise = make_image({"noise": Digest.of(b"").hex.encode() * 4000, "big": _noise(3 << 20)})
        layer = noise.layers[0]
        async with self.holding(noise) as (source, tagged):
            sink = Sink(pause_at=1)
            fetched = _fetching(source, tagged, layer, sink)
            await sink.has(1)
            await _a_moment()
            paused_at = len(sink.content)
            await _a_moment()
            assert len(sink.content) == paused_at
            assert paused_at <= 1 << 20
            sink.flow()
            await fetched
            assert sink.content == noise.blobs[layer.digest]

    @within(20)
    async def test_cancel(self) -> None:
        """Cancelling a fetch ends it and releases its consumer."""
        noise = make_image({"big": _noise(3 << 20)})
        async with self.holding(noise) as (source, tagged):
            sink = Sink(pause_at=1)
            fetched = _fetching(source, tagged, noise.layers[0], sink)
            await sink.has(1)
            await _a_moment()  # outside the call that wrote
            fetched.cancel()
            with pytest.raises(CancelledError):
                await fetched
            await until(lambda: sink.producer is None)

    @within(20)
    async def test_at_once(self) -> None:
        """Concurrent fetches of a blob are independent."""
        async with self.holding(IMAGE) as (source, tagged):
            sinks = [Sink() for _ in range(5)]
            for fetched in [_fetching(source, tagged, LAYER, sink) for sink in sinks]:
                await fetched
            assert all(sink.content == BLOB for sink in sinks)

    @within(20)
    async def test_wrong_size(self) -> None:
        """A blob of another size than its descriptor's is an error of the fetch."""
        async with self.holding(IMAGE) as (source, tagged):
            for size in (LAYER.size - 1, LAYER.size + 1):
                sink = Sink()
                with pytest.raises(ContentMismatch, match=str(LAYER.digest)):
                    await source.fetch(tagged.repository, attrs.evolve(LAYER, size=size), sink)
                assert sink.chunks == []

    @within(20)
    async def test_read(self) -> None:
        """A range of a blob is returned unchanged, from its beginning, middle and end."""
        async with self.holding(IMAGE) as (source, tagged):
            for start, length in ((0, 1), (0, LAYER.size), (700, 5000), (LAYER.size - 1, 1)):
                part = await source.read(tagged.repository, LAYER, start, length)
                assert part == BLOB[start : start + length]

    @within(20)
    async def test_read_no_such_blob(self) -> None:
        """Reading a range of a missing blob is a `BlobNotFound`."""
        async with self.holding(IMAGE) as (source, tagged):
            with pytest.raises(BlobNotFound, match=str(NOWHERE)):
                await source.read(tagged.repository, Descriptor("", NOWHERE, 10), 2, 5)

    @within(20)
    async def test_read_wrong_size(self) -> None:
        """Reading a range of a blob of another size than its descriptor's is an error."""
        async with self.holding(IMAGE) as (source, tagged):
            for size in (LAYER.size - 1, LAYER.size + 1):
                with pytest.raises(ContentMismatch, match=str(LAYER.digest)):
                    await source.read(tagged.repository, attrs.evolve(LAYER, size=size), 1, 4)

    @within(20)
    async def test_reads_at_once(self) -> None:
        """Concurrent reads of a blob are independent."""
        async with self.holding(IMAGE) as (source, tagged):
            starts = range(0, 1000, 100)
            reads = [
                Deferred.fromCoroutine(source.read(tagged.repository, LAYER, start, 100))
                for start in starts
            ]
            assert [await read for read in reads] == [BLOB[at : at + 100] for at in starts]


def _fetching(source: Source, tagged: Reference, layer: Descriptor, sink: Sink) -> Deferred[None]:
    return Deferred.fromCoroutine(source.fetch(tagged.repository, layer, sink))


def _noise(size: int) -> bytes:
    """Return random bytes, the same in each run."""
    return b"".join(
        Digest.of(number.to_bytes(4, "big"), "sha512").hex.encode() for number in range(size // 128)
    )[:size]


async def _a_moment() -> None:
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs
    from twisted.internet.task import deferLater

    await deferLater(reactor, 0.1)
