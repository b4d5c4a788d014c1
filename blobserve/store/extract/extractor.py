"""The extraction of one layer: from compressed chunks to a blob on disk.

The extractor verifies, decompresses, parses, hashes and writes. Its work is in steps, which stop
when more bytes must be reserved; see `blobserve.concurrency.steps`. One thread may run `unpack`
while a second one calls any other method; no other calls may overlap. Besides the disk, the two
threads wait only for each other (`ThreadPipe`). No name from the image becomes the name of a file.

`LayerVerifier` checks the compressed bytes against the descriptor. Damage is reported at the end:
until all bytes have the right digest, a damaged layer looks like a damaged transfer.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import attrs

from blobserve.concurrency.steps import Steps
from blobserve.concurrency.thread_pipe import ThreadPipe
from blobserve.config import Limits
from blobserve.errors import BadImage, BadLayer, ContentMismatch
from blobserve.oci.manifest import Descriptor
from blobserve.store.extract.decompress import Decompressor, Stage
from blobserve.store.extract.single_file import TarWrapper
from blobserve.store.extract.sparse import SparseExpander
from blobserve.store.index.layer_index import IndexWriter
from blobserve.store.index.name_watch import Seen
from blobserve.store.index.node_table import create, disk_errors
from blobserve.tar.reader import Member, TarReader

_PARTS_PER_ENTRY = 4  # eStargz and zstd:chunked begin one for a header, and one for a body.


class LayerVerifier:
    """Verifies and decompresses one layer: after each `feed`, read all `pieces`."""

    def __init__(self, descriptor: Descriptor, limits: Limits) -> None:
        self.is_dry = descriptor.size > 0  # An empty file still has a tar header.
        """Whether everything that was fed has been decompressed."""
        self._descriptor = descriptor
        self._received = 0
        self._hash = descriptor.digest.hasher()
        self._stage = _stage_for(descriptor, limits)
        self.problem: BadLayer | None = None
        """The error that `finish` will raise."""
        self._is_given_up = False

    @property
    def is_whole(self) -> bool:
        """Return whether all bytes of the blob have been fed."""
        return self._received >= self._descriptor.size

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the blob.

        :raises ContentMismatch: when the blob is longer than promised.
        """
        self._hash.update(chunk)
        self._received += len(chunk)
        if self._received > self._descriptor.size:
            raise self._mismatch(f"it is longer than {self._descriptor.size} bytes")
        self._stage.feed(b"" if self._is_given_up else chunk)
        self.is_dry = False

    def pieces(self) -> Iterator[bytes]:
        """Decompress the chunks that were fed, one piece at a time."""
        while not self._is_given_up:
            try:
                piece = self._stage.read()
            except BadLayer as problem:
                self.problem = problem
                self._is_given_up = True
                break
            if not piece:
                break
            yield piece
        self.is_dry = True

    def give_up(self) -> None:
        """Stop decompressing, and only check the digest. May be called in any thread."""
        self._is_given_up = True

    def verify(self) -> None:
        """Check the digest and size of the complete blob.

        :raises ContentMismatch: when they differ from the descriptor.
        """
        descriptor = self._descriptor
        if self._received != descriptor.size:
            raise self._mismatch(f"{self._received} bytes instead of {descriptor.size}")
        if self._hash.hexdigest() != descriptor.digest.hex:
            raise self._mismatch("its digest is another one")

    def finish(self) -> None:
        """Check that the stream was complete.

        :raises BadLayer: when it is damaged or cut short.
        """
        if self.problem is not None:
            raise self.problem
        self._stage.finish()

    def _mismatch(self, problem: str) -> ContentMismatch:
        return ContentMismatch(str(self._descriptor.digest), problem)


def _stage_for(descriptor: Descriptor, limits: Limits) -> Stage:
    """Return the stage that makes a tar stream of a layer."""
    if descriptor.file is not None:
        return TarWrapper(descriptor.file.encode(), descriptor.size)
    return SparseExpander(Decompressor(most_parts=_PARTS_PER_ENTRY * limits.entries), limits)


_EXTENT = 8 << 20


@attrs.frozen
class ExtractionResult:
    """The sizes in bytes, the SHA-256 of the index file, and the number of entries."""

    content_size: int
    index_size: int
    index_sha256: bytes
    entries: int


