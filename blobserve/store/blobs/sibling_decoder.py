"""The check that a precompressed file decodes to the file next to it.

It blocks, and runs in short steps; see `blobserve.concurrency.steps`. A step decodes a bounded
number of bytes, and decoding stops when the result is longer than the plain file. Every client must
be able to decode the file: Chromium stops after the first gzip member, and refuses zstd with a
window of more than 8 MiB, RFC 9659 §3.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Protocol

import brotli

from blobserve.concurrency.steps import Steps
from blobserve.config import KIB, MIB
from blobserve.store.blobs.content import StoredFile
from blobserve.store.index.entry import Entry

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_SLICE = 32 * KIB  # Each short frame copies the rest of its slice, so slices are small.
_PIECE = 256 * KIB

_GZIP_ONLY = 31  # zlib's `wbits` for gzip with its header and trailer.

_LARGEST_WINDOW = 8 * MIB
_WINDOW_LOG = 23
_ZSTD_OPTIONS: Mapping[int, int] = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE_MAGIC = b"\x2a\x4d\x18"  # After a byte from 0x50 to 0x5f.
_MOST_FRAMES = 10_000
_CUT_SHORT = "it is cut short"
_LONGER = "it goes on after its end"


class _Unfit(Exception):
    """Some clients cannot decode the file; the text gives the reason."""


class _Decoder(Protocol):
    def feed(self, piece: bytes) -> None:
        """Take the next bytes; `read` has returned everything before them."""
        ...

    def read(self) -> bytes:
        """Return about `_PIECE` decoded bytes, or none if more input is needed."""
        ...

    def finish(self) -> None:
        """Check that the file is complete."""
        ...


class _GzipDecoder:
    """A decoder for exactly one gzip member. RFC 1952."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(_GZIP_ONLY)
        self._rest = b""
        self._is_full = False  # Whether the last piece was full, so that more may follow it.

    def feed(self, piece: bytes) -> None:
        self._rest = piece

    def read(self) -> bytes:
        while self._rest or self._is_full:
            if self._member.eof:
                raise _Unfit(_LONGER)
            piece = self._member.decompress(self._rest, _PIECE)
            self._rest = self._member.unused_data or self._member.unconsumed_tail
            self._is_full = len(piece) == _PIECE and not self._member.eof
            if piece:
                return piece
        return b""

    def finish(self) -> None:
        if not self._member.eof:
            raise _Unfit(_CUT_SHORT)


class _ZstdDecoder:
    """A decoder for consecutive zstd frames, skippable ones included. RFC 8878 §3.1."""

    def __init__(self) -> None:
        self._frame: zstd.ZstdDecompressor | None = None
        self._frames = 0
        self._rest = b""

    def feed(self, piece: bytes) -> None:
        self._rest += piece

    def read(self) -> bytes:
        while True:
            frame = self._frame or self._begin()
            if frame is None or (not self._rest and frame.needs_input):
                return b""
            piece = frame.decompress(self._rest, _PIECE)
            self._rest = b""
            if frame.eof:
                self._frame, self._rest = None, frame.unused_data
            if piece:
                return piece

    def finish(self) -> None:
        if self._frame is not None or self._rest or not self._frames:
            raise _Unfit(_CUT_SHORT)

    def _begin(self) -> zstd.ZstdDecompressor | None:
        """Begin the next frame, if enough of its header has been fed."""
        window = zstd_window(self._rest)
        if window is None:
            return None
        if window > _LARGEST_WINDOW:
            raise _Unfit("its zstd window is larger than 8 MiB")
        self._frames += 1
        if self._frames > _MOST_FRAMES:
            raise _Unfit(f"it has more than {_MOST_FRAMES} zstd frames")
        # libzstd does not check the window of a frame that it has in full.
        self._frame = zstd.ZstdDecompressor(options=_ZSTD_OPTIONS)
        return self._frame


class _BrotliDecoder:
    """A decoder for exactly one brotli stream; it refuses large windows. RFC 7932."""

    def __init__(self) -> None:
        self._stream = brotli.Decompressor()
        self._rest = b""

    def feed(self, piece: bytes) -> None:
        self._rest = piece

    def read(self) -> bytes:
        while True:
            rest, self._rest = self._rest, b""
            if self._stream.is_finished():
                if rest:
                    raise _Unfit(_LONGER)
                return b""
            if not rest and self._stream.can_accept_more_data():
                return b""
            piece: bytes = self._stream.process(rest, output_buffer_limit=_PIECE)
            if piece:
                return piece

    def finish(self) -> None:
        if not self._stream.is_finished():
            raise _Unfit(_CUT_SHORT)


_DECODERS: Mapping[bytes, Callable[[], _Decoder]] = {
    b"br": _BrotliDecoder,
    b"gzip": _GzipDecoder,
    b"zstd": _ZstdDecoder,
}
_ERRORS: tuple[Any, ...] = (zlib.error, zstd.ZstdError, brotli.error)


def zstd_window(header: bytes) -> int | None:
    """Return the window size of a frame, RFC 8878 §3.1.1.1; None if more bytes are needed.

    It is 0 for a skippable frame, and for other bytes.
    """
    if len(header) < 5:
        return None
    if header[:4] != _ZSTD_MAGIC:
        return 0
    descriptor = header[4]
    if not descriptor & 0x20:
        if len(header) < 6:
            return None
        base = 1 << 10 + (header[5] >> 3)
        return base + base // 8 * (header[5] & 7)
    # In a frame with a single segment, the window is as large as the content.
    at = 5 + (0, 1, 2, 4)[descriptor & 3]
    width = (1, 2, 4, 8)[descriptor >> 6]
    if len(header) < at + width:
        return None
    size = int.from_bytes(header[at : at + width], "little")
    return size + 256 if width == 2 else size


def compare(coded: StoredFile, coding: bytes, plain: Entry) -> Steps[str]:
    """Decode a file; return the reason why it is not `plain` in this coding, or an empty text.

    :raises BlobDamaged: when the coded file does not match its index.
    """
    decoded, own = _DecodeResult(coding, plain), sha256()
    for at in range(0, coded.size, _SLICE):
        piece = coded.read(at, _SLICE)
        own.update(piece)
        decoded.feed(piece)
        while decoded.decode():
            yield 0
        yield 0
    if own.digest() != coded.entry.sha256:
        raise coded.damage("a file does not match its index")
    return decoded.finish()


class _DecodeResult:
    """The comparison of a coded file with the plain one."""

    def __init__(self, coding: bytes, plain: Entry) -> None:
        self._decoder = _DECODERS[coding]()
        self._plain = plain
        self._size, self._hash = 0, sha256()
        self._problem = ""

    def feed(self, piece: bytes) -> None:
        """Take the next bytes."""
        if not self._problem:
            self._decoder.feed(piece)

    def decode(self) -> bool:
        """Decode some of them; return whether more may follow."""
        if self._problem:
            return False
        try:
            piece = self._decoder.read()
        except _Unfit as unfit:
            self._problem = str(unfit)
            return False
        except _ERRORS:
            self._problem = "it is damaged"
            return False
        self._size += len(piece)
        self._hash.update(piece)
        if self._size > self._plain.size:
            self._problem = "it decodes to other bytes"
        return bool(piece)

    def finish(self) -> str:
        """Return the problem of the whole file, or an empty text."""
        if not self._problem:
            try:
                self._decoder.finish()
            except _Unfit as unfit:
                return str(unfit)
            if self._hash.digest() != self._plain.sha256:
                return "it decodes to other bytes"
        return self._problem
