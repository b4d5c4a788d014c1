"""Local archives that are compressed as a whole, unpacked in a blob space."""

from __future__ import annotations

import gzip
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import Clock

from blobserve.concurrency.threads import Threads
from blobserve.config import MIB, Limits
from blobserve.errors import DiskFull, RegistryBusy, RegistryFailed
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference
from blobserve.oci.local.docker_archive import DockerArchive
from blobserve.oci.local.layout import Layout
from blobserve.oci.local.oci_archive import OciArchive
from blobserve.oci.local.unpacking import ArchiveVersion, Read
from blobserve.oci.manifest import Manifest, parse
from blobserve.store.blobspace import BlobSpace
from blobserve.store.extract.decompress import zstd
from blobserve.store.unpacker import RETRY_AFTER, UnpackedFile, Unpacker
from blobserve.testing import InlineThreads
from tests.support.parts.archives import packed, saved_of_old
from tests.support.parts.images import Image, tar_of, write_layout
from tests.support.source_fixtures import Sink
from tests.support.spaces import Held, Watched, made, names_in, on_disk, opened, take_in
from tests.support.stores import now
from tests.support.within import within

SITE = Reference.parse("registry.example/team/site:v1")
NOISE = random.Random(1).randbytes(5 * MIB)
"""More than one job unpacks."""
STREAM = tar_of({"index.html": b"a page", "noise": NOISE})
SAVED = saved_of_old({"site:v1": [STREAM]})


def halves(content: bytes, code: Callable[[bytes], bytes]) -> bytes:
    """Return content in two members or frames, with an empty one in the middle."""
    middle = len(content) // 2
    return code(content[:middle]) + code(b"") + code(content[middle:])


SKIPPABLE = b"\x5e\x2a\x4d\x18\x04\x00\x00\x00skip"
CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda content: gzip.compress(content, 1),
    "gzip members": lambda content: halves(content, gzip.compress),
    "gzip and zeros": lambda content: gzip.compress(content, 1) + bytes(512),
    "zstd": zstd.compress,
    "zstd frames": lambda content: halves(content, zstd.compress),
    "zstd after a skippable frame": lambda content: SKIPPABLE + zstd.compress(content),
}


@attrs.define
class Stand:
    """A blob space, and an archive with a source that unpacks it there."""

    space: BlobSpace
    location: Path
    archive: Path
    clock: Clock
    limits: Limits = attrs.field(factory=Limits)
    count: int = 0
    """How often an archive was unpacked or refused after that began."""
    unpacker: Unpacker = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.unpacker = Unpacker(self.space, lambda: self.limits, self.clock)

    async def unpack(self, version: ArchiveVersion, read: Read) -> UnpackedFile:
        """Unpack an archive and count it."""
        has_begun = False

        def counted(offset: int, length: int) -> bytes:
            nonlocal has_begun
            self.count += not has_begun
            has_begun = True
            return read(offset, length)

        return await self.unpacker.unpack(version, counted)

    def docker(self, threads: Threads | None = None) -> DockerArchive:
        """Return the files of a Docker archive."""
        own = threads or InlineThreads()
        return DockerArchive(self.archive, own, self.limits, self.unpack)

    def write(self, content: bytes) -> None:
        """Replace the archive."""
        self.archive.unlink(missing_ok=True)
        self.archive.write_bytes(content)

    @property
    def held(self) -> list[str]:
        """The temporary directories of the blob space."""
        return names_in(self.location, "ingest")


@asynccontextmanager
async def standing(
    tmp_path: Path, max_size: int | None = None, threads: Threads | None = None
) -> AsyncIterator[Stand]:
    """Open a blob space for one archive."""
    location, clock = tmp_path / "space", Clock()
    async with opened(location, max_size, threads) as space:
        yield Stand(space, location, tmp_path / "site.tar.gz", clock)


async def layers_of(source: Layout) -> list[bytes]:
    """Fetch all layers of the image and check their digests; return their bytes."""
    document = await source.resolve(SITE)
    manifest = parse(document.content, document.media_type, Limits())
    assert isinstance(manifest, Manifest)
    found = []
    for layer in manifest.layers:
        sink = Sink()
        await source.fetch(SITE.repository, layer, sink)
        assert Digest.of(sink.content) == layer.digest
        found.append(sink.content)
    return found


@pytest.mark.parametrize("coding", CODINGS)
@within(60)
async def test_a_compressed_archive(coding: str, tmp_path: Path) -> None:
    """A compressed archive has the same documents and layers as before it was compressed."""
    layout = write_layout(tmp_path / "layout", {"v1": Image.of({"index.html": b"a page"})})
    async with standing(tmp_path) as stand:
        before = stand.space.size
        for plain, make in ((SAVED, DockerArchive), (packed(layout), OciArchive)):
            stand.write(plain)
            reference = Layout(make(stand.archive, InlineThreads(), Limits()), InlineThreads())
            expected = await reference.resolve(SITE), await layers_of(reference)
            stand.write(CODINGS[coding](plain))
            files = make(stand.archive, InlineThreads(), Limits(), unpack=stand.unpack)
            source = Layout(files, InlineThreads())
            assert (await source.resolve(SITE), await layers_of(source)) == expected
            assert stand.space.size - before >= len(plain)
            assert on_disk(stand.location / "ingest") <= stand.space.size
            await files.close()
            assert (stand.held, stand.space.size) == ([], before)
        assert stand.count == 2


