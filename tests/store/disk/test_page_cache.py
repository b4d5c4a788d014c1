"""The detection of cached pages of a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobserve.store.disk.page_cache import Residency, is_resident

PAGE = os.sysconf("SC_PAGE_SIZE")
SIZE = 64 * PAGE + 100


@pytest.fixture
def cold(tmp_path: Path) -> Iterator[int]:
    """A file without cached pages and without read-ahead."""
    path = tmp_path / "content"
    path.write_bytes(os.urandom(SIZE))
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    try:
        if _is_kept(descriptor):
            pytest.skip("this file system keeps its files in memory")
        yield descriptor
    finally:
        os.close(descriptor)


def _is_kept(descriptor: int) -> bool:
    try:
        return bool(os.preadv(descriptor, [bytearray(1)], SIZE - 1, os.RWF_NOWAIT))
    except OSError:
        return False
    finally:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def test_what_was_read_is_there(cold: int) -> None:
    """Bytes that were read are cached to the last one, and others are not."""
    assert not is_resident(cold, 0, SIZE)
    os.pread(cold, SIZE, 0)
    assert is_resident(cold, 0, SIZE)
    assert is_resident(cold, SIZE - 1, 1)


def test_one_page_that_is_missing(cold: int) -> None:
    """A single page that is not cached is noticed in any range around it."""
    os.pread(cold, 10 * PAGE, 0)
    os.pread(cold, 10 * PAGE, 11 * PAGE)
    assert is_resident(cold, 1, 10 * PAGE - 1)
    assert is_resident(cold, 11 * PAGE, 10 * PAGE)
    assert not is_resident(cold, 1, 10 * PAGE)
    assert not is_resident(cold, 11 * PAGE - 1, 2)
    assert not is_resident(cold, 0, 21 * PAGE)


def test_past_the_end(cold: int) -> None:
    """A range beyond the end of a file is never cached."""
    os.pread(cold, SIZE, 0)
    assert not is_resident(cold, 0, SIZE + PAGE)
    assert not is_resident(cold, 100 * PAGE, PAGE)


def test_what_cannot_be_mapped() -> None:
    """A descriptor that is not a file counts as not cached."""
    read, write = os.pipe()
    try:
        assert not is_resident(read, 0, 1)
    finally:
        os.close(read)
        os.close(write)


def test_a_file_of_somebody_else(cold: int) -> None:
    """The kernel reports foreign files as fully cached, which is not believed."""
    if os.geteuid() != 0:
        # A file that is surely cached, and belongs to the system.
        other = os.open("/bin/sh", os.O_RDONLY)
        try:
            assert os.fstat(other).st_uid != os.geteuid()
            assert not is_resident(other, 0, PAGE)
        finally:
            os.close(other)
        return
    os.pread(cold, SIZE, 0)
    os.seteuid(65534)
    try:
        assert not is_resident(cold, 0, SIZE)
    finally:
        os.seteuid(0)
    assert is_resident(cold, 0, SIZE)


def test_an_answer_holds_for_a_moment(cold: int) -> None:
    """A positive answer is reused for a moment, a negative one is not."""
    residency = Residency()
    assert not residency.has(cold, 0, SIZE)
    os.pread(cold, SIZE, 0)
    assert residency.has(cold, 0, SIZE)
    os.posix_fadvise(cold, 0, 0, os.POSIX_FADV_DONTNEED)
    assert residency.has(cold, 0, SIZE)
    assert not residency.has(cold, PAGE, PAGE)
    assert not Residency().has(cold, 0, SIZE)
