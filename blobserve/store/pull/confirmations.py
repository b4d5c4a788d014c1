"""Confirmations: images that only a tag of an older build vouches for.

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
"""Seconds until a source that could not be asked is asked again."""


class Confirmations:
    """Every confirmation under way."""

    def __init__(self, known: ReferenceTable, pulls: Pulls, reactor: IReactorTime) -> None:
        self._known = known
        self._pulls = pulls
        self._reactor = reactor
        self._calls: SingleFlight[Reference, None] = SingleFlight()

    def may_serve(self, known: TagState, rules: RepositoryRules, read_only: bool) -> bool:
        """Return whether an image that is not proved may be served at once.

        Unless `read_only`, this asks its source in the background when that is due. It may not be
        served before its source has had a first chance to answer: see `confirm`.
        """
        if read_only or not known.is_remembered(rules):
            return known.is_remembered(rules)
        if known.confirm_after:
            self.ask(known, rules)
        return known.confirm_after > 0

    def ask(self, known: TagState, rules: RepositoryRules) -> Call[None] | None:
        """Ask the source in the background, if the image needs that and it is due."""
        # A clock that was set back would make it wait for longer.
        is_due = not 0 < known.confirm_after - self._reactor.seconds() <= _RETRY
        if not is_due or not known.is_remembered(rules):
            return None
        return self._calls.get(known.reference) or self._calls.start(
            known.reference, lambda call: self._confirm(known, rules)
        )

    async def confirm(self, known: TagState, rules: RepositoryRules, asked: float) -> None:
        """Ask the source if that is due, and wait for its answer the first time.

        The wait ends `PATIENCE` seconds after `asked` at the latest.
        """
        call = self.ask(known, rules)
        passed = self._reactor.seconds() - asked
        if call is not None and not known.confirm_after and 0 <= passed < PATIENCE:
            timer = self._reactor.callLater(PATIENCE - passed, call.succeed, None)
            try:
                await call.wait()
            finally:
                if timer.active():
                    timer.cancel()

    async def close(self) -> None:
        """Fail every wait and cancel every confirmation."""
        await self._calls.close(StoreClosed())

    async def _confirm(self, known: TagState, rules: RepositoryRules) -> None:
        exact = known.reference.at(known.digest)
        timer = self._reactor.callLater(PATIENCE, self._put_off, known)
        try:
            pull = self._pulls.get(exact)
            if pull is None:
                pull = self._pulls.start(exact, self._known.get(exact), rules)
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
