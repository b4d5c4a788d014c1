"""Precompressed files, decoded and compared with the plain ones in steps."""

from __future__ import annotations

import gzip
import random
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import brotli
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobserve.config import KIB, MIB
from blobserve.errors import BlobDamaged
from blobserve.store.blobs import sibling_decoder
from blobserve.store.blobs.sibling_decoder import compare, zstd_window
from tests.support.coded_layers import noise, outcome, text
from tests.support.examples import more
from tests.support.extraction import serve
from tests.support.layers import File, layer

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TEXT = text(1, 300 * KIB)
SKIPPABLE = b"\x5a\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"notes"
LOG = zstd.CompressionParameter.window_log


def gz(content: bytes) -> bytes:
    return gzip.compress(content, 6, mtime=0)


def zst(content: bytes, window: int = 20, is_sized: bool = True) -> bytes:
    """Return a zstd frame with this window in its header, unless the content is smaller."""
    compressor = zstd.ZstdCompressor(options={LOG: window})
    if is_sized:
        compressor.set_pledged_input_size(len(content))
    return compressor.compress(content) + compressor.flush()


def problem(directory: Path, coding: bytes, coded: bytes, plain: bytes = TEXT) -> str:
    """Return the problem with a file as a coding of another."""
    blob = layer([File(b"plain", plain), File(b"coded", coded)], "none")
    filesystem = serve(directory, blob)
    try:
        coded_file = filesystem.file(filesystem.lookup(b"coded"))
        return outcome(compare(coded_file, coding, filesystem.lookup(b"plain")))
    finally:
        filesystem.close()


RIGHT = {
    "gzip": (b"gzip", gz(TEXT)),
    "gzip with a name": (b"gzip", b"\x1f\x8b\x08\x08" + gz(TEXT)[4:10] + b"a.js\0" + gz(TEXT)[10:]),
    "brotli": (b"br", brotli.compress(TEXT)),
    "brotli, the largest window": (b"br", brotli.compress(TEXT, lgwin=24)),
    "zstd": (b"zstd", zst(TEXT)),
    "zstd, 8 MiB": (b"zstd", zst(TEXT, 23, is_sized=False)),
    "zstd, two frames": (b"zstd", zst(TEXT[:1000]) + zst(TEXT[1000:])),
    "zstd, skippable frames": (b"zstd", SKIPPABLE + zst(TEXT[:9]) + SKIPPABLE + zst(TEXT[9:])),
}
WRONG = {
    "gzip, another file": (b"gzip", gz(text(2, 300 * KIB))),
    "gzip, a longer file": (b"gzip", gz(TEXT + b"x")),
    "gzip, a shorter file": (b"gzip", gz(TEXT[:-1])),
    "gzip, cut short": (b"gzip", gz(TEXT)[:-1]),
    "gzip, half of it": (b"gzip", gz(TEXT)[:5000]),
    "gzip, a wrong checksum": (b"gzip", gz(TEXT)[:-8] + bytes(8)),
    "gzip, then junk": (b"gzip", gz(TEXT) + b"x"),
    "gzip, two members": (b"gzip", gz(TEXT[:1000]) + gz(TEXT[1000:])),
    "gzip, none": (b"gzip", b""),
    "gzip, junk": (b"gzip", b"as gzip"),
    "gzip, the plain file": (b"gzip", TEXT),
    "gzip, zlib": (b"gzip", gz(TEXT)[10:-8]),
    "brotli by the name of gzip": (b"gzip", brotli.compress(TEXT)),
    "brotli, another file": (b"br", brotli.compress(text(2, 300 * KIB))),
    "brotli, a longer file": (b"br", brotli.compress(TEXT + b"x")),
    "brotli, cut short": (b"br", brotli.compress(TEXT)[:-1]),
    "brotli, half of it": (b"br", brotli.compress(TEXT)[:5000]),
    "brotli, then junk": (b"br", brotli.compress(TEXT) + b"x"),
    "brotli, none": (b"br", b""),
    "brotli, junk": (b"br", b"as brotli"),
    "brotli, the plain file": (b"br", TEXT),
    "zstd, another file": (b"zstd", zst(text(2, 300 * KIB))),
    "zstd, a longer file": (b"zstd", zst(TEXT + b"x")),
    "zstd, a shorter file": (b"zstd", zst(TEXT[:-1])),
    "zstd, cut short": (b"zstd", zst(TEXT)[:-1]),
    "zstd, half of it": (b"zstd", zst(TEXT)[:5000]),
    "zstd, the last frame cut short": (b"zstd", zst(TEXT) + SKIPPABLE[:-1]),
    "zstd, a header cut short": (b"zstd", zst(TEXT) + zst(b"")[:5]),
    "zstd, then junk": (b"zstd", zst(TEXT) + b"junk junk"),
    "zstd, then zeros": (b"zstd", zst(TEXT) + bytes(512)),
    "zstd, none": (b"zstd", b""),
    "zstd, junk": (b"zstd", b"as zstd"),
    "zstd, the plain file": (b"zstd", TEXT),
    "zstd, 16 MiB": (b"zstd", zst(TEXT, 24, is_sized=False)),
    "zstd, 16 MiB in the second frame": (b"zstd", zst(TEXT[:9]) + zst(TEXT[9:], 24, False)),
    "zstd, too many frames": (b"zstd", zst(TEXT) + zst(b"") * 10_001),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right(tmp_path: Path, name: str) -> None:
    """A file that decodes to another with every client is a coding of it."""
    coding, coded = RIGHT[name]
    assert problem(tmp_path, coding, coded) == ""


@pytest.mark.parametrize("name", WRONG)
def test_wrong(tmp_path: Path, name: str) -> None:
    """A file that decodes to anything else, with any client, is refused with the reason."""
    coding, coded = WRONG[name]
    assert problem(tmp_path, coding, coded) != ""


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"zstd"])
def test_small_files(tmp_path: Path, coding: bytes) -> None:
    """A file of one byte or none has codings as well."""
    code = {b"gzip": gz, b"br": brotli.compress, b"zstd": zst}[coding]
    for number, content in enumerate((b"", b"x")):
        directory = tmp_path / f"{number}"
        directory.mkdir()
        assert problem(directory, coding, code(content), content) == ""


