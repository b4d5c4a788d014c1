"""From compressed chunks to a blob on disk: a push machine that never waits.

It checks, decompresses, reads, hashes and writes; when it may write no more it says how much it
lacks, and stops where it is. Nothing here waits, knows Twisted, or decides who gets room, and
nothing blocks but on the disk. Two threads may share the work: one calls `unpack`, the other all
the rest, each one call at a time. Nothing from the image names a file.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import attrs

from blobserve.concurrency.thread_pipe import ThreadPipe
from blobserve.config import Limits
from blobserve.errors import BadImage, BadLayer
from blobserve.oci.manifest import Descriptor
from blobserve.store.extract.single_file import stage_for
from blobserve.store.extract.verify import LayerVerifier
from blobserve.store.index.layer_index import IndexWriter
from blobserve.store.index.name_watch import Seen
from blobserve.store.index.node_table import create, disk_errors
from blobserve.tar.reader import Member, TarReader

_EXTENT = 8 << 20


@attrs.frozen
class ExtractionResult:
    """What was extracted: sizes in bytes, the SHA-256 of the index file, the number of entries."""

    content_size: int
    index_size: int
    index_sha256: bytes
    entries: int


class Extractor:
    """Extracts one layer into `directory`, which is empty: its files `content` and `index`.

    What is wrong with the layer itself is told by `finish` alone: until all bytes are here, and are
    the promised ones, a damaged layer cannot be told from a damaged transfer.
    """

    def __init__(self, directory: Path, descriptor: Descriptor, limits: Limits) -> None:
        self._descriptor = descriptor
        self._unpacker = LayerVerifier(descriptor, stage_for(descriptor, limits))
        self._reader = TarReader(limits)
        self._problem: BadLayer | None = None
        self._belt = ThreadPipe()
        self._pieces: Iterator[bytes] = iter(())
        self._members: deque[Member] = deque()
        self._piece = memoryview(b"")
        self._written = self._reserved = self._allowance = 0
        self._content = create(directory / "content")
        try:
            with disk_errors():
                self._index = IndexWriter(directory / "index", limits)
        except OSError:  # Leave the directory empty, so that it can be tried again.
            os.close(self._content)
            (directory / "content").unlink()
            raise

    @property
    def is_dry(self) -> bool:
        """Whether all that was fed has been unpacked, and taken."""
        return self._unpacker.is_dry and self._belt.is_empty

    def feed(self, chunk: bytes) -> int:
        """Take the next bytes of the blob, unpack and extract them; see `go_on` for the result.

        :raises ContentMismatch: when the blob is longer than promised.
        :raises OSError: when the disk fails, or is full.
        """
        self._unpacker.feed(chunk)
        self._pieces = self._unpacker.pieces()
        return self.go_on()

    def unpack(self, chunks: Iterator[bytes]) -> None:
        """Take the next bytes of the blob, and unpack as many of them as may well wait.

        Until `is_dry`, there is more to be had of those that were taken.

        :raises ContentMismatch: when the blob is longer than promised.
        """
        with self._belt.giving():
            while self._hand_over() and (chunk := next(chunks, None)) is not None:
                self._unpacker.feed(chunk)

    def take(self) -> int:
        """Extract what `unpack` makes, and has made; see `go_on` for the result.

        :raises OSError: when the disk fails, or is full.
        """
        self._pieces = self._belt.pieces()
        return self.go_on()

    @property
    def due(self) -> int:
        """Bytes that must be granted sooner or later, by what the layer has said of itself."""
        return max(0, self._reader.claimed + self._index.bound - self._allowance)

    def grant(self, n: int) -> None:
        """Allow `n` more bytes on disk."""
        self._allowance += n

    def go_on(self) -> int:
        """Work off what was fed, or taken.

        Returns 0 when all of it is done, else how many bytes must be granted before it can go on.
        What it writes never comes to more than was granted: the content by the extents that are
        reserved for it, the index by what it may come to at most.

        :raises OSError: when the disk fails, or is full while room was being reserved: it can go on
            once there is room.
        :raises DiskFull: when the index has met a full disk, and is lost.
        """
        if self._problem is not None:
            self._belt.clear()
            return 0
        try:
            with disk_errors(), self._belt.taking():
                return self._advance()
        except BadLayer as problem:
            # Nothing more is written; only the hash goes on, to learn whose fault it was.
            self._problem = problem
            self._unpacker.give_up()
            return 0

    def look(self, names: frozenset[bytes]) -> Seen | None:
        """See `NameWatch.look`, once `go_on` has returned 0; None when the layer is bad.

        :raises OSError: when the disk fails.
        """
        if self._problem is not None or self._unpacker.is_bad:
            return None
        with disk_errors():
            if names:
                self._index.flush()
            return self._index.sightings.look(names)

    @property
    def content(self) -> int:
        """The descriptor of the content, open for reading too; -1 when it has been closed."""
        return self._content

    @property
    def is_whole(self) -> bool:
        """Whether all bytes of the blob were fed, so that what is left is to verify it."""
        return self._unpacker.is_whole

    def finish(self) -> ExtractionResult:
        """Say that the blob is complete: check it, finish both files and close them.

        :raises ContentMismatch: when the bytes are not those of the descriptor.
        :raises BadImage: when they are, and the layer cannot be served.
        """
        self._unpacker.verify()
        try:
            if self._problem is not None:
                raise self._problem
            self._unpacker.finish()
            self._reader.finish()
            with disk_errors():
                built = self._index.finish(self._written)
        except BadLayer as problem:
            raise BadImage(f"layer {self._descriptor.digest}", str(problem)) from problem
        os.truncate(self._content, self._written)
        self.abort()
        return ExtractionResult(self._written, built.size, built.sha256, built.entries)

    def abort(self) -> None:
        """Close the files, and leave them to whoever owns the directory. Idempotent."""
        content, self._content = self._content, -1
        if content >= 0:
            os.close(content)
        self._index.close()

    def _hand_over(self) -> bool:
        """Unpack what was fed; whether all of it could be handed over."""
        return all(self._belt.put(piece) for piece in self._unpacker.pieces())

    def _advance(self) -> int:
        while True:
            while self._members and not self._index.full:
                self._index.add(self._members.popleft())
            lacking = self._written + len(self._piece) + self._index.bound - self._allowance
            if lacking > 0:
                return lacking
            self._reserve(self._written + len(self._piece))
            if self._members:  # It is full: a few entries at a time would cost more to write.
                self._index.flush()
                continue
            self._write()
            piece = next(self._pieces, b"")
            if not piece:
                return 0
            start = self._reader.size
            self._members.extend(self._reader.feed(piece))
            # What follows the end of the archive is checked, and not kept.
            self._piece = memoryview(piece)[: self._reader.size - start]

    def _reserve(self, end: int) -> None:
        """Have the disk set room aside for the content up to `end`, or fail now."""
        most = self._allowance - self._index.bound
        if self._reserved > most:
            os.truncate(self._content, most)
            self._reserved = most
        elif self._reserved < end:
            # Some of the rest is left to the index, which grows meanwhile.
            extent = end - self._reserved + min(_EXTENT, (most - end) // 2)
            os.posix_fallocate(self._content, self._reserved, extent)
            self._reserved += extent

    def _write(self) -> None:
        while self._piece:
            written = os.write(self._content, self._piece)
            self._written += written
            self._piece = self._piece[written:]
