"""The interface to the part that unpacks archives, which are compressed as a whole.

A local source does not know the place of the unpacked bytes. It gets an `Unpack` function.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

import attrs
from twisted.internet.defer import Deferred

from blobserve.tar.header import BLOCK, is_intact

_MAGICS = (
    b"\x1f\x8b",  # gzip: RFC 1952 §2.3.1
    b"\x28\xb5\x2f\xfd",  # zstd: RFC 8878 §3.1.1
    *(bytes([0x50 + number]) + b"\x2a\x4d\x18" for number in range(16)),  # RFC 8878 §3.1.2
)


@attrs.frozen
class ArchiveVersion:
    """An archive, and the values that change with its content."""

    path: Path
    identity: tuple[int, ...]


class UnpackedArchive(Protocol):
    """The unpacked bytes of an archive, in a file that no other part changes."""

    @property
    def path(self) -> Path:
        """The path of the file."""
        ...

    @property
    def size(self) -> int:
        """The size in bytes."""
        ...

    async def discard(self) -> None:
        """Remove the file. Idempotent."""
        ...


Read = Callable[[int, int], bytes]
"""Reads at an offset up to a number of bytes; returns fewer only at the end. Blocks."""

Unpack = Callable[[ArchiveVersion, Read], Coroutine[Deferred[Any], Any, UnpackedArchive]]
"""Unpacks an archive, and reads it in a thread. The caller discards the result.

It raises `BadLayer` for data that is damaged, cut short or too large, `NoSpace` if the result does
not fit, other kinds of `BlobserveError`, and the errors of the reading function.
"""


def is_compressed(start: bytes) -> bool:
    """Return whether a file that starts so is compressed; `start` is one block of a tar archive."""
    is_header = len(start) == BLOCK and is_intact(start)
    return start.startswith(_MAGICS) and not is_header
