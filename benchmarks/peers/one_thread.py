"""One thread of Python that decompresses a layer, hashes both forms of it, and writes it."""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path

from isal import isal_zlib

_CHUNK = _PIECE = 256 << 10


def unpack(blob: Path, out: Path) -> float:
    """Unpack `blob` into `out`; return the seconds that it takes."""
    begun = time.perf_counter()
    compressed, plain = hashlib.sha256(), hashlib.sha256()
    member = isal_zlib.decompressobj(31)
    with blob.open("rb") as source, out.open("wb", 0) as written:
        while rest := source.read(_CHUNK):
            compressed.update(rest)
            full = True
            while rest or full:
                piece = member.decompress(rest, _PIECE)
                rest, full = member.unconsumed_tail, len(piece) == _PIECE
                plain.update(piece)
                written.write(piece)
    return time.perf_counter() - begun


if __name__ == "__main__":
    print(unpack(Path(sys.argv[1]), Path(sys.argv[2])))
