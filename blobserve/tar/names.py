"""Names in tar archives, and their canonical form below a root. Pure."""

from __future__ import annotations


def split(path: bytes) -> list[bytes]:
    """Return the components of a path without empty ones and ``.``."""
    return [part for part in path.split(b"/") if part not in (b"", b".")]


def clean(name: bytes) -> list[bytes]:
    """Return the components of an entry's name, with ``..`` resolved but never above the root."""
    parts = split(name)
    if b".." not in parts:
        return parts
    kept: list[bytes] = []
    for part in parts:
        if part != b"..":
            kept.append(part)
        elif kept:
            kept.pop()
    return kept
