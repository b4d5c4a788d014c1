"""Names in tar archives: what of them means something, and what they mean below a root. Pure."""

from __future__ import annotations


def split(path: bytes) -> list[bytes]:
    """The components of a path, the empty ones and ``.`` left out."""
    return [part for part in path.split(b"/") if part not in (b"", b".")]


def clean(name: bytes) -> list[bytes]:
    """The components of an entry's name; ``..`` goes no higher than the root."""
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
