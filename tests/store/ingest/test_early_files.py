"""Early files of a layer that is being pulled: served, watched and recalled."""

from __future__ import annotations

import os
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from blobserve.config import KIB, MIB, Limits
from blobserve.errors import BadImage, ContentMismatch, DiskFull, PathNotFound, StoreClosed
from blobserve.metrics import Metrics
from blobserve.oci.manifest import Descriptor
from blobserve.store.blobspace import BlobSpace, BlobState
from blobserve.store.index.entry import EntryKind
from blobserve.store.index.layer_index import IndexWriter
from blobserve.store.ingest.early_files import EarlyFile
from blobserve.store.ingest.ingest import Ingest
from blobserve.tar.reader import Member
from tests.support.examples import more
from tests.support.layers import (
    END,
    Compression,
    Directory,
    Entry,
    File,
    Link,
    Symlink,
    compress,
    descriptor,
)
from tests.support.spaces import made, on_disk, opened, take_in
from tests.support.stores import now
from tests.support.within import within

A = b"first" * 200


@attrs.define
class Given:
    """An early file, and the number of its recalls."""

    file: EarlyFile
    recalled: int = 0

    @classmethod
    def of(cls, file: EarlyFile) -> Given:
        """Take a file, and close it when it is recalled."""
        given = cls(file)

        def recalled() -> None:
            given.recalled += 1
            file.close()

        file.when_recalled(recalled)
        return given

    def read(self) -> bytes:
        """Return the whole file."""
        return self.file.read(0, self.file.size)


@attrs.define
class Coming:
    """A layer that is being ingested, entry by entry."""

    space: BlobSpace
    ingest: Ingest
    blob: list[bytes]
    """The remaining pieces, one for each entry."""
    metrics: Metrics
    descriptor: Descriptor

    def come(self, count: int | None = None) -> None:
        """Write this number of pieces, or all of them."""
        count = len(self.blob) if count is None else count
        self.ingest.write(b"".join(self.blob[:count]))
        del self.blob[:count]

    def ask(self, name: bytes) -> Deferred[EarlyFile]:
        """Wait for a file."""
        return self.space.early.of(self.descriptor.digest).wait(name)

    def given(self, name: bytes) -> Given | None:
        """Return the early file of a name if it is available at once."""
        waiter = self.ask(name)
        if not waiter.called:
            waiter.addErrback(lambda _: None)
            waiter.cancel()
            return None
        return Given.of(now(waiter))

    def counted(self, name: str, **labels: str) -> float:
        """Return the value of a metric."""
        name = f"blobserve_early_{name}_total"
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def finish(self) -> Deferred[None]:
        """Write the rest, and let the layer be verified."""
        self.come()
        return Deferred.fromCoroutine(self.ingest.finish())


@asynccontextmanager
async def coming(
    directory: Path,
    *entries: Entry | bytes,
    wrong: bool = False,
    compression: Compression = "none",
    **options: Any,
) -> AsyncIterator[Coming]:
    """Start an ingest of a layer with these entries; `wrong` gives it another digest."""
    pieces = [entry if isinstance(entry, bytes) else entry.packed() for entry in entries]
    pieces = [compress(piece, compression) for piece in [*pieces, END]]
    blob = b"".join(pieces)
    described = descriptor(blob, compression)
    if wrong:
        described = attrs.evolve(described, digest=descriptor(b"other").digest)
    metrics = Metrics()
    async with opened(directory, metrics=metrics, **options) as space:
        ingest = await space.ingest(described)
        ingest.failure.addErrback(lambda _: None)
        yield Coming(space, ingest, pieces, metrics, described)


