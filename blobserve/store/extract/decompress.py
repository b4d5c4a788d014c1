"""Decompression in bounded steps: from compressed chunks to pieces of the stream.

Every stage returns at most `PIECE` bytes at a time, reads consecutive gzip members or zstd frames,
and detects at the end whether the last one was complete.
"""

from __future__ import annotations

import sys
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from blobserve.errors import BadLayer

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


class Inflater(Protocol):
    """A decompressor for one gzip member, as `zlib.decompressobj` returns it."""

    eof: bool
    unconsumed_tail: bytes
    unused_data: bytes

    def decompress(self, chunk: bytes, size: int, /) -> bytes: ...


Inflate = Callable[[int], Any]
"""A function that makes an `Inflater`, given zlib's `wbits`."""

fastest: Inflate = zlib.decompressobj
_GZIP_ERRORS: tuple[Any, ...] = (zlib.error,)
try:
    from isal import isal_zlib
except ImportError:
    pass
else:
    fastest = isal_zlib.decompressobj
    _GZIP_ERRORS = (zlib.error, isal_zlib.error)

PIECE = 256 << 10
_SLICE = 32 << 10  # Each short member copies the rest of its slice, so slices are small.
_WINDOW_LOG = 25  # 32 MiB, the most that container tools write. RFC 8878 requires 8 MiB.
_GZIP_ONLY = 31  # zlib's `wbits` for gzip with its header and trailer.
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_FLAGS = 3  # The offset of the flags in the header of a member, RFC 1952 §2.3.1.
_GZIP_TEXT = 1  # FTEXT does not change the header.
_GZIP_ONE_FIELD = (0, 4, 8, 16)  # None, FEXTRA, FNAME or FCOMMENT; others are rare.
_GZIP_DAMAGED = "its gzip data is damaged, or followed by something else"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE_MAGICS = tuple(bytes([0x50 + n]) + b"\x2a\x4d\x18" for n in range(16))
_MAGIC_SIZE = 4
_ZSTD_OPTIONS: Mapping[int, int] = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}


class Stage(Protocol):
    """A reader of one compressed stream."""

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the stream, without decompressing them."""
        ...

    def read(self) -> bytes:
        """Return the next piece, or an empty one if more input is needed.

        :raises BadLayer: when the stream is damaged.
        """
        ...

    def finish(self) -> None:
        """Check that the stream is complete.

        :raises BadLayer: when it is cut short.
        """
        ...


class _Input:
    """A queue of compressed chunks that returns slices."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._chunks: deque[memoryview] = deque()

    def feed(self, chunk: bytes) -> None:
        if chunk:
            self._chunks.append(memoryview(chunk))

    def next(self) -> bytes:
        """Return the next slice, or an empty one."""
        if not self._chunks:
            return b""
        chunk = self._chunks.popleft()
        if len(chunk) > self._size:
            self._chunks.appendleft(chunk[self._size :])
        return bytes(chunk[: self._size])


class _Parts:
    """A limit on members or frames: each costs far more time than its few bytes suggest."""

    def __init__(self, most: int) -> None:
        self._left = most

    def begin(self) -> None:
        """Count one more."""
        self._left -= 1
        if self._left < 0:
            raise BadLayer("it is compressed in too many parts")


class _Plain:
    """A reader of a stream that is not compressed. See `Stage`."""

    def __init__(self) -> None:
        self._input = _Input(PIECE)
        self.feed = self._input.feed
        self.read = self._input.next

    def finish(self) -> None:
        """See `Stage.finish`. The tar reader detects a stream that is cut short."""


