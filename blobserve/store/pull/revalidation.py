"""Refreshing tags: look-ups behind requests, before them, and unasked.

A tag's look-up, and the pull of what it found, are one piece of work of which one is under way at a
time: so no slow, older answer overwrites a newer one. Whatever fails, the known digest goes on.
"""

from __future__ import annotations

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
        self._flights: SingleFlight[Reference, None] = SingleFlight()

    def look_up(self, known: TagState, rules: RepositoryRules) -> Call[None]:
        """Ask where a tag points now, and go there; joins what is under way.

        The flight lands when the tag serves its current image, when that image cannot be had, and
        after `PATIENCE` at the latest. While the known image cannot be read, nothing can be served
        but the new one; then it lands as soon as the pull begins. It fails with nothing but
        `StoreClosed`.
        """
        flight = self._flights.get(known.reference)
        if flight is None:
            flight = self._flights.start(
                known.reference, lambda flight: self._refresh(known, rules, flight)
            )
        return flight

    async def close(self) -> None:
        """Fail every wait and cancel every look-up."""
        await self._flights.close(StoreClosed())

    async def _refresh(self, known: TagState, rules: RepositoryRules, flight: Call[None]) -> None:
        impatience = self._reactor.callLater(PATIENCE, flight.succeed, None)
        try:
            await self._follow(known, rules, flight)
        except BlobserveError as error:
            _log.warn(
                "cannot refresh {reference}, going on with {digest}: {error}",
                reference=str(known.reference),
                digest=str(known.digest),
                error=error,
            )
            now, failure = self._reactor.seconds(), error
            self._known.update(known, lambda each: each.put_off(rules, now, failure))
        finally:
            if impatience.active():
                impatience.cancel()

    async def _follow(self, known: TagState, rules: RepositoryRules, flight: Call[None]) -> None:
        source = self._provider(known.reference.repository)
        answer = await source.refresh(known.reference, known.digest)
        now = self._reactor.seconds()
        if answer.digest == known.digest:
            self._known.update(known, lambda each: each.confirmed(now, answer.pause))
        elif self._known.is_current(known) and not self._pulls.get(known.reference):
            moved = TagState(known.reference, answer.digest, now, quiet_until=now + answer.pause)
            pull = self._pulls.begin(known.reference, moved, rules)
            if not self._can_serve(known.reference, rules):
                flight.succeed(None)  # Requests go on to wait for the pull itself.
            await pull.wait(urgent=flight.urgent)

    def _can_serve(self, reference: Reference, rules: RepositoryRules) -> bool:
        """Return whether requests may be given the known image, and need no pull for it.

        All layers that are served are READY then. Their merged index needs no pull.
        """
        known = self._known.get(reference)
        if known is None or known.image is None or not known.may_serve(rules):
            return False
        layers = known.image.digests
        states = [self._space.state_of(layer) for layer in layers]
        return bool(states) and all(state is BlobState.READY for state in states)
