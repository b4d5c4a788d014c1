"""Where one layer is made into a blob: the blocking side of an ingest.

Knows nothing of room or of who waits. Its methods are called one at a time, from any thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from twisted.logger import Logger

from blobserve.config import Limits
from blobserve.oci.manifest import Descriptor
from blobserve.store.blobs.blob import ReadyBlob
from blobserve.store.blobs.filesystem import ImageFilesystem
from blobserve.store.disk.directory import SpaceDirectory
from blobserve.store.disk.files import footprint
from blobserve.store.disk.metadata_db import MetadataDb, Record, recorded
from blobserve.store.extract.extractor import ExtractionResult, Extractor

_log = Logger()


class BlobWriter:
    """A directory in `ingest` and the extractor that fills it."""

    def __init__(
        self,
        location: SpaceDirectory,
        state: MetadataDb,
        descriptor: Descriptor,
        limits: Callable[[], Limits],
        seconds: Callable[[], float],
    ) -> None:
        self.digest = descriptor.kept_as
        self._location = location
        self._state = state
        self._descriptor = descriptor
        self._limits = limits
        self._seconds = seconds
        self._directory: Path | None = None
        self._extractor: Extractor | None = None

    def begin(self) -> Extractor:
        """Make the directory, and what extracts into it. May be tried again if it fails."""
        directory = self._location.new_ingest()
        try:
            self._extractor = Extractor(directory, self._descriptor, self._limits())
        except BaseException:
            self._location.discard(directory)
            raise
        self._directory = directory
        return self._extractor

    def publish(self, extracted: ExtractionResult) -> ReadyBlob:
        """Make READY what has been extracted and verified, by one rename.

        May be tried again if it fails.
        """
        directory = self._directory
        assert directory is not None  # `begin` made what was extracted
        record = Record(
            self.digest,
            extracted.content_size,
            extracted.index_size,
            extracted.index_sha256,
            self._seconds(),
        )
        kept = ReadyBlob(record, footprint(directory))
        filesystem = ImageFilesystem.open(directory, self.digest, self._limits)
        try:
            self._remember(record)
            self._location.publish(directory, self._location.blob(self.digest))
        except BaseException:
            filesystem.close()
            raise
        kept.filesystem = filesystem
        return kept

    def wipe(self) -> None:
        """Remove what was made."""
        if self._extractor is not None:
            self._extractor.abort()
        if self._directory is not None:
            self._location.discard(self._directory)

    def _remember(self, record: Record) -> None:
        """Before the rename: a published blob without a record cannot be verified after a crash."""
        try:
            self._state.change(recorded(record))
        except sqlite3.Error as error:
            _log.warn(
                "{digest} will be pulled again after a restart: {error}",
                digest=str(record.digest),
                error=error,
            )
