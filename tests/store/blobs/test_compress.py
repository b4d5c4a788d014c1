"""Coding files in steps: the results, and the resources."""

from __future__ import annotations

import os
import shutil
import subprocess
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobserve.config import KIB, MIB
from blobserve.errors import BlobDamaged
from blobserve.store.blobs.compress import SLICE, append, check
from blobserve.store.blobs.filesystem import ImageFilesystem
from blobserve.store.disk.codings_file import HEADER_SIZE, CodingExtent, NoCoding
from blobserve.store.disk.files import blocks
from tests.support.coded_layers import DECODE, noise, outcome, text
from tests.support.examples import more
from tests.support.extraction import serve
from tests.support.layers import File, layer

CODINGS = [b"zstd", b"gzip"]
COMMANDS = {b"zstd": ["zstd", "-dcq", "--memory=8MB"], b"gzip": ["gzip", "-dc"]}
EVERYTHING = 1 << 40


@contextmanager
def opened(directory: Path, *contents: bytes) -> Iterator[ImageFilesystem]:
    """Open a blob of files ``0``, ``1`` and so on, and its file of codings."""
    blob = layer([File(b"%d" % n, each) for n, each in enumerate(contents)], "none")
    filesystem = serve(directory, blob)
    filesystem.codings.begin(directory, True)
    try:
        yield filesystem
    finally:
        filesystem.close()


def code(filesystem: ImageFilesystem, coding: bytes, name: bytes = b"0") -> bytes | NoCoding:
    """Code a file; return the coded bytes."""
    entry = filesystem.lookup(name)
    made = outcome(append(filesystem.file(entry), filesystem.codings, coding, lambda: EVERYTHING))
    filesystem.codings.put(entry.sha256, coding, made)
    if not isinstance(made, CodingExtent):
        return made
    coded = os.pread(filesystem.codings.descriptor, made.size, made.offset)
    assert len(coded) == made.size
    return coded


def contents() -> st.SearchStrategy[bytes]:
    """Return files from most to least compressible, some longer than a slice."""
    piece = st.binary(min_size=1, max_size=300)
    repeated = st.tuples(piece, st.integers(20, 2000)).map(lambda each: each[0] * each[1])
    texts = st.builds(text, st.integers(0, 9), st.integers(1 * KIB, 300 * KIB))
    return repeated | texts | st.lists(repeated | texts | piece, min_size=1).map(b"".join)


@pytest.mark.parametrize("coding", CODINGS)
def test_decodes_to_the_file(tmp_path_factory: pytest.TempPathFactory, coding: bytes) -> None:
    """A coding decodes to its file, and is smaller by a twentieth at least."""

    @settings(max_examples=more(40))
    @given(contents())
    def decodes(content: bytes) -> None:
        with opened(tmp_path_factory.mktemp("blob"), content) as filesystem:
            coded = code(filesystem, coding)
            if not isinstance(coded, NoCoding):
                assert DECODE[coding](coded) == content
                assert len(coded) <= len(content) * 0.95 + 1

    decodes()


@pytest.mark.parametrize("coding", CODINGS)
def test_decodes_elsewhere(tmp_path: Path, coding: bytes) -> None:
    """Common tools decode the codings, within the memory that clients must have."""
    command = COMMANDS[coding]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    content = text(1, 20 * MIB)
    with opened(tmp_path, content) as filesystem:
        coded = code(filesystem, coding)
    assert isinstance(coded, bytes)
    run = subprocess.run(command, input=coded, stdout=subprocess.PIPE, check=True, timeout=60)
    assert run.stdout == content


def test_one_zstd_frame(tmp_path: Path) -> None:
    """A zstd coding is one frame with its content size and a window of at most 8 MiB.

    RFC 8878 §3.1.1.1, RFC 9659 §3.
    """
    sizes = [2 * KIB, 300 * KIB, 30 * MIB]
    with opened(tmp_path, *(text(size, size) for size in sizes)) as filesystem:
        for n, size in enumerate(sizes):
            coded = code(filesystem, b"zstd", b"%d" % n)
            assert isinstance(coded, bytes)
            assert coded[:4] == b"\x28\xb5\x2f\xfd"
            flag, is_single = coded[4] >> 6, coded[4] >> 5 & 1
            at = 5 if is_single else 6
            width = {0: 1, 1: 2, 2: 4, 3: 8}[flag]
            said = int.from_bytes(coded[at : at + width], "little") + (256 if flag == 1 else 0)
            assert said == size
            exponent, mantissa = coded[5] >> 3, coded[5] & 7
            window = size if is_single else (1 << 10 + exponent) // 8 * (8 + mantissa)
            assert window <= 8 * MIB


