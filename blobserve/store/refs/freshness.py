"""When a tag is looked up again.

Pure. Knows what the registry last said of a reference and when; asks nobody, and moves no tag.
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
"""Seconds that a request waits for an old tag: for its look-up and the pull of a new image."""

_LEAST_INTERVAL = 1.0
_RETRY_CEILING = 10.0


class Freshness(enum.Enum):
    """What a tag's age asks for before its known digest serves."""

    TRUSTED = enum.auto()
    """Nothing."""
    AGEING = enum.auto()
    """A look-up behind the request's back."""
    OLD = enum.auto()
    """A look-up that the request waits for, and for the pull of a new image."""


@attrs.frozen
class TagState:
    """What a reference is known to stand for; times are seconds of the reactor's clock."""

    reference: Reference
    digest: Digest
    checked: float
    """When the registry last said so."""
    image: Image | None = None
    """None until its manifest has been read from the blob space."""
    quiet_until: float = 0.0
    """No look-up before that: the registry asked for it, or the last one failed."""
    failures: int = 0
    """How many look-ups, or pulls of what they found, have failed in a row."""
    access: Access = Access.NONE
    """How far the repository has shown that all of the image is its own; see `Provenance`."""
    confirm_after: float = 0.0
    """When its source is to be asked again whether it is; 0 before it was asked at all."""

    def is_proved(self, rules: RepositoryRules) -> bool:
        """Return whether the repository has shown enough, under these rules, to be served it."""
        return self.access >= Access.needed(rules)

    def is_remembered(self, rules: RepositoryRules) -> bool:
        """Return whether it is served until the source of a listed repository denies it."""
        return self.access is Access.REMEMBERED and rules.listed

    def may_serve(self, rules: RepositoryRules) -> bool:
        """Return whether requests under these rules may be given the image, if it is READY."""
        return self.is_proved(rules) or self.is_remembered(rules)

    def freshness(self, rules: RepositoryRules, now: float) -> Freshness:
        """Whether to look it up. See the contract, section 5, "Tags"."""
        # A clock that was set back makes an age negative, which says nothing: look it up.
        age, most = now - self.checked, rules.tag_max_age
        if not moves(self.reference, rules) or (age >= 0 and now < self.quiet_until):
            return Freshness.TRUSTED
        if not most or not 0 <= age <= 2 * most:
            return Freshness.OLD
        return Freshness.TRUSTED if age <= most else Freshness.AGEING

    def trusted_until(self, rules: RepositoryRules) -> float:
        """When `freshness` ends to be `TRUSTED`, if it is now."""
        if not moves(self.reference, rules):
            return math.inf
        return max(self.checked + rules.tag_max_age, self.quiet_until)

    def is_stale(self, rules: RepositoryRules, asked: float) -> bool:
        """Whether, at the time a request came, the digest was older than a tag's may be."""
        return moves(self.reference, rules) and self.checked < asked - rules.tag_max_age

    def interval(self, rules: RepositoryRules, now: float) -> float:
        """Seconds until it is looked up again although nobody asks."""
        due = max(self.checked + rules.tag_max_age, self.quiet_until)
        return max(due - now, _LEAST_INTERVAL)

    def confirmed(self, now: float, pause: float) -> TagState:
        """The same, the registry having just said that the tag has not moved."""
        return attrs.evolve(self, checked=now, quiet_until=now + pause, failures=0)

    def put_off(self, rules: RepositoryRules, now: float, error: BlobserveError) -> TagState:
        """The same, a look-up or the pull of what it found having just failed."""
        delay = min(2.0 ** min(self.failures, 9), max(rules.tag_max_age, _RETRY_CEILING))
        if isinstance(error, TemporarilyUnavailable):
            delay = max(delay, error.retry_after)
        # A clock that was set back would have no delay count.
        checked, failures = min(self.checked, now), self.failures + 1
        return attrs.evolve(self, checked=checked, quiet_until=now + delay, failures=failures)


def moves(reference: Reference, rules: RepositoryRules) -> bool:
    """Whether what a reference stands for may change."""
    return reference.tag is not None and not rules.is_immutable_tag(reference.tag)
