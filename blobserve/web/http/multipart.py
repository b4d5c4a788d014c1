"""Several ranges in one response: ``multipart/byteranges``, RFC 9110 §14.6.

Only the heads of the parts are in memory; the parts are read from another body.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from twisted.internet.defer import Deferred, succeed

from blobserve.web.http.conditional import Range
from blobserve.web.http.response import Body


class Multipart:
    """Several ranges of a body, each with a head that names the range. See `Body`."""

    def __init__(
        self, body: Body, ranges: Sequence[Range], content_type: bytes, boundary: bytes
    ) -> None:
        """Take over `body` and close it with this. `boundary` must not occur in it."""
        self.content_type = b"multipart/byteranges; boundary=" + boundary
        """The content type of the whole multipart body."""
        self._body = body
        self._segments: list[bytes | Range] = []
        self._starts: list[int] = []
        self.size = 0
        """See `Body.size`."""
        for each in ranges:
            self._add(_part_head(each, body.size, content_type, boundary))
            self._add(each)
        self._add(b"\r\n--%s--\r\n" % boundary)

    def read_cached(self, offset: int, length: int) -> bytes | None:
        """See `Body.read_cached`."""
        pieces: list[bytes] = []
        while length > 0 and offset < self.size:
            segment, start, most = self._segment(offset, length)
            if isinstance(segment, Range):
                piece = self._body.read_cached(segment.start + start, most)
            else:
                piece = segment[start : start + most]
            if not piece:
                break
            pieces.append(piece)
            offset, length = offset + len(piece), length - len(piece)
        return b"".join(pieces) or None

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        """See `Body.read`: at most to the end of a part."""
        segment, start, most = self._segment(offset, length)
        if isinstance(segment, Range):
            return self._body.read(segment.start + start, most)
        return succeed(segment[start : start + most])

    @property
    def stored(self) -> None:
        """See `Body.stored`. No file contains a multipart body."""

    def close(self) -> None:
        """See `Body.close`."""
        self._body.close()

    def _add(self, segment: bytes | Range) -> None:
        self._segments.append(segment)
        self._starts.append(self.size)
        self.size += segment.length if isinstance(segment, Range) else len(segment)

    def _segment(self, offset: int, length: int) -> tuple[bytes | Range, int, int]:
        """Return the segment at `offset`, the position in it, and the bytes to take from it."""
        number = bisect_right(self._starts, offset) - 1
        segment, start = self._segments[number], offset - self._starts[number]
        size = segment.length if isinstance(segment, Range) else len(segment)
        return segment, start, min(length, size - start)


def _part_head(part: Range, size: int, content_type: bytes, boundary: bytes) -> bytes:
    last = part.start + part.length - 1
    return b"\r\n--%s\r\nContent-Type: %s\r\nContent-Range: bytes %d-%d/%d\r\n\r\n" % (
        boundary,
        content_type,
        part.start,
        last,
        size,
    )
