"""Sparse files: expanded if their map is in PAX records, refused alone in GNU's old format."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from blobserve.config import Limits
from blobserve.errors import BadImage, PathNotFound
from blobserve.store.blobs.filesystem import ImageFilesystem
from blobserve.store.index.layer_index import IndexWriter
from tests.support.extraction import contents, extract, serve
from tests.support.layers import File, descriptor, header, layer, padded, pax, tar
from tests.support.parts.programs import program

KIB = 1 << 10
HOLES = {
    b"holes at both ends": [
        (300 * KIB, b"a" * 5000),
        (900 * KIB, b"b" * 70_001),
        (2000 * KIB, b""),
    ],
    b"data at both ends": [(0, b"c" * 4096), (1 << 20, b"d" * 123)],
    b"all hole": [(700 * KIB + 1, b"")],
    b"many": [(n * 16 * KIB, b"%d" % n * 900) for n in range(200)],
    b"no hole": [(0, b"plain")],
}


def make(directory: Path) -> dict[bytes, bytes]:
    """Write files with holes, and return their bytes."""
    directory.mkdir()
    for name, runs in HOLES.items():
        with (directory / os.fsdecode(name)).open("wb") as file:
            for offset, data in runs:
                file.truncate(offset)
                file.seek(offset)
                file.write(data)
    return {name: (directory / os.fsdecode(name)).read_bytes() for name in HOLES}


def written_by(command: list[str], directory: Path) -> bytes:
    names = [os.fsdecode(name) for name in HOLES]
    return subprocess.run(
        [*command, *names], cwd=directory, check=True, capture_output=True, timeout=60
    ).stdout


WRITERS = {
    f"GNU tar {version}": ["tar", "-cSf-", "--format=posix", f"--sparse-version={version}"]
    for version in ("0.0", "0.1", "1.0")
} | {"bsdtar": ["bsdtar", "-cf-", "--format=pax"]}


@pytest.mark.parametrize("step", [509, 256 << 10])
@pytest.mark.parametrize("writer", WRITERS)
def test_expanded(tmp_path: Path, writer: str, step: int) -> None:
    """A layer with sparse files serves the bytes that extracting it gives, also after a repair."""
    program(WRITERS[writer][0])
    files = make(tmp_path / "files")
    stream = written_by(WRITERS[writer], tmp_path / "files")
    assert stream.count(b"GNU.sparse.") >= 4
    blob = tmp_path / "blob"
    blob.mkdir()
    extract(blob, stream, descriptor(stream, "none"), step=step)
    for _ in range(2):
        digest = descriptor(stream, "none").digest
        filesystem = ImageFilesystem.open(blob, digest, Limits)
        assert contents(filesystem) == files
        filesystem.close()
        IndexWriter.rebuild(blob, Limits())


def test_old_format_is_refused_alone(tmp_path: Path) -> None:
    """A sparse file in GNU's old format is not found; all other files of the layer are served."""
    files = make(tmp_path / "files")
    stream = written_by(["tar", "-cSf-", "--format=gnu"], tmp_path / "files")
    old = File(b"many", b"an older file of that name").packed()
    stream = old + stream[: len(stream)].rstrip(b"\0")
    stream += bytes(-len(stream) % 512) + tar([File(b"last", b"served")])
    (tmp_path / "blob").mkdir()
    filesystem = serve(tmp_path / "blob", stream)
    assert contents(filesystem) == {b"no hole": files[b"no hole"], b"last": b"served"}
    with pytest.raises(PathNotFound):
        filesystem.lookup(b"many")
    filesystem.close()


def sparse(records: dict[bytes, bytes], body: bytes, name: bytes = b"x") -> bytes:
    start = pax({b"GNU.sparse." + key: value for key, value in records.items()})
    return start + header(name, size=len(body)) + padded(body)


