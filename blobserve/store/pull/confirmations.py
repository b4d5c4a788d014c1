"""Confirmations: what only a tag of an older build vouches for is asked for again.

Such an image is served meanwhile, so that an upgrade is no outage. Its source is asked for each
manifest and layer, as a pull by digest asks: the tag may name another image by now. If the source
denies one, the tag is forgotten. If the source cannot be asked, the image serves on and the source
is asked again later. See `Access.REMEMBERED`.
"""

from __future__ import annotations

import attrs
from twisted.internet.interfaces import IReactorTime

from blobserve.concurrency.singleflight import Call, SingleFlight
from blobserve.config import RepositoryRules
from blobserve.errors import BlobserveError, NotFound, RegistryRefused, StoreClosed
from blobserve.names.reference import Reference
from blobserve.store.pull.pulls import Pulls
from blobserve.store.refs.freshness import PATIENCE, TagState
from blobserve.store.refs.reference_table import ReferenceTable

_RETRY = 10.0
"""Seconds until a source is asked again that could not be asked."""


class Confirmations:
    """Every confirmation under way."""

    def __init__(self, known: ReferenceTable, pulls: Pulls, reactor: IReactorTime) -> None:
        self._known = known
        self._pulls = pulls
        self._reactor = reactor
        self._flights: SingleFlight[Reference, None] = SingleFlight()

    def may_serve(self, known: TagState, rules: RepositoryRules, read_only: bool) -> bool:
        """Return whether it may be served at once although it is not proved.

        Its source is asked in the background if it is time to, unless `read_only`. It may not
        before its source has had a first chance to answer: see `confirm`.
        """
        if read_only or not known.is_remembered(rules):
            return known.is_remembered(rules)
        if known.confirm_after and self._is_due(known):
            self._begin(known, rules)
        return known.confirm_after > 0

    def ask(self, known: TagState, rules: RepositoryRules) -> None:
        """Ask its source in the background, if it is time to; see `confirm`."""
        if known.is_remembered(rules) and self._is_due(known):
            self._begin(known, rules)

    async def confirm(self, known: TagState, rules: RepositoryRules, asked: float) -> None:
        """Have its source asked, if it is time to, and wait for the answer the first time.

        At most `PATIENCE` seconds from `asked` on.
        """
        if known.is_remembered(rules) and self._is_due(known):
            flight = self._begin(known, rules)
            passed = self._reactor.seconds() - asked
            if not known.confirm_after and 0 <= passed < PATIENCE:
                impatience = self._reactor.callLater(PATIENCE - passed, flight.succeed, None)
                try:
                    await flight.wait()
                finally:
                    if impatience.active():
                        impatience.cancel()

    async def close(self) -> None:
        """Fail every wait and cancel every confirmation."""
        await self._flights.close(StoreClosed())

    def _is_due(self, known: TagState) -> bool:
        # A clock that was set back would have it wait for longer.
        return not 0 < known.confirm_after - self._reactor.seconds() <= _RETRY

    def _begin(self, known: TagState, rules: RepositoryRules) -> Call[None]:
        reference = known.reference
        return self._flights.get(reference) or self._flights.start(
            reference, lambda flight: self._confirm(known, rules)
        )

    async def _confirm(self, known: TagState, rules: RepositoryRules) -> None:
        exact = known.reference.at(known.digest)
        timer = self._reactor.callLater(PATIENCE, self._put_off, known)
        try:
            pull = self._pulls.get(exact)
            if pull is None:
                pull = self._pulls.begin(exact, self._known.get(exact), rules)
            await pull.wait(urgent=False)
        except (NotFound, RegistryRefused):  # `Pulls` has logged it
            self._known.disprove(known)
        except BlobserveError:
            self._put_off(known)
        else:
            proved = self._known.get(exact)
            if proved is not None:
                image, access = proved.image, proved.access
                self._known.update(known, lambda now: attrs.evolve(now, image=image, access=access))
        finally:
            if timer.active():
                timer.cancel()

    def _put_off(self, known: TagState) -> None:
        after = self._reactor.seconds() + _RETRY
        self._known.update(known, lambda each: attrs.evolve(each, confirm_after=after))