@within(60)
async def test_unpacked_once(tmp_path: Path) -> None:
    """An archive is unpacked once for all callers, and again after each change of the file."""
    async with standing(tmp_path) as stand:
        before = stand.space.size
        stand.write(gzip.compress(SAVED, 1))
        files = stand.docker()
        await gatherResults([Deferred.fromCoroutine(files.ready()) for _ in range(5)])
        source = Layout(files, InlineThreads())
        for _ in range(3):
            await layers_of(source)
        assert (stand.count, len(stand.held)) == (1, 1)
        taken = stand.space.size - before
        os.utime(stand.archive, (1, 1))
        await layers_of(source)
        assert (stand.count, len(stand.held), stand.space.size - before) == (2, 1, taken)
        other = saved_of_old({"site:v1": [tar_of({"index.html": b"other"})]})
        stand.write(zstd.compress(other))
        assert await layers_of(source) == [tar_of({"index.html": b"other"})]
        assert (stand.count, len(stand.held)) == (3, 1)
        assert stand.space.size - before < MIB
        stand.write(SAVED)
        assert await layers_of(source) == [STREAM]
        assert (stand.count, stand.held, stand.space.size) == (3, [], before)


@within(60)
async def test_an_archive_that_is_removed(tmp_path: Path) -> None:
    """The unpacked bytes of an archive that is removed are discarded at the next use."""
    async with standing(tmp_path) as stand:
        before = stand.space.size
        stand.write(gzip.compress(SAVED, 1))
        files = stand.docker()
        await files.ready()
        stand.archive.unlink()
        with pytest.raises(RegistryFailed, match="no such file"):
            await files.ready()
        assert (stand.held, stand.space.size) == ([], before)
        stand.write(gzip.compress(SAVED, 1))
        assert await layers_of(Layout(files, InlineThreads())) == [STREAM]


@within(60)
async def test_unpacked_bytes_that_are_lost(tmp_path: Path) -> None:
    """An archive is unpacked again if another program has removed the unpacked bytes."""
    async with standing(tmp_path) as stand:
        stand.write(gzip.compress(SAVED, 1))
        source = Layout(stand.docker(), InlineThreads())
        await layers_of(source)
        [name] = stand.held
        (stand.location / "ingest" / name / "archive").unlink()
        assert await layers_of(source) == [STREAM]
        assert (stand.count, len(stand.held)) == (2, 1)


DAMAGED = {
    "cut short": (gzip.compress(SAVED, 1)[:-100], "gzip data is cut short"),
    "cut in the first member": (gzip.compress(SAVED, 1)[:1000], "gzip data is cut short"),
    "changed": (b"\x1f\x8b\x08\0" + bytes(1000), "gzip data is damaged"),
    "followed by text": (gzip.compress(SAVED, 1) + b"text" * 9, "followed by something else"),
    "zstd, cut short": (zstd.compress(SAVED)[:-100], "zstd data is cut short"),
    "zstd, changed": (b"\x28\xb5\x2f\xfd" + b"\xff" * 1000, "zstd data is damaged"),
    "no tar": (gzip.compress(b"text" * 1000), "not a tar archive"),
    "a tar that is cut short": (gzip.compress(SAVED[: 3 * MIB], 1), "it is cut short"),
    "compressed twice": (gzip.compress(gzip.compress(SAVED, 1), 1), "it is gzip data"),
    "empty": (gzip.compress(b""), "not a tar archive"),
}


@pytest.mark.parametrize("kind", DAMAGED)
@within(60)
async def test_damaged_archives(kind: str, tmp_path: Path) -> None:
    """A damaged archive is an error that names the file, and is unpacked once only."""
    content, problem = DAMAGED[kind]
    async with standing(tmp_path) as stand:
        before = stand.space.size
        stand.write(content)
        files = stand.docker()
        for _ in range(3):
            with pytest.raises(RegistryFailed, match=f"site.tar.gz: .*{problem}") as raised:
                await files.ready()
            assert str(tmp_path) not in str(raised.value)
        assert (stand.count, stand.held, stand.space.size) == (1, [], before)
        stand.write(gzip.compress(SAVED, 1))
        assert await layers_of(Layout(files, InlineThreads())) == [STREAM]


