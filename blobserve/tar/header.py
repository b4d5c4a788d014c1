"""One tar header block, and the records of one PAX header, read strictly.

Pure functions over whole blocks. They refuse a header that two readers might read differently.
POSIX.1-2017 pax, "ustar Interchange Format" and "pax Extended Header".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple
from zlib import adler32

from blobserve.errors import BadLayer

BLOCK = 512
ZEROS = bytes(BLOCK)
"""A block of zeros; two of them end an archive."""

REGULAR, LINK, SYMLINK, DIRECTORY = b"0", b"1", b"2", b"5"
BODILESS = frozenset((LINK, SYMLINK, b"3", b"4", DIRECTORY, b"6"))
"""The types of entries that have no body; their size field is ignored."""

EXTENSIONS = frozenset((b"x", b"g", b"L", b"K"))
"""The types of extension headers, which describe the next entry: PAX and GNU long names."""

OLD_SPARSE = b"S"
"""The type of a sparse file in GNU's old format, which is not read."""

SPARSE = b"GNU.sparse."
"""The start of the keys of PAX records that describe a sparse file."""

_FIELDS = struct.Struct("100s8s16x12s12s8x1s100s8s80x155s12x")
_LARGEST = (1 << 63) - 1
_LATEST = 253402300799  # The last second of the year 9999, the largest HTTP date.
_USTAR, _STAR, _GNU = b"ustar\0", b"tar\0", b"ustar  \0"
_PAX_KEYS = frozenset((b"path", b"linkpath", b"size", b"mtime"))
_SPARSE = "it has a sparse file of a kind that cannot be read"

_FOREIGN = (
    (b"\xfd7zXZ\0", "xz data"),
    (b"BZh", "bzip2 data"),
    (b"\x1f\x8b", "gzip data"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"PK\x03\x04", "a zip archive"),
    (b"hsqs", "a squashfs file system"),
    (b"#!/usr/bin/env run-singularity", "a Singularity image"),
    (b"age-encryption.org/", "encrypted data"),
    (b"\0asm", "a WebAssembly module"),
    (b"\x7fELF", "a program"),
    (b"QFI\xfb", "a disk image"),
    (b"<", "an HTML or XML document"),
    (b"{", "a JSON document"),
)


class Header(NamedTuple):
    """The fields of a header block; names have no padding."""

    name: bytes
    type: bytes
    mode: int
    mtime: int | None
    link: bytes
    size: int


def is_intact(block: bytes) -> bool:
    """Return whether the checksum of a header block is right."""
    checksum = block[148:156]
    try:
        expected = _octal(checksum)
    except BadLayer:
        return False
    # The low half of Adler-32 is the sum of up to 256 bytes plus one, and far faster than sum().
    total = (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF) - 2
    if total - sum(checksum) + 8 * 0x20 == expected:
        return True
    # Some old tars added the bytes as signed numbers.
    plain = block[:148] + b" " * 8 + block[156:]
    return sum(byte - 256 if byte > 127 else byte for byte in plain) == expected


def parse(block: bytes) -> Header:
    """Read an intact header block in any of the formats: v7, ustar (PAX and star too) and GNU.

    :raises BadLayer: for an invalid size, or a sparse file in the format of another tar.
    """
    name, mode, size, mtime, type_, link, magic, prefix = _FIELDS.unpack(block)
    if type_ == OLD_SPARSE and magic != _GNU:
        raise BadLayer(_SPARSE)
    name = name.partition(b"\0")[0]
    if magic[:6] == _USTAR and prefix[0]:
        if block[508:] == _STAR:
            prefix = prefix[:131]
        name = prefix.partition(b"\0")[0] + b"/" + name
    return Header(
        name,
        REGULAR if type_ == b"\0" else type_,
        _lenient(mode, 0) & 0o7777,
        _sane(_lenient(mtime, -1)),
        link.partition(b"\0")[0],
        _number(size),
    )


