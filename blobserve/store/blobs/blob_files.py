"""The files of READY blobs, and what is recorded of them: opened, synced, removed.

Every function here blocks, and may run in any thread. Who may still read a blob, and who decides
that it goes, is not known here.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from blobserve.config import Limits
from blobserve.errors import BadImage, BlobDamaged, IndexDamaged
from blobserve.names.digest import Digest
from blobserve.store.blobs.blob import ReadyBlob
from blobserve.store.blobs.filesystem import ImageFilesystem
from blobserve.store.disk.codings_file import CodingsFile
from blobserve.store.disk.directory import SpaceDirectory
from blobserve.store.disk.disk_errors import is_lost
from blobserve.store.disk.files import checksum, footprint, sync
from blobserve.store.disk.metadata_db import MetadataDb, Record, made_durable, recorded, removed
from blobserve.store.index.layer_index import IndexWriter


class BlobFiles:
    """The files of all READY blobs of one blob space."""

    def __init__(
        self, location: SpaceDirectory, state: MetadataDb, limits: Callable[[], Limits]
    ) -> None:
        self._location = location
        self._state = state
        self._limits = limits

    def open(self, kept: ReadyBlob) -> ImageFilesystem:
        """Open a blob after checking it against its record; its content is not read.

        :raises IndexDamaged: when its index is not what was recorded.
        :raises BlobDamaged: when its content is not of the recorded size, or cannot be opened.
        """
        directory = self._location.blob(kept.digest)
        try:
            check(directory, kept.record)
            return ImageFilesystem.open(directory, kept.digest, self._limits)
        except OSError as error:
            if not is_lost(error):
                raise
            raise BlobDamaged(str(kept.digest), f"{error.strerror}") from error

    def repair(self, kept: ReadyBlob) -> tuple[ImageFilesystem, int]:
        """Make the index of a blob again from its content, and open it; with what it takes then.

        :raises BlobDamaged: when the content cannot be read either.
        """
        directory = self._location.blob(kept.digest)
        try:
            kept.record = rebuild(directory, kept.digest, kept.record.used, self._limits())
        except (BadImage, OSError) as error:
            if isinstance(error, OSError) and not is_lost(error):
                raise
            raise BlobDamaged(str(kept.digest), "its index cannot be made again") from error
        self._state.change(recorded(kept.record))
        return self.open(kept), footprint(directory)

    def settle(self, kept: ReadyBlob) -> None:
        """Bring a blob to the disk, and mark it as durable."""
        with kept.files:
            if not kept.is_removed:
                sync_blob(self._location.blob(kept.digest))
                self._state.change(made_durable(kept.digest))

    def begin_coding(self, kept: ReadyBlob, codings: CodingsFile, is_needed: bool) -> int | None:
        """See `CodingsFile.begin`; None when the blob has been removed."""
        with kept.files:
            if kept.is_removed:
                return None
            return codings.begin(self._location.blob(kept.digest), is_needed)

    def remove(self, blobs: list[ReadyBlob]) -> None:
        """Remove blobs; whoever has one open can read on. One that cannot be moved stays."""
        remove_kept(blobs, self._location, self._location.blob)
        self._state.change(*(removed(kept.digest) for kept in blobs))


def remove_kept(
    blobs: Iterable[ReadyBlob], location: SpaceDirectory, path: Callable[[Digest], Path]
) -> None:
    """Remove what lies at the `path` of each, and say of it that it is removed."""
    for kept in blobs:
        with kept.files:
            away = location.move_away(path(kept.digest))
            kept.is_removed = True
        if away is not None:
            location.dispose(away)


def check(directory: Path, record: Record) -> None:
    """See that the content is of the recorded size, and the index what was recorded.

    :raises BlobDamaged: when the content is not.
    :raises IndexDamaged: when the index alone is not.
    """
    if not has_size(directory / "content", record.content_size):
        raise BlobDamaged(str(record.digest), "its content is not of the recorded size")
    check_index(directory / "index", record)


def check_index(path: Path, record: Record) -> None:
    """See that an index is what was recorded.

    :raises IndexDamaged: otherwise.
    """
    found = None
    try:
        if has_size(path, record.index_size):
            found = checksum(path)
    except OSError as error:
        if not is_lost(error):
            raise
    if found != record.index_sha256:
        raise IndexDamaged(str(record.digest), "its index is not the recorded one")


def has_size(path: Path, size: int) -> bool:
    """Whether a file, and no link to one, of this size is there."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size


def rebuild(directory: Path, digest: Digest, used: float, limits: Limits) -> Record:
    """Make the index again from the content; what a record of the blob says from then on."""
    built = IndexWriter.rebuild(directory, limits)
    sync_blob(directory)
    size = (directory / "content").lstat().st_size
    return Record(digest, size, built.size, built.sha256, used, durable=True)


def sync_blob(directory: Path) -> None:
    """Return when a published blob would survive a power cut, but for its codings."""
    sync(directory / "content", directory / "index", directory, directory.parent)
