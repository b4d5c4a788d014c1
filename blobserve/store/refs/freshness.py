"""Freshness: the age at which a tag is revalidated.

Pure. A `TagState` is the last answer of the registry about a reference, and its time. This module
asks no registry and moves no tag.
"""

from __future__ import annotations

import enum
import math

import attrs

from blobserve.config import RepositoryRules
from blobserve.errors import BlobserveError, TemporarilyUnavailable
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference
from blobserve.store.refs.image import Image
from blobserve.store.space.provenance import Access

PATIENCE = 2.0
"""Seconds that a request waits for an old tag: its look-up, and the pull of a new image."""

_LEAST_INTERVAL = 1.0
_RETRY_CEILING = 10.0


class Freshness(enum.Enum):
    """The age of a tag, which decides whether its known digest may serve."""

    TRUSTED = enum.auto()
    """It serves."""
    AGEING = enum.auto()
    """It serves, and a look-up runs in the background."""
    OLD = enum.auto()
    """The request waits for a look-up, and for the pull of a new image."""


@attrs.frozen
class TagState:
    """The known state of a reference; times are seconds of the reactor's clock."""

    reference: Reference
    digest: Digest
    checked: float
    """When the registry last gave this digest."""
    image: Image | None = None
    """None until its manifest has been read from the blob space."""
    quiet_until: float = 0.0
    """No look-up before this time: the registry asked for it, or the last one failed."""
    failures: int = 0
    """The number of look-ups, or pulls of the new digest, that have failed in a row."""
    access: Access = Access.NONE
    """How far the repository has shown that all of the image is its own; see `Provenance`."""
    is_pinned: bool = False
    """Whether it is not looked up, because it is pinned to this digest."""
    confirm_after: float = 0.0
    """When the next confirmation is due; 0 before the first one. See `Confirmations`."""

    def is_proved(self, rules: RepositoryRules) -> bool:
        """Return whether the repository has shown as much as these rules need."""
        return self.access >= Access.needed(rules)

    def is_remembered(self, rules: RepositoryRules) -> bool:
        """Return whether it serves until the source of a listed repository denies it."""
        return self.access is Access.REMEMBERED and rules.listed

    def may_serve(self, rules: RepositoryRules) -> bool:
        """Return whether requests under these rules may be given the image, if it is READY."""
        return self.is_proved(rules) or self.is_remembered(rules)

    def freshness(self, rules: RepositoryRules, now: float) -> Freshness:
        """Return whether to look it up. See docs/reference/tags.md."""
        # A clock that was set back makes the age negative: look it up.
        age, most = now - self.checked, rules.tag_max_age
        if not self._moves(rules) or (age >= 0 and now < self.quiet_until):
            return Freshness.TRUSTED
        if not most or not 0 <= age <= 2 * most:
            return Freshness.OLD
        return Freshness.TRUSTED if age <= most else Freshness.AGEING

    def trusted_until(self, rules: RepositoryRules) -> float:
        """Return when `freshness` is no longer `TRUSTED`, if it is now."""
        if not self._moves(rules):
            return math.inf
        return max(self.checked + rules.tag_max_age, self.quiet_until)

    def is_stale(self, rules: RepositoryRules, asked: float) -> bool:
        """Return whether the digest was older than `tagMaxAge` when the request came."""
        return self._moves(rules) and self.checked < asked - rules.tag_max_age

    def interval(self, rules: RepositoryRules, now: float) -> float:
        """Return the seconds until it is looked up again without a request."""
        due = max(self.checked + rules.tag_max_age, self.quiet_until)
        if self.is_pinned:
            due = now + max(rules.tag_max_age, _RETRY_CEILING)
        return max(due - now, _LEAST_INTERVAL)

    def _moves(self, rules: RepositoryRules) -> bool:
        return not self.is_pinned and moves(self.reference, rules)

    def confirmed(self, now: float, pause: float) -> TagState:
        """Return the state after the registry has said that the tag has not moved."""
        return attrs.evolve(self, checked=now, quiet_until=now + pause, failures=0)

    def put_off(self, rules: RepositoryRules, now: float, error: BlobserveError) -> TagState:
        """Return the state after a look-up, or the pull of the new digest, has failed."""
        delay = min(2.0 ** min(self.failures, 9), max(rules.tag_max_age, _RETRY_CEILING))
        if isinstance(error, TemporarilyUnavailable):
            delay = max(delay, error.retry_after)
        # If the clock was set back, the delay would not count.
        checked, failures = min(self.checked, now), self.failures + 1
        return attrs.evolve(self, checked=checked, quiet_until=now + delay, failures=failures)


def moves(reference: Reference, rules: RepositoryRules) -> bool:
    """Return whether the digest of a reference may change."""
    return reference.tag is not None and not rules.is_immutable_tag(reference.tag)