class _Gzip:
    """A reader of gzip members, with zeros between and after them. See `Stage`. RFC 1952 §2.2."""

    def __init__(self, inflate: Inflate, parts: _Parts) -> None:
        self._inflate = inflate
        self._parts = parts
        self._input = _Input(_SLICE)
        self.feed = self._input.feed
        self._rest = b""
        self._member: Inflater | None = None
        self._full = False  # Whether the last piece was full, so that more may follow it.

    def read(self) -> bytes:
        """See `Stage.read`."""
        while True:
            member = self._member or self._begin()
            if member is None or not (self._rest or self._full):
                more = self._input.next()
                if not more:
                    return b""
                self._rest += more
            elif piece := self._decompress(member):
                return piece

    def _begin(self) -> Inflater | None:
        """Begin the next member, if enough of its header has been fed."""
        self._rest = self._rest.lstrip(b"\0")
        if not self._rest.startswith(_GZIP_MAGIC[: len(self._rest)]):
            raise BadLayer(_GZIP_DAMAGED)
        if len(self._rest) <= _GZIP_FLAGS:
            return None
        self._parts.begin()
        # The fast library reads plain headers; the standard library checks all others.
        flags = self._rest[_GZIP_FLAGS]
        is_plain = flags & ~_GZIP_TEXT in _GZIP_ONE_FIELD
        inflate: Inflate = self._inflate if is_plain else zlib.decompressobj
        self._member = inflate(_GZIP_ONLY)
        return self._member

    def _decompress(self, member: Inflater) -> bytes:
        try:
            piece = member.decompress(self._rest, PIECE)
        except _GZIP_ERRORS as error:
            raise BadLayer(_GZIP_DAMAGED) from error
        if member.eof:
            self._member, self._full, self._rest = None, False, member.unused_data
        else:
            self._full, self._rest = len(piece) == PIECE, member.unconsumed_tail
        return piece

    def finish(self) -> None:
        """See `Stage.finish`."""
        if self._member is not None or self._rest:
            raise BadLayer("its gzip data is cut short")


class _Zstd:
    """A reader of zstd frames, zeros between and after them allowed. See `Stage`.

    Skippable frames are skipped (RFC 8878 §3.1). Zeros come from writers that fill whole blocks, as
    bsdtar does in a pipe.
    """

    def __init__(self, parts: _Parts) -> None:
        self._parts = parts
        self._input = _Input(_SLICE)
        self.feed = self._input.feed
        self._rest = b""
        self._frame: zstd.ZstdDecompressor | None = None

    def read(self) -> bytes:
        """See `Stage.read`."""
        while True:
            if self._frame is None:
                self._rest = self._rest.lstrip(b"\0")
            if not self._rest and (self._frame is None or self._frame.needs_input):
                self._rest = self._input.next()
                if not self._rest:
                    return b""
                continue
            if self._frame is None:
                self._parts.begin()
                self._frame = zstd.ZstdDecompressor(options=_ZSTD_OPTIONS)
            if piece := self._decompress(self._frame):
                return piece

    def _decompress(self, frame: zstd.ZstdDecompressor) -> bytes:
        try:
            piece = frame.decompress(self._rest, PIECE)
        except zstd.ZstdError as error:
            raise BadLayer(
                "its zstd data is damaged, takes a dictionary, or a window of more than"
                f" {1 << _WINDOW_LOG >> 20} MiB"
            ) from error
        self._rest = b""
        if frame.eof:
            self._frame, self._rest = None, frame.unused_data
        return piece

    def finish(self) -> None:
        """See `Stage.finish`."""
        if self._frame is not None:
            raise BadLayer("its zstd data is cut short")


class Decompressor:
    """A stage that detects the compression from the first bytes. See `Stage`.

    Container tools do the same. An empty blob is an empty archive, as in containerd.
    """

    def __init__(self, inflate: Inflate = fastest, most_parts: int = sys.maxsize) -> None:
        """`most_parts` is the limit on gzip members or zstd frames."""
        self._inflate = inflate
        self._parts = _Parts(most_parts)
        self._start = b""
        self._stage: Stage | None = None

    def feed(self, chunk: bytes) -> None:
        """See `Stage.feed`."""
        if self._stage is None:
            self._start += chunk
            if len(self._start) < _MAGIC_SIZE:
                return
            self._stage, chunk, self._start = self._stage_of(self._start), self._start, b""
        self._stage.feed(chunk)

    def read(self) -> bytes:
        """See `Stage.read`."""
        return b"" if self._stage is None else self._stage.read()

    def finish(self) -> None:
        """See `Stage.finish`."""
        if self._stage is not None:
            self._stage.finish()
        elif self._start:
            raise BadLayer("it is cut short")

    def _stage_of(self, start: bytes) -> Stage:
        if start.startswith(_GZIP_MAGIC):
            return _Gzip(self._inflate, self._parts)
        if start.startswith((_ZSTD_MAGIC, *_SKIPPABLE_MAGICS)):
            return _Zstd(self._parts)
        return _Plain()
