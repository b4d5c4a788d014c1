"""Coding the files of a blob, in steps that are short enough to take turns with other work.

Blocking and pure: a step reads, compresses and writes one slice; between two of them whoever runs
them may let others have the thread, find more room, or give up. Never more than a few slices of a
file are in memory.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from hashlib import sha256
from typing import Any, Protocol, cast

from blobserve.config import KIB
from blobserve.store.blobs.content import StoredFile
from blobserve.store.disk.codings_file import HEADER_SIZE, CodingExtent, CodingsFile, Made
from blobserve.store.disk.files import blocks

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SLICE = 128 * KIB

# Smaller tables than the level has of its own: 10 MB of memory instead of 45, for the same ratio.
# The window, 4 MiB, is within the 8 that every client must have room for: RFC 9659 §3.
_ZSTD_OPTIONS: Mapping[int, int] = {
    zstd.CompressionParameter.compression_level: 12,
    zstd.CompressionParameter.window_log: 22,
    zstd.CompressionParameter.hash_log: 20,
    zstd.CompressionParameter.chain_log: 21,
}
_GZIP_LEVEL = 9
_GZIP_ONLY = 31  # zlib's `wbits` for gzip with its header, which then has no time and no name.
_WORTH = 20  # A coding that saves less than one part in so many is not worth it.


class _Compressor(Protocol):
    def compress(self, piece: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


def append(
    file: StoredFile, codings: CodingsFile, coding: bytes, allowance: Callable[[], int]
) -> Generator[int, None, Made]:
    """Code a file, and append it to the codings of its blob, which have begun.

    Each step yields how many bytes `allowance`, what the codings file may take, lacks for it to go
    on, 0 when it needs no more. The mark that coding is not worth it is written as soon as that
    shows. Closing it, and any error, take back what was written.

    :raises BlobDamaged: when the file is not what the index says.
    :raises OSError: when the disk fails, or is full.
    """
    entry = file.entry
    start = codings.end + HEADER_SIZE
    most, size, hash_ = entry.size - entry.size // _WORTH, 0, sha256()
    try:
        for piece in _pieces(file, coding):
            if size + len(piece) > most:
                size, hash_ = 0, sha256()
                break
            yield from _room(start + size + len(piece), allowance)
            codings.write(piece, start + size)
            size += len(piece)
            hash_.update(piece)
            yield 0
        yield from _room(start, allowance)
        return codings.finish(entry.sha256, coding, size, hash_.digest())
    except BaseException:
        codings.abandon()
        raise


def copy(
    source: CodingsFile,
    coded: CodingExtent,
    target: CodingsFile,
    plain_sha256: bytes,
    coding: bytes,
    allowance: Callable[[], int],
) -> Generator[int, None, CodingExtent | None]:
    """Append the coded bytes of an equal file of another blob to `target`, which has begun.

    The steps are those of `append`. Return None where the bytes have another hash than they must
    have: then `target` is as it was.

    :raises OSError: when the disk of `target` fails, or is full.
    """
    start = target.end + HEADER_SIZE
    size, hash_ = 0, sha256()
    try:
        for piece in _read(source, coded):
            yield from _room(start + size + len(piece), allowance)
            target.write(piece, start + size)
            size += len(piece)
            hash_.update(piece)
            yield 0
        if hash_.digest() == coded.sha256:
            target.finish(plain_sha256, coding, size, coded.sha256)
            return CodingExtent(start, size, coded.sha256)
        target.abandon()
    except BaseException:
        target.abandon()
        raise
    return None


def check(codings: CodingsFile, coded: CodingExtent) -> Generator[int, None, bool]:
    """Whether the bytes of a coding still have their hash; yields 0 between the steps."""
    hash_ = sha256()
    for piece in _read(codings, coded):
        hash_.update(piece)
        yield 0
    return hash_.digest() == coded.sha256


def _read(codings: CodingsFile, coded: CodingExtent) -> Iterator[bytes]:
    """Give the bytes of a coding, fewer where the disk has lost some."""
    at, end = coded.offset, coded.offset + coded.size
    while at < end:
        try:
            piece = os.pread(codings.descriptor, min(SLICE, end - at), at)
        except OSError:
            return
        if not piece:
            return
        yield piece
        at += len(piece)


def _room(end: int, allowance: Callable[[], int]) -> Iterator[int]:
    while (lacking := blocks(end) - allowance()) > 0:
        yield lacking


def _pieces(file: StoredFile, coding: bytes) -> Iterator[bytes]:
    """The coded bytes, a piece for each slice of the file."""
    compressor = _compressor(coding, file.size)
    hash_ = sha256()
    for at in range(0, file.size, SLICE):
        piece = file.read(at, SLICE)
        hash_.update(piece)
        yield compressor.compress(piece)
    if hash_.digest() != file.entry.sha256:
        raise file.damage("a file is not what its index says")
    yield compressor.flush()


def _compressor(coding: bytes, size: int) -> _Compressor:
    if coding == b"gzip":
        return zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_ONLY)
    compressor: Any = zstd.ZstdCompressor(options=_ZSTD_OPTIONS)
    # So that the frame says it, and small files get small tables.
    compressor.set_pledged_input_size(size)
    return cast("_Compressor", compressor)
