"""Compressible text in blobs and blob spaces, and the text behind a coding."""

from __future__ import annotations

import gzip
import os
import random
from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

from blobserve.config import KIB
from blobserve.store.blobs.blob import BlobLease
from blobserve.store.blobs.filesystem import ImageFilesystem
from blobserve.store.blobspace import BlobSpace
from blobserve.store.disk.codings_file import NoCoding
from blobserve.store.index.entry import Entry
from tests.support.layers import Entry as Written
from tests.support.layers import File, descriptor, layer, zstd
from tests.support.spaces import Made

T = TypeVar("T")

DECODE = {b"gzip": gzip.decompress, b"zstd": zstd.decompress}


def text(seed: int, size: int = 20 * KIB) -> bytes:
    """Return text that compresses to about a quarter, different for each seed."""
    draw = random.Random(seed)
    words = [b"%x" % draw.getrandbits(40) for _ in range(40)]
    return b" ".join(draw.choices(words, k=size // 9 + 1))[:size].ljust(size)


def noise(seed: int, size: int = 20 * KIB) -> bytes:
    """Return random bytes, which no coding makes smaller."""
    return random.Random(seed).randbytes(size)


def of_files(*entries: Written) -> Made:
    """Return a layer of these files."""
    blob = layer(entries)
    return Made(blob, descriptor(blob))


def site(*contents: bytes) -> Made:
    """Return a layer of the files ``0``, ``1`` and so on."""
    return of_files(*(File(b"%d" % n, content) for n, content in enumerate(contents)))


def lease(space: BlobSpace, made: Made) -> BlobLease:
    """Return a lease on a layer."""
    blob = space.blobs.acquire(made.digest)
    assert blob is not None
    return blob


def ask(blob: BlobLease, coding: bytes = b"zstd", name: bytes = b"0") -> Entry | NoCoding:
    """Request a coding of a file."""
    return blob.coded(blob.filesystem.lookup(name), coding)


def decoded(filesystem: ImageFilesystem, entry: Entry | NoCoding) -> bytes:
    """Read a coded entry in each way there is; return the decoded bytes."""
    assert isinstance(entry, Entry)
    content = filesystem.file(entry).read(0, entry.size)
    assert filesystem.file(entry).read_cached(0, entry.size) in (None, content)
    assert os.pread(filesystem.file(entry).descriptor, entry.size, entry.offset) == content
    return DECODE[entry.coding](content)


def codings_of(location: Path, made: Made) -> Path:
    """Return the file with the codings of a layer."""
    return location / "blobs" / made.digest.algorithm / made.digest.hex / "codings"


def outcome(steps: Generator[int, None, T]) -> T:
    """Run steps that need no more space; return their result."""
    while True:
        try:
            assert next(steps) == 0
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
