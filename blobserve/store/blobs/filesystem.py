"""The files of an image: paths to entries, and entries to bytes.

Reads use blobs that are already open, so their directories may be moved or removed meanwhile. This
module does not know the meaning of a path in HTTP.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

from twisted.internet.defer import Deferred

from blobserve.config import Limits
from blobserve.names.digest import Digest
from blobserve.store.blobs.content import BlobContent, Reader, StoredFile
from blobserve.store.disk.codings_file import CodingsFile
from blobserve.store.index.entry import Entry
from blobserve.store.index.lookup import IndexReader

T = TypeVar("T")


class File(Protocol):
    """A file that is read until `close`; the lease of its image must be held for so long."""

    @property
    def size(self) -> int:
        """The size in bytes."""
        ...

    @property
    def stored(self) -> StoredFile | None:
        """The same file if its bytes are in the blob space."""
        ...

    def read_cached(self, offset: int, length: int) -> bytes | None:
        """Return the bytes from `offset` on that are in memory, None if there are none."""
        ...

    def fetch(self, offset: int, length: int, reader: Reader) -> Deferred[bytes]:
        """Read at least one byte from `offset` on, and at most `length`."""
        ...

    def apply(self, f: Callable[[bytes], T], length: int, reader: Reader) -> Deferred[T]:
        """Call `f`, which may block, in a thread with the first `length` bytes of the file."""
        ...

    def close(self) -> None:
        """End the reading. Idempotent."""
        ...


class Filesystem(ABC):
    """The tree of an image, and access to its files.

    Lookups are for one thread and take microseconds. Methods that block, according to their
    docstrings, may be called in any thread.
    """

    is_complete: ClassVar[bool]
    """Whether all files are in the blob space; else nothing that is made of them is cached."""

    def __init__(self, tree: IndexReader) -> None:
        self.digest = tree.digest
        """The digest of the layer, or of the merged index of several layers."""
        self.tree = tree

    def lookup(self, path: bytes) -> Entry:
        """Return the entry at `path`, following links, from the root of the tree.

        :raises PathNotFound: when no file or directory can be reached under `path`.
        :raises IndexDamaged: when the index cannot be read.
        """
        return self.tree.lookup(path)

    def names(self, directory: Entry) -> list[bytes]:
        """Return the names in a directory, sorted by bytes; `lookup` may refuse some of them."""
        return self.tree.names(directory)

    def entries(self, directory: Entry, most: int) -> Iterator[tuple[bytes, Entry]]:
        """Yield each name in a directory with its entry, following links, sorted by bytes.

        Names that cannot be served are left out. Blocks; may be called in any thread.

        :raises ListingTooLarge: when there are more than `most`, or their links are too tangled.
        :raises BlobDamaged: when the index cannot be read.
        """
        return self.tree.entries(directory, most)

    @abstractmethod
    def file(self, entry: Entry) -> File:
        """Return the file of an entry of this tree."""


class ImageFilesystem(Filesystem):
    """The files of an image in the blob space: its tree, and its layers, the lowest first."""

    is_complete = True

    def __init__(self, tree: IndexReader, contents: Sequence[BlobContent]) -> None:
        super().__init__(tree)
        self.contents = contents

    @classmethod
    def open(cls, directory: Path, digest: Digest, limits: Callable[[], Limits]) -> ImageFilesystem:
        """Open the blob in `directory`; the caller closes it. Blocks; may run in any thread.

        :raises IndexDamaged: when there is no index of this version and for this content.
        :raises OSError: when a file cannot be opened.
        """
        with ExitStack() as failing:
            content = BlobContent.open(directory, digest)
            failing.callback(content.close)
            tree = IndexReader.of_blob(directory / "index", content.size, digest, limits)
            failing.pop_all()
        return cls(tree, (content,))

    @property
    def codings(self) -> CodingsFile:
        """The coded variants of the files of a single blob."""
        return self.contents[0].codings

    def file(self, entry: Entry) -> StoredFile:
        """See `Filesystem.file`."""
        return StoredFile(self.contents[entry.layer], entry)

    def verify(self, is_verifying: bool) -> None:
        """Set whether each file is compared with its SHA-256 before its first byte is read."""
        for content in self.contents:
            content.is_verifying = is_verifying

    def take_index(self, other: ImageFilesystem) -> None:
        """Use the index of `other`, the same blob opened again, from now on; close `other`."""
        self.tree, other.tree = other.tree, self.tree
        other.close()

    def close(self) -> None:
        """Close all files. Idempotent."""
        self.tree.close()
        for content in self.contents:
            content.close()
