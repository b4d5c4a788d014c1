"""Layers of any size as files, generated from a seed, so with the same bytes in each run.

Bodies are random and do not compress, except those of the web client.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs
from isal import isal_zlib

from benchmarks.cold_pull import web_client
from tests.support.parts.images import tar_of

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
_BLOCK = 512
_END = bytes(2 * _BLOCK)
_HEAD = struct.Struct("100s8s8s8s12s12s8s1s100s8s247x")


@attrs.frozen
class Blob:
    """A layer in a file, with its descriptor; `index` is the size of its table of contents."""

    path: Path
    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = attrs.field(factory=dict)
    index: int = 0


def described(path: Path, media_type: str = GZIP) -> Blob:
    """Return the file at `path` as a layer."""
    hash_ = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            hash_.update(piece)
        return Blob(path, media_type, f"sha256:{hash_.hexdigest()}", file.tell())


def gzipped(path: Path, stream: Iterable[bytes], level: int = 0) -> Path:
    """Write `stream` to `path` with the fastest gzip compressor."""
    squeeze = isal_zlib.compressobj(level, isal_zlib.DEFLATED, 31)
    with path.open("wb") as file:
        for piece in stream:
            file.write(squeeze.compress(piece))
        file.write(squeeze.flush())
    return path


def entry(name: bytes, body: bytes) -> bytes:
    """Return a regular file as a tar member (POSIX ustar)."""
    fields = (b"0000644\0", b"0000000\0", b"0000000\0", b"%011o\0" % len(body), b"13727426000\0")
    head = _HEAD.pack(name, *fields, b" " * 8, b"0", b"", b"ustar\x0000")
    head = head[:148] + b"%06o\0 " % sum(head) + head[156:]
    return head + body + bytes(-len(body) % _BLOCK)


def name_of(number: int) -> str:
    """Return the name of a file of `large`."""
    return f"srv/assets/{number % 97}/file-{number:06}.png"


def large(size: int, each: int, seed: int = 1) -> Iterator[bytes]:
    """Yield a tar of `size` bytes, with files of `each` bytes."""
    chance = random.Random(seed)
    for number in range(size // each):
        yield entry(name_of(number).encode(), chance.randbytes(each))
    yield _END


def many_name(number: int) -> bytes:
    """Return the name of an entry of `many`, eight directories deep."""
    deep = b"srv/web/node_modules/package-%04d/dist/esm/lib-%d/chunk-%07d.js"
    return deep % (number // 1000, number // 100 % 10, number)


def many(entries: int) -> Iterator[bytes]:
    """Yield a tar of `entries` small files, all different."""
    for start in range(0, entries, 1000):
        numbers = range(start, min(start + 1000, entries))
        yield b"".join(entry(many_name(each), b"export default %d;\n" % each) for each in numbers)
    yield _END


def web(path: Path) -> Path:
    """Write the web client of `benchmarks.cold_pull`: 69 MB, 300 MB uncompressed."""
    return gzipped(path, [tar_of(web_client())], 1)


def variant(whole: Path, path: Path, number: int) -> Path:
    """Write a different layer: one more file, then the layer `whole`, as two gzip members."""
    with path.open("wb") as file, whole.open("rb") as rest:
        file.write(isal_zlib.compress(entry(b"number-%d" % number, b"%d" % number), 1, 31))
        while piece := rest.read(1 << 20):
            file.write(piece)
    return path
