"""References to images: a lease on what is here, a pull of what is not.

The one door to `store` for those who serve. Freshness, look-ups, pulls and downloads each have a
room of their own; here they are put together, and it is decided who waits for what. Knows nothing
of HTTP, on either side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import cast

from twisted.internet import defer
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime

from blobserve.concurrency.fair_queue import FairQueue
from blobserve.concurrency.singleflight import Call, own
from blobserve.config import Limits, RepositoryRules
from blobserve.errors import Forbidden, NotCached, SpaceContended, StoreClosed
from blobserve.metrics import Metrics
from blobserve.names.reference import Reference, Repository
from blobserve.store.blobspace import BlobSpace, Readable
from blobserve.store.ingest.early_files import EarlyFile, sooner
from blobserve.store.lazy.availability import LazyImage
from blobserve.store.lazy.lazy_indexes import LazyIndexes
from blobserve.store.lease import Lease, Result
from blobserve.store.pull.confirmations import Confirmations
from blobserve.store.pull.downloads import Downloads
from blobserve.store.pull.prepull_timers import PrePullTimers
from blobserve.store.pull.pulls import Provider, Pulls
from blobserve.store.pull.revalidation import Revalidations
from blobserve.store.refs.freshness import PATIENCE, Freshness, TagState
from blobserve.store.refs.image import ImageReader
from blobserve.store.refs.negative_cache import NegativeCache
from blobserve.store.refs.reference_table import ReferenceTable, Rules
from blobserve.store.space.provenance import Access

_SHARE = 0.8
"""The part of a caller's time that a look-up may take: the rest is for what is here."""