@pytest.mark.parametrize("coding", CODINGS)
def test_the_same_bytes_again(tmp_path: Path, coding: bytes) -> None:
    """The same file always has the same coding, without a time or a name."""
    made = []
    for directory in (tmp_path / "one", tmp_path / "two"):
        directory.mkdir()
        with opened(directory, text(3)) as filesystem:
            made.append(code(filesystem, coding))
    assert made[0] == made[1]
    assert isinstance(made[0], bytes)
    if coding == b"gzip":
        assert made[0][:4] == b"\x1f\x8b\x08\x00"  # no name, no comment
        assert made[0][4:8] == bytes(4)  # no time


@pytest.mark.parametrize("coding", CODINGS)
def test_not_worth_it(tmp_path: Path, coding: bytes) -> None:
    """A file that hardly shrinks is marked as such early, and takes no space but the mark."""
    content = noise(1, MIB) + text(1, 20 * KIB)
    with opened(tmp_path, content) as filesystem:
        steps = append(
            filesystem.file(filesystem.lookup(b"0")), filesystem.codings, coding, lambda: EVERYTHING
        )
        taken = sum(1 for _ in steps)
        assert taken < len(content) // SLICE
    assert (tmp_path / "codings").stat().st_size == HEADER_SIZE


@pytest.mark.parametrize("coding", CODINGS)
def test_never_more_than_allowed(tmp_path: Path, coding: bytes) -> None:
    """A coding never takes more space than it was granted, in grants of any size."""
    with opened(tmp_path, text(1, 3 * MIB)) as filesystem:
        entry, allowed, lacked = filesystem.lookup(b"0"), 0, 0
        steps = append(filesystem.file(entry), filesystem.codings, coding, lambda: allowed)
        for lacking in steps:
            assert blocks(os.fstat(filesystem.codings.descriptor).st_size) <= allowed
            allowed += lacking
            lacked += lacking > 0
        assert lacked > 3
        assert allowed == filesystem.codings.charge()


@pytest.mark.parametrize("coding", CODINGS)
def test_given_up(tmp_path: Path, coding: bytes) -> None:
    """A coding that is abandoned at any step leaves the file unchanged."""
    with opened(tmp_path, text(1), text(2, 3 * MIB)) as filesystem:
        code(filesystem, coding)
        before = (tmp_path / "codings").read_bytes()
        entry, n = filesystem.lookup(b"1"), 0
        while True:
            n += 1
            steps = append(filesystem.file(entry), filesystem.codings, coding, lambda: EVERYTHING)
            taken = sum(1 for _, _ in zip(range(n), steps, strict=False))
            if taken < n:
                break
            steps.close()
            assert (tmp_path / "codings").read_bytes() == before
            assert filesystem.codings.is_whole
        assert n == 3 * MIB // SLICE + 2
        assert (tmp_path / "codings").read_bytes().startswith(before)


def test_a_damaged_file(tmp_path: Path) -> None:
    """A damaged file is not coded."""
    with opened(tmp_path, text(1, MIB)) as filesystem:
        entry = filesystem.lookup(b"0")
        with (tmp_path / "content").open("r+b") as content:
            content.seek(entry.offset + MIB // 2)
            content.write(b"?")
        with pytest.raises(BlobDamaged):
            outcome(append(filesystem.file(entry), filesystem.codings, b"zstd", lambda: EVERYTHING))
        assert filesystem.codings.charge() == 0


def test_codings_that_are_lost(tmp_path: Path) -> None:
    """A coding that is truncated or unreadable is damaged."""
    with opened(tmp_path, text(1)) as filesystem:
        code(filesystem, b"zstd")
        codings, entry = filesystem.codings, filesystem.lookup(b"0")
        made = codings.get(entry.sha256, b"zstd")
        assert isinstance(made, CodingExtent)
        assert outcome(check(codings, made))
        os.truncate(codings.descriptor, made.offset + made.size - 1)
        assert not outcome(check(codings, made))
        codings.close()
        assert not outcome(check(codings, made))


@pytest.mark.parametrize("coding", CODINGS)
def test_memory(tmp_path: Path, coding: bytes) -> None:
    """Coding a file of any size holds a few slices of it in memory."""
    with opened(tmp_path, text(1, MIB) * 24) as filesystem:
        entry = filesystem.lookup(b"0")
        tracemalloc.start()
        try:
            outcome(append(filesystem.file(entry), filesystem.codings, coding, lambda: EVERYTHING))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 16 * SLICE