V1 = {b"major": b"1", b"minor": b"0"}
FAULTS = {
    "data beyond the size": sparse({b"map": b"0,9", b"size": b"5"}, bytes(9)),
    "extents overlap": sparse({b"map": b"0,4,2,4", b"size": b"99"}, bytes(8)),
    "more data than the map": sparse({b"map": b"0,4", b"size": b"99"}, bytes(5)),
    "less data than the map": sparse({b"map": b"0,6", b"size": b"99"}, bytes(5)),
    "odd map": sparse({b"map": b"0,4,9", b"size": b"99"}, bytes(4)),
    "other count": sparse({b"map": b"0,4", b"numblocks": b"2", b"size": b"9"}, bytes(4)),
    "no size": sparse({b"map": b"0,4"}, bytes(4)),
    "unknown version": sparse({b"major": b"2", b"minor": b"0", b"realsize": b"4"}, bytes(4)),
    "map without an end": sparse(V1 | {b"realsize": b"9"}, b"7\n0\n" + b"1" * 508),
    "map without a number": sparse(V1 | {b"realsize": b"9"}, padded(b"1\nx\n4\n") + bytes(4)),
    "map of many": sparse(V1 | {b"realsize": b"9"}, b"9999999999\n" + b"1\n" * (1 << 20)),
    "link": pax({b"GNU.sparse.map": b"", b"GNU.sparse.size": b"9"}) + header(b"x", type=b"2"),
}


@pytest.mark.parametrize("stream", FAULTS.values(), ids=FAULTS)
def test_refused(tmp_path: Path, stream: bytes) -> None:
    """A map that does not fit its file refuses the layer."""
    whole = File(b"before").packed() + stream + tar([File(b"after", b"x")])
    with pytest.raises(BadImage, match="sparse"):
        extract(tmp_path, whole, descriptor(whole, "none"))


@pytest.mark.parametrize("size", [1 << 20, (1 << 63) - 1])
def test_within_unpacked_size(tmp_path: Path, size: int) -> None:
    """Holes count for `unpackedSize`, and a file beyond it is refused before it is written."""
    stream = sparse({b"map": b"0,4", b"size": b"%d" % size}, b"data") + tar([])
    limits = Limits(unpacked_size=1 << 20)
    with pytest.raises(BadImage, match="unpacks to more than"):
        extract(tmp_path, stream, descriptor(stream, "none"), limits=limits, extent=KIB)
    assert sum(each.stat().st_size for each in tmp_path.iterdir()) < 1 << 20


def test_cut_short(tmp_path: Path) -> None:
    """A sparse file that ends in its map, in its data or before its header is cut short."""
    stream = sparse(V1 | {b"realsize": b"900"}, padded(b"1\n400\n500\n") + b"d" * 500)
    for size in (700, 1100, 1200, 2000, 2048, 2200):
        directory = tmp_path / str(size)
        directory.mkdir()
        with pytest.raises(BadImage, match="cut short"):
            extract(directory, stream[:size], descriptor(stream[:size], "none"))


def test_name_and_date(tmp_path: Path) -> None:
    """The name of a sparse file is the one in its sparse record, its date that of its entry."""
    stream = pax(
        {
            b"GNU.sparse.major": b"1",
            b"GNU.sparse.minor": b"0",
            b"GNU.sparse.name": b"real/name",
            b"GNU.sparse.realsize": b"900",
            b"mtime": b"1600000000.5",
        }
    )
    body = padded(b"1\n400\n500\n") + b"d" * 500
    stream += header(b"GNUSparseFile.0/name", size=len(body)) + padded(body) + tar([])
    filesystem = serve(tmp_path, stream)
    entry = filesystem.lookup(b"real/name")
    assert (entry.size, entry.mtime) == (900, 1600000000)
    assert filesystem.file(entry).read(0, 900) == bytes(400) + b"d" * 500
    filesystem.close()


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_empty_blob(tmp_path: Path, compression: str) -> None:
    """A layer of no bytes is an empty layer, as in containerd."""
    extract(tmp_path, b"", descriptor(b"", compression))  # type: ignore[arg-type]


def test_zeros_behind_zstd(tmp_path: Path) -> None:
    """Zeros may follow the last zstd frame, as bsdtar writes them into a pipe."""
    blob = layer([File(b"a", b"body")], "zstd")
    blob += bytes(10_000)
    extract(tmp_path, blob, descriptor(blob, "zstd"))
    broken = blob + b"x"
    (tmp_path / "broken").mkdir()
    with pytest.raises(BadImage, match="zstd"):
        extract(tmp_path / "broken", broken, descriptor(broken, "zstd"))
