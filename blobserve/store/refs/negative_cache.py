"""Images that a registry has just said it does not have: for a moment it is not asked again.

Whoever asks for names that do not exist, however many and however often, so costs a registry one
look-up each; a name that comes into being is seen `LIFE` later at the latest. Holds nothing of what
was served before, and never more than `MOST` names.
"""

from __future__ import annotations

import copy
from collections import OrderedDict

from twisted.internet.interfaces import IReactorTime

from blobserve.errors import ImageNotFound
from blobserve.names.reference import Reference

LIFE = 2.0
"""Seconds that an answer is believed."""

MOST = 4096


class NegativeCache:
    """What was asked for in vain, the longest ago first."""

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._found: OrderedDict[Reference, tuple[ImageNotFound, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._found)

    def note(self, reference: Reference, error: ImageNotFound) -> None:
        """Believe for a while that there is no such image."""
        self._found.pop(reference, None)
        # A copy, since the frames that an error has passed through hang on it.
        self._found[reference] = copy.copy(error), self._reactor.seconds()
        if len(self._found) > MOST:
            self._found.popitem(last=False)

    def get(self, reference: Reference) -> ImageNotFound | None:
        """Why there is no such image, if that was found out a moment ago."""
        found = self._found.get(reference)
        if found is None:
            return None
        error, since = found
        if 0 <= self._reactor.seconds() - since < LIFE:
            return error
        del self._found[reference]
        return None

    def clear(self) -> None:
        """Believe nothing any more: what may be asked, and how, has changed."""
        self._found.clear()