@pytest.mark.parametrize("size", [8 * MIB, 8 * MIB + 1])
def test_a_frame_of_one_segment(tmp_path: Path, size: int) -> None:
    """The window of a zstd frame with a single segment is all of its content."""
    content = bytes(size)
    coded = zst(content, 27)
    assert coded[4] & 0x20
    assert bool(problem(tmp_path, b"zstd", coded, content)) is (size > 8 * MIB)


@pytest.mark.parametrize(
    ("options", "is_right"),
    [(["-3"], True), (["-19"], True), (["--ultra", "-22"], False), (["--long=27"], False)],
)
def test_of_the_zstd_tool(tmp_path: Path, options: list[str], is_right: bool) -> None:
    """Files of the zstd tool are accepted up to level 19, and refused with a window over 8 MiB."""
    if shutil.which("zstd") is None:
        pytest.skip("zstd is not installed")
    content = noise(1, 9 * MIB)
    coded = subprocess.run(
        ["zstd", "-qc", *options], input=content, stdout=subprocess.PIPE, check=True, timeout=120
    ).stdout
    assert (problem(tmp_path, b"zstd", coded, content) == "") is is_right


def test_windows() -> None:
    """The window of a zstd frame is computed by RFC 8878 §3.1.1.1; a partial header has none."""
    for header, window in (
        ("28b52ffd 00 00", 1 << 10),
        ("28b52ffd 00 07", (1 << 10) + 7 * (1 << 7)),
        ("28b52ffd 04 68", 8 << 20),
        ("28b52ffd 00 69", 9 << 20),
        ("28b52ffd 20 ff", 255),
        ("28b52ffd 60 0000", 256),
        ("28b52ffd a0 01008000", (8 << 20) + 1),
        ("28b52ffd e1 07 0000800000000000", 8 << 20),
        ("28b52ffd a3 ffffffff 00000001", 1 << 24),
        ("502a4d18 00000000", 0),
        ("6a756e6b 20", 0),
    ):
        whole = bytes.fromhex(header)
        assert zstd_window(whole) == zstd_window(whole + b"more") == window
        if window:
            assert [zstd_window(whole[:n]) for n in range(4, len(whole))].count(None) == (
                len(whole) - 4
            )


def test_a_damaged_file(tmp_path: Path) -> None:
    """A coded file with a byte lost by the disk is damaged, not wrong."""
    blob = layer([File(b"plain", TEXT), File(b"coded", gz(TEXT))], "none")
    filesystem = serve(tmp_path, blob)
    coded, plain = (filesystem.lookup(name) for name in (b"coded", b"plain"))
    with (tmp_path / "content").open("r+b") as content:
        content.seek(coded.offset + 1000)
        content.write(bytes(10))
    with pytest.raises(BlobDamaged):
        outcome(compare(filesystem.file(coded), b"gzip", plain))
    filesystem.close()


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"zstd"])
def test_bounded(tmp_path: Path, coding: bytes) -> None:
    """Decoding holds a few pieces in memory, and decodes no more than needed."""
    code = {b"gzip": gz, b"br": brotli.compress, b"zstd": zst}[coding]
    coded = code(bytes(64 * MIB))
    blob = layer([File(b"plain", TEXT), File(b"coded", coded)], "none")
    filesystem = serve(tmp_path, blob)
    file, plain = filesystem.file(filesystem.lookup(b"coded")), filesystem.lookup(b"plain")
    tracemalloc.start()
    try:
        steps = list(compare(file, coding, plain))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(steps) < 10 + len(coded) // sibling_decoder._SLICE
    assert peak < 12 * MIB
    filesystem.close()


@settings(max_examples=more(60))
@given(st.data())
def test_never_taken_for_another(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A coding with changed bytes is accepted only if it decodes to the file."""
    coding = data.draw(st.sampled_from([b"gzip", b"br", b"zstd"]))
    content = text(3, 3 * KIB)
    code = {b"gzip": gz, b"br": brotli.compress, b"zstd": zst}[coding]
    coded = bytearray(code(content))
    draw = random.Random(data.draw(st.integers(0, 1 << 32)))
    for _ in range(data.draw(st.integers(1, 3))):
        coded[draw.randrange(len(coded))] ^= 1 << draw.randrange(8)
    found = problem(tmp_path_factory.mktemp("blob"), coding, bytes(coded), content)
    if not found:
        decoders = {b"gzip": gzip.decompress, b"br": brotli.decompress, b"zstd": zstd.decompress}
        assert decoders[coding](bytes(coded)) == content
