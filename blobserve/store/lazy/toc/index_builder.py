"""The construction of an index from a table of contents.

The index has the form of a layer's index. Records of chunks take the place of the content. The
index must not be used before its source has been read to the end.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from blobserve.concurrency.steps import Steps
from blobserve.config import Limits
from blobserve.errors import BadLayer, BadToc
from blobserve.store.index.layer_index import IndexWriter
from blobserve.store.index.node_table import create, disk_errors
from blobserve.store.lazy.toc.entries import TocEntries
from blobserve.tar.reader import Member


class EntrySource(Protocol):
    """A source of entries."""

    contents: TocEntries
    """The entries that have been read."""

    def read(self) -> bool:
        """Read more entries; return False at the end, if the table was valid.

        :raises BadToc: when the table is invalid.
        """
        ...


def build_index(
    directory: Path,
    source: Callable[[], EntrySource],
    limits: Limits,
    allowance: Callable[[], int],
) -> Steps[None]:
    """Write the files `index` and `content` into an empty directory.

    `allowance` returns the bytes that the files may take. However the generator ends, the files are
    closed.

    :raises BadToc: when the table cannot be used.
    :raises OSError: when the disk fails or is full.
    """
    entries = source()
    content = create(directory / "content")
    try:
        with disk_errors():
            index = IndexWriter(directory / "index", limits)
            try:
                written = yield from _write(entries, index, content, allowance)
                index.finish(written)
            finally:
                index.close()
    except BadLayer as error:
        raise BadToc(str(error)) from error
    finally:
        os.close(content)


def _write(
    source: EntrySource, index: IndexWriter, content: int, allowance: Callable[[], int]
) -> Steps[int]:
    """Write all entries and records; return the size of the records."""
    members: deque[Member] = deque()
    records = source.contents.records
    written, has_more = 0, True
    while True:
        while members and not index.full:
            index.add(members.popleft())
        packed = records.packed
        while (lacking := written + len(packed) + index.bound - allowance()) > 0:
            yield lacking
        records.clear()
        view = memoryview(packed)
        while view:
            size = os.write(content, view)
            written += size
            view = view[size:]
        index.flush()
        if not members:
            if not has_more:
                return written
            has_more = source.read()
            members.extend(source.contents.members)
            source.contents.members.clear()
        yield 0
