"""The recovery of blobs at start: durable blobs are used, and the others are verified first.

Blocking. For a durable blob only the size is checked; its index is checked when it is first opened.
A crash may have damaged any other blob, so it is read in full: its record has the checksum of the
index, and the index has the hash of every entry of the content. A blob that fails is removed, and
is pulled again by the next request for it.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import attrs
from twisted.logger import Logger

from blobserve.config import Limits
from blobserve.errors import BadLayer, BlobDamaged, BlobserveError
from blobserve.names.digest import Digest
from blobserve.store.blobs.blob import ReadyBlob
from blobserve.store.blobs.blob_files import check, has_size, rebuild, sync_blob
from blobserve.store.disk.directory import SpaceDirectory
from blobserve.store.disk.files import footprint
from blobserve.store.disk.metadata_db import MetadataDb, Record, recorded, removed
from blobserve.store.index.node_table import opened
from blobserve.tar.reader import TarReader

_log = Logger()

_PIECE = 1 << 20


@attrs.frozen
class Survey:
    """The blobs on disk."""

    whole: list[ReadyBlob]
    """The blobs that can be used, the least recently used first."""
    doubtful: list[tuple[Digest, Record | None]]
    """The blobs to `examine`, and their records."""


def survey(location: SpaceDirectory, state: MetadataDb) -> Survey:
    """List the blobs without reading them, and remove the records of missing ones."""
    present = set(location.blobs())
    records = state.blobs()
    whole: list[ReadyBlob] = []
    doubtful: list[tuple[Digest, Record | None]] = []
    for record in records:
        if record.digest in present:
            present.remove(record.digest)
            directory = location.blob(record.digest)
            if record.durable and has_size(directory / "content", record.content_size):
                whole.append(ReadyBlob(record, footprint(directory)))
            else:
                doubtful.append((record.digest, record))
        else:
            state.change(removed(record.digest))
    return Survey(whole, doubtful + [(digest, None) for digest in present])


def examine(
    location: SpaceDirectory,
    state: MetadataDb,
    limits: Limits,
    digest: Digest,
    record: Record | None,
) -> ReadyBlob | None:
    """Verify a blob by its hashes; remove it and return None if it is damaged."""
    directory = location.blob(digest)
    try:
        if record is not None:
            check(directory, record)
        check_content(directory, digest, limits)
        if record is None:
            # The tree in the index has no hash of its own. With use time 0 it is evicted first.
            record = rebuild(directory, digest, 0.0, limits)
        else:
            sync_blob(directory)
        record = attrs.evolve(record, durable=True)
        state.change(recorded(record))
        return ReadyBlob(record, footprint(directory))
    except (BlobserveError, BadLayer, OSError, sqlite3.Error) as error:
        _log.warn("{digest} is removed: {error}", digest=str(digest), error=error)
        location.discard(directory)
        state.change(removed(digest))
        return None


def check_content(directory: Path, digest: Digest, limits: Limits) -> int:
    """Compare the content with the index; return the number of entries.

    :raises BlobDamaged: when they differ.
    :raises BadLayer: when the content is not a valid tar archive.
    :raises OSError: when the content cannot be read; `sqlite3.Error` for the index.
    """
    entries = 0
    reader = TarReader(limits)
    with (
        closing(opened(directory / "index")) as index,
        (directory / "content").open("rb") as content,
    ):
        indexed = index.execute("SELECT * FROM entry ORDER BY seq")
        while piece := content.read(_PIECE):
            for member in reader.feed(piece):
                row = indexed.fetchone()
                # An index of version 1 has fewer columns; it is made again when it is opened.
                if row is None or member[: len(row)] != row:
                    raise BlobDamaged(str(digest), "its content does not match its index")
                entries += 1
        reader.finish()
        if indexed.fetchone() is not None:
            raise BlobDamaged(str(digest), "its content is cut short")
    return entries
