"""Which files of a blob have been found to be what its index says they are, in this process.

A bit for each block of the content in which a file begins, kept for the stretches that were asked
for alone: a million checked files take some 200 KiB. Knows nothing of how files are checked.
"""

from __future__ import annotations

from blobserve.tarheader import BLOCK

_BLOCKS = 512


class Checked:
    """Remembers where files begin in the content."""

    def __init__(self) -> None:
        self._content: dict[int, int] = {}

    def has(self, offset: int) -> bool:
        """Return whether the file that begins there is among them."""
        stretch, block = divmod(offset // BLOCK, _BLOCKS)
        return bool(self._content.get(stretch, 0) >> block & 1)

    def add(self, offset: int) -> None:
        """Remember the file that begins there. For any thread; at worst it is forgotten again."""
        stretch, block = divmod(offset // BLOCK, _BLOCKS)
        self._content[stretch] = self._content.get(stretch, 0) | 1 << block
