"""Extraction of layers for tests, with space granted on request as by an ingest."""

from __future__ import annotations

from pathlib import Path

from blobserve.config import Limits
from blobserve.errors import PathNotFound
from blobserve.names.digest import Digest
from blobserve.oci.manifest import Descriptor
from blobserve.store.blobs.filesystem import ImageFilesystem
from blobserve.store.extract.extractor import ExtractionResult, Extractor
from blobserve.store.index.entry import Entry, EntryKind
from tests.support.layers import Compression, descriptor

LIMITS = Limits()


def extract(
    directory: Path,
    blob: bytes,
    described: Descriptor | None = None,
    *,
    limits: Limits = LIMITS,
    step: int = 256 << 10,
    extent: int = 8 << 20,
) -> ExtractionResult:
    """Extract `blob`, fed by `step` bytes and granted at least `extent` bytes at a time."""
    extractor = Extractor(directory, described or descriptor(blob), limits)
    try:
        for at in range(0, len(blob), step):
            for lacking in extractor.feed(blob[at : at + step]):
                extractor.grant(max(lacking, extent))
        return extractor.finish()
    finally:
        extractor.abort()


def serve(
    directory: Path, blob: bytes, compression: Compression = "none", limits: Limits = LIMITS
) -> ImageFilesystem:
    """Extract `blob` and open the result; the caller closes it."""
    extract(directory, blob, descriptor(blob, compression), limits=limits)
    return ImageFilesystem.open(directory, Digest.of(blob), lambda: limits)


def contents(filesystem: ImageFilesystem) -> dict[bytes, bytes | None]:
    """Return all paths reachable without links: the bytes of files, None for directories."""
    found: dict[bytes, bytes | None] = {}
    waiting = [filesystem.lookup(b"")]
    while waiting:
        directory = waiting.pop()
        for entry in children(filesystem, directory):
            if entry.kind is EntryKind.DIRECTORY:
                found[entry.path] = None
                waiting.append(entry)
            else:
                found[entry.path] = filesystem.file(entry).read(0, entry.size)
    return found


def children(filesystem: ImageFilesystem, directory: Entry) -> list[Entry]:
    """Return the entries of a directory that can be served and are no links."""
    found = []
    for name in filesystem.names(directory):
        path = directory.path + b"/" + name if directory.path else name
        try:
            entry = filesystem.lookup(path)
        except PathNotFound:
            continue
        if entry.path == path:
            found.append(entry)
    return found
