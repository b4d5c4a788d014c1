"""Plain files as layers: a file of an artifact is stored as the only member of a tar archive.

So all blobs have the same form for reading, recovery and rebuilding the index. Digest and size are
checked on the original bytes.
"""

from __future__ import annotations

from blobserve.tar.header import BLOCK, REGULAR
from blobserve.tar.writer import header_block, pax_header, pax_record

_END = bytes(2 * BLOCK)


class TarWrapper:
    """A stage that wraps a file of `size` bytes into a tar archive. See `Stage`."""

    def __init__(self, name: bytes, size: int) -> None:
        self._pieces = [
            pax_header(pax_record(b"path", name)),
            header_block(REGULAR, name[:100], size),
        ]
        self._size = size
        self._left = size
        self._end_if_complete()

    def feed(self, chunk: bytes) -> None:
        """See `Stage.feed`."""
        if not chunk:
            return
        self._pieces.append(chunk)
        self._left -= len(chunk)
        self._end_if_complete()

    def read(self) -> bytes:
        """See `Stage.read`."""
        return self._pieces.pop(0) if self._pieces else b""

    def finish(self) -> None:
        """See `Stage.finish`. The verifier checks the size."""

    def _end_if_complete(self) -> None:
        if not self._left:
            self._pieces.append(bytes(-self._size % BLOCK) + _END)
