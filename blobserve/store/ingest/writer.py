"""The files of an ingest, up to their publication as a blob.

Every method blocks. They are called one at a time, from any thread.
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
    """A directory in `ingest`, and the extractor that fills it."""

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
        """Make the directory and its extractor. It may be called again if it fails."""
        directory = self._location.new_ingest()
        try:
            self._extractor = Extractor(directory, self._descriptor, self._limits())
        except BaseException:
            self._location.discard(directory)
            raise
        self._directory = directory
        return self._extractor

    def publish(self, extracted: ExtractionResult) -> ReadyBlob:
        """Publish the extracted and verified files as a READY blob, by one rename.

        It may be called again if it fails.
        """
        directory = self._directory
        assert directory is not None  # made by `begin`
        record = Record(
            self.digest,
            extracted.content_size,
            extracted.index_size,
            extracted.index_sha256,
            self._seconds(),
        )
        blob = ReadyBlob(record, footprint(directory))
        filesystem = ImageFilesystem.open(directory, self.digest, self._limits)
        try:
            self._store_record(record)
            self._location.publish(directory, self._location.blob(self.digest))
        except BaseException:
            filesystem.close()
            raise
        blob.filesystem = filesystem
        return blob

    def wipe(self) -> None:
        """Remove the files."""
        if self._extractor is not None:
            self._extractor.abort()
        if self._directory is not None:
            self._location.discard(self._directory)

    def _store_record(self, record: Record) -> None:
        """Store the record before the rename, so that a published blob always has one."""
        try:
            self._state.change(recorded(record))
        except sqlite3.Error as error:
            _log.warn(
                "{digest} will be pulled again after a restart: {error}",
                digest=str(record.digest),
                error=error,
            )
