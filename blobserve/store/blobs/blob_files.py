"""The files and records of READY blobs: opening, syncing and removing them.

Every function blocks, and may run in any thread. Leases and eviction are decided elsewhere.
"""

from __future__ import annotations

import errno
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
        """Check a blob against its record, without reading its content, and open it.

        :raises IndexDamaged: when its index differs from the record.
        :raises BlobDamaged: when its content has another size than recorded, or cannot be opened.
        """
        directory = self._location.blob(kept.digest)
        self._location.check(directory)
        try:
            check(directory, kept.record)
            return ImageFilesystem.open(directory, kept.digest, self._limits)
        except OSError as error:
            if not is_lost(error):
                raise
            raise BlobDamaged(str(kept.digest), f"{error.strerror}") from error

    def repair(self, kept: ReadyBlob) -> tuple[ImageFilesystem, int]:
        """Rebuild the index of a blob from its content; return the open blob and its new size.

        :raises BlobDamaged: when the content cannot be read either.
        """
        directory = self._location.blob(kept.digest)
        self._location.check(directory / "index")
        try:
            kept.record = rebuild(directory, kept.digest, kept.record.used, self._limits())
        except (BadImage, OSError) as error:
            if isinstance(error, OSError) and not (is_lost(error) or _is_planted(error)):
                raise
            raise BlobDamaged(str(kept.digest), "its index cannot be rebuilt") from error
        self._state.change(recorded(kept.record))
        return self.open(kept), footprint(directory)

    def settle(self, kept: ReadyBlob) -> None:
        """Sync a blob to the disk, and mark it as durable."""
        with kept.files:
            if not kept.is_removed:
                self._location.check(self._location.blob(kept.digest) / "content")
                sync_blob(self._location.blob(kept.digest))
                self._state.change(made_durable(kept.digest))

    def begin_coding(self, kept: ReadyBlob, codings: CodingsFile, is_needed: bool) -> int | None:
        """Call `CodingsFile.begin`; return None if the blob has been removed."""
        with kept.files:
            if kept.is_removed:
                return None
            self._location.check(self._location.blob(kept.digest) / "codings")
            return codings.begin(self._location.blob(kept.digest), is_needed)

    def remove(self, blobs: list[ReadyBlob]) -> None:
        """Remove blobs. Open ones stay readable; a directory that cannot be moved stays."""
        remove_kept(blobs, self._location, self._location.blob)
        self._state.change(*(removed(kept.digest) for kept in blobs))


def remove_kept(
    blobs: Iterable[ReadyBlob], location: SpaceDirectory, path: Callable[[Digest], Path]
) -> None:
    """Remove the files at the `path` of each blob, and set its `is_removed`."""
    for kept in blobs:
        with kept.files:
            away = location.move_away(path(kept.digest))
            kept.is_removed = True
        if away is not None:
            location.dispose(away)


def check(directory: Path, record: Record) -> None:
    """Check the size of the content, and the size and checksum of the index.

    :raises BlobDamaged: when the content differs from the record.
    :raises IndexDamaged: when only the index does.
    """
    if not _is_directory(directory):
        raise BlobDamaged(str(record.digest), "its directory is missing, or a link or a file")
    if not has_size(directory / "content", record.content_size):
        raise BlobDamaged(str(record.digest), "its content has another size than recorded")
    check_index(directory / "index", record)


def check_index(path: Path, record: Record) -> None:
    """Check the size and checksum of an index.

    :raises IndexDamaged: when they differ from the record.
    """
    found = None
    try:
        if has_size(path, record.index_size):
            found = checksum(path)
    except OSError as error:
        if not is_lost(error):
            raise
    if found != record.index_sha256:
        raise IndexDamaged(str(record.digest), "its index differs from its record")


def has_size(path: Path, size: int) -> bool:
    """Return whether `path` is a regular file of this size; links are not followed."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size


def _is_directory(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _is_planted(error: OSError) -> bool:
    """Return whether a file of a blob is a link or a directory, which another program put there."""
    return error.errno in (errno.EISDIR, errno.ELOOP)


def rebuild(directory: Path, digest: Digest, used: float, limits: Limits) -> Record:
    """Rebuild the index from the content; return the new record of the blob."""
    built = IndexWriter.rebuild(directory, limits)
    sync_blob(directory)
    size = (directory / "content").lstat().st_size
    return Record(digest, size, built.size, built.sha256, used, durable=True)


def sync_blob(directory: Path) -> None:
    """Sync a published blob, without its codings, so that it survives a power cut."""
    sync(directory / "content", directory / "index", directory, directory.parent)
