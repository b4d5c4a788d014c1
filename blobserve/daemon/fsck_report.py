"""`twist blobserve --verify`: what an audit of the blob space found, for who runs the server."""

from __future__ import annotations

from collections.abc import Iterator

from blobserve.config import BlobSpaceRules, Limits
from blobserve.store.blobs.fsck import Findings, audit

_MOST_NAMED = 20
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def verified(rules: BlobSpaceRules, limits: Limits) -> tuple[list[str], bool]:
    """Read and hash all of a blob space; what to print, and whether nothing in it is damaged.

    Blocks for as long as that takes. Changes nothing.

    :raises SpaceUnusable: when there is none, or a server uses it.
    :raises OSError: when it cannot be read.
    """
    found = audit(rules.location, limits)
    return list(_lines(rules, found)), not found.damaged


def _lines(rules: BlobSpaceRules, found: Findings) -> Iterator[str]:
    yield (
        f"{rules.location}: {found.layers} layers with {found.entries} entries,"
        f" {found.trees} merged trees, {found.manifests} manifests; {_size(found.size)} read"
    )
    yield from _named("damaged: ", found.damaged)
    yield from _named("note: ", found.notes)
    yield from _named("not ours, left alone: ", [str(path) for path in found.foreign])
    bound = "no bound" if rules.max_size is None else f"bound {_size(rules.max_size)}"
    yield f"takes {_size(found.taken)} on the disk, counted as {_size(found.counted)} ({bound})"
    if found.damaged:
        yield f"{len(found.damaged)} damaged: pulled or made again when they are next asked for"
    else:
        yield "nothing is damaged"


def _named(what: str, subjects: list[str]) -> Iterator[str]:
    yield from (f"{what}{each}" for each in subjects[:_MOST_NAMED])
    if len(subjects) > _MOST_NAMED:
        yield f"{what}and {len(subjects) - _MOST_NAMED} more"


def _size(size: int) -> str:
    value, unit = float(size), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{size} bytes"