class Extractor:
    """Extracts one layer into the files `content` and `index` of an empty directory.

    Only `finish` reports problems of the layer itself: before all bytes have the right digest, a
    damaged layer cannot be distinguished from a damaged transfer.
    """

    def __init__(self, directory: Path, descriptor: Descriptor, limits: Limits) -> None:
        self._descriptor = descriptor
        self._verifier = LayerVerifier(descriptor, limits)
        self._reader = TarReader(limits)
        self._problem: BadLayer | None = None
        self._pipe = ThreadPipe()
        self._pieces: Iterator[bytes] = iter(())
        self._members: deque[Member] = deque()
        self._piece = memoryview(b"")
        self._written = self._reserved = self._allowance = 0
        self.content = create(directory / "content")
        """The descriptor of the content, also open for reading; -1 after closing."""
        try:
            with disk_errors():
                self._index = IndexWriter(directory / "index", limits)
        except OSError:  # The directory stays empty, so that the caller can try again.
            os.close(self.content)
            (directory / "content").unlink()
            raise

    @property
    def is_dry(self) -> bool:
        """Return whether everything that was fed has been decompressed and taken."""
        return self._verifier.is_dry and self._pipe.is_empty

    def feed(self, chunk: bytes, names: frozenset[bytes] = frozenset()) -> Steps[Seen | None]:
        """Take the next bytes of the blob, decompress and extract them. See `resume`.

        :raises ContentMismatch: when the blob is longer than its descriptor says.
        """
        self._verifier.feed(chunk)
        self._pieces = self._verifier.pieces()
        return (yield from self.resume(names))

    def unpack(self, chunks: Iterator[bytes]) -> None:
        """Take the next bytes of the blob, and decompress as many as the pipe takes.

        A full pipe leaves the rest compressed. Call this and `take` again until `is_dry`.

        :raises ContentMismatch: when the blob is longer than its descriptor says.
        """
        with self._pipe.giving():
            while self._fill_pipe() and (chunk := next(chunks, None)) is not None:
                self._verifier.feed(chunk)

    def take(self, names: frozenset[bytes] = frozenset()) -> Steps[Seen | None]:
        """Extract the bytes that `unpack` decompresses, meanwhile or before. See `resume`."""
        self._pieces = self._pipe.pieces()
        return (yield from self.resume(names))

    def resume(self, names: frozenset[bytes] = frozenset()) -> Steps[Seen | None]:
        """Extract the bytes that were fed or taken; return `look(names)`.

        It never writes more than was granted. After an `OSError` of a full disk it can be called
        again.

        :raises OSError: when the disk fails, or is full.
        :raises DiskFull: when the disk becomes full while the index is written. The index is lost.
        """
        while lacking := self._extract():
            yield lacking
        return self.look(names)

    @property
    def due(self) -> int:
        """Bytes that must still be granted, according to the headers read so far."""
        return max(0, self._reader.claimed + self._index.bound - self._allowance)

    def grant(self, n: int) -> None:
        """Allow `n` more bytes on disk."""
        self._allowance += n

    def _extract(self) -> int:
        """Extract bytes; return how many must be granted first, 0 when all are extracted."""
        if self._problem is not None:
            self._pipe.clear()
            return 0
        try:
            with disk_errors(), self._pipe.taking():
                return self._advance()
        except BadLayer as problem:
            # Writing stops. Hashing continues, to see whether the transfer was damaged.
            self._problem = problem
            self._verifier.give_up()
            return 0

    def look(self, names: frozenset[bytes]) -> Seen | None:
        """Call `NameWatch.look` when all bytes are extracted; return None for a bad layer.

        :raises OSError: when the disk fails.
        """
        if self._problem is not None or self._verifier.problem is not None:
            return None
        with disk_errors():
            if names:
                self._index.flush()
            return self._index.watch.look(names)

    @property
    def is_whole(self) -> bool:
        """Return whether all bytes of the blob have been fed."""
        return self._verifier.is_whole

    def finish(self) -> ExtractionResult:
        """Verify the complete blob, finish both files and close them.

        :raises ContentMismatch: when the bytes differ from the descriptor.
        :raises BadImage: when the bytes are right, but the layer cannot be served.
        """
        self._verifier.verify()
        try:
            if self._problem is not None:
                raise self._problem
            self._verifier.finish()
            self._reader.finish()
            with disk_errors():
                built = self._index.finish(self._written)
        except BadLayer as problem:
            raise BadImage(f"layer {self._descriptor.digest}", str(problem)) from problem
        os.truncate(self.content, self._written)
        self.abort()
        return ExtractionResult(self._written, built.size, built.sha256, built.entries)

    def abort(self) -> None:
        """Close the files; the owner of the directory removes them. Idempotent."""
        content, self.content = self.content, -1
        if content >= 0:
            os.close(content)
        self._index.close()

    def _fill_pipe(self) -> bool:
        """Decompress into the pipe; return whether it took everything."""
        return all(self._pipe.put(piece) for piece in self._verifier.pieces())

    def _advance(self) -> int:
        while True:
            while self._members and not self._index.full:
                self._index.add(self._members.popleft())
            lacking = self._written + len(self._piece) + self._index.bound - self._allowance
            if lacking > 0:
                return lacking
            self._reserve(self._written + len(self._piece))
            if self._members:  # The index is full. Flushing fewer entries would cost more.
                self._index.flush()
                continue
            self._write()
            piece = next(self._pieces, b"")
            if not piece:
                return 0
            start = self._reader.size
            self._members.extend(self._reader.feed(piece))
            # Bytes after the end of the archive are verified, but not stored.
            self._piece = memoryview(piece)[: self._reader.size - start]

    def _reserve(self, end: int) -> None:
        """Allocate the content on the disk up to `end`, so that a full disk fails here."""
        most = self._allowance - self._index.bound
        if self._reserved > most:
            os.truncate(self.content, most)
            self._reserved = most
        elif self._reserved < end:
            # Some of the rest is for the index, which grows meanwhile.
            extent = end - self._reserved + min(_EXTENT, (most - end) // 2)
            os.posix_fallocate(self.content, self._reserved, extent)
            self._reserved += extent

    def _write(self) -> None:
        while self._piece:
            written = os.write(self.content, self._piece)
            self._written += written
            self._piece = self._piece[written:]
