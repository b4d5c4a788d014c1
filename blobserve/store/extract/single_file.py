"""Plain files as layers: a file of an artifact is stored as the only member of a tar archive.

So all blobs have the same form for reading, recovery and rebuilding the index. Digest and size are
checked on the original bytes.
"""

from __future__ import annotations

from blobserve.tar.header import BLOCK, REGULAR

_END = bytes(2 * BLOCK)
_NO_DATE = b"\xff" * 12  # -1 in base-256, which is no usable time.
_OCTAL = 1 << 33


class TarWrapper:
    """A stage that wraps a file of `size` bytes into a tar archive. See `Stage`."""

    def __init__(self, name: bytes, size: int) -> None:
        record = _record(b"path", name)
        self._pieces = [
            _header(b"x", b"PaxHeaders", len(record)) + _padded(record),
            _header(REGULAR, name[:100], size),
        ]
        self._size = size
        self._left = size
        self._end_if_complete()

    def feed(self, chunk: bytes) -> None:
        """See `Stage.feed`."""
        if not chunk:
            return
        self._pieces.append(chunk)
        self._left -= len(chunk)
        self._end_if_complete()

    def read(self) -> bytes:
        """See `Stage.read`."""
        return self._pieces.pop(0) if self._pieces else b""

    def finish(self) -> None:
        """See `Stage.finish`. The verifier checks the size."""

    def _end_if_complete(self) -> None:
        if not self._left:
            self._pieces.append(bytes(-self._size % BLOCK) + _END)


def _padded(body: bytes) -> bytes:
    return body + bytes(-len(body) % BLOCK)


def _record(key: bytes, value: bytes) -> bytes:
    """Return a PAX record; its length comes first and counts its own digits."""
    rest = b" %s=%s\n" % (key, value)
    length = len(rest)
    while len(b"%d" % length) + len(rest) != length:
        length = len(b"%d" % length) + len(rest)
    return b"%d%s" % (length, rest)


def _header(type_: bytes, name: bytes, size: int) -> bytes:
    """Return a header block of POSIX.1-2017 pax; large sizes are in base-256 as GNU tar has it."""
    number = b"%011o\0" % size if size < _OCTAL else b"\x80" + size.to_bytes(11, "big")
    start = b"".join((name.ljust(100, b"\0"), b"0000644\0", b"0000000\0" * 2, number, _NO_DATE))
    end = type_ + bytes(100) + b"ustar\x0000"
    block = (start + b" " * 8 + end).ljust(BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