@within(10)
async def test_given_as_it_passes(tmp_path: Path) -> None:
    """A waiting request gets a file as soon as its last byte has arrived, and not before."""
    entries = [File(b"a/x", A), File(b"big", b"b" * 3 * KIB), File(b"last", b"c")]
    async with coming(tmp_path, *entries) as layer:
        waiting = layer.ask(b"big")
        layer.come(1)
        assert not waiting.called
        first = layer.given(b"a/x")
        assert first is not None
        assert first.read() == A
        body = layer.blob[0]
        layer.ingest.write(body[: 512 + 3 * KIB - 1])
        assert not waiting.called
        layer.ingest.write(body[512 + 3 * KIB - 1 :])
        del layer.blob[0]
        file = now(waiting)
        assert file.read(0, file.size) == b"b" * 3 * KIB
        assert file.read(3 * KIB - 1, 100) == b"b"
        assert file.read(3 * KIB, 1) == b""
        assert file.read_cached(1, 2) == b"bb"
        assert file.read_cached(3 * KIB, 1) == b""
        file.close()
        assert layer.given(b"last") is None
        now(layer.finish())
        assert layer.counted("served") == 2
        assert first.recalled == 0


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@within(10)
async def test_of_any_compression(tmp_path: Path, compression: Compression) -> None:
    """Early files come from compressed layers too, from the middle of their streams."""
    async with coming(tmp_path, File(b"a", A), File(b"b", b"b"), compression=compression) as layer:
        layer.come(1)
        given = layer.given(b"a")
        assert given is not None
        assert given.read() == A
        given.file.close()


D, F, S, L = Directory, File, Symlink, Link

OVERTAKING = {
    "another file": [F(b"d/x", b"two")],
    "the same file again": [F(b"d/x", A)],
    "by another spelling": [F(b"./d//x", b"two")],
    "a directory": [D(b"d/x")],
    "a file below it": [F(b"d/x/y", b"two")],
    "a link": [S(b"d/x", b"/other")],
    "a hard link": [L(b"d/x", b"other")],
    "a hard link to what comes later": [L(b"d/x", b"later"), F(b"later", b"two")],
    "a device": [Entry(b"d/x", b"3")],
    "its directory a link": [S(b"d", b"other")],
    "its directory a file": [F(b"d", b"two")],
    "gone and made again": [S(b"d", b"other"), D(b"d"), F(b"d/x", A)],
    "through a link": [S(b"l", b"d"), F(b"l/x", b"two")],
}

BESIDE = {
    "its directory again": [D(b"d", mode=0o700)],
    "a whiteout": [F(b"d/.wh.x"), F(b".wh.d"), F(b"d/.wh..wh..opq")],
    "others": [F(b"d/y", b"two"), F(b"x", b"two"), S(b"dd", b"d"), F(b"d/xx", b"two")],
    "a hard link to it": [L(b"z", b"d/x"), F(b"z", b"two")],
    "others pruned": [F(b"o/x", b"two"), S(b"o", b"d")],
    "a type that is not made": [Entry(b"d/x", b"Z", b"two")],
}

OTHER = F(b"other", b"other")


@pytest.mark.parametrize("later", OVERTAKING.values(), ids=OVERTAKING)
@within(10)
async def test_overtaken(tmp_path: Path, later: list[Entry]) -> None:
    """A file is recalled once, when a later entry replaces it or one of its parents."""
    async with coming(tmp_path, F(b"d/x", A), OTHER, *later) as layer:
        layer.come(2)
        ended, given = layer.given(b"d/x"), layer.given(b"d/x")
        assert ended is not None
        assert given is not None
        ended.file.close()
        layer.come(len(later))
        # Without a waiter the file is watched all the same, and the next job reports it.
        now(layer.finish())
        assert (ended.recalled, given.recalled) == (0, 1)
        assert layer.counted("aborted", reason="overtaken") == 1
        assert layer.counted("unconfirmed", reason="overtaken") == 1


@pytest.mark.parametrize("later", BESIDE.values(), ids=BESIDE)
@within(10)
async def test_not_overtaken(tmp_path: Path, later: list[Entry]) -> None:
    """Other entries and whiteouts of the same layer do not recall a file."""
    async with coming(tmp_path, F(b"d/x", A), OTHER, *later) as layer:
        layer.come(2)
        given = layer.given(b"d/x")
        assert given is not None
        now(layer.finish())
        assert given.recalled == 0
        assert given.read() == A
        given.file.close()


@within(10)
async def test_what_takes_its_place_is_given(tmp_path: Path) -> None:
    """A request after a replacement gets the new file."""
    async with coming(tmp_path, F(b"x", A), F(b"x", b"two"), OTHER) as layer:
        layer.come(1)
        before = layer.given(b"x")
        layer.ask(b"other").addErrback(lambda _: None)  # with a waiter every byte is a job
        layer.come(1)
        assert before is not None
        assert before.recalled == 1
        after = layer.given(b"x")
        assert after is not None
        assert after.read() == b"two"
        after.file.close()


