"""From a compressed table of contents to an index that files can be looked up in.

A machine in steps, each a job for a thread, that writes no more than it was granted; the index is
like that of a blob, and where a blob has its content there are records of chunks. Blocks on the
disk only. Nothing it made may be used before `finish` has checked what the table's digest says.
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import Protocol

from blobserve.config import Limits
from blobserve.errors import BadLayer, BadTable
from blobserve.oci.digest import Digest
from blobserve.store import header
from blobserve.store.decompress import Decompressor
from blobserve.store.header import BLOCK
from blobserve.store.index import Index
from blobserve.store.nodes import create, disk_errors
from blobserve.store.published.contents import Contents
from blobserve.store.published.place import Place
from blobserve.store.published.toc import Table
from blobserve.store.tar import Member

INDEX_NAME = b"stargz.index.json"
_MOST_PARTS = 16


class _Json(Protocol):
    """Takes the decompressed stream, gives the JSON that is in it."""

    def feed(self, piece: bytes) -> bytes: ...

    def finish(self) -> None: ...


class _Whole:
    """The stream is the JSON. See `_Json`."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def feed(self, piece: bytes) -> bytes:
        self._left -= len(piece)
        if self._left < 0:
            raise BadTable("it is larger than it may be")
        return piece

    def finish(self) -> None:
        pass


class _Wrapped:
    """The JSON is the one file of a tar archive, and has the digest. See `_Json`."""

    def __init__(self, limit: int, digest: Digest) -> None:
        self.size = 0
        """Bytes of the JSON, once its header is here."""
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
            raise BadTable(str(error)) from error
        if head is None or head.name != INDEX_NAME or head.type != header.REGULAR:
            raise BadTable("it is not where its layer says")
        if head.size > self._limit:
            raise BadTable(f"it is larger than {self._limit} bytes")
        self.size = self._left = head.size

    def finish(self) -> None:
        if self._left or self._hash.hexdigest() != self._digest.hex:
            raise BadTable("it has another digest than the manifest says")


class Builder:
    """Makes the files `index` and `content` in `directory`, which is empty."""

    def __init__(self, directory: Path, place: Place, packed: bytes, limits: Limits) -> None:
        """`packed`: the compressed table.

        :raises BadTable: when it is known at once not to be what the manifest says.
        """
        self._place = place
        self._json: _Json
        if place.is_gzip:
            self._json = _Wrapped(limits.published_index_size, place.digest)
        else:
            self._json = _Whole(limits.published_index_size)
            if Digest.of(packed, place.digest.algorithm) != place.digest:
                raise BadTable("it has another digest than the manifest says")
        self._stage = Decompressor("", most_parts=_MOST_PARTS)
        self._stage.feed(packed)
        self._table = Table()
        self._contents = Contents(limits, place.end)
        self._members: deque[Member] = deque()
        self._written = self._allowance = 0
        self._is_read = False
        self._content = create(directory / "content")
        try:
            with disk_errors():
                self._index = Index(directory / "index", limits)
        except OSError:
            os.close(self._content)
            raise

    def grant(self, n: int) -> None:
        """Allow `n` more bytes on disk."""
        self._allowance += n

    def go_on(self) -> int | None:
        """Work off some of the table.

        Returns None when all of it is done, else how many bytes must be granted before it can go
        on: 0 when it can at once.

        :raises BadTable: when the table cannot be used.
        :raises OSError: when the disk fails, or is full.
        """
        try:
            with disk_errors():
                return self._advance()
        except BadLayer as error:
            raise BadTable(str(error)) from error

    def finish(self) -> None:
        """Complete both files and close them."""
        with disk_errors():
            self._index.finish(self._written)
        self.close()

    def close(self) -> None:
        """Close the files, and leave them to whoever owns the directory. Idempotent."""
        content, self._content = self._content, -1
        if content >= 0:
            os.close(content)
        self._index.close()

    def _advance(self) -> int | None:
        while self._members and not self._index.full:
            self._index.add(self._members.popleft())
        records = self._contents.records.packed
        lacking = self._written + len(records) + self._index.bound - self._allowance
        if lacking > 0:
            return lacking
        self._contents.records.clear()
        view = memoryview(records)
        while view:
            written = os.write(self._content, view)
            self._written += written
            view = view[written:]
        self._index.flush()
        if self._members:
            return 0
        if self._is_read:
            return None
        self._read()
        return 0

    def _read(self) -> None:
        """Take the next piece of the table."""
        contents = self._contents
        piece = self._stage.read()
        if piece:
            for entry in self._table.feed(self._json.feed(piece)):
                contents.take(entry)
        else:
            self._is_read = True
            self._stage.finish()
            self._json.finish()
            self._table.finish()
            self._finish_contents()
        self._members.extend(contents.members)
        contents.members.clear()

    def _finish_contents(self) -> None:
        contents, place = self._contents, self._place
        contents.finish()
        if isinstance(self._json, _Wrapped) and place.digest.algorithm == "sha256":
            # The layer has it as a file; it is as good as the others, for its digest is known.
            digest = bytes.fromhex(place.digest.hex)
            contents.add_itself(INDEX_NAME, self._json.size, place.start, BLOCK, digest)
            contents.records.finish(place.start + place.length)
        else:
            contents.records.finish(place.end)
