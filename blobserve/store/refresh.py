"""Refreshing tags: look-ups behind requests, before them, and unasked.

A tag's look-up, and the pull of what it found, are one piece of work of which one is under way at a
time: so no slow, older answer overwrites a newer one. Whatever fails, the known digest goes on.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from blobserve.config import RepositoryRules
from blobserve.errors import BlobserveError, StoreClosed
from blobserve.oci.reference import Reference
from blobserve.oci.source import Refreshed
from blobserve.store.flight import Flight, Flights
from blobserve.store.freshness import PATIENCE, Known
from blobserve.store.known import KnownReferences
from blobserve.store.pull import Provider, Pulls

_log = Logger()


class Refreshes:
    """Every look-up of a known tag under way."""

    def __init__(
        self, provider: Provider, known: KnownReferences, pulls: Pulls, reactor: IReactorTime
    ) -> None:
        self._provider = provider
        self._known = known
        self._pulls = pulls
        self._reactor = reactor
        self._flights: Flights[Reference, None] = Flights()

    def look_up(self, known: Known, rules: RepositoryRules) -> Flight[None]:
        """Ask where a tag points now, and go there; joins what is under way.

        The flight lands when the source has answered, or has not within `PATIENCE`. It fails with
        nothing but `StoreClosed`.
        """
        flight = self._flights.get(known.reference)
        if flight is None:
            flight = self._flights.begin(
                known.reference, lambda flight: self._refresh(known, rules, flight)
            )
        return flight

    async def close(self) -> None:
        """Fail every wait and cancel every look-up."""
        await self._flights.close(StoreClosed())

    async def _refresh(self, known: Known, rules: RepositoryRules, flight: Flight[None]) -> None:
        try:
            answer = await self._ask(known, flight)
            now = self._reactor.seconds()
            if answer.digest == known.digest:
                self._known.update(known, lambda each: each.confirmed(now, answer.pause))
            elif self._known.is_current(known) and not self._pulls.get(known.reference):
                moved = Known(known.reference, answer.digest, now, quiet_until=now + answer.pause)
                # First, so that whoever goes on now joins it, or has what is here.
                pull = self._pulls.begin(known.reference, moved, rules)
                flight.land(None)
                await pull.wait(urgent=False)
        except BlobserveError as error:
            _log.warn(
                "cannot refresh {reference}, going on with {digest}: {error}",
                reference=str(known.reference),
                digest=str(known.digest),
                error=error,
            )
            now, failure = self._reactor.seconds(), error
            self._known.update(known, lambda each: each.put_off(rules, now, failure))

    async def _ask(self, known: Known, flight: Flight[None]) -> Refreshed:
        impatience = self._reactor.callLater(PATIENCE, flight.land, None)
        try:
            source = self._provider(known.reference.repository)
            return await source.refresh(known.reference, known.digest)
        finally:
            if impatience.active():
                impatience.cancel()