NOT_PLAIN = {
    b"link": [S(b"link", b"other")],
    b"dir": [D(b"dir")],
    b"way/other": [S(b"way", b".")],
    b"made/by": [F(b"made/by/implication", b"")],
    b"/other": [],
    b"./other": [],
    b"other/": [],
    b"": [],
    b"fifo": [Entry(b"fifo", b"6")],
    b"hard": [L(b"hard", b"later")],
    b".wh.other": [F(b".wh.other", b"")],
}


@pytest.mark.parametrize("name", NOT_PLAIN)
@within(10)
async def test_what_is_not_given(tmp_path: Path, name: bytes) -> None:
    """A link, a directory or an ambiguous name is never served early."""
    async with coming(tmp_path, OTHER, *NOT_PLAIN[name], F(b"later", A)) as layer:
        layer.come(1 + len(NOT_PLAIN[name]))
        assert layer.given(name) is None
        other = layer.given(b"other")
        assert other is not None
        other.file.close()


@within(10)
async def test_hard_links(tmp_path: Path) -> None:
    """A hard link to an earlier file is that file, even after its first name is replaced."""
    async with coming(tmp_path, F(b"a", A), L(b"b", b"a"), F(b"a", b"two"), OTHER) as layer:
        layer.come(2)
        given = layer.given(b"b")
        layer.come(1)
        now(layer.finish())
        assert given is not None
        assert (given.recalled, given.read()) == (0, A)
        given.file.close()


@within(10)
async def test_nothing_is_given_before_verification(tmp_path: Path) -> None:
    """A file in the last bytes is not served early, since its layer is soon READY or refused."""
    async with coming(tmp_path, F(b"a", A), OTHER) as layer:
        waiting = layer.ask(b"other")
        layer.come()
        assert not waiting.called
        # An earlier file is not served either while the layer is being verified.
        assert layer.given(b"a") is None
        now(layer.finish())
        assert not waiting.called
        waiting.addErrback(lambda _: None)
        waiting.cancel()
        assert layer.counted("served") == 0


@within(10)
async def test_damaged(tmp_path: Path) -> None:
    """A wrong digest of the layer recalls its early files, and nothing is stored."""
    async with coming(tmp_path, F(b"a", A), F(b"b", b"b"), wrong=True) as layer:
        waiting = layer.ask(b"nowhere")
        layer.come(1)
        given = layer.given(b"a")
        assert given is not None
        with pytest.raises(ContentMismatch):
            now(layer.finish())
        assert given.recalled == 1
        assert layer.counted("aborted", reason="damaged") == 1
        assert not waiting.called
        assert [*tmp_path.glob("ingest/*"), *tmp_path.rglob("content")] == []
        waiting.addErrback(lambda _: None)
        waiting.cancel()


@within(10)
async def test_no_tar_any_more(tmp_path: Path) -> None:
    """A layer that becomes unreadable serves no more early files, and recalls the others."""
    async with coming(tmp_path, F(b"a", A), b"junk" * 128, b"j" * KIB, b"k" * KIB) as layer:
        layer.come(1)
        given = layer.given(b"a")
        assert given is not None
        waiting = layer.ask(b"nowhere")  # with a waiter every byte is a job
        layer.come(1)
        assert layer.given(b"a") is None
        assert given.recalled == 1
        layer.come(1)
        assert layer.given(b"a") is None
        with pytest.raises(BadImage):
            now(layer.finish())
        assert layer.counted("aborted", reason="damaged") == 1
        waiting.addErrback(lambda _: None)
        waiting.cancel()


@pytest.mark.parametrize("by", ["abandoned", "closed"])
@within(10)
async def test_abandoned(tmp_path: Path, by: str) -> None:
    """When a pull breaks off, or the blob space closes, early files are recalled."""
    async with coming(tmp_path, F(b"a", A), F(b"b", b"b")) as layer:
        layer.come(1)
        given, ended = layer.given(b"a"), layer.given(b"a")
        assert given is not None
        assert ended is not None
        ended.file.close()
        if by == "abandoned":
            await layer.ingest.abandon()
        else:
            await layer.space.close()
            with pytest.raises(StoreClosed):
                await layer.ingest.finish()
        assert given.recalled == 1
        assert layer.counted("aborted", reason="abandoned") == 1
        assert layer.counted("unconfirmed", reason="abandoned") == 1


