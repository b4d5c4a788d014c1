"""One hostile layer as a value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs

from tests.support.layers import Compression, Entry, layer

CANARY = str(Path(__file__).resolve()).encode()
"""A file of this machine: this one. Links of layers point at it, and no layer may lead to it."""


@attrs.frozen
class Case:
    """A layer, and what must come of it: a tree, or a refusal."""

    name: str
    """The row it is of, and what it is about."""
    blob: bytes = attrs.field(repr=False)
    answers: Mapping[bytes, bytes | None] = attrs.field(factory=dict, repr=False)
    """Paths, and the bytes of the file each leads to; None where it leads to no file."""
    problem: str | None = None
    """What the refusal says, as an expression; None: it is served."""
    compression: Compression = "none"
    """What its media type says, whatever its bytes say."""


def tree(
    entries: Iterable[Entry | bytes], answers: Mapping[bytes, bytes | None], name: str
) -> Case:
    """A layer of these entries that is served."""
    return Case(name, layer(entries, "none"), answers)
