"""The files of an image: entries in, bytes out.

All reading is in blobs that are open already; what happens to their directories meanwhile does not
matter. Knows nothing of what a path means to HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from blobserve.config import Limits
from blobserve.errors import BlobDamaged
from blobserve.names.digest import Digest
from blobserve.store.blobs.content import BlobContent
from blobserve.store.disk.codings_file import CodingsFile, NoCoding
from blobserve.store.index.entry import Entry
from blobserve.store.index.lookup import IndexReader


class ImageFilesystem:
    """The files of an image: its tree, and the blobs that have their bytes, the lowest first.

    Look-ups are for one thread, and take microseconds; what blocks, by its docstring, is for any.
    """

    def __init__(self, tree: IndexReader, contents: Sequence[BlobContent]) -> None:
        self.digest = tree.digest
        """Of what makes the tree; of the layer, if that is one."""
        self.tree = tree
        self.contents = contents

    @classmethod
    def open(cls, directory: Path, digest: Digest, limits: Callable[[], Limits]) -> ImageFilesystem:
        """Open the blob in `directory`, to be closed. Blocks; may be called in any thread.

        :raises IndexDamaged: when an index of our version, and of this content, is not there.
        :raises OSError: when they cannot be opened.
        """
        with ExitStack() as failing:
            content = BlobContent.open(directory, digest)
            failing.callback(content.close)
            tree = IndexReader.of_blob(directory / "index", content.size, digest, limits)
            failing.pop_all()
        return cls(tree, (content,))

    @property
    def codings(self) -> CodingsFile:
        """What has been made of the files of a single blob."""
        return self.contents[0].codings

    def lookup(self, path: bytes) -> Entry:
        """Find what `path` names, through links, from the root of the tree.

        :raises PathNotFound: when that is no file and no directory, or not to be reached.
        :raises IndexDamaged: when the index cannot be read.
        """
        return self.tree.lookup(path)

    def names(self, directory: Entry) -> list[bytes]:
        """The names in a directory, sorted by their bytes; `lookup` tells which can be served."""
        return self.tree.names(directory)

    def entries(self, directory: Entry, most: int) -> Iterator[tuple[bytes, Entry]]:
        """The names in a directory and what each leads to, links followed, sorted by their bytes.

        What cannot be served is left out. Blocks, and is for any thread: SQLite takes turns.

        :raises ListingTooLarge: when there are more than `most`, or their links are too tangled.
        :raises BlobDamaged: when the index cannot be read.
        """
        return self.tree.entries(directory, most)

    def coded(self, entry: Entry, coding: bytes) -> Entry | NoCoding | None:
        """The same file in a content coding; None when that is not known yet."""
        return self.contents[entry.layer].coded(entry, coding)

    def read(self, entry: Entry, offset: int, length: int) -> bytes:
        """Read `length` bytes of a file from `offset` on, fewer only at its end. Blocks.

        :raises BlobDamaged: when the disk has lost them, or has others.
        """
        return self.contents[entry.layer].read(entry, offset, length)

    def read_cached(self, entry: Entry, offset: int, length: int) -> bytes | None:
        """The same without blocking: what of it is in memory, None when nothing is."""
        return self.contents[entry.layer].read_cached(entry, offset, length)

    def descriptor_of(self, entry: Entry) -> int:
        """The descriptor of the file that has an entry's bytes, from its `offset` on."""
        return self.contents[entry.layer].descriptor_of(entry)

    def is_cached(self, entry: Entry, offset: int, length: int) -> bool:
        """Whether all of that is in memory, as far as anybody can tell."""
        return self.contents[entry.layer].is_cached(entry, offset, length)

    def read_ahead(self, entry: Entry, offset: int, length: int) -> None:
        """Bring it into memory, where it stays as long as there is room. Blocks.

        :raises BlobDamaged: when the disk has lost it, or has something else.
        """
        self.contents[entry.layer].read_ahead(entry, offset, length)

    def verify(self, is_verifying: bool) -> None:
        """Give no byte of a file away, from now on, before all of it was found to be right."""
        for content in self.contents:
            content.is_verifying = is_verifying

    def is_checked(self, entry: Entry) -> bool:
        """Whether a file may be given away, because it was checked or need not be."""
        return self.contents[entry.layer].is_checked(entry)

    def check(self, entry: Entry) -> Iterator[None]:
        """Compare a file with its SHA-256, a slice at each step; when it is right, that holds.

        Steps block.

        :raises BlobDamaged: when the disk has lost it, or has something else.
        """
        return self.contents[entry.layer].check(entry)

    def damage(self, entry: Entry, problem: str) -> BlobDamaged:
        """The error that says what is wrong with the bytes of an entry."""
        return self.contents[entry.layer].damage(entry, problem)

    def forget_coding(self, coding: bytes, offset: int) -> None:
        """Give away no longer the coded bytes of a single blob that begin there."""
        self.contents[0].forget_coding(coding, offset)

    def take_index(self, other: ImageFilesystem) -> None:
        """Look up in the index of `other` from now on, the same blob opened anew; it is closed."""
        self.tree, other.tree = other.tree, self.tree
        other.close()

    def close(self) -> None:
        """Close all files. Idempotent."""
        self.tree.close()
        for content in self.contents:
            content.close()
