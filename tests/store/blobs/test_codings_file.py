"""The file with a blob's codings: its records, and their damage."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from blobserve.store.blobs.compress import check
from blobserve.store.disk.codings_file import HEADER_SIZE, CodingExtent, CodingsFile, NoCoding
from tests.support.coded_layers import outcome
from tests.support.parts.programs import own_directory

PLAIN = {name: sha256(name).digest() for name in (b"one", b"two", b"three")}
CODED = {b"one": b"1" * 40, b"two": b"2" * 300}


def write(codings: CodingsFile, name: bytes, coding: bytes, coded: bytes) -> int:
    """Append a record; return the offset of its end."""
    codings.write(coded, codings.end + HEADER_SIZE)
    made = codings.finish(PLAIN[name], coding, len(coded), sha256(coded).digest())
    codings.put(PLAIN[name], coding, made)
    return codings.end


def filled(directory: Path) -> list[int]:
    """Write two codings and a mark; return the offset of each end."""
    codings = CodingsFile.open(directory)
    assert codings.begin(directory, True) == 0
    ends = [
        write(codings, b"one", b"zstd", CODED[b"one"]),
        write(codings, b"two", b"gzip", CODED[b"two"]),
        write(codings, b"three", b"zstd", b""),
    ]
    codings.close()
    return ends


def found(directory: Path) -> dict[tuple[bytes, bytes], bytes | NoCoding]:
    """Return the valid codings of a file, each checked."""
    codings, names = CodingsFile.open(directory), {hash_: name for name, hash_ in PLAIN.items()}
    try:
        while key := codings.next_unchecked():
            coded = codings.unchecked(*key)
            assert coded is not None
            codings.put(*key, coded if outcome(check(codings, coded)) else None)
        there: dict[tuple[bytes, bytes], bytes | NoCoding] = {}
        for hash_, name in names.items():
            for coding in (b"zstd", b"gzip"):
                made = codings.get(hash_, coding)
                if isinstance(made, CodingExtent):
                    there[name, coding] = os.pread(codings.descriptor, made.size, made.offset)
                elif made is not None:
                    there[name, coding] = made
        return there
    finally:
        codings.close()


WHOLE: dict[tuple[bytes, bytes], bytes | NoCoding] = {
    (b"one", b"zstd"): CODED[b"one"],
    (b"two", b"gzip"): CODED[b"two"],
    (b"three", b"zstd"): NoCoding.NEVER,
}


def test_found_again(tmp_path: Path) -> None:
    """Codings are found again unchanged after a check of their bytes."""
    filled(tmp_path)
    codings = CodingsFile.open(tmp_path)
    assert codings.is_whole
    assert codings.get(PLAIN[b"one"], b"zstd") is None
    assert codings.get(PLAIN[b"three"], b"zstd") is NoCoding.NEVER
    assert codings.get(PLAIN[b"one"], b"br") is codings.get(b"", b"zstd") is None
    codings.close()
    codings.close()
    assert found(tmp_path) == WHOLE


def test_nothing_there(tmp_path: Path) -> None:
    """A blob without codings has no file of codings."""
    codings = CodingsFile.open(tmp_path)
    assert codings.begin(tmp_path, False) == codings.charge() == 0
    assert list(tmp_path.iterdir()) == []


def test_torn_at_every_byte(tmp_path: Path) -> None:
    """After a crash at any byte the earlier codings are found, and new ones can follow."""
    ends = filled(tmp_path)
    content = (tmp_path / "codings").read_bytes()
    assert ends[-1] == len(content)
    for length in range(len(content) + 1):
        (tmp_path / "codings").write_bytes(content[:length])
        whole = dict(list(WHOLE.items())[: sum(end <= length for end in ends)])
        assert found(tmp_path) == whole
        codings = CodingsFile.open(tmp_path)
        assert codings.is_whole is (length in (0, *ends))
        codings.begin(tmp_path, True)
        write(codings, b"one", b"gzip", b"new")
        codings.close()
        assert found(tmp_path) == {**whole, (b"one", b"gzip"): b"new"}


def test_torn_while_written(tmp_path: Path) -> None:
    """Bytes without a header are not a coding, also before other records."""
    filled(tmp_path)
    codings = CodingsFile.open(tmp_path)
    codings.begin(tmp_path, True)
    codings.write(b"x" * 5000, codings.end + HEADER_SIZE)
    codings.close()
    assert found(tmp_path) == WHOLE
    codings = CodingsFile.open(tmp_path)
    assert codings.begin(tmp_path, False) == 8192
    assert codings.charge() == 4096
    codings.close()


def test_abandoned(tmp_path: Path) -> None:
    """An abandoned record leaves the file unchanged."""
    [*_, end] = filled(tmp_path)
    codings = CodingsFile.open(tmp_path)
    codings.begin(tmp_path, True)
    codings.write(b"x" * 5000, codings.end + HEADER_SIZE)
    codings.abandon()
    assert (tmp_path / "codings").stat().st_size == end
    codings.close()


@pytest.mark.parametrize("bit", [1, 128])
def test_no_changed_byte_is_served(tmp_path: Path, bit: int) -> None:
    """A changed bit in the file removes a coding or leaves it unchanged, but never alters it."""
    filled(tmp_path)
    content = (tmp_path / "codings").read_bytes()
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= bit
        (tmp_path / "codings").write_bytes(changed)
        there = found(tmp_path)
        assert there.items() < WHOLE.items()


def test_the_last_counts(tmp_path: Path) -> None:
    """The last of several records of one file and coding counts, also if it is a mark."""
    filled(tmp_path)
    for coded in (b"second", b"", b"third"):
        codings = CodingsFile.open(tmp_path)
        codings.begin(tmp_path, True)
        write(codings, b"one", b"zstd", coded)
        codings.close()
        assert found(tmp_path)[b"one", b"zstd"] == (coded or NoCoding.NEVER)


def test_codings_of_another_release(tmp_path: Path) -> None:
    """An unknown coding is skipped, and those after it are found."""
    codings = CodingsFile.open(tmp_path)
    codings.begin(tmp_path, True)
    codings.write(b"dcb bytes", HEADER_SIZE)
    codings.finish(PLAIN[b"one"], b"dcb", 9, sha256(b"dcb bytes").digest())
    write(codings, b"one", b"zstd", CODED[b"one"])
    codings.close()
    assert found(tmp_path) == {(b"one", b"zstd"): CODED[b"one"]}


def another_version(path: Path) -> None:
    path.write_bytes(b"blobcod\x02" + bytes(1000))


def zeros(path: Path) -> None:
    path.write_bytes(bytes(10_000))


def a_link(path: Path) -> None:
    (path.parent / "elsewhere").write_bytes(b"precious")
    path.symlink_to("elsewhere")


def a_directory(path: Path) -> None:
    path.mkdir()
    (path / "file").write_bytes(b"x")


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


FOREIGN = [another_version, zeros, a_link, a_directory, a_pipe]


@pytest.mark.parametrize("put", FOREIGN)
def test_foreign(tmp_path: Path, put: Callable[[Path], None]) -> None:
    """A foreign file is ignored, removed, and replaced when needed."""
    put(tmp_path / "codings")
    codings = CodingsFile.open(tmp_path)
    assert not codings.is_whole
    assert codings.next_unchecked() is None
    codings.begin(tmp_path, False)
    assert codings.charge() == 0
    assert not os.path.lexists(tmp_path / "codings")
    codings.begin(tmp_path, True)
    write(codings, b"one", b"zstd", b"new")
    codings.close()
    assert found(tmp_path) == {(b"one", b"zstd"): b"new"}
    if put is a_link:
        assert (tmp_path / "elsewhere").read_bytes() == b"precious"


def test_out_of_descriptors(tmp_path: Path) -> None:
    """A lack of descriptors does not count as damage of codings."""
    filled(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            CodingsFile.open(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found(tmp_path) == WHOLE


@pytest.mark.parametrize(("mode", "there"), [(0o444, WHOLE), (0, {})])
def test_permissions(mode: int, there: object) -> None:
    """Codings in a read-only file are served; an unreadable file counts as none."""
    with own_directory() as directory:
        filled(directory)
        (directory / "codings").chmod(mode)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        try:
            assert found(directory) == there
        finally:
            if is_root:
                os.seteuid(0)
