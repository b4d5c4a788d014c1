"""Layers written byte by byte for tests, valid ones and ones that no tool would write.

`layer` packs entries into a tar stream and compresses it. The bytes depend only on the arguments,
so that the same layer always has the same digest. A name or link that is too long for its header
field becomes a PAX record, as container tools do it.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

import attrs

from blobserve.names.digest import Digest
from blobserve.oci.manifest import Descriptor

try:
    from compression import zstd
except ImportError:
    from backports import zstd

BLOCK = 512
END = bytes(2 * BLOCK)
USTAR, GNU, V7 = b"ustar\x0000", b"ustar  \0", bytes(8)

Compression: TypeAlias = Literal["none", "gzip", "zstd"]
MEDIA_TYPES: Mapping[Compression, str] = {
    "none": "application/vnd.oci.image.layer.v1.tar",
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}


def number(value: int, width: int) -> bytes:
    """Format a numeric header field: octal if it fits, else base-256 of GNU, also for negatives."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    sign = 0xFF if value < 0 else 0x80
    return bytes([sign]) + (value % 256 ** (width - 1)).to_bytes(width - 1, "big")


def header(
    name: bytes = b"",
    *,
    type: bytes = b"0",  # noqa: A002
    size: int | bytes = 0,
    mode: int = 0o644,
    mtime: int | bytes = 0,
    link: bytes = b"",
    magic: bytes = USTAR,
    prefix: bytes = b"",
    checksum: bytes | None = None,
) -> bytes:
    """Return one header block; fields given as bytes, and a given checksum, stay unchanged."""
    fields = [
        name[:100].ljust(100, b"\0"),
        number(mode, 8),
        number(0, 8),
        number(0, 8),
        size.ljust(12, b"\0") if isinstance(size, bytes) else number(size, 12),
        mtime.ljust(12, b"\0") if isinstance(mtime, bytes) else number(mtime, 12),
        b" " * 8,
        type,
        link[:100].ljust(100, b"\0"),
        magic,
        bytes(32 + 32 + 8 + 8),
        prefix[:155].ljust(155, b"\0"),
    ]
    block = b"".join(fields).ljust(BLOCK, b"\0")
    if checksum is None:
        checksum = b"%06o\0 " % sum(block)
    return block[:148] + checksum + block[156:]


def padded(body: bytes) -> bytes:
    """Pad `body` with zeros to whole blocks."""
    return body + bytes(-len(body) % BLOCK)


def record(key: bytes, value: bytes) -> bytes:
    """Return one PAX record, with its length before it."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(b"%d" % length) + len(rest) != length:
        length += 1
    return b"%d" % length + rest


def pax(records: Mapping[bytes, bytes] | bytes, type: bytes = b"x") -> bytes:  # noqa: A002
    """Return a PAX header of these records or bytes; with `type` ``g`` a global one."""
    body = records
    if not isinstance(body, bytes):
        body = b"".join(record(key, value) for key, value in body.items())
    return header(b"PaxHeaders/x", type=type, size=len(body)) + padded(body)


def gnu_long(name: bytes, type: bytes = b"L") -> bytes:  # noqa: A002
    """Return the header of GNU for a long name, or with `type` ``K`` for a long link."""
    body = name + b"\0"
    return header(b"././@LongLink", type=type, size=len(body), magic=GNU) + padded(body)


@attrs.frozen
class Entry:
    """An entry of any type, with a body of any size or none."""

    name: bytes
    type: bytes
    body: bytes = b""
    link: bytes = b""
    mode: int = 0o644
    mtime: int = 0

    def packed(self) -> bytes:
        """Return the entry as it is in a tar stream."""
        records = {}
        if len(self.name) > 100:
            records[b"path"] = self.name
        if len(self.link) > 100:
            records[b"linkpath"] = self.link
        block = header(
            self.name,
            type=self.type,
            size=len(self.body),
            mode=self.mode,
            mtime=self.mtime,
            link=self.link,
        )
        return (pax(records) if records else b"") + block + padded(self.body)


def File(name: bytes, body: bytes = b"", *, mode: int = 0o644, mtime: int = 0) -> Entry:
    """Return a regular file."""
    return Entry(name, b"0", body, mode=mode, mtime=mtime)


def Directory(name: bytes, *, mode: int = 0o755, mtime: int = 0) -> Entry:
    """Return a directory."""
    return Entry(name, b"5", mode=mode, mtime=mtime)


def Symlink(name: bytes, target: bytes) -> Entry:
    """Return a symbolic link."""
    return Entry(name, b"2", link=target, mode=0o777)


def Link(name: bytes, target: bytes) -> Entry:
    """Return a hard link."""
    return Entry(name, b"1", link=target)


def tar(entries: Iterable[Entry | bytes], *, end: bytes = END) -> bytes:
    """Return a tar stream of entries and raw blocks."""
    return b"".join([*(e if isinstance(e, bytes) else e.packed() for e in entries), end])


def compress(stream: bytes, compression: Compression) -> bytes:
    """Compress `stream`."""
    if compression == "gzip":
        return gzip.compress(stream, compresslevel=6, mtime=0)
    if compression == "zstd":
        return zstd.compress(stream)
    return stream


def layer(
    entries: Iterable[Entry | bytes], compression: Compression = "gzip", *, end: bytes = END
) -> bytes:
    """Return a layer blob of these entries."""
    return compress(tar(entries, end=end), compression)


def descriptor(blob: bytes, compression: Compression = "gzip") -> Descriptor:
    """Return the descriptor of `blob` for a manifest."""
    return Descriptor(MEDIA_TYPES[compression], Digest.of(blob), len(blob))
