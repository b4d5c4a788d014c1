"""Decompression: bounded, to the true end, one level. Numbers of rows are those of the cases."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobserve.errors import BadLayer
from blobserve.store.decompress import PIECE, Decompressor, Inflate, fastest
from tests.layers import MEDIA_TYPES, compress, zstd

GZIP, ZSTD = MEDIA_TYPES["gzip"], MEDIA_TYPES["zstd"]
TEXT = b"".join(b"line %d\n" % n for n in range(2000))
PACKED = compress(TEXT, "gzip")
FRAMED = compress(TEXT, "zstd")
SKIPPABLE = b"\x5a\x2a\x4d\x18" + (6).to_bytes(4, "little") + b"skip\0\0"

inflates = pytest.mark.parametrize(
    "inflate", [pytest.param(zlib.decompressobj, id="zlib"), pytest.param(fastest, id="fastest")]
)


def unpack(
    blob: bytes, media_type: str = GZIP, inflate: Inflate = fastest, step: int = 1 << 16
) -> bytes:
    decompressor = Decompressor(media_type, inflate)
    pieces = []
    for at in range(0, len(blob), step):
        decompressor.feed(blob[at : at + step])
        while piece := decompressor.read():
            assert len(piece) <= PIECE
            pieces.append(piece)
    decompressor.finish()
    return b"".join(pieces)


def with_header(flags: int, fields: bytes) -> bytes:
    """`TEXT` in gzip with these optional header fields."""
    return b"\x1f\x8b\x08" + bytes([flags]) + bytes(6) + fields + PACKED[10:]


@inflates
@pytest.mark.parametrize(
    ("blob", "expected"),
    [
        pytest.param(PACKED, TEXT, id="one member"),
        pytest.param(PACKED * 3, TEXT * 3, id="Z04 members"),
        pytest.param(gzip.compress(b"") * 5000 + PACKED, TEXT, id="Z04 empty members"),
        pytest.param(PACKED + bytes(1000), TEXT, id="Z09 zeros after it"),
        pytest.param(PACKED + bytes(1000) + PACKED, TEXT * 2, id="Z09 zeros between"),
        pytest.param(with_header(8, b"n" * 10_000_000 + b"\0"), TEXT, id="Z12 long FNAME"),
        pytest.param(with_header(4, b"\xff\xff" + bytes(65535)), TEXT, id="Z12 FEXTRA"),
        pytest.param(with_header(16, b"c" * 99999 + b"\0"), TEXT, id="Z12 FCOMMENT"),
        pytest.param(compress(PACKED, "gzip"), PACKED, id="Z13 one level"),
    ],
)
def test_gzip(inflate: Inflate, blob: bytes, expected: bytes) -> None:
    """Gzip is read over all its members to the end, by isal and by zlib alike."""
    assert unpack(blob, inflate=inflate) == expected


@pytest.mark.parametrize(
    ("blob", "expected"),
    [
        pytest.param(FRAMED, TEXT, id="one frame"),
        pytest.param(FRAMED * 3, TEXT * 3, id="Z05 frames"),
        pytest.param(SKIPPABLE + FRAMED + SKIPPABLE * 2 + FRAMED, TEXT * 2, id="Z05 skippable"),
        pytest.param(compress(b"", "zstd") * 3000 + FRAMED, TEXT, id="Z05 empty frames"),
        pytest.param(compress(PACKED, "zstd"), PACKED, id="Z13 one level"),
    ],
)
def test_zstd(blob: bytes, expected: bytes) -> None:
    """Zstandard is read over all its frames to the end, skippable ones left out."""
    assert unpack(blob, ZSTD) == expected


@pytest.mark.parametrize("media_type", MEDIA_TYPES.values())
@pytest.mark.parametrize("blob", [PACKED, FRAMED, TEXT])
def test_bytes_decide(blob: bytes, media_type: str) -> None:
    """Z14: what a blob is compressed with is told by its bytes, as container tools tell it."""
    assert unpack(blob, media_type) == TEXT


CHOPPED = {"gzip": PACKED + bytes(10) + PACKED, "zstd": SKIPPABLE + FRAMED * 2, "none": TEXT * 2}


@settings(deadline=None)
@given(st.sampled_from(sorted(CHOPPED)), st.integers(1, 500))
def test_chunks_of_any_size(compression: str, step: int) -> None:
    """How a blob is cut into chunks changes nothing of what comes out."""
    assert unpack(CHOPPED[compression], step=step) == TEXT * 2


def window_of_a_gigabyte() -> bytes:
    """A frame header that asks for a window of 2**30 bytes (RFC 8878 §3.1.1.1.2), and a block."""
    return b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([(30 - 10) << 3]) + b"\x09\x00\x00x"


def with_dictionary() -> bytes:
    samples = [b"sample %d of %d" % (n, n * n) for n in range(2000)]
    return zstd.compress(TEXT, zstd_dict=zstd.train_dict(samples, 4096))


def damaged(blob: bytes, at: int) -> bytes:
    """`blob` with one bit turned."""
    copy = bytearray(blob)
    copy[at] ^= 1
    return bytes(copy)


def checked() -> bytes:
    return zstd.compress(TEXT, options={zstd.CompressionParameter.checksum_flag: 1})


@inflates
@pytest.mark.parametrize(
    ("make", "media_type", "problem"),
    [
        pytest.param(lambda: PACKED[:-1], GZIP, "cut short", id="Z06 last byte"),
        pytest.param(lambda: PACKED[:100], GZIP, "cut short", id="Z06 body"),
        pytest.param(lambda: PACKED[:5], GZIP, "cut short", id="Z06 header"),
        pytest.param(lambda: PACKED + PACKED[:15], GZIP, "cut short", id="Z06 second member"),
        pytest.param(lambda: FRAMED[:-1], ZSTD, "cut short", id="Z07 last byte"),
        pytest.param(lambda: FRAMED + FRAMED[:5], ZSTD, "cut short", id="Z07 second frame"),
        pytest.param(lambda: SKIPPABLE[:9], ZSTD, "cut short", id="Z07 skippable"),
        pytest.param(lambda: b"", GZIP, "cut short", id="Z06 nothing"),
        pytest.param(lambda: b"", ZSTD, "cut short", id="Z07 nothing"),
        pytest.param(lambda: b"ab", GZIP, "cut short", id="Z06 two bytes"),
        pytest.param(lambda: damaged(PACKED, -8), GZIP, "damaged", id="Z08 CRC"),
        pytest.param(lambda: damaged(PACKED, -2), GZIP, "damaged", id="Z08 ISIZE"),
        pytest.param(lambda: damaged(checked(), -1), ZSTD, "damaged", id="Z08 zstd checksum"),
        pytest.param(lambda: PACKED + b"garbage", GZIP, "damaged", id="Z09"),
        pytest.param(lambda: FRAMED + b"garbage", ZSTD, "damaged", id="Z09 zstd"),
        pytest.param(window_of_a_gigabyte, ZSTD, "window", id="Z10"),
        pytest.param(with_dictionary, ZSTD, "dictionary", id="Z11"),
    ],
)
def test_refused(
    make: Callable[[], bytes], media_type: str, problem: str, inflate: Inflate
) -> None:
    """What is damaged, cut short, or asks for too much is refused, never read as far as it goes."""
    with pytest.raises(BadLayer, match=problem):
        unpack(make(), media_type, inflate)


@inflates
@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_bombs_go_off_slowly(compression: str, inflate: Inflate) -> None:
    """Z01 to Z03: however little input there is, one step gives no more than one piece."""
    blob = compress(bytes(64 << 20), compression)  # type: ignore[arg-type]
    decompressor = Decompressor(MEDIA_TYPES[compression], inflate)  # type: ignore[index]
    decompressor.feed(blob)
    sizes = []
    while piece := decompressor.read():
        sizes.append(len(piece))
    decompressor.finish()
    assert sum(sizes) == 64 << 20
    assert max(sizes) <= PIECE


def test_input_without_output() -> None:
    """Z15: a million empty stored blocks give nothing, and end."""
    blocks = b"\0\0\0\xff\xff" * 1_000_000 + b"\1\0\0\xff\xff"
    blob = b"\x1f\x8b\x08" + bytes(7) + blocks + bytes(8)
    assert unpack(blob) == b""