@within(60)
async def test_an_archive_that_unpacks_to_too_much(tmp_path: Path) -> None:
    """An archive over `unpackedSize` is refused before more than that is written."""
    seen: list[int] = []
    threads = Watched(InlineThreads(), lambda: seen.append(on_disk(tmp_path / "space" / "ingest")))
    async with standing(tmp_path, threads=threads) as stand:
        before = stand.space.size
        stand.limits = Limits(unpacked_size=len(SAVED) - 1)
        stand.write(gzip.compress(SAVED, 1))
        with pytest.raises(RegistryFailed, match=rf"more than {len(SAVED) - 1} bytes"):
            await stand.docker().ready()
        assert (stand.held, stand.space.size) == ([], before)
        stand.limits = Limits(unpacked_size=len(SAVED))
        files = stand.docker()
        await files.ready()
        await files.close()
        stand.write(gzip.compress(bytes(200 * MIB), 9))  # 200 KB
        seen.clear()
        with pytest.raises(RegistryFailed, match="more than"):
            await stand.docker().ready()
        assert MIB < max(seen) <= len(SAVED)


@within(60)
async def test_an_archive_and_the_quota(tmp_path: Path) -> None:
    """An archive that does not fit beside leased images is refused for a minute, then tried again.

    Images that are not leased are evicted for it.
    """
    async with standing(tmp_path, max_size=12 * MIB) as stand:
        one = made(1, 8 * MIB)
        await take_in(stand.space, one)
        leased = stand.space.blobs.acquire(one.digest)
        assert leased is not None
        before = stand.space.size
        stand.write(gzip.compress(SAVED, 1))
        files = stand.docker()
        for _ in range(3):
            with pytest.raises(DiskFull):
                await files.ready()
            assert (stand.held, stand.space.size) == ([], before)
        assert stand.count == 1
        leased.release()
        stand.clock.advance(RETRY_AFTER)
        assert await layers_of(Layout(files, InlineThreads())) == [STREAM]
        assert stand.space.size <= 12 * MIB
        assert stand.space.blobs.acquire(one.digest) is None
        # The quota bounds it as well if there is no limit.
        stand.write(gzip.compress(bytes(13 * MIB), 1))
        with pytest.raises(RegistryFailed, match=f"more than {12 * MIB} bytes"):
            await files.ready()


@within(60)
async def test_an_archive_and_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive is refused before it fills the disk, after images were evicted for it."""
    block, free = 4096, 100 * MIB
    async with standing(tmp_path) as stand:
        one = made(1, 8 * MIB)
        await take_in(stand.space, one)
        stand.write(gzip.compress(SAVED, 1))

        def measured(descriptor: int) -> os.statvfs_result:
            left = (free - on_disk(stand.location)) // block
            return os.statvfs_result((block, block, 1 << 30, left, left, 0, 0, 0, 0, 255))

        monkeypatch.setattr(os, "fstatvfs", measured)
        free = on_disk(stand.location) + 64 * MIB + 2 * MIB
        await stand.docker().ready()
        assert stand.space.blobs.acquire(one.digest) is None, "it was evicted"
        before = stand.space.size
        stand.write(gzip.compress(bytes(9 * MIB), 1))
        with pytest.raises(DiskFull):
            await stand.docker().ready()
        assert (len(stand.held), stand.space.size) == (1, before)


@within(60)
async def test_an_archive_that_changes_meanwhile(tmp_path: Path) -> None:
    """An archive that is replaced while it is unpacked is asked for again, and not mixed."""
    held = Held()
    async with standing(tmp_path, threads=held) as stand:
        stand.write(gzip.compress(SAVED, 1))
        files = stand.docker()
        waiting = Deferred.fromCoroutine(files.ready())
        held.go_on_until("_write")
        held.go()
        stand.write(gzip.compress(SAVED, 2))
        held.go_all()
        with pytest.raises(RegistryBusy):
            now(waiting)
        assert stand.held == []
        waiting = Deferred.fromCoroutine(files.ready())
        held.go_all()
        now(waiting)
        assert (stand.count, len(stand.held)) == (2, 1)
        reading = Deferred.fromCoroutine(files.close())
        held.go_all()
        now(reading)


@pytest.mark.parametrize("name", ["touch", "next", "_write"])
@within(60)
async def test_a_cancelled_caller(name: str, tmp_path: Path) -> None:
    """Cancelling ends the unpacking, and gives the bytes back while a job still runs."""
    held = Held()
    async with standing(tmp_path, threads=held) as stand:
        before = stand.space.size
        stand.write(gzip.compress(SAVED, 1))
        files = stand.docker()
        waiting = Deferred.fromCoroutine(files.ready())
        held.go_on_until(name)
        waiting.addErrback(lambda failure: failure.trap(CancelledError))
        waiting.cancel()
        assert now(waiting) is CancelledError
        assert (stand.held, stand.space.size) == ([], before)
        held.go_all()
        assert stand.held == []
        again = Deferred.fromCoroutine(files.ready())
        held.go_all()
        now(again)
        assert len(stand.held) == 1


@within(60)
async def test_a_source_that_is_closed(tmp_path: Path) -> None:
    """A closed source unpacks nothing more."""
    async with standing(tmp_path) as stand:
        stand.write(gzip.compress(SAVED, 1))
        files = stand.docker()
        await files.ready()
        await files.close()
        await files.close()
        with pytest.raises(RegistryBusy):
            await files.ready()
        assert stand.held == []
