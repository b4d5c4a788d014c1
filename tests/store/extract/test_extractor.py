"""The extractor: it writes no more than it was granted, and finishes only the promised blob."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobserve.config import Limits
from blobserve.errors import BadImage, ContentMismatch
from blobserve.names.digest import Digest
from blobserve.store.blobs.filesystem import ImageFilesystem
from blobserve.store.extract.extractor import Extractor
from tests.support.examples import more
from tests.support.extraction import LIMITS, contents, extract
from tests.support.layers import (
    END,
    MEDIA_TYPES,
    Compression,
    Directory,
    File,
    Link,
    Symlink,
    compress,
    descriptor,
    layer,
    tar,
)

ENTRIES = [
    Directory(b"ide/"),
    File(b"ide/index.html", b"<h1>hello</h1>", mtime=99),
    File(b"ide/big", bytes(range(256)) * 200),
    Symlink(b"current", b"ide"),
    Link(b"again", b"current/index.html"),
    File(b"empty"),
]
EXPECTED = {
    b"ide": None,
    b"ide/index.html": b"<h1>hello</h1>",
    b"ide/big": bytes(range(256)) * 200,
    b"again": b"<h1>hello</h1>",
    b"empty": b"",
}


def on_disk(directory: Path) -> int:
    """Return the bytes that the files in `directory` take."""
    return sum(max(s.st_blocks * 512, s.st_size) for s in map(os.stat, directory.iterdir()))


@pytest.mark.parametrize("compression", MEDIA_TYPES)
def test_extracted_layers_are_served(tmp_path: Path, compression: Compression) -> None:
    """A layer of any compression is extracted exactly, into files for the owner alone."""
    blob = layer(ENTRIES, compression)
    extracted = extract(tmp_path, blob, descriptor(blob, compression))
    assert extracted.entries == len(ENTRIES)
    assert extracted.content_size == (tmp_path / "content").stat().st_size == len(tar(ENTRIES))
    assert extracted.index_size == (tmp_path / "index").stat().st_size
    assert Digest.of((tmp_path / "index").read_bytes()).hex == extracted.index_sha256.hex()
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    filesystem = ImageFilesystem.open(tmp_path, Digest.of(blob), lambda: LIMITS)
    assert contents(filesystem) == EXPECTED
    filesystem.close()


@settings(max_examples=more(30))
@given(st.sampled_from(sorted(MEDIA_TYPES)), st.integers(1, 5000), st.integers(1, 100_000))
def test_chunks_and_grants_of_any_size(compression: Compression, step: int, extent: int) -> None:
    """The result does not depend on the chunks of the input and the grants."""
    blob = layer(ENTRIES, compression)
    with TemporaryDirectory() as name:
        extract(Path(name), blob, descriptor(blob, compression), step=step, extent=extent)
        filesystem = ImageFilesystem.open(Path(name), Digest.of(blob), lambda: LIMITS)
        assert contents(filesystem) == EXPECTED
        filesystem.close()


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_bomb_stops_at_every_grant(tmp_path: Path, compression: Compression) -> None:
    """D13, Z01, Z02: a layer of ratio 1,000:1 never takes more disk space than it was granted."""
    blob = layer([File(b"bomb", bytes(100 << 20))], compression)
    extractor = Extractor(tmp_path, descriptor(blob, compression), LIMITS)
    granted = 0
    for lacking in extractor.feed(blob):
        assert on_disk(tmp_path) <= granted + 4096
        granted += lacking + (4 << 20)
        extractor.grant(lacking + (4 << 20))
    extracted = extractor.finish()
    assert on_disk(tmp_path) <= extracted.content_size + extracted.index_size + 8192 <= granted


@settings(max_examples=more(20))
@given(
    st.lists(st.integers(1, 1500), min_size=1, max_size=60),
    st.integers(1, 500),
    st.booleans(),
    st.sampled_from([0, 200_000]),
)
def test_an_index_takes_no_more_than_its_bound(
    lengths: list[int], repeat: int, is_deep: bool, spare: int
) -> None:
    """The index stays within the grants as well, for any lengths and order of names."""
    separator = b"/" if is_deep else b"_"
    entries = [
        File(separator.join(b"%x%x" % (n * 7919 % 997, n) for _ in range(length // 6 + 1)))
        for n, length in enumerate(lengths * (repeat // len(lengths) + 1))
    ]
    blob = layer(entries, "none")
    with TemporaryDirectory() as name:
        extractor = Extractor(Path(name), descriptor(blob, "none"), Limits(depth=4096))
        granted = 0
        for lacking in extractor.feed(blob):
            assert on_disk(Path(name)) <= granted + 4096
            granted += lacking + spare
            extractor.grant(lacking + spare)
        extractor.finish()
        assert on_disk(Path(name)) <= granted + 4096


def test_room_set_aside_for_content_goes_to_the_index(tmp_path: Path) -> None:
    """If the index grows faster than the content, the grants still hold for both."""
    blob = layer([File(b"%0950d" % n) for n in range(600)], "none")
    extractor = Extractor(tmp_path, descriptor(blob, "none"), LIMITS)
    granted = 0
    for at in range(0, len(blob), 50_000):
        for lacking in extractor.feed(blob[at : at + 50_000]):
            assert on_disk(tmp_path) <= granted + 4096
            granted += lacking + (4 << 20)
            extractor.grant(lacking + (4 << 20))
        assert on_disk(tmp_path) <= granted + 4096
    extracted = extractor.finish()
    assert on_disk(tmp_path) <= extracted.content_size + extracted.index_size + 8192


GOOD = layer(ENTRIES)


@pytest.mark.parametrize(
    "blob",
    [
        pytest.param(GOOD[:-1], id="one byte less"),
        pytest.param(b"", id="nothing"),
        pytest.param(GOOD + b"\0", id="one byte more"),
        pytest.param(GOOD[:500] + b"?" + GOOD[501:], id="one byte wrong in the middle"),
        pytest.param(GOOD[:-1] + b"?", id="one byte wrong at the end"),
        pytest.param(b"<html>sign in</html>".ljust(len(GOOD)), id="a page instead"),
        pytest.param(layer([File(b"other")]).ljust(len(GOOD), b"\0"), id="another layer"),
    ],
)
def test_bytes_that_were_not_promised(tmp_path: Path, blob: bytes) -> None:
    """D4: bytes that do not match the digest are a mismatch, even if they are not a layer."""
    with pytest.raises(ContentMismatch):
        extract(tmp_path, blob, descriptor(GOOD))


def test_sha512(tmp_path: Path) -> None:
    """A layer is verified by the algorithm of its digest."""
    described = attrs.evolve(descriptor(GOOD), digest=Digest.of(GOOD, "sha512"))
    assert extract(tmp_path, GOOD, described).entries == len(ENTRIES)


@pytest.mark.parametrize(
    ("blob", "problem"),
    [
        (b"<!DOCTYPE html><title>no</title>", "HTML"),
        (compress(b"\xfd7zXZ\0" + bytes(600), "gzip"), "xz data"),
        (compress(GOOD, "gzip"), "gzip data"),
        (compress(tar(ENTRIES)[:-2000], "gzip"), "cut short"),
        (GOOD[:-9], "cut short"),
        (GOOD + b"garbage", "damaged"),
    ],
)
def test_layers_that_cannot_be_served(tmp_path: Path, blob: bytes, problem: str) -> None:
    """A blob that is not a layer is refused with its name and the reason, and little is written."""
    with pytest.raises(BadImage, match=problem) as raised:
        extract(tmp_path, blob, step=100)
    assert str(Digest.of(blob)) in str(raised.value)


def test_the_unpacked_size_is_bounded(tmp_path: Path) -> None:
    """L54: a layer that unpacks to more than the limit is refused before it is on disk."""
    blob = layer([File(b"bomb", bytes(50 << 20))])
    with pytest.raises(BadImage, match="unpacks to more than 1000000 bytes"):
        extract(tmp_path, blob, limits=Limits(unpacked_size=1_000_000))
    assert on_disk(tmp_path) < 10 << 20


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_parts_are_bounded(tmp_path: Path, compression: Compression) -> None:
    """Z04, Z05, Z15: more members or frames than the entries need are refused, unread."""
    empty, limits = compress(b"", compression), Limits(entries=len(ENTRIES))
    blob = empty * (4 * len(ENTRIES) - 1) + layer(ENTRIES, compression)
    described = descriptor(blob, compression)
    assert extract(tmp_path, blob, described, limits=limits).entries == len(ENTRIES)
    (tmp_path / "more").mkdir()
    with pytest.raises(BadImage, match="too many parts"):
        extract(tmp_path / "more", empty + blob, limits=limits)


def test_what_follows_the_archive_is_checked_and_not_kept(tmp_path: Path) -> None:
    """L49: bytes after the end of the archive are hashed and not stored."""
    blob = layer(ENTRIES, end=END + os.urandom(4096) * 1000)
    extracted = extract(tmp_path, blob)
    assert extracted.content_size == len(tar(ENTRIES))


def test_an_image_names_no_file(tmp_path: Path) -> None:
    """D3: a layer with any entry names is extracted to two files and nothing else."""
    inside = tmp_path / "inside"
    inside.mkdir()
    entries = [
        File(b"../escaped", b"x"),
        File(str(tmp_path / "absolute").encode(), b"x"),
        Symlink(b"link", str(tmp_path).encode()),
        File(b"link/through", b"x"),
        Symlink(b"content", b"../.."),
        Link(b"index", b"/etc/passwd"),
    ]
    extract(inside, layer(entries))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["content", "index", "inside"]


def test_existing_files_are_not_written(tmp_path: Path) -> None:
    """An extractor never writes to an existing file, or through a dangling link."""
    (tmp_path / "index").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        Extractor(tmp_path, descriptor(GOOD), LIMITS)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_a_full_disk_is_the_owners_matter(tmp_path: Path) -> None:
    """An error of the disk is raised unchanged, and an aborted extractor holds no file open."""
    before = len(os.listdir("/proc/self/fd"))
    blob = layer([File(b"big", bytes(64 << 20))])
    extractor = Extractor(tmp_path, descriptor(blob), LIMITS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    steps = extractor.feed(blob)
    assert next(steps) > 0
    extractor.grant(128 << 20)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
        with pytest.raises(OSError, match="File too large"):
            next(steps)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    extractor.abort()
    extractor.abort()
    assert len(os.listdir("/proc/self/fd")) == before


def test_memory_stays_flat(tmp_path: Path) -> None:
    """L52: a layer of many entries and a bomb is extracted in a few megabytes of memory."""
    program = """
import resource, sys
from pathlib import Path
from tests.support.extraction import extract
from tests.support.layers import File, descriptor, layer
many = [File(b"dir%d/name%d" % (n // 9, n)) for n in range(30_000)]
blob = layer([*many, File(b"bomb", bytes(1 << 25))])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
extract(Path(sys.argv[1]), blob)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    out = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], check=True, capture_output=True, text=True
    )
    assert int(out.stdout) < 30_000
