"""Parts of tar archives, written: header blocks and PAX records. Pure."""

from __future__ import annotations

from blobserve.tar.header import BLOCK

_NO_DATE = b"\xff" * 12  # -1 in base-256, which readers take for no date.
_OCTAL = 1 << 33


def padded(body: bytes) -> bytes:
    """Return a body with the zeros that fill its last block."""
    return body + bytes(-len(body) % BLOCK)


def pax_record(key: bytes, value: bytes) -> bytes:
    """Return a PAX record: its length, which counts its own digits, comes first."""
    rest = b" %s=%s\n" % (key, value)
    length = len(rest)
    while len(b"%d" % length) + len(rest) != length:
        length = len(b"%d" % length) + len(rest)
    return b"%d%s" % (length, rest)


def pax_header(records: bytes) -> bytes:
    """Return a whole PAX extended header with these records."""
    return header_block(b"x", b"PaxHeaders", len(records)) + padded(records)


def header_block(type_: bytes, name: bytes, size: int) -> bytes:
    """Return a header block without a date (POSIX.1-2017 pax).

    A size that is too large for octal digits is written in base-256, as GNU tar does.
    """
    number = b"%011o\0" % size if size < _OCTAL else b"\x80" + size.to_bytes(11, "big")
    start = b"".join((name.ljust(100, b"\0"), b"0000644\0", b"0000000\0" * 2, number, _NO_DATE))
    end = type_ + bytes(100) + b"ustar\x0000"
    block = (start + b" " * 8 + end).ljust(BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
