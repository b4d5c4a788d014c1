"""prePull: images are pulled, and tags revalidated, without requests.

Every tag has a timer that is set again after each attempt, also after a failure. Images are not
pinned: an evicted one is pulled again at the next request or start.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from blobserve.concurrency.singleflight import reason_of
from blobserve.config import RepositoryRules
from blobserve.errors import Forbidden
from blobserve.names.reference import Reference
from blobserve.store.blobspace import BlobSpace
from blobserve.store.pull.pulls import Pulls
from blobserve.store.pull.revalidation import Revalidations
from blobserve.store.refs.freshness import Freshness, TagState, moves
from blobserve.store.refs.reference_table import ReferenceTable

_RETRY = 10.0
"""Seconds until an image that has never been pulled is tried again."""


class PrePullTimers:
    """The tags that are kept fresh without requests."""

    def __init__(
        self,
        space: BlobSpace,
        known: ReferenceTable,
        pulls: Pulls,
        revalidations: Revalidations,
        reactor: IReactorTime,
    ) -> None:
        self._space = space
        self._known = known
        self._pulls = pulls
        self._revalidations = revalidations
        self._reactor = reactor
        self._timers: dict[Reference, IDelayedCall] = {}
        self._closed = False

    async def add(self, reference: Reference) -> None:
        """Make an image READY, and keep it fresh for as long as its rules name it in prePull.

        Return after the first attempt, or raise its error.
        """
        try:
            await self._try(reference, again=False)
        finally:
            self._set_timer(reference)

    def reload(self) -> None:
        """Set every timer again, because rules have changed."""
        for reference in list(self._timers):
            self._set_timer(reference)

    def close(self) -> None:
        """Stop every timer."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    async def _try(self, reference: Reference, again: bool) -> None:
        rules = self._known.rules(reference.repository)
        if rules is None:
            raise Forbidden(str(reference.repository))
        known = await self._known.recall(reference, rules)
        if known is None or not (again or self._is_ready(known, rules)):
            pull = self._pulls.get(reference) or self._pulls.start(reference, known, rules)
            await pull.wait(urgent=False)
        elif again or known.freshness(rules, self._reactor.seconds()) is not Freshness.TRUSTED:
            await self._revalidations.look_up(known, rules).wait(urgent=False)

    def _is_ready(self, known: TagState, rules: RepositoryRules) -> bool:
        if known.image is None or not known.is_proved(rules):
            return False
        return self._space.is_ready(known.image.digests)

    def _set_timer(self, reference: Reference) -> None:
        timer = self._timers.pop(reference, None)
        if timer is not None:
            timer.cancel()
        rules, known = self._known.rules(reference.repository), self._known.get(reference)
        version = reference.tag or str(reference.digest)
        if self._closed or rules is None or version not in rules.pre_pull:
            return
        delay = known.interval(rules, self._reactor.seconds()) if known else _RETRY
        if known is None or moves(reference, rules):
            self._timers[reference] = self._reactor.callLater(delay, self._wake, reference)

    def _wake(self, reference: Reference) -> None:
        del self._timers[reference]
        attempt = Deferred.fromCoroutine(self._try(reference, again=True))
        attempt.addErrback(reason_of).addBoth(lambda _: self._set_timer(reference))
