"""Compression of the files of a blob, in short steps.

A step reads, compresses and writes one slice, and blocks. Between steps the caller may run other
work in the thread, reserve bytes, or stop. At most a few slices of a file are in memory. See
`blobserve.concurrency.steps`.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from typing import Any, Protocol, cast

from blobserve.concurrency.steps import Steps
from blobserve.config import KIB
from blobserve.store.blobs.content import StoredFile
from blobserve.store.disk.codings_file import HEADER_SIZE, CodingExtent, CodingsFile, Made
from blobserve.store.disk.files import blocks

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SLICE = 128 * KIB

# Smaller tables than the default of the level: 10 MB of memory instead of 45, for the same ratio.
# The window is 4 MiB; every client supports 8 MiB: RFC 9659 §3.
_ZSTD_OPTIONS: Mapping[int, int] = {
    zstd.CompressionParameter.compression_level: 12,
    zstd.CompressionParameter.window_log: 22,
    zstd.CompressionParameter.hash_log: 20,
    zstd.CompressionParameter.chain_log: 21,
}
_GZIP_LEVEL = 9
_GZIP_ONLY = 31  # zlib's `wbits` for gzip; the header then has no time and no name.
_LEAST_SAVING = 20  # A coding must save at least one part in 20.


class _Compressor(Protocol):
    def compress(self, piece: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


def append(
    file: StoredFile, codings: CodingsFile, coding: bytes, allowance: Callable[[], int]
) -> Steps[Made]:
    """Compress a file, and append it to `codings`, on which `begin` was called.

    `allowance` returns the bytes that the codings file may take. If the coding saves too little,
    only a mark is written. Closing the generator, or an error, removes everything that it wrote.

    :raises BlobDamaged: when the file does not match its index.
    :raises OSError: when the disk fails, or is full.
    """
    entry = file.entry
    start = codings.end + HEADER_SIZE
    most, size, hash_ = entry.size - entry.size // _LEAST_SAVING, 0, sha256()
    try:
        for piece in _pieces(file, coding):
            if size + len(piece) > most:
                size, hash_ = 0, sha256()
                break
            yield from _lacking(start + size + len(piece), allowance)
            codings.write(piece, start + size)
            size += len(piece)
            hash_.update(piece)
            yield 0
        yield from _lacking(start, allowance)
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
) -> Steps[CodingExtent | None]:
    """Append the coded bytes of an equal file of another blob to `target`.

    It works like `append`. If the bytes do not match their hash, it returns None and leaves
    `target` unchanged.

    :raises OSError: when the disk of `target` fails, or is full.
    """
    start = target.end + HEADER_SIZE
    size, hash_ = 0, sha256()
    try:
        for piece in _read(source, coded):
            yield from _lacking(start + size + len(piece), allowance)
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


def check(codings: CodingsFile, coded: CodingExtent) -> Steps[bool]:
    """Return whether the bytes of a coding match their hash. Reserves nothing."""
    hash_ = sha256()
    for piece in _read(codings, coded):
        hash_.update(piece)
        yield 0
    return hash_.digest() == coded.sha256


def _read(codings: CodingsFile, coded: CodingExtent) -> Iterator[bytes]:
    """Yield the bytes of a coding; it ends early if some cannot be read."""
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


def _lacking(end: int, allowance: Callable[[], int]) -> Iterator[int]:
    while (lacking := blocks(end) - allowance()) > 0:
        yield lacking


def _pieces(file: StoredFile, coding: bytes) -> Iterator[bytes]:
    """Yield the coded bytes, one piece for each slice of the file."""
    compressor = _compressor(coding, file.size)
    hash_ = sha256()
    for at in range(0, file.size, SLICE):
        piece = file.read(at, SLICE)
        hash_.update(piece)
        yield compressor.compress(piece)
    if hash_.digest() != file.entry.sha256:
        raise file.damage("a file does not match its index")
    yield compressor.flush()


def _compressor(coding: bytes, size: int) -> _Compressor:
    if coding == b"gzip":
        return zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_ONLY)
    compressor: Any = zstd.ZstdCompressor(options=_ZSTD_OPTIONS)
    # The frame then has the size, and small files get small tables.
    compressor.set_pledged_input_size(size)
    return cast("_Compressor", compressor)
