"""The report of `twist blobserve --verify` for the operator."""

from __future__ import annotations

from collections.abc import Iterator

from blobserve.config import BlobSpaceRules, Limits
from blobserve.store.blobs.fsck import Findings, audit
from blobserve.store.disk.owner_lock import exposure

_MOST_NAMED = 20
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def verified(rules: BlobSpaceRules, limits: Limits) -> tuple[list[str], bool]:
    """Read and hash a whole blob space; return the report, and whether nothing is damaged.

    Blocks until all is read. Changes nothing.

    :raises SpaceUnusable: when the blob space does not exist, or a server uses it.
    :raises OSError: when it cannot be read.
    """
    found = audit(rules.location, limits)
    return list(_lines(rules, found)), not found.damaged


def _lines(rules: BlobSpaceRules, found: Findings) -> Iterator[str]:
    yield (
        f"{rules.location}: {found.layers} layers with {found.entries} entries,"
        f" {found.trees} merged indexes, {found.manifests} manifests; {_size(found.size)} read"
    )
    yield from _named("damaged: ", found.damaged)
    yield from _named("note: ", found.notes)
    if warning := exposure(rules.location):
        yield f"warning: {warning}"
    yield from _named("unknown file, left alone: ", [str(path) for path in found.foreign])
    quota = "no quota" if rules.max_size is None else f"quota {_size(rules.max_size)}"
    yield f"uses {_size(found.taken)} on disk, counted as {_size(found.counted)} ({quota})"
    if found.damaged:
        yield f"{len(found.damaged)} damaged: they are pulled or rebuilt on their next use"
    else:
        yield "nothing is damaged"


def _named(prefix: str, subjects: list[str]) -> Iterator[str]:
    yield from (f"{prefix}{each}" for each in subjects[:_MOST_NAMED])
    if len(subjects) > _MOST_NAMED:
        yield f"{prefix}and {len(subjects) - _MOST_NAMED} more"


def _size(size: int) -> str:
    value, unit = float(size), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{size} bytes"