def parse_pax(body: bytes, is_global: bool = False) -> dict[bytes, bytes]:
    """Return the records of a PAX header that change how an entry is read.

    A record with an empty value cancels an earlier one. Takes linear time.

    :raises BadLayer: for a record with a wrong length, a NUL in a name, or a sparse file.
    """
    records: dict[bytes, bytes] = {}
    for key, value in pax_records(body):
        if key.startswith(SPARSE) and not is_global:
            raise BadLayer(_SPARSE)
        if key in _PAX_KEYS:
            if b"\0" in value:
                raise BadLayer("a PAX record has a NUL in a name")
            records[key] = value
    return {key: value for key, value in records.items() if value}


def pax_records(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield key and value of each record of a PAX header, in order.

    :raises BadLayer: for a record that does not end where it says.
    """
    at = 0
    while at < len(body):
        space = body.find(b" ", at, at + 9)
        digits = body[at : max(space, at)]
        end = at + int(digits) if digits.isdigit() else 0
        if not space < end - 1 < len(body) or body[end - 1] != 0x0A:
            raise BadLayer("a PAX record has a wrong length")
        key, equals, value = body[space + 1 : end - 1].partition(b"=")
        if not (key and equals):
            raise BadLayer("a PAX record has no key")
        yield key, value
        at = end


def parse_pax_size(text: bytes) -> int:
    """Read the value of a PAX `size` record.

    :raises BadLayer: when it is not a number of bytes.
    """
    size = int(text) if text.isdigit() and len(text) < 20 else -1
    if not 0 <= size <= _LARGEST:
        raise BadLayer("the size of an entry is not a number of bytes")
    return size


def parse_pax_mtime(text: bytes) -> int | None:
    """Return the whole seconds of a PAX `mtime` record; None for an invalid one."""
    seconds, _, fraction = text.partition(b".")
    if len(seconds) > 20 or not seconds.isdigit() or not (fraction or b"0").isdigit():
        return None
    return _sane(int(seconds))


def size_of(block: bytes) -> int:
    """Return the size that a header block gives its entry.

    :raises BadLayer: when it is no size.
    """
    return _number(block[124:136])


def map_goes_on(block: bytes, is_header: bool) -> bool:
    """Return whether another block of the map of an old GNU sparse file follows this one.

    GNU tar manual, "Basic Tar Format".
    """
    return block[482 if is_header else 504] != 0


def describe(start: bytes) -> str:
    """Return a description of data that is not a tar archive."""
    for magic, name in _FOREIGN:
        if start.lstrip().startswith(magic):
            return f"it is {name}, not a tar archive"
    return "it is not a tar archive"


def _number(field: bytes) -> int:
    if not field[0] & 0x80:
        return _octal(field)
    if field[0] & 0x40:
        raise BadLayer("a number in a header is negative")
    value = int.from_bytes(field, "big") - (0x80 << 8 * (len(field) - 1))
    if value > _LARGEST:
        raise BadLayer("a number in a header is too large")
    return value


def _octal(field: bytes) -> int:
    digits = field.strip(b" \0")
    if not digits:
        return 0
    try:
        if digits.isdigit():
            return int(digits, 8)
    except ValueError:
        pass
    raise BadLayer("a number in a header is not octal")


@lru_cache(maxsize=256)
def _lenient(field: bytes, default: int) -> int:
    """Return a number, or `default` if it is invalid.

    Only for fields that matter little. Most headers of an archive have the same values.
    """
    try:
        return _number(field)
    except BadLayer:
        return default


def _sane(mtime: int) -> int | None:
    return mtime if 0 <= mtime <= _LATEST else None


def split(path: bytes) -> list[bytes]:
    """Return the components of a path without empty ones and ``.``."""
    return [part for part in path.split(b"/") if part not in (b"", b".")]


def clean(name: bytes) -> list[bytes]:
    """Return the components of an entry's name, with ``..`` resolved but never above the root."""
    parts = split(name)
    if b".." not in parts:
        return parts
    kept: list[bytes] = []
    for part in parts:
        if part != b"..":
            kept.append(part)
        elif kept:
            kept.pop()
    return kept
