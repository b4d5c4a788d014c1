"""Files of the blob space: read, written, removed, synced and measured in whole blocks.

Blocking. No link is followed.
"""

from __future__ import annotations

import os
import shutil
import stat
from hashlib import sha256
from pathlib import Path

BLOCK = 4096

_PIECE = 1 << 20


def footprint(path: Path) -> int:
    """Bytes that a file or a directory with its files is charged with; nothing if it is not here.

    Whole blocks for every file, and for a directory one more for itself and one for its name: the
    same on every file system, whether it compresses or keeps books of its own.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return 0
    if not stat.S_ISDIR(status.st_mode):
        return blocks(status.st_size)
    return 2 * BLOCK + sum(footprint(each) for each in path.iterdir())


def blocks(size: int) -> int:
    """`size` rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def remove(path: Path) -> None:
    """Remove a file, a link or a directory with all that is in it; links are not followed."""
    if stat.S_ISDIR(path.lstat().st_mode):
        shutil.rmtree(path)
    else:
        path.unlink()


def read(path: Path, limit: int) -> bytes:
    """At most `limit` bytes of a file that is no link."""
    with open(path, "rb", opener=_opener) as file:
        return file.read(limit)


def write(path: Path, content: bytes) -> None:
    """Write a whole file, as it is on disk only after `sync`."""
    with open(path, "wb", opener=_opener) as file:
        file.write(content)


def checksum(path: Path) -> bytes:
    """The SHA-256 of a file."""
    hash_ = sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            hash_.update(piece)
    return hash_.digest()


def sync(*paths: Path) -> None:
    """Return when these files or directories would survive a power cut."""
    for path in paths:
        fd = _opener(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _opener(path: str | Path, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
