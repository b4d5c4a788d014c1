"""Merged trees of several layers, built from the indexes of extracted layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from blobserve.config import Limits
from blobserve.names.digest import Digest
from blobserve.store.blobs.content import BlobContent
from blobserve.store.blobs.filesystem import ImageFilesystem
from blobserve.store.index.lookup import IndexReader
from blobserve.store.index.merged_index import merge, tree_digest
from blobserve.store.index.node_table import IndexSummary
from tests.support.extraction import LIMITS, extract
from tests.support.layers import Entry, descriptor, layer


def extracted(directory: Path, layers: Iterable[Iterable[Entry | bytes]]) -> list[Path]:
    """Extract each layer; return the directories of the blobs."""
    made = []
    for number, entries in enumerate(layers):
        made.append(directory / f"layer{number}")
        made[-1].mkdir()
        blob = layer(entries, "none")
        extract(made[-1], blob, descriptor(blob, "none"))
    return made


def make_tree(path: Path, blobs: Sequence[Path], limits: Limits = LIMITS) -> IndexSummary:
    """Merge the indexes of blobs, and check that no more space is used than was granted."""
    granted = 0
    steps = merge(path, [blob / "index" for blob in blobs], limits, lambda: granted)
    try:
        while True:
            granted += next(steps)
            assert path.stat().st_size <= granted
    except StopIteration as end:
        built: IndexSummary = end.value
        assert built.size == path.stat().st_size <= granted
        return built


@contextmanager
def serving_merged(
    directory: Path, *layers: Iterable[Entry | bytes], limits: Limits = LIMITS
) -> Iterator[ImageFilesystem]:
    """Open the merged image of these layers, the lowest first."""
    blobs = extracted(directory, layers)
    make_tree(directory / "tree", blobs, limits)
    tree = IndexReader.open(directory / "tree", tree_digest((Digest.of(b""),)), lambda: limits)
    filesystem = ImageFilesystem(tree, [BlobContent.open(blob, Digest.of(b"")) for blob in blobs])
    try:
        yield filesystem
    finally:
        filesystem.close()
