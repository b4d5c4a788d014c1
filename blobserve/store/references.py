"""References: what each image name stands for, in memory and, a little later, in the state file."""

from __future__ import annotations

from collections.abc import Iterable

from blobserve.oci.digest import Digest
from blobserve.store.behind import WriteBehind
from blobserve.store.state import forgotten, remembered

MOST = 10_000
"""How many are remembered; beyond that the one untouched for longest is forgotten."""


class References:
    """The references that a blob space remembers; they outlive the blobs they stand for."""

    def __init__(self, behind: WriteBehind) -> None:
        self._behind = behind
        self._known: dict[str, tuple[Digest, float]] = {}

    def load(self, rows: Iterable[tuple[str, Digest, float]]) -> None:
        """Take up what was remembered before, the longest untouched first."""
        self._known = {reference: (digest, checked) for reference, digest, checked in rows}

    def remember(self, reference: str, digest: Digest, checked: float) -> None:
        """Remember what `reference` stands for, and when that was last known to be so."""
        self._known.pop(reference, None)
        self._known[reference] = (digest, checked)
        self._behind.put(reference, remembered(reference, digest, checked))
        if len(self._known) > MOST:
            self.forget(next(iter(self._known)))

    def forget(self, reference: str) -> None:
        """Remember `reference` no longer; harmless if it is not."""
        if self._known.pop(reference, None) is not None:
            self._behind.put(reference, forgotten(reference))

    def all(self) -> list[tuple[str, Digest, float]]:
        """Every reference, its digest and when it was checked, the longest untouched first."""
        return [(reference, *known) for reference, known in self._known.items()]
