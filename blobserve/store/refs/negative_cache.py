"""Negative cache: references for which a registry has just found no image.

Requests for such a name, however frequent, cost the registry one look-up in `LIFE` seconds. A new
image is seen `LIFE` seconds later at the latest. The cache holds at most `MOST` names.
"""

from __future__ import annotations

import copy
from collections import OrderedDict

from twisted.internet.interfaces import IReactorTime

from blobserve.errors import ImageNotFound
from blobserve.names.reference import Reference

LIFE = 2.0
"""Seconds for which an answer is used."""

MOST = 4096


class NegativeCache:
    """Missing images, the oldest answer first."""

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._found: OrderedDict[Reference, tuple[ImageNotFound, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._found)

    def note(self, reference: Reference, error: ImageNotFound) -> None:
        """Remember for a while that there is no such image."""
        self._found.pop(reference, None)
        # A copy, since the frames that an error has passed through hang on it.
        self._found[reference] = copy.copy(error), self._reactor.seconds()
        if len(self._found) > MOST:
            self._found.popitem(last=False)

    def get(self, reference: Reference) -> ImageNotFound | None:
        """Return the error for an image that was missing a moment ago."""
        found = self._found.get(reference)
        if found is None:
            return None
        error, since = found
        if 0 <= self._reactor.seconds() - since < LIFE:
            return error
        del self._found[reference]
        return None

    def clear(self) -> None:
        """Forget all answers, because the configuration has changed."""
        self._found.clear()
