"""Compressed streams: several in one layer, cut short, damaged, or bombs. Rows Z."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping

from tests.faults.hostile.case import Case
from tests.support.layers import BLOCK, Compression, File, compress, tar, zstd

LINES = b"".join(b"line %d\n" % n for n in range(2000))
TEXT = tar([File(b"text", LINES)])
PACKED = compress(TEXT, "gzip")
FRAMED = compress(TEXT, "zstd")
SKIPPABLE = b"\x5a\x2a\x4d\x18" + (6).to_bytes(4, "little") + b"skip\0\0"
EMPTY_STORED = b"\0\0\0\xff\xff"
EMPTY_RAW = bytes(3)


def with_header(flags: int, fields: bytes) -> bytes:
    """Return `TEXT` in gzip with these optional header fields."""
    return b"\x1f\x8b\x08" + bytes([flags]) + bytes(6) + fields + PACKED[10:]


def frame(window_log: int, blocks: bytes) -> bytes:
    """Return a zstd frame that asks for a window of `2**window_log` bytes (RFC 8878 §3.1.1.1.2)."""
    return b"\x28\xb5\x2f\xfd\0" + bytes([(window_log - 10) << 3]) + blocks


def raw_block(content: bytes) -> bytes:
    """Return the last block of a zstd frame, not compressed (RFC 8878 §3.1.1.2)."""
    return (1 | len(content) << 3).to_bytes(3, "little") + content


def single_segment(size: int) -> bytes:
    """Return a zstd frame of one segment with a content size of `size` bytes."""
    return b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little") + raw_block(TEXT)


def with_dictionary() -> bytes:
    samples = [b"sample %d of %d" % (n, n * n) for n in range(2000)]
    return zstd.compress(TEXT, zstd_dict=zstd.train_dict(samples, 4096))


def damaged(blob: bytes, at: int) -> bytes:
    """Return `blob` with one bit flipped."""
    copy = bytearray(blob)
    copy[at] ^= 1
    return bytes(copy)


def checked() -> bytes:
    return zstd.compress(TEXT, options={zstd.CompressionParameter.checksum_flag: 1})


def in_parts(compression: Compression, size: int) -> bytes:
    """Compress every `size` bytes of `TEXT` separately, as eStargz and zstd:chunked do."""
    parts = (TEXT[at : at + size] for at in range(0, len(TEXT), size))
    return b"".join(compress(part, compression) for part in parts)


GZIPPED: Mapping[str, tuple[bytes, bytes]] = {
    "one member": (PACKED, TEXT),
    "Z04 members": (PACKED * 3, TEXT * 3),
    "Z04 empty members": (gzip.compress(b"") * 5000 + PACKED, TEXT),
    "Z09 zeros after it": (PACKED + bytes(1000), TEXT),
    "Z09 zeros between": (PACKED + bytes(1000) + PACKED, TEXT * 2),
    "Z12 long FNAME": (with_header(8, b"n" * 10_000_000 + b"\0"), TEXT),
    "Z12 FEXTRA": (with_header(4, b"\xff\xff" + bytes(65535)), TEXT),
    "Z12 FCOMMENT": (with_header(16, b"c" * 99999 + b"\0"), TEXT),
    "Z13 one level": (compress(PACKED, "gzip"), PACKED),
    "Z04 a member for each block": (in_parts("gzip", BLOCK), TEXT),
    "Z04 a member for each few bytes": (in_parts("gzip", 7), TEXT),
    "Z15 stored blocks": (PACKED[:10] + EMPTY_STORED * 1_000_000 + PACKED[10:], TEXT),
}
"""Streams that are read as gzip, with their content."""

ZSTANDARD: Mapping[str, tuple[bytes, bytes]] = {
    "one frame": (FRAMED, TEXT),
    "Z05 frames": (FRAMED * 3, TEXT * 3),
    "Z05 skippable": (SKIPPABLE + FRAMED + SKIPPABLE * 2 + FRAMED, TEXT * 2),
    "Z05 empty frames": (compress(b"", "zstd") * 3000 + FRAMED, TEXT),
    "Z13 one level": (compress(PACKED, "zstd"), PACKED),
    "Z05 a frame for each block": (SKIPPABLE + in_parts("zstd", BLOCK) + SKIPPABLE, TEXT),
    "Z05 empty skippable frames": (b"\x50\x2a\x4d\x18" + bytes(4) + FRAMED, TEXT),
    "Z10 as large as windows may be": (frame(25, raw_block(TEXT)), TEXT),
    "Z15 raw blocks": (frame(17, EMPTY_RAW * 1_000_000 + raw_block(TEXT)), TEXT),
    "Z15 skippable frames": (SKIPPABLE * 5_000 + FRAMED, TEXT),
}
"""Streams that are read as Zstandard, with their content."""

DAMAGED: Mapping[str, tuple[bytes, Compression, str]] = {
    "Z06 last byte": (PACKED[:-1], "gzip", "cut short"),
    "Z06 body": (PACKED[:100], "gzip", "cut short"),
    "Z06 header": (PACKED[:5], "gzip", "cut short"),
    "Z06 second member": (PACKED + PACKED[:15], "gzip", "cut short"),
    "Z06 one byte of a second member": (PACKED + PACKED[:1], "gzip", "cut short"),
    "Z06 two bytes of a second member": (PACKED + PACKED[:2], "gzip", "cut short"),
    "Z06 three bytes of a second member": (PACKED + PACKED[:3], "gzip", "cut short"),
    "Z07 last byte": (FRAMED[:-1], "zstd", "cut short"),
    "Z07 second frame": (FRAMED + FRAMED[:5], "zstd", "cut short"),
    "Z07 skippable": (SKIPPABLE[:9], "zstd", "cut short"),
    "Z06 two bytes": (b"ab", "gzip", "cut short"),
    "Z08 CRC": (damaged(PACKED, -8), "gzip", "damaged"),
    "Z08 ISIZE": (damaged(PACKED, -2), "gzip", "damaged"),
    "Z08 zstd checksum": (damaged(checked(), -1), "zstd", "damaged"),
    "Z09": (PACKED + b"garbage", "gzip", "damaged"),
    "Z09 zstd": (FRAMED + b"garbage", "zstd", "damaged"),
    "Z10": (frame(30, raw_block(TEXT)), "zstd", "window"),
    "Z11": (with_dictionary(), "zstd", "dictionary"),
    "Z07 block": (FRAMED[: len(FRAMED) // 2], "zstd", "cut short"),
    "Z10 64 MiB": (frame(26, raw_block(TEXT)), "zstd", "window"),
    "Z10 a single segment that does not fit": (single_segment(1 << 60), "zstd", "window"),
    "Z12 FNAME without end": (with_header(8, b"n" * 1_000_000)[:1_000_000], "gzip", "cut short"),
    "Z12 another method": (b"\x1f\x8b\x07" + PACKED[3:], "gzip", "damaged"),
    "Z09 garbage after zeros": (PACKED + bytes(1000) + b"x", "gzip", "damaged"),
    "Z09 gzip after zstd": (FRAMED + PACKED, "zstd", "damaged"),
    "Z09 zstd after gzip": (PACKED + FRAMED, "gzip", "damaged"),
    "Z08 in the middle": (damaged(PACKED, len(PACKED) // 2), "gzip", "damaged"),
}
"""Streams that are refused, with the compression in their media type and the error message."""


def _cases() -> Iterator[Case]:
    text = {b"text": LINES, b"other": None}
    tables: tuple[tuple[Compression, Mapping[str, tuple[bytes, bytes]]], ...]
    tables = (("gzip", GZIPPED), ("zstd", ZSTANDARD))
    for compression, table in tables:
        for name, (blob, stream) in table.items():
            if stream.startswith(TEXT):
                yield Case(f"{name}, {compression}", blob, text, compression=compression)
            else:
                yield Case(f"{name}, {compression}", blob, {}, "gzip data", compression)
        for number, lie in enumerate((PACKED, FRAMED, TEXT)):
            yield Case(f"Z14 {number} as {compression}", lie, text, compression=compression)
        for name, foreign in {
            "HTML": b"<!DOCTYPE html><title>sign in</title>",
            "xz": b"\xfd7zXZ\0" + bytes(600),
            "bzip2": b"BZh9" + bytes(600),
            "zip": b"PK\x03\x04" + bytes(600),
            "JSON": b'{"errors": []}',
        }.items():
            problem = f"it is .*{name}"
            yield Case(f"Z14 {name} as {compression}", foreign, {}, problem, compression)
            packed = compress(foreign, compression)
            yield Case(f"Z13 {name} in {compression}", packed, {}, problem, compression)
        bomb = tar([File(b"bomb", bytes(48 << 20)), File(b"text", LINES)])
        yield Case(
            f"Z01 Z02 Z03 {compression}", compress(bomb, compression), text, None, compression
        )
    for name, (blob, compression, problem) in DAMAGED.items():
        if not blob:
            continue  # No manifest may list an empty layer.
        yield Case(name, blob, {}, problem, compression)


COMPRESSED: tuple[Case, ...] = tuple(_cases())
