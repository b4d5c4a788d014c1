"""Decompression: bounded, to the true end, one level. Row numbers are those of the cases."""

from __future__ import annotations

import contextlib
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobserve.errors import BadLayer
from blobserve.store.extract.decompress import PIECE, Decompressor, Inflate, fastest
from tests.faults.hostile.compressed import (
    DAMAGED,
    FRAMED,
    GZIPPED,
    PACKED,
    SKIPPABLE,
    TEXT,
    ZSTANDARD,
)
from tests.support.layers import MEDIA_TYPES, Compression, compress

GZIP, ZSTD = MEDIA_TYPES["gzip"], MEDIA_TYPES["zstd"]

inflates = pytest.mark.parametrize(
    "inflate", [pytest.param(zlib.decompressobj, id="zlib"), pytest.param(fastest, id="fastest")]
)


def unpack(
    blob: bytes, media_type: str = GZIP, inflate: Inflate = fastest, step: int = 1 << 16
) -> bytes:
    decompressor = Decompressor(inflate)
    pieces = []
    for at in range(0, len(blob), step):
        decompressor.feed(blob[at : at + step])
        while piece := decompressor.read():
            assert len(piece) <= PIECE
            pieces.append(piece)
    decompressor.finish()
    return b"".join(pieces)


@inflates
@pytest.mark.parametrize(("blob", "expected"), GZIPPED.values(), ids=GZIPPED)
def test_gzip(inflate: Inflate, blob: bytes, expected: bytes) -> None:
    """Gzip is read over all its members to the end, with the same result by each decompressor."""
    assert unpack(blob, inflate=inflate) == expected


def test_unusual_headers() -> None:
    """Z12: the fast decompressor gets plain headers only, the standard library all others."""
    for flags in range(256):
        given: list[int] = []

        def fast(wbits: int, given: list[int] = given) -> object:
            given.append(wbits)
            return zlib.decompressobj(wbits)

        decompressor = Decompressor(fast)
        decompressor.feed(b"\x1f\x8b\x08" + bytes([flags]) + bytes(6))
        with contextlib.suppress(BadLayer):
            assert decompressor.read() == b""
        has_one_field_at_most = (flags & 0b11111110) in (0, 0b100, 0b1000, 0b10000)
        assert bool(given) == has_one_field_at_most, flags


@pytest.mark.parametrize(("blob", "expected"), ZSTANDARD.values(), ids=ZSTANDARD)
def test_zstd(blob: bytes, expected: bytes) -> None:
    """Zstandard is read over all its frames to the end, without the skippable ones."""
    assert unpack(blob, ZSTD) == expected


@pytest.mark.parametrize("media_type", MEDIA_TYPES.values())
@pytest.mark.parametrize("blob", [PACKED, FRAMED, TEXT])
def test_bytes_decide(blob: bytes, media_type: str) -> None:
    """Z14: the compression of a blob is recognized by its bytes, as container tools do it."""
    assert unpack(blob, media_type) == TEXT


CHOPPED = {
    "gzip": PACKED + bytes(10) + PACKED,
    "zstd": SKIPPABLE + FRAMED * 2,
    "none": TEXT * 2,
}


@given(st.sampled_from(sorted(CHOPPED)), st.integers(1, 500))
def test_chunks_of_any_size(compression: str, step: int) -> None:
    """The output does not depend on the chunks of the input."""
    assert unpack(CHOPPED[compression], step=step) == TEXT * 2


@given(
    st.sampled_from(sorted(CHOPPED)),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 255)), max_size=3),
    st.integers(0, 2000),
    st.integers(1, 500),
)
def test_damage_of_any_kind(
    compression: str, changes: list[tuple[int, int]], left: int, step: int
) -> None:
    """A damaged blob has one content in bounded pieces, or none, for any chunks."""
    blob = bytearray(CHOPPED[compression])
    for at, bits in changes:
        blob[at % len(blob)] ^= bits
    outcomes: list[bytes | None] = []
    for size in (len(blob), step):
        try:
            outcomes.append(unpack(bytes(blob[: left or None]), step=size))
        except BadLayer:
            outcomes.append(None)
    assert outcomes[0] == outcomes[1]


@inflates
@pytest.mark.parametrize(("blob", "compression", "problem"), DAMAGED.values(), ids=DAMAGED)
def test_refused(blob: bytes, compression: Compression, problem: str, inflate: Inflate) -> None:
    """A stream that is damaged, truncated or needs too much is refused, not read in part."""
    with pytest.raises(BadLayer, match=problem):
        unpack(blob, MEDIA_TYPES[compression], inflate)


@inflates
@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_bombs_go_off_slowly(compression: str, inflate: Inflate) -> None:
    """Z01 to Z03: one step of a decompression bomb produces at most one piece."""
    blob = compress(bytes(64 << 20), compression)  # type: ignore[arg-type]
    decompressor = Decompressor(inflate)
    decompressor.feed(blob)
    sizes = []
    while piece := decompressor.read():
        sizes.append(len(piece))
    decompressor.finish()
    assert sum(sizes) == 64 << 20
    assert max(sizes) <= PIECE
