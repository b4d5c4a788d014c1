"""The value class of hostile layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs

from tests.support.layers import Compression, Entry, layer

CANARY = str(Path(__file__).resolve()).encode()
"""A file of the host (this module) that links of layers point at and no layer may reach."""


@attrs.frozen
class Case:
    """A layer and its expected result: a tree or a refusal."""

    name: str
    """The row in the list of cases, and the subject."""
    blob: bytes = attrs.field(repr=False)
    answers: Mapping[bytes, bytes | None] = attrs.field(factory=dict, repr=False)
    """Paths, with the bytes of the file at each; None where no file may be served."""
    problem: str | None = None
    """A regular expression for the refusal; None if the layer is served."""
    compression: Compression = "none"
    """The compression in the media type, which may differ from that of the bytes."""


def tree(
    entries: Iterable[Entry | bytes], answers: Mapping[bytes, bytes | None], name: str
) -> Case:
    """Return a case for a layer of these entries that is served."""
    return Case(name, layer(entries, "none"), answers)
