"""The files of merged indexes: making, opening, removing and finding them.

A merged index can be rebuilt from the indexes of its layers, so a doubtful one is removed. Every
function blocks, and may run in any thread; see `blobserve.store.blobs.blob_files`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from twisted.logger import Logger

from blobserve.concurrency.steps import Steps
from blobserve.config import Limits
from blobserve.errors import BadImage, BadLayer
from blobserve.names.digest import Digest
from blobserve.store.blobs.blob import ReadyBlob, ReadyMergedIndex
from blobserve.store.blobs.blob_files import check_index, has_size, remove_kept
from blobserve.store.blobs.filesystem import ImageFilesystem
from blobserve.store.disk.directory import SpaceDirectory
from blobserve.store.disk.files import BLOCK, footprint
from blobserve.store.disk.metadata_db import MetadataDb, Record, recorded, removed
from blobserve.store.index.lookup import IndexReader
from blobserve.store.index.merged_index import merge
from blobserve.store.index.node_table import disk_errors

_log = Logger()

_OVERHEAD = 4 * BLOCK
"""Bytes that a merged index takes beside its file while it is made."""


class MergedIndexFiles:
    """The files of all merged indexes of one blob space. See `BlobFiles`."""

    def __init__(
        self, location: SpaceDirectory, state: MetadataDb, limits: Callable[[], Limits]
    ) -> None:
        self._location = location
        self._state = state
        self._limits = limits

    def make(
        self,
        digest: Digest,
        layers: Sequence[Digest],
        allowance: Callable[[], int],
        seconds: Callable[[], float],
    ) -> Steps[ReadyMergedIndex]:
        """Make the merged index of READY layers, and publish it by one rename.

        See `blobserve.store.index.merged_index.merge` for the steps. If the generator does not
        finish, it removes its files.

        :raises BadImage: when the layers together exceed a limit.
        """
        while (lacking := _OVERHEAD - allowance()) > 0:
            yield lacking
        made = self._location.new_ingest()
        try:
            indexes = [self._location.blob(layer) / "index" for layer in layers]
            try:
                with disk_errors():
                    steps = merge(
                        made / "tree", indexes, self._limits(), lambda: allowance() - _OVERHEAD
                    )
                    built = yield from steps
            except BadLayer as problem:
                raise BadImage("the image", str(problem)) from problem
            record = Record(digest, 0, built.size, built.sha256, seconds())
            return self._published(record, made / "tree")
        finally:
            self._location.dispose(made)

    def open(self, kept: ReadyBlob) -> ImageFilesystem:
        """Check a merged index against its record, and open it.

        :raises BlobDamaged: when it differs from the record.
        """
        path = self._location.tree(kept.digest)
        self._location.check(path)
        check_index(path, kept.record)
        return ImageFilesystem(IndexReader.open(path, kept.digest, self._limits), ())

    def remove(self, trees: Sequence[ReadyBlob]) -> None:
        """Remove merged indexes. Open ones stay readable; one that cannot be moved stays."""
        remove_kept(trees, self._location, self._location.tree)
        self._state.change(*(removed(kept.digest, "trees") for kept in trees))

    def survey(self) -> list[ReadyMergedIndex]:
        """Return the merged indexes of the recorded size, and remove all other files.

        Files are neither synced nor read: a merged index is checked whenever it is opened.
        """
        records = {record.digest: record for record in self._state.trees()}
        found = []
        for digest in list(self._location.trees()):
            record, path = records.pop(digest, None), self._location.tree(digest)
            if record is not None and has_size(path, record.index_size):
                found.append(ReadyMergedIndex(record, footprint(path)))
            else:
                self._location.discard(path)
                self._state.change(removed(digest, "trees"))
        self._state.change(*(removed(digest, "trees") for digest in records))
        return found

    def _published(self, record: Record, made: Path) -> ReadyMergedIndex:
        kept = ReadyMergedIndex(record, footprint(made))
        tree = IndexReader.open(made, record.digest, self._limits)
        try:
            self._remember(record)
            self._location.publish(made, self._location.tree(record.digest))
        except BaseException:
            tree.close()
            raise
        kept.filesystem = ImageFilesystem(tree, ())
        return kept

    def _remember(self, record: Record) -> None:
        """Record a merged index before the rename; without a record the next start removes it."""
        try:
            self._state.change(recorded(record, "trees"))
        except sqlite3.Error as error:
            _log.warn("{digest} will be rebuilt: {error}", digest=str(record.digest), error=error)