class RefStore:
    """Images by reference. See the contract, sections 5 ("Tags") and 6."""

    def __init__(
        self,
        space: BlobSpace,
        provider: Provider,
        rules: Rules,
        reactor: IReactorTime,
        metrics: Metrics,
        limits: Callable[[], Limits],
    ) -> None:
        """`provider` is asked for a repository's source anew at each pull, `rules` at each call."""
        self._space = space
        self._rules = rules
        self._reactor = reactor
        self._metrics = metrics
        images = ImageReader(space, limits)
        downloads = Downloads(space, metrics, limits)
        self._known = ReferenceTable(space, images, rules)
        self._missing = NegativeCache(reactor)
        self._pulls = Pulls(
            space,
            provider,
            images,
            self._known,
            self._missing,
            downloads,
            LazyIndexes(space, metrics, limits),
            rules,
            reactor,
        )
        self._refreshes = Revalidations(space, provider, self._known, self._pulls, reactor)
        self._confirmations = Confirmations(self._known, self._pulls, reactor)
        self._pre_pulls = PrePullTimers(
            space, rules, self._known, self._pulls, self._refreshes, reactor
        )
        self._portions = FairQueue(reactor)
        self._closed = False

    async def open(self) -> None:
        """Take up what the blob space, already open, remembers of references."""
        await self._known.load()

    def blob_for(self, reference: Reference, read_only: bool = False) -> Deferred[Lease]:
        """A lease on the image that `reference` names, pulling it if it is not here.

        Fires at once for an image that is READY and fresh. A `read_only` call waits for a pull that
        is under way, and begins neither pull nor look-up. Cancelling ends this wait; the pull goes
        on.

        :raises Forbidden: when no rules allow the repository.
        :raises NotHere: read-only, when the image is not here.
        :raises ImageNotFound: also when the registry said so a moment ago, see `NegativeCache`.
        :raises StoreClosed: after `close`, also when waiting by then.
        :raises BlobserveError: whatever else fails the pull; the next call starts anew.
        """
        return cast("Deferred[Lease]", self.lease_or_early(reference, None, read_only))

    def lease_or_early(
        self,
        reference: Reference,
        name: bytes | None,
        read_only: bool = False,
        timeout: float = math.inf,
    ) -> Deferred[Lease | EarlyFile]:
        """The same for who wants the regular file at the canonical path `name` alone, if not None.

        Where the image is not READY the lease may have no other file. Where rules say so it may be
        that file of the layer that is served, while it is being pulled, whichever comes first;
        whoever gets it closes it.

        The caller gives up after `timeout` seconds: an old tag's image is given in time for that.
        """
        return Deferred.fromCoroutine(self._lease_for(_plain(reference), read_only, name, timeout))

    def lease_at_once(self, reference: Reference, read_only: bool = False) -> Lease | None:
        """What `blob_for` gives where nothing is to be waited for; else None.

        It is not counted as a use, see `count`: the caller may have no use for it after all.
        """
        reference, asked = _plain(reference), self._reactor.seconds()
        rules, known = self._rules(reference.repository), self._known.get(reference)
        if self._closed or rules is None or known is None or known.image is None:
            return None
        if not known.image.suits(rules):
            return None
        if not known.is_proved(rules) and not self._confirmations.may_serve(
            known, rules, read_only
        ):
            return None
        freshness = known.freshness(rules, asked)
        if freshness is Freshness.OLD:
            return None
        image = self._space.acquire_image(known.image.digests)
        if image is None:
            return None
        if freshness is Freshness.AGEING and not read_only:
            self._refreshes.look_up(known, rules)
        return self._granted(image, known, rules, asked, "hit")

    def touch_for(self, reference: Reference) -> Callable[[], None]:
        """Return a cheap callback that counts a use of the image that `reference` names now.

        A cache of responses calls it for each response that it gives without a lease. Otherwise
        the image would be evicted as one that is not used.
        """
        known = self._known.get(_plain(reference))
        return self._space.touch_for(known.image.digests if known and known.image else ())

    @property
    def switches(self) -> int:
        """How often a reference has come to stand for something else than before."""
        return self._known.switches

    def count(self, result: Result) -> None:
        """Count a use of an image that was leased with this `Lease.result`."""
        self._metrics.lookups.count(result)
        if result == "stale":
            self._metrics.stale_serves.inc()

    def pre_pull(self, reference: Reference) -> Deferred[None]:
        """Make an image READY, after all that somebody waits for, and keep its tag fresh unasked.

        For as long as the repository's rules name the tag in `pre_pull`. Fires when it has been
        tried once, with what failed if it did; it is tried again all the same.
        """
        return Deferred.fromCoroutine(self._pre_pulls.add(_plain(reference)))

    def reload(self) -> None:
        """Follow rules that have changed."""
        self._missing.clear()
        for tag in self._known.tags():  # of which there may be thousands
            self._portions.do(partial(self._known.mark, tag))
        self._pre_pulls.reload()

    async def close(self) -> None:
        """Fail every wait with `StoreClosed`, abandon every pull, wipe their ingest. Idempotent."""
        self._closed = True
        self._pre_pulls.close()
        parts = (self._refreshes, self._confirmations, self._pulls)
        await gatherResults([Deferred.fromCoroutine(each.close()) for each in parts])

    async def _lease_for(
        self, reference: Reference, read_only: bool, name: bytes | None, timeout: float
    ) -> Lease | EarlyFile:
        lease = self.lease_at_once(reference, read_only)
        if lease is not None:
            self.count(lease.result)
            return lease
        asked = self._reactor.seconds()
        rules = self._allowed(reference.repository)
        known = await self._known.recall(reference, rules)
        if known is not None and not read_only:
            if not known.is_proved(rules):
                self._confirmations.ask(known, rules)  # beside the look-up
            await self._refresh(known, rules, asked, timeout)
            known = self._known.get(reference)
            if known is not None and not known.is_proved(rules):
                await self._confirmations.confirm(known, rules, asked)
        lease = await self._here(reference, rules, asked)
        if lease is not None:
            return lease
        result: Result = "wait"
        pull = self._pulls.get(reference)
        if pull is None:
            if read_only:
                raise NotCached(str(reference))
            missing = self._missing.get(reference)
            if missing is not None:
                raise own(missing)
            pull = self._pulls.begin(reference, self._known.get(reference), rules)
            result = "pull"
        coming = Deferred.fromCoroutine(
            self._offered_or_ready(reference, pull, name, read_only, result, rules)
        )
        # What is checked by an index goes before what is not checked at all.
        if name is None or coming.called or not rules.early_serve:
            found: Lease | EarlyFile | None = await coming
        else:
            found = await sooner(self._pulls.early(reference, name, Access.needed(rules)), coming)
        if found is not None:
            return found
        lease = await self._here(reference, rules, asked, result)
        if lease is None:
            raise SpaceContended
        return lease

    async def _offered_or_ready(
        self,
        reference: Reference,
        pull: Call[Readable],
        name: bytes | None,
        read_only: bool,
        result: Result,
        rules: RepositoryRules,
    ) -> Lease | None:
        """A lease by the published index of an image that is being pulled; None: it is READY."""
        if not read_only:
            pull.urgent = True
            offered = self._offered(await self._pulls.offer(reference, name), result, rules)
            if offered is not None:
                return offered
        await pull.wait()
        return None

    def _offered(
        self, offer: LazyImage | None, result: Result, rules: RepositoryRules
    ) -> Lease | None:
        """A lease on an image that is being pulled, by its published index."""
        if offer is not None and not offer.known.is_proved(rules):
            return None  # its pull began under rules that ask for less
        image = None if offer is None else offer.take()
        if offer is None or image is None:
            return None
        if self._closed:
            image.release()
            raise StoreClosed
        self.count(result)
        known = offer.known
        layers = known.image.layers if known.image else 0
        return Lease(image, known.digest, layers, result, 0.0)

    def _allowed(self, repository: Repository) -> RepositoryRules:
        rules = self._rules(repository)
        if rules is None:
            raise Forbidden(str(repository))
        return rules

    async def _refresh(
        self, known: TagState, rules: RepositoryRules, asked: float, timeout: float
    ) -> None:
        """Look a tag up if it is time to; if its digest is old, wait until it is the current one.

        Waits `PATIENCE` at most from the beginning of the look-up, and less than `timeout`.
        """
        freshness = known.freshness(rules, asked)
        if freshness is Freshness.TRUSTED:
            return
        look_up = self._refreshes.look_up(known, rules)
        if freshness is Freshness.AGEING:
            return
        pull = self._pulls.get(known.reference)
        if pull is not None:
            pull.urgent = True
        waiting = look_up.wait()
        patience = _SHARE * timeout
        if patience < PATIENCE and not waiting.called:
            waiting.addTimeout(patience, self._reactor)
        with suppress(defer.TimeoutError):
            await waiting

    async def _here(
        self, reference: Reference, rules: RepositoryRules, asked: float, result: Result = "hit"
    ) -> Lease | None:
        """A lease on what `reference` stands for now, if that is READY."""
        if self._closed:
            raise StoreClosed
        known = self._known.get(reference)
        if known is None or known.image is None:
            return None
        if not known.may_serve(rules):
            return None
        image = await self._space.mount_image(known.image.digests)
        if image is None:
            return None
        if self._closed:
            image.release()
            raise StoreClosed
        lease = self._granted(image, known, rules, asked, result)
        self.count(lease.result)
        return lease

    def _granted(
        self, image: Readable, known: TagState, rules: RepositoryRules, asked: float, result: Result
    ) -> Lease:
        if result == "hit" and known.is_stale(rules, asked):
            result = "stale"
        layers = known.image.layers if known.image else 0
        return Lease(image, known.digest, layers, result, known.trusted_until(rules))


def _plain(reference: Reference) -> Reference:
    """The reference by its digest alone if it has one: the tag beside it says nothing then."""
    return reference.at(reference.digest) if reference.digest else reference