@within(10)
async def test_another_attempt(tmp_path: Path) -> None:
    """A waiter goes on waiting when a layer is downloaded again, and is served from that."""
    async with coming(tmp_path, F(b"a", A), F(b"b", b"b")) as layer:
        pieces = list(layer.blob)
        waiting = layer.ask(b"a")
        await layer.ingest.abandon()
        assert not waiting.called
        layer.ingest = await layer.space.ingest(layer.descriptor)
        layer.blob = pieces
        layer.come(1)
        file = now(waiting)
        assert file.read(0, file.size) == A
        file.close()
        now(layer.finish())


@within(10)
async def test_read_on_when_ready(tmp_path: Path) -> None:
    """An early file may be read on when its layer is READY, which is not evicted meanwhile."""
    async with coming(tmp_path, F(b"a", A), F(b"b", b"b" * 2 * MIB), max_size=4 * MIB) as layer:
        layer.come(1)
        given = layer.given(b"a")
        assert given is not None
        now(layer.finish())
        other = made(1, 2 * MIB)
        with pytest.raises(DiskFull):
            await take_in(layer.space, other)
        assert layer.space.state_of(layer.descriptor.digest) is BlobState.READY
        assert (given.recalled, given.read()) == (0, A)
        given.file.close()
        given.file.close()
        await take_in(layer.space, other)
        assert layer.space.state_of(layer.descriptor.digest) is BlobState.UNKNOWN
        assert on_disk(tmp_path) <= 4 * MIB


