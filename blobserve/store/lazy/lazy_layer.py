"""One layer that is served lazily while it is being pulled: its lease, filesystem and files.

Runs on the reactor's thread. Files are read from chunks, and from the layer once it is READY.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from blobserve.concurrency.refcount import RefCounted
from blobserve.errors import BlobDamaged, ContentMismatch, PathNotFound, StoreClosed
from blobserve.store.blobs.blob import Readable
from blobserve.store.blobs.content import Reader
from blobserve.store.blobs.filesystem import Filesystem
from blobserve.store.disk.codings_file import NoCoding
from blobserve.store.index.entry import Entry, EntryKind
from blobserve.store.lazy.chunk_cache import Chunks
from blobserve.store.lazy.lazy_index import LazyIndex
from blobserve.store.lazy.toc.chunk import Chunk
from blobserve.store.space.scratch import Scratch

_log = Logger()

T = TypeVar("T")

FIRST_WINDOW, LARGEST_WINDOW = 1 << 20, 4 << 20
"""Bytes of a file that are fetched ahead, at first and while reading continues."""

_MOST_AHEAD = 256  # Chunks that one reactor iteration starts to fetch.
_PIECES = 16  # The first window has at most 16 reads, so that a short range fetches less.


class LazyLayer(RefCounted):
    """A lazily served layer; its pull and its readers hold references to it."""

    def __init__(
        self,
        index: LazyIndex,
        chunks: Chunks,
        scratch: Scratch,
        unused: Callable[[LazyLayer], None],
    ) -> None:
        """`unused` is called once, after the last release."""
        super().__init__(self._close)
        self.index = index
        self.filesystem = LazyFilesystem(self)
        self.chunks = chunks
        self.ready: Readable | None = None
        """The lease of the READY layer."""
        self.scratch = scratch
        """The directory of its index."""
        self._unused = unused
        self._is_open = True

    @property
    def is_open(self) -> bool:
        """Return whether new readers may begin."""
        return self._is_open and not self.chunks.is_wrong

    def has(self, name: bytes) -> bool:
        """Return whether a canonical path is a regular file, with no link on the way."""
        if not self.is_open:
            return False
        with suppress(PathNotFound):
            found = self.filesystem.lookup(name)
            return found.kind is EntryKind.FILE and found.path == name
        return False

    def become(self, ready: Readable) -> None:
        """Continue all reads from the READY layer; `ready` is released at the end."""
        self._is_open = False
        if self.ready is None:
            self.ready = ready
            self.chunks.retire()
        else:
            ready.release()

    async def read_ready(self, entry: Entry, offset: int, length: int) -> bytes | None:
        """Read bytes of a file from the READY layer; return None while there is none.

        :raises ContentMismatch: when that layer has another file at the path.
        """
        if self.ready is None:
            return None
        filesystem, stored = self.ready.filesystem, None
        with suppress(PathNotFound):
            own = filesystem.lookup(entry.path)
            if (own.sha256, own.size) == (entry.sha256, entry.size):
                stored = filesystem.file(own).stored
        if stored is None:
            digest = str(self.filesystem.digest)
            raise ContentMismatch(digest, "it has another file than its table of contents")
        try:
            return await self.scratch.threads.run(stored.read, offset, length)
        except BlobDamaged as damage:
            if self.ready is not None:
                self.ready.report(damage)
            raise

    def _close(self) -> None:
        self._is_open = False
        ready, self.ready = self.ready, None
        if ready is not None:
            ready.release()
        self.chunks.retire()
        self.index.close()
        self._unused(self)
        discarding = Deferred.fromCoroutine(self.scratch.discard())
        discarding.addErrback(lambda why: _log.failure("cannot remove a lazy index", failure=why))


class LazyLease:
    """A lease of a lazily served layer. See `blobserve.store.blobs.blob.Readable`."""

    def __init__(self, layer: LazyLayer) -> None:
        layer.acquire()
        self.filesystem = layer.filesystem
        self._layer: LazyLayer | None = layer

    def coded(self, entry: Entry, coding: bytes, is_wanted: bool = True) -> NoCoding:
        """See `Lease.coded`. There are no coded variants of a lazily served layer."""
        return NoCoding.NEVER

    def is_coding(self, coded: Entry, coding: bytes, plain: Entry) -> None:
        """See `Lease.is_coding`. Siblings are not checked in a lazily served layer."""

    def report(self, damage: BlobDamaged) -> None:
        """See `Readable.report`. No new reader may begin after it."""
        if self._layer is not None:
            self._layer.chunks.is_wrong = True

    def release(self) -> None:
        """See `blobserve.store.blobs.blob.Readable.release`."""
        layer, self._layer = self._layer, None
        if layer is not None:
            layer.release()


class LazyFilesystem(Filesystem):
    """The files of a layer that is served lazily."""

    is_complete = False

    def __init__(self, layer: LazyLayer) -> None:
        super().__init__(layer.index.tree)
        self._layer = layer

    def file(self, entry: Entry) -> LazyFile:
        """See `Filesystem.file`."""
        return LazyFile(self._layer, entry)


class LazyFile:
    """A file that is read from chunks, and fetched ahead a little. See `File`."""

    def __init__(self, layer: LazyLayer, entry: Entry) -> None:
        self._layer = layer
        self._chunks = layer.chunks
        self._entry = entry
        self._chunk: Chunk | None = None
        self._is_held = False
        self._content = b""
        self._number = 0
        self._window = 0
        self._wanted = 0  # The offset in the file up to which chunks were requested.
        self._next: tuple[int, Chunk] | None = None
        self._hash = sha256()
        self._hashed = 0

    @property
    def size(self) -> int:
        """See `File.size`."""
        return self._entry.size

    @property
    def stored(self) -> None:
        """See `File.stored`."""

    def read_cached(self, offset: int, length: int) -> None:
        """See `File.read_cached`."""

    def fetch(self, offset: int, length: int, reader: Reader) -> Deferred[bytes]:
        """See `File.fetch`, and for the errors `read`."""
        return reader.from_network(Deferred.fromCoroutine(self.read(offset, length)))

    def apply(self, f: Callable[[bytes], T], length: int, reader: Reader) -> Deferred[T]:
        """See `File.apply`."""
        return Deferred.fromCoroutine(self._apply(f, length, reader))

    async def read(self, offset: int, length: int) -> bytes:
        """Read at least one byte from `offset` on, and at most `length`.

        If the whole file is read in order, its last bytes are returned only if its digest matches.

        :raises ContentMismatch: when the bytes do not match the table of contents.
        :raises BlobserveError: when they cannot be fetched.
        """
        piece = await self._layer.read_ready(self._entry, offset, length)
        if piece is None:
            piece = await self._read_chunk(offset, length)
        if piece is None:
            return await self.read(offset, length)
        self._check(offset, piece)
        return piece

    def close(self) -> None:
        """See `File.close`."""
        self._content = b""
        if self._is_held and self._chunk is not None:
            self._is_held = False
            self._chunks.let_go(self._chunk)

    async def _apply(self, f: Callable[[bytes], T], length: int, reader: Reader) -> T:
        pieces, at = [], 0
        while at < length:
            pieces.append(piece := await self.fetch(at, length - at, reader))
            at += len(piece)
        return await reader.run(f, b"".join(pieces))

    async def _read_chunk(self, offset: int, length: int) -> bytes | None:
        """Read from a chunk; return None if the layer became READY first."""
        chunk = self._chunk
        if chunk is None or not self._content or not _has(chunk, offset):
            self.close()
            self._number, self._chunk = self._find(offset)
            chunk = self._chunk
            if not await self._chunks.hold(chunk):
                if self._layer.ready is None:
                    raise StoreClosed
                return None
            self._is_held = True
            self._fetch_ahead(chunk, offset, length)
            self._content = await self._chunks.get(chunk)
        else:
            self._fetch_ahead(chunk, offset, length)
        begin = offset - chunk.start
        return self._content[begin : begin + length]

    def _find(self, offset: int) -> tuple[int, Chunk]:
        index, before = self._layer.index, self._chunk
        if before is not None and before.left and offset == before.start + before.size:
            return self._number + 1, index.chunk(self._entry, self._number + 1)
        return index.chunk_at(self._entry, offset)

    def _fetch_ahead(self, chunk: Chunk, offset: int, length: int) -> None:
        """Request the next chunks when half of the requested ones have been read."""
        if not self._window:
            self._window = min(FIRST_WINDOW, _PIECES * length)
            self._next, self._wanted = (self._number, chunk), chunk.start
        if offset + self._window // 2 < self._wanted:
            return
        chunks: list[Chunk] = []
        end = offset + self._window
        while self._next is not None and self._wanted < end and len(chunks) < _MOST_AHEAD:
            number, chunk = self._next
            chunks.append(chunk)
            self._wanted = chunk.start + chunk.size
            self._next = None
            if chunk.left:
                self._next = number + 1, self._layer.index.chunk(self._entry, number + 1)
        self._window = min(2 * self._window, LARGEST_WINDOW)
        self._chunks.want(chunks)

    def _check(self, offset: int, piece: bytes) -> None:
        if offset != self._hashed:
            return
        self._hash.update(piece)
        self._hashed += len(piece)
        if self._hashed == self._entry.size and self._hash.digest() != self._entry.sha256:
            self._chunks.is_wrong = True
            digest = str(self._layer.filesystem.digest)
            raise ContentMismatch(
                digest, "a file does not match the digest in its table of contents"
            )


def _has(chunk: Chunk, offset: int) -> bool:
    return chunk.start <= offset < chunk.start + chunk.size
