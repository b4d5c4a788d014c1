"""Revalidation of tags: in the background, while requests wait, and for prePull.

A look-up of a tag, and the pull of the image that it found, are one call, and one call runs for
each tag at a time. So a slow, older answer never overwrites a newer one. If the call fails, the
known digest serves on.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from blobserve.concurrency.singleflight import Call, SingleFlight
from blobserve.config import RepositoryRules
from blobserve.errors import BlobserveError, StoreClosed
from blobserve.names.reference import Reference
from blobserve.store.blobspace import BlobSpace, BlobState
from blobserve.store.pull.pulls import Provider, Pulls
from blobserve.store.refs.freshness import PATIENCE, TagState
from blobserve.store.refs.reference_table import ReferenceTable

_log = Logger()


class Revalidations:
    """Every look-up of a known tag under way."""

    def __init__(
        self,
        space: BlobSpace,
        provider: Provider,
        known: ReferenceTable,
        pulls: Pulls,
        reactor: IReactorTime,
    ) -> None:
        self._space = space
        self._provider = provider
        self._known = known
        self._pulls = pulls
        self._reactor = reactor
        self._calls: SingleFlight[Reference, None] = SingleFlight()

    def look_up(self, known: TagState, rules: RepositoryRules) -> Call[None]:
        """Ask which digest a tag has now, and pull that image; join a call that is under way.

        The call succeeds when the tag serves its current image, when that image cannot be had, and
        after `PATIENCE` at the latest. If the known image cannot be served meanwhile, it succeeds
        as soon as the pull begins. It fails only with `StoreClosed`.
        """
        call = self._calls.get(known.reference)
        if call is None:
            call = self._calls.start(
                known.reference, lambda call: self._revalidate(known, rules, call)
            )
        return call

    def ended(self, reference: Reference) -> Deferred[None]:
        """Return a Deferred that fires when no look-up of a tag, with its pull, is under way."""
        return self._calls.ended(reference)

    async def close(self) -> None:
        """Fail every wait and cancel every look-up."""
        await self._calls.close(StoreClosed())

    async def _revalidate(self, known: TagState, rules: RepositoryRules, call: Call[None]) -> None:
        timer = self._reactor.callLater(PATIENCE, call.succeed, None)
        try:
            await self._follow(known, rules, call)
        except BlobserveError as error:
            _log.warn(
                "cannot revalidate {reference}, serving {digest}: {error}",
                reference=str(known.reference),
                digest=str(known.digest),
                error=error,
            )
            now, failure = self._reactor.seconds(), error
            self._known.update(known, lambda each: each.put_off(rules, now, failure))
        finally:
            if timer.active():
                timer.cancel()

    async def _follow(self, known: TagState, rules: RepositoryRules, call: Call[None]) -> None:
        if known.is_pinned:
            return
        source = self._provider(known.reference.repository)
        answer = await source.refresh(known.reference, known.digest)
        now = self._reactor.seconds()
        repository = known.reference.repository
        if answer.digest == known.digest or self._known.purges.covers(repository, answer.digest):
            # A tag does not move to an image that was purged.
            self._known.update(known, lambda each: each.confirmed(now, answer.pause))
        elif self._known.is_current(known) and not self._pulls.get(known.reference):
            moved = TagState(known.reference, answer.digest, now, quiet_until=now + answer.pause)
            pull = self._pulls.start(known.reference, moved, rules)
            if not self._can_serve(known.reference, rules):
                call.succeed(None)  # Requests go on to wait for the pull itself.
            await pull.wait(urgent=call.urgent)

    def _can_serve(self, reference: Reference, rules: RepositoryRules) -> bool:
        """Return whether requests may be given the known image, and need no pull for it.

        All layers that are served are READY then. Their merged index needs no pull.
        """
        known = self._known.get(reference)
        if known is None or known.image is None or not known.may_serve(rules):
            return False
        states = [self._space.state_of(layer) for layer in known.image.digests]
        return all(state is BlobState.READY for state in states)