def descriptors() -> set[str]:
    """Return the open descriptors of this process on contents."""
    links = [os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd")]
    found = {link: os.readlink(link) for link in links if os.path.islink(link)}
    return {link for link, target in found.items() if "/content" in target}


@within(10)
async def test_descriptors(tmp_path: Path) -> None:
    """A thousand readers of a layer share one descriptor, closed after the last one."""
    async with coming(tmp_path, F(b"a", A), F(b"b", b"b")) as layer:
        before = len(descriptors())
        layer.come(1)
        waiting = [layer.ask(b"a") for _ in range(1000)]
        assert len(descriptors()) == before + 1
        await layer.ingest.abandon()
        assert len(descriptors()) == before  # The ingest had a descriptor of its own.
        for each in waiting:
            now(each).close()
        assert len(descriptors()) == before - 1


@within(10)
async def test_out_of_descriptors(tmp_path: Path) -> None:
    """Without free descriptors no file is served early, and the pull goes on."""
    async with coming(tmp_path, F(b"a", A), F(b"b", b"b")) as layer:
        waiting, (soft, hard) = layer.ask(b"a"), resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            layer.come(1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert not waiting.called
        again = layer.given(b"a")
        assert again is not None
        again.file.close()
        now(waiting).close()
        now(layer.finish())


@within(30)
async def test_the_cost_of_waiting(tmp_path: Path) -> None:
    """A thousand missing names are looked up once each, in a layer of any length."""
    index, asked = IndexWriter(tmp_path / "index", Limits()), list[str]()
    index._database.set_trace_callback(asked.append)
    look_ups = partial(_look_ups, asked)
    index.flush()
    names = frozenset(b"nowhere/%d" % n for n in range(1000))
    for n in range(2000):
        index.add(Member(n, b"d/%d" % n, b"0", 0o644, 0, b"", 0, 0, bytes(32)))
        if not n % 10:
            index.flush()
            assert look_ups() == 0
    for n in range(2000, 4000):
        index.add(Member(n, b"d/%d" % n, b"0", 0o644, 0, b"", 0, 0, bytes(32)))
        if not n % 10:
            index.flush()
            assert index.watch.look(names) == {}
    assert look_ups() == 1000
    index.close()


def _look_ups(asked: list[str]) -> int:
    return sum("SELECT seq, offset, size" in statement for statement in asked)


@within(10)
async def test_what_nobody_waits_for_is_forgotten(tmp_path: Path) -> None:
    """Names without a waiter are neither looked up nor remembered."""
    async with coming(tmp_path, F(b"a", A), F(b"b", A), F(b"c", A)) as layer:
        layer.come(1)
        for n in range(100):
            assert layer.given(b"nowhere/%d" % n) is None
        streaming = layer.ingest.streaming
        assert streaming.names() == frozenset()
        waiting = layer.ask(b"nowhere")
        assert streaming.names() == {b"nowhere"}
        waiting.addErrback(lambda _: None)
        waiting.cancel()
        again = layer.ask(b"a")
        now(again).close()


# --- For any layer --------------------------------------------------------------------------------

NAMES = [b"a", b"b", b"a/a", b"a/b", b"b/a", b"a/a/b", b"l", b"l/a", b".wh.a", b"a/.wh.b"]
names = st.sampled_from(NAMES)
targets = st.sampled_from([b"a", b"/b", b"../a", b"a/b", b".", b"l", b"b/a"])
entries = st.one_of(
    st.builds(lambda name, n: File(name, b"%d" % n * 100), names, st.integers(0, 99)),
    st.builds(Directory, names),
    st.builds(Symlink, names, targets),
    st.builds(Link, names, targets),
)


@given(
    written=st.lists(entries, max_size=25),
    cuts=st.lists(st.integers(0, 40), max_size=6),
    is_wrong=st.booleans(),
    is_awaited=st.booleans(),
)
@settings(max_examples=more(100))
def test_any_layer(written: list[Entry], cuts: list[int], is_wrong: bool, is_awaited: bool) -> None:
    """For any layer an early file equals the READY one, or was recalled and counted."""
    now(Deferred.fromCoroutine(_any_layer(written, cuts, is_wrong, is_awaited)))


async def _any_layer(
    written: list[Entry], cuts: list[int], is_wrong: bool, is_awaited: bool
) -> None:
    with TemporaryDirectory() as directory:
        async with coming(Path(directory), *written, wrong=is_wrong) as layer:
            held: list[tuple[bytes, bytes, Given]] = []
            ended: list[tuple[bytes, bytes]] = []

            def take(file: EarlyFile, name: bytes) -> None:
                given = Given.of(file)
                held.append((name, given.read(), given))

            waiting = [layer.ask(name).addCallback(take, name) for name in NAMES if is_awaited]
            stops = sorted({0, *(min(cut, len(written)) for cut in cuts), len(written)})
            for before, after in pairwise(stops):
                layer.come(after - before)
                for name in NAMES:
                    given = layer.given(name)
                    if given is not None:
                        held.append((name, given.read(), given))
                    given = layer.given(name)
                    if given is not None:
                        ended.append((name, given.read()))
                        given.file.close()
            verified = layer.finish()
            if is_wrong:
                verified.addErrback(lambda _: None)
                assert all(given.recalled == 1 for _, _, given in held)
                wrong = len(held)
            else:
                now(verified)
                wrong = 0
                for name, content, given in held:
                    is_right = served(layer, name) == content
                    assert is_right or given.recalled == 1
                    wrong += given.recalled
                    if not given.recalled:
                        assert given.read() == content
                        given.file.close()
                unconfirmed = layer.counted("unconfirmed", reason="overtaken")
                assert sum(served(layer, *each[:1]) != each[1] for each in ended) <= unconfirmed
            counted = [layer.counted("aborted", reason=why) for why in ("overtaken", "damaged")]
            assert sum(counted) == wrong
            assert layer.counted("served") == len(held) + len(ended)
            for each in waiting:
                each.addErrback(lambda _: None)
                each.cancel()


def served(layer: Coming, name: bytes) -> bytes | None:
    """Return the content of a name in a READY layer."""
    blob = layer.space.blobs.acquire(layer.descriptor.digest)
    assert blob is not None
    try:
        entry = blob.filesystem.lookup(name)
        return (
            None
            if entry.kind is EntryKind.DIRECTORY
            else blob.filesystem.file(entry).read(0, entry.size)
        )
    except PathNotFound:
        return None
    finally:
        blob.release()
