"""Which paths of sites have kept their content.

A name with a content hash promises that its content never changes. A path that breaks the promise
gets no second chance: clients would keep the wrong content for a year.
"""

from __future__ import annotations

from collections import OrderedDict

MOST_PATHS = 65_536
"""Paths that are remembered of each kind; beyond that, the least recently used is dropped."""


class StableNames:
    """The content of the paths that were served as immutable by this process."""

    def __init__(self) -> None:
        self._content: OrderedDict[tuple[str, bytes], bytes] = OrderedDict()
        self._broken: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    def holds(self, mount: str, path: bytes, sha256: bytes) -> bool:
        """Return whether a path of a mount has had this content only, and remember the content."""
        key = mount, path
        if key in self._broken:
            self._broken.move_to_end(key)
            return False
        known = self._content.pop(key, sha256)
        if known != sha256:
            self._broken[key] = None
            if len(self._broken) > MOST_PATHS:
                self._broken.popitem(last=False)
            return False
        self._content[key] = known
        if len(self._content) > MOST_PATHS:
            self._content.popitem(last=False)
        return True
