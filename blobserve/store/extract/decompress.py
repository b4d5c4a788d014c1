"""Decompression in bounded steps: compressed chunks in, pieces of the stream out.

Every stage gives at most `PIECE` bytes at a time, however little input they came from, goes on over
gzip members and zstd frames, and knows at the end whether the last of them was whole. Knows nothing
of tar.
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
    """One gzip member being decompressed, as by `zlib.decompressobj`."""

    eof: bool
    unconsumed_tail: bytes
    unused_data: bytes

    def decompress(self, chunk: bytes, size: int, /) -> bytes: ...


Inflate = Callable[[int], Any]
"""Begins a `Inflater`, given zlib's `wbits`."""

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
_SLICE = 32 << 10  # A member of a few bytes copies the rest of its slice: keep slices small.
_WINDOW_LOG = 25  # 32 MiB: what container tools write at most. RFC 8878 asks for 8.
_GZIP_ONLY = 31  # zlib's `wbits` for gzip with its header and trailer.
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_FLAGS = 3  # Where they are in the header of a member, RFC 1952 §2.3.1.
_GZIP_TEXT = 1  # Says something of the content alone.
_GZIP_ONE_FIELD = (0, 4, 8, 16)  # None, FEXTRA, FNAME or FCOMMENT; more, or FHCRC, are rare.
_GZIP_DAMAGED = "its gzip data is damaged, or followed by something else"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE_MAGICS = tuple(bytes([0x50 + n]) + b"\x2a\x4d\x18" for n in range(16))
_MAGIC_SIZE = 4
_ZSTD_OPTIONS: Mapping[int, int] = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}


class Stage(Protocol):
    """One compressed stream being read."""

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the stream; nothing happens to them before `read`."""
        ...

    def read(self) -> bytes:
        """The next piece, empty when more input is needed.

        :raises BadLayer: when the stream is damaged.
        """
        ...

    def finish(self) -> None:
        """Say that all input was fed and read.

        :raises BadLayer: when the stream ends in its middle.
        """
        ...


class _Input:
    """Chunks waiting to be decompressed, handed out in slices."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._chunks: deque[memoryview] = deque()

    def feed(self, chunk: bytes) -> None:
        if chunk:
            self._chunks.append(memoryview(chunk))

    def next(self) -> bytes:
        """The next slice, empty when there is none."""
        if not self._chunks:
            return b""
        chunk = self._chunks.popleft()
        if len(chunk) > self._size:
            self._chunks.appendleft(chunk[self._size :])
        return bytes(chunk[: self._size])


class _Parts:
    """Counts members or frames: to begin one costs far more than the few bytes it may come in."""

    def __init__(self, most: int) -> None:
        self._left = most

    def begin(self) -> None:
        """Count one more."""
        self._left -= 1
        if self._left < 0:
            raise BadLayer("it is compressed in too many parts")


class _Plain:
    """A stream that is not compressed. See `Stage`."""

    def __init__(self) -> None:
        self._input = _Input(PIECE)
        self.feed = self._input.feed
        self.read = self._input.next

    def finish(self) -> None:
        """See `Stage.finish`: tar itself tells whether it is whole."""


class _Gzip:
    """Gzip members one after another, zeros between and after them. See `Stage`. RFC 1952 §2.2."""

    def __init__(self, inflate: Inflate, parts: _Parts) -> None:
        self._inflate = inflate
        self._parts = parts
        self._input = _Input(_SLICE)
        self.feed = self._input.feed
        self._rest = b""
        self._member: Inflater | None = None
        self._full = False  # The last piece was full: there may be more without any input.

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
        """Begin the next member, if enough of its header is here."""
        self._rest = self._rest.lstrip(b"\0")
        if not self._rest.startswith(_GZIP_MAGIC[: len(self._rest)]):
            raise BadLayer(_GZIP_DAMAGED)
        if len(self._rest) <= _GZIP_FLAGS:
            return None
        self._parts.begin()
        # Only plain headers need to be read fast. The standard library checks all the others.
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
    """Zstandard frames one after another, skippable ones among them. See `Stage`. RFC 8878 §3.1."""

    def __init__(self, parts: _Parts) -> None:
        self._parts = parts
        self._input = _Input(_SLICE)
        self.feed = self._input.feed
        self._rest = b""
        self._frame: zstd.ZstdDecompressor | None = None

    def read(self) -> bytes:
        """See `Stage.read`."""
        while True:
            if not self._rest and (self._frame is None or self._frame.needs_input):
                self._rest = self._input.next()
                if not self._rest:
                    return b""
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
    """The stage that a blob's first bytes call for. See `Stage`.

    Bytes decide, as they do in container tools; a media type that promises a compression only
    keeps an empty blob from being taken for an empty tar.
    """

    def __init__(
        self, media_type: str, inflate: Inflate = fastest, most_parts: int = sys.maxsize
    ) -> None:
        """`most_parts`: how many gzip members or zstd frames there may be."""
        self._inflate = inflate
        self._parts = _Parts(most_parts)
        self._compressed = media_type.endswith(("gzip", "zstd"))
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
        elif self._start or self._compressed:
            raise BadLayer("it is cut short")

    def _stage_of(self, start: bytes) -> Stage:
        if start.startswith(_GZIP_MAGIC):
            return _Gzip(self._inflate, self._parts)
        if start.startswith((_ZSTD_MAGIC, *_SKIPPABLE_MAGICS)):
            return _Zstd(self._parts)
        return _Plain()
