"""From what a table of contents says to an index that files can be looked up in.

A machine in steps, each a job for a thread, that writes no more than it was granted; the index is
like that of a blob, and where a blob has its content there are records of chunks. Blocks on the
disk only. Nothing it made may be used before its source has been read whole.
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import Protocol

from blobserve.config import Limits
from blobserve.errors import BadLayer, BadToc
from blobserve.store.index.layer_index import IndexWriter
from blobserve.store.index.node_table import create, disk_errors
from blobserve.store.lazy.toc.entries import TocEntries
from blobserve.tar.reader import Member


class EntrySource(Protocol):
    """Where entries come from."""

    contents: TocEntries
    """What has been read."""

    def read(self) -> bool:
        """Read on; False: that was all, and it is what it should be.

        :raises BadTable: when it is not, or says what cannot be.
        """
        ...


class IndexBuilder:
    """Makes the files `index` and `content` in `directory`, which is empty."""

    def __init__(self, directory: Path, source: EntrySource, limits: Limits) -> None:
        self._source = source
        self._members: deque[Member] = deque()
        self._written = self._allowance = 0
        self._is_read = False
        self._content = create(directory / "content")
        try:
            with disk_errors():
                self._index = IndexWriter(directory / "index", limits)
        except OSError:
            os.close(self._content)
            raise

    def grant(self, n: int) -> None:
        """Allow `n` more bytes on disk."""
        self._allowance += n

    def go_on(self) -> int | None:
        """Work off some of the table.

        Returns None when all of it is done, else how many bytes must be granted before it can go
        on: 0 when it can at once.

        :raises BadTable: when the table cannot be used.
        :raises OSError: when the disk fails, or is full.
        """
        try:
            with disk_errors():
                return self._advance()
        except BadLayer as error:
            raise BadToc(str(error)) from error

    def finish(self) -> None:
        """Complete both files and close them."""
        with disk_errors():
            self._index.finish(self._written)
        self.close()

    def close(self) -> None:
        """Close the files, and leave them to whoever owns the directory. Idempotent."""
        content, self._content = self._content, -1
        if content >= 0:
            os.close(content)
        self._index.close()

    def _advance(self) -> int | None:
        while self._members and not self._index.full:
            self._index.add(self._members.popleft())
        records = self._source.contents.records
        packed = records.packed
        lacking = self._written + len(packed) + self._index.bound - self._allowance
        if lacking > 0:
            return lacking
        records.clear()
        view = memoryview(packed)
        while view:
            written = os.write(self._content, view)
            self._written += written
            view = view[written:]
        self._index.flush()
        if self._members:
            return 0
        if self._is_read:
            return None
        self._is_read = not self._source.read()
        self._members.extend(self._source.contents.members)
        self._source.contents.members.clear()
        return 0
