"""What tags currently serve: the layers and trees that are evicted after all others.

Pure. Each change costs what it is about, however many tags there are: one comes with every pull.
"""

from __future__ import annotations

from collections import Counter

from blobserve.oci.digest import Digest
from blobserve.oci.reference import Reference


class Current:
    """Digests of what tags serve; `in` tells whether any tag serves it."""

    def __init__(self) -> None:
        self._served: dict[Reference, tuple[Digest, ...]] = {}
        self._tags: Counter[Digest] = Counter()
        """By how many tags each is served; by one at least."""

    def __contains__(self, digest: object) -> bool:
        return digest in self._tags

    def serves(self, tag: Reference, parts: tuple[Digest, ...]) -> None:
        """Say what a tag serves from now on: these and no others, each named once."""
        former = self._served.pop(tag, ())
        if parts:
            self._served[tag] = parts
        self._tags.update(parts)
        self._tags.subtract(former)
        for digest in former:
            if not self._tags[digest]:
                del self._tags[digest]
