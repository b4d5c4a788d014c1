"""A reader of a whole compressed table of contents.

Its entries must not be used before the whole table has been read and matched its digest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from blobserve.errors import BadLayer, BadToc
from blobserve.names.digest import Digest
from blobserve.store.extract.decompress import Decompressor
from blobserve.store.lazy.toc.entries import TocEntries
from blobserve.store.lazy.toc.json_stream import TocParser
from blobserve.store.lazy.toc.location import TocLocation
from blobserve.tar import header
from blobserve.tar.header import BLOCK

if TYPE_CHECKING:
    from blobserve.config import Limits

INDEX_NAME = b"stargz.index.json"
_MOST_PARTS = 16


class _Json(Protocol):
    """A filter that returns the JSON of a decompressed stream."""

    def feed(self, piece: bytes) -> bytes: ...

    def finish(self) -> None: ...


class _PlainJson:
    """A stream that is the JSON itself. See `_Json`."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def feed(self, piece: bytes) -> bytes:
        self._left -= len(piece)
        if self._left < 0:
            raise BadToc("it is larger than the limit")
        return piece

    def finish(self) -> None:
        pass


class _TarJson:
    """A tar stream with the JSON as its only file, which has the digest. See `_Json`."""

    def __init__(self, limit: int, digest: Digest) -> None:
        self.size = 0
        """Bytes of the JSON, known once its header has been read."""
        self._limit = limit
        self._digest = digest
        self._hash = digest.hasher()
        self._head: bytes = b""
        self._left = -1

    def feed(self, piece: bytes) -> bytes:
        if self._left < 0:
            self._head += piece
            if len(self._head) < BLOCK:
                return b""
            self._begin(self._head[:BLOCK])
            piece, self._head = self._head[BLOCK:], b""
        piece = piece[: self._left]
        self._left -= len(piece)
        self._hash.update(piece)
        return piece

    def _begin(self, block: bytes) -> None:
        try:
            head = header.parse(block) if header.is_intact(block) else None
        except BadLayer as error:
            raise BadToc(str(error)) from error
        if head is None or head.name != INDEX_NAME or head.type != header.REGULAR:
            raise BadToc("it is not at the position that its layer gives")
        if head.size > self._limit:
            raise BadToc(f"it is larger than {self._limit} bytes")
        self.size = self._left = head.size

    def finish(self) -> None:
        if self._left or self._hash.hexdigest() != self._digest.hex:
            raise BadToc("its digest differs from the manifest")


class TocText:
    """The JSON of a table, decompressed piece by piece."""

    def __init__(self, place: TocLocation, packed: bytes, limits: Limits) -> None:
        """`packed` is the compressed table.

        :raises BadToc: when it is already known not to match the manifest.
        """
        self._json: _Json
        if place.is_gzip:
            self._json = _TarJson(limits.published_index_size, place.digest)
        else:
            self._json = _PlainJson(limits.published_index_size)
            if Digest.of(packed, place.digest.algorithm) != place.digest:
                raise BadToc("its digest differs from the manifest")
        self._stage = Decompressor(most_parts=_MOST_PARTS)
        self._stage.feed(packed)

    @property
    def file_size(self) -> int | None:
        """The size of the table as a file of its layer, or None if it is not a file."""
        return self._json.size if isinstance(self._json, _TarJson) else None

    def pieces(self) -> Iterator[bytes]:
        """Yield the JSON; after the last piece its digest has been checked.

        :raises BadToc: when it does not match the manifest.
        """
        try:
            while piece := self._stage.read():
                yield self._json.feed(piece)
            self._stage.finish()
        except BadLayer as error:
            raise BadToc(str(error)) from error
        self._json.finish()


class WholeToc:
    """All entries of a table. See `blobserve.store.lazy.toc.index_builder.EntrySource`."""

    def __init__(self, place: TocLocation, packed: bytes, limits: Limits) -> None:
        """See `TocText`."""
        self.contents = TocEntries(limits, place.end)
        self._place = place
        self._text = TocText(place, packed, limits)
        self._pieces = self._text.pieces()
        self._table = TocParser()

    def read(self) -> bool:
        """See `EntrySource.read`."""
        piece = next(self._pieces, None)
        if piece is None:
            self._table.finish()
            self._finish()
            return False
        for entry in self._table.feed(piece):
            self.contents.take(entry)
        return True

    def _finish(self) -> None:
        contents, place, size = self.contents, self._place, self._text.file_size
        contents.finish()
        if size is not None and place.digest.algorithm == "sha256":
            # The layer has the table as a file, and its digest is known.
            digest = bytes.fromhex(place.digest.hex)
            contents.add_itself(INDEX_NAME, size, place.start, BLOCK, digest)
            contents.records.finish(place.start + place.length)
        else:
            contents.records.finish(place.end)
