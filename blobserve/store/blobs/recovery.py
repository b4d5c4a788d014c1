"""What a blob space finds when it opens: which blobs are whole, and which must be looked at.

Blocking. A blob that is marked durable is taken by its size; its index is checked when it is first
opened. Any other may have been torn by a crash: its record vouches for the index, and the index for
every entry of the content, so both are read in full. Whatever fails is removed, and is pulled again
when somebody asks for it.
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
    """What is on disk."""

    whole: list[ReadyBlob]
    """The blobs that can be trusted, the longest unused first."""
    doubtful: list[tuple[Digest, Record | None]]
    """The blobs to `examine`, and what is recorded of them."""


def survey(location: SpaceDirectory, state: MetadataDb) -> Survey:
    """Look at every blob without reading any, and forget those that are gone."""
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
    """Verify a blob by its hashes; None, and no blob any more, if it is not whole."""
    directory = location.blob(digest)
    try:
        if record is not None:
            check(directory, record)
        check_content(directory, digest, limits)
        if record is None:
            # The tree in the index has no hash of its own, and the longest unused goes first.
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
    """Read the content again, and see that it holds what the index says; how many entries it has.

    :raises BlobDamaged: when it is something else.
    :raises BadLayer: when it is no tar archive any more.
    :raises OSError: when it cannot be read, `sqlite3.Error` when the index cannot.
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
                if member != indexed.fetchone():
                    raise BlobDamaged(str(digest), "its content is not what its index says")
                entries += 1
        reader.finish()
        if indexed.fetchone() is not None:
            raise BlobDamaged(str(digest), "its content is cut short")
    return entries
