"""Operations on files of the blob space: read, write, remove, sync, and measure in blocks.

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
    """Return the bytes to charge for a file, or a directory with its files; 0 if it is missing.

    Each file is charged with whole blocks, and each directory with two blocks more, for itself and
    for its name. The result is the same on every file system, even if that compresses.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return 0
    if not stat.S_ISDIR(status.st_mode):
        return blocks(status.st_size)
    return 2 * BLOCK + sum(footprint(each) for each in path.iterdir())


def blocks(size: int) -> int:
    """Return `size` rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def remove(path: Path) -> None:
    """Remove a file, a link, or a directory with its content; no link is followed."""
    if stat.S_ISDIR(path.lstat().st_mode):
        shutil.rmtree(path)
    else:
        path.unlink()


def read(path: Path, limit: int) -> bytes:
    """Return at most `limit` bytes of a file that is no link."""
    with open(path, "rb", opener=_opener) as file:
        return file.read(limit)


def write(path: Path, content: bytes) -> None:
    """Write a whole file; it is durable only after `sync`."""
    with open(path, "wb", opener=_opener) as file:
        file.write(content)


def checksum(path: Path) -> bytes:
    """Return the SHA-256 of a file."""
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
