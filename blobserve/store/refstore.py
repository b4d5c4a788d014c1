"""References to images: a lease on an image in the blob space, or a pull of one that is not.

The web server uses `store` through this module. The folders `refs`, `pull` and `lazy` do the work;
this module decides which request waits for which of them. HTTP is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from functools import partial
from typing import cast

import attrs
from twisted.internet import defer
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from blobserve.concurrency.fair_queue import FairQueue
from blobserve.concurrency.singleflight import Call, own
from blobserve.config import Limits, RepositoryRules
from blobserve.errors import Forbidden, NotCached, SpaceContended, StoreClosed, VersionPurged
from blobserve.metrics import Metrics
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference, Repository
from blobserve.store.blobspace import BlobSpace, Readable
from blobserve.store.ingest.early_files import EarlyFile, sooner
from blobserve.store.lazy.availability import LazyImage
from blobserve.store.lease import Lease, Result
from blobserve.store.pull.confirmations import Confirmations
from blobserve.store.pull.prepull_timers import PrePullTimers
from blobserve.store.pull.pulls import Provider, Pulls
from blobserve.store.pull.pushes import Pushes
from blobserve.store.pull.revalidation import Revalidations
from blobserve.store.pull.version_leases import VersionLeases
from blobserve.store.refs.freshness import PATIENCE, Freshness, TagState
from blobserve.store.refs.image import ImageReader
from blobserve.store.refs.pins import TagsNamed
from blobserve.store.refs.reference_table import ReferenceTable, Rules
from blobserve.store.space.merged_indexes import parts_of
from blobserve.store.space.provenance import Access

_log = Logger()

_TRIM_INTERVAL = 3600.0
"""Seconds after which earlier versions are checked for their age at the latest."""

_SHARE = 0.8
"""The share of a request's timeout that a look-up may take; the rest is for the known image."""


@attrs.frozen
class Ask:
    """One request for an image, with the rules of the moment when it came."""

    reference: Reference
    rules: RepositoryRules
    name: bytes | None
    """The canonical path of the only file that the caller needs, if there is only one."""
    read_only: bool
    at: float
    """The time when it came, in seconds of the reactor's clock."""


class RefStore:
    """Images by reference. See docs/reference/tags.md and docs/reference/images.md."""

    def __init__(
        self,
        space: BlobSpace,
        provider: Provider,
        rules: Rules,
        reactor: IReactorTime,
        metrics: Metrics,
        limits: Callable[[], Limits],
        wall: Callable[[], float] | None = None,
        tags_named: TagsNamed = lambda name: (),
    ) -> None:
        """`provider` is asked for a repository's source anew at each pull, `rules` at each call.

        `wall` returns the time of day, in seconds since 1970, for the stored ages of tags. The
        default is the reactor's clock. `tags_named` returns the tags that a name of a pin stands
        for.
        """
        now, images = wall or reactor.seconds, ImageReader(space, limits)
        self.references = ReferenceTable(
            space, images, rules, lambda: now() - reactor.seconds(), now, tags_named
        )
        """The known state of every reference."""
        self._space = space
        self._rules = rules
        self._reactor = reactor
        self._metrics = metrics
        self._pulls = Pulls(space, provider, self.references, reactor, metrics, limits)
        self._revalidations = Revalidations(space, provider, self.references, self._pulls, reactor)
        self._confirmations = Confirmations(self.references, self._pulls, reactor)
        self._pre_pulls = PrePullTimers(
            space, self.references, self._pulls, self._revalidations, reactor
        )
        self._pushes = Pushes(self.references, self._pulls, self._revalidations, reactor)
        self._version_leases = VersionLeases(
            space, self.references, self._pulls, reactor, self._lease_of_version
        )
        self._trim_later: IDelayedCall | None = None
        self._wall = now
        self._reload_queue = FairQueue(reactor)
        self._closed = False

    async def open(self) -> None:
        """Load the references of the blob space, which is open."""
        await self.references.load()
        self._trim_versions()

    def blob_for(self, reference: Reference, read_only: bool = False) -> Deferred[Lease]:
        """Return a lease on the image that `reference` names, and pull it if necessary.

        Fires at once for an image that is READY and fresh. A `read_only` call waits for a pull that
        is under way, and starts neither a pull nor a look-up. Cancelling ends this wait only.

        :raises Forbidden: when no rules allow the repository.
        :raises NotCached: read-only, when the image is not in the blob space.
        :raises ImageNotFound: also when the registry said so a moment ago, see `NegativeCache`.
        :raises StoreClosed: after `close`, also when waiting by then.
        :raises BlobserveError: when the pull fails in another way; the next call starts anew.
        """
        return cast("Deferred[Lease]", self.lease_or_early(reference, None, read_only))

    def lease_or_early(
        self,
        reference: Reference,
        name: bytes | None,
        read_only: bool = False,
        timeout: float = math.inf,
    ) -> Deferred[Lease | EarlyFile]:
        """Return a lease as `blob_for` does, for a caller that needs only the file `name`.

        If the image is not READY, the lease may contain nothing else. With `earlyServe`, the result
        may be that file of the layer while it is being pulled; the caller closes it. The image of
        an old tag is given before `timeout` seconds have passed.
        """
        return Deferred.fromCoroutine(self._lease_for(reference, name, read_only, timeout))

    def lease_at_once(self, reference: Reference, read_only: bool = False) -> Lease | None:
        """Return the lease of `blob_for` if that needs no waiting; else None.

        It is not counted as a use, see `count`: the caller may not need it after all.
        """
        reference, now = _plain(reference), self._reactor.seconds()
        rules, known = self._rules(reference.repository), self.references.get(reference)
        if self._closed or rules is None or known is None or known.image is None:
            return None
        if self.references.purges.covers(reference.repository, known.digest):
            return None
        if not known.image.suits(rules):
            return None
        if not known.is_proved(rules) and not self._confirmations.may_serve(
            known, rules, read_only
        ):
            return None
        freshness = known.freshness(rules, now)
        if freshness is Freshness.OLD:
            return None
        image = self._space.images.acquire(known.image.digests)
        if image is None:
            return None
        if freshness is Freshness.AGEING and not read_only:
            self._revalidations.look_up(known, rules)
        return self._lease(image, known, Ask(reference, rules, None, read_only, now), "hit")

    def version_at_once(self, tag: Reference, digest: Digest) -> Lease | None:
        """Return a lease on an earlier version of a tag if that needs no waiting; else None."""
        return self.lease_at_once(tag.at(digest), read_only=True)

    async def version(
        self, tag: Reference, digest: Digest, read_only: bool = False
    ) -> Lease | None:
        """Return a lease on an earlier version of a tag; None if it cannot be read now.

        No request waits for a source. A version that is damaged is pulled again by its digest in
        the background, unless the call is `read_only`.
        """
        return await self._version_leases.lease(tag, digest, read_only)

    async def pin(self, name: str, digest: Digest) -> None:
        """Serve this image for all tags that a name stands for, until `unpin`.

        It is pulled by its digest first, unless it is READY. After that the tags switch, and their
        sources are not asked any more. Return when the pin is stored.

        :raises MalformedReference: when the name stands for no tag.
        :raises VersionPurged: when the image was purged.
        :raises BlobserveError: when it cannot be pulled.
        """
        exact, leases = [tag.at(digest) for tag in self._tags_named(name)], list[Lease]()
        try:
            for each in exact:
                leases.append(await self.blob_for(each))
            for each in exact:  # It may have been purged meanwhile.
                self.references.purges.refuse(each, [digest])
            self.references.pins.set(name, digest)
            self.references.follow_pins()
        finally:
            for lease in leases:
                lease.release()
        await self._space.flush()

    async def unpin(self, name: str) -> bool:
        """End the pin of a name; return whether there was one.

        Its tags are looked up again, and serve the pinned image until the answer has come.
        """
        pinned = list(self.references.pins.tags)
        was_pinned = self.references.pins.remove(name)
        self.references.follow_pins()
        for tag in pinned if was_pinned else ():
            known, rules = self.references.get(tag), self._rules(tag.repository)
            if known is not None and rules is not None and not known.is_pinned:
                self._revalidations.look_up(known, rules)
        await self._space.flush()
        return was_pinned

    async def purge(self, repository: Repository, digest: Digest) -> None:
        """Make an image unreachable through a repository, at once and for ever.

        Pins of it are removed. A tag that serves it answers that there is no such image, until it
        moves or is pinned to another one. It is looked up at once, because it may have moved
        already. Return when that is stored.
        """
        plain = str(repository)
        parts = set[Digest]()
        for scoped in {tag.repository for tag in self.references.tags()}:
            rules = self._rules(scoped) if str(scoped) == plain else None
            known = rules and await self.references.recall(Reference(scoped, None, digest), rules)
            if known and known.image:
                parts.update(parts_of(known.image.digests))
        is_known = self.references.purge(repository, digest)
        self.references.pins.purge(repository, digest)
        self.references.follow_pins()
        _log.info("{digest} is purged from {repository}", digest=str(digest), repository=plain)
        if not is_known:
            _log.warn("no tag of {repository} has served {digest}", repository=plain, digest=digest)
        for tag in self.references.tags():
            known = self.references.get(tag)
            if known and known.digest == digest and str(tag.repository) == plain:
                _log.warn(
                    "{tag} serves the purged {digest}, so it is 404 until it moves or is pinned",
                    tag=str(tag),
                    digest=str(digest),
                )
                rules = self._rules(tag.repository)
                if rules is not None:
                    self._revalidations.look_up(known, rules)
        await self._space.evict_unused(parts)
        await self._space.flush()

    def touch_for(self, reference: Reference) -> Callable[[], None]:
        """Return a cheap callback that counts a use of the image that `reference` names now.

        A cache of responses calls it for each response that it gives without a lease. Otherwise
        the image would be evicted as one that is not used.
        """
        known = self.references.get(_plain(reference))
        return self._space.touch_for(known.image.digests if known and known.image else ())

    def count(self, result: Result) -> None:
        """Count a use of an image that was leased with this `Lease.result`."""
        self._metrics.lookups.count(result)
        if result == "stale":
            self._metrics.stale_serves.inc()

    def pre_pull(self, reference: Reference) -> Deferred[None]:
        """Make an image READY, after all pulls that a request waits for, and keep its tag fresh.

        This goes on for as long as the repository's rules name the tag in `pre_pull`. Fires after
        the first attempt, with its error if it failed. It is repeated in either case.
        """
        return Deferred.fromCoroutine(self._pre_pulls.add(_plain(reference)))

    def announce(
        self,
        repositories: Collection[Repository],
        tags: Collection[str] | None,
        expected: Iterable[Reference],
    ) -> int:
        """Look up tags that a registry says were pushed. See `Pushes.announce`."""
        return self._pushes.announce(repositories, tags, [_plain(each) for each in expected])

    def reload(self) -> None:
        """Follow rules that have changed."""
        self._pulls.missing.clear()
        self.references.pins.resolve(is_logged=True)
        self.references.follow_pins()
        self._trim_versions()
        for tag in self.references.tags():  # There may be thousands.
            self._reload_queue.do(partial(self.references.mark, tag))
        self._pre_pulls.reload()

    async def close(self) -> None:
        """Fail every wait with `StoreClosed`, abandon every pull, wipe their ingest. Idempotent."""
        self._closed = True
        if self._trim_later is not None and self._trim_later.active():
            self._trim_later.cancel()
        self._pre_pulls.close()
        await self._pushes.close()
        parts = (self._revalidations, self._confirmations, self._pulls)
        await gatherResults([Deferred.fromCoroutine(each.close()) for each in parts])

    async def _lease_for(
        self, reference: Reference, name: bytes | None, read_only: bool, timeout: float
    ) -> Lease | EarlyFile:
        lease = self.lease_at_once(reference, read_only)
        if lease is not None:
            self.count(lease.result)
            return lease
        rules = self._rules(reference.repository)
        if rules is None:
            raise Forbidden(str(reference.repository))
        ask = Ask(_plain(reference), rules, name, read_only, self._reactor.seconds())
        known = await self.references.recall(ask.reference, rules)
        if known is not None and not read_only:
            await self._revalidated(ask, known, timeout)
        return await self._cached(ask) or await self._pulled(ask)

    async def _revalidated(self, ask: Ask, known: TagState, timeout: float) -> None:
        """Look a tag up, and confirm its image, if either is due; wait as long as a request may.

        An old tag is waited for until it is the current one: at most `PATIENCE` seconds from the
        beginning of the look-up, and less than `timeout`.
        """
        if not known.is_proved(ask.rules):
            self._confirmations.ask(known, ask.rules)  # This runs beside the look-up.
        freshness = known.freshness(ask.rules, ask.at)
        if freshness is not Freshness.TRUSTED:
            look_up = self._revalidations.look_up(known, ask.rules)
            if freshness is Freshness.OLD:
                pull = self._pulls.get(known.reference)
                if pull is not None:
                    pull.urgent = True
                waiting, patience = look_up.wait(), _SHARE * timeout
                if patience < PATIENCE and not waiting.called:
                    waiting.addTimeout(patience, self._reactor)
                with suppress(defer.TimeoutError):
                    await waiting
        current = self.references.get(ask.reference)
        if current is not None and not current.is_proved(ask.rules):
            await self._confirmations.confirm(current, ask.rules, ask.at)

    async def _cached(self, ask: Ask, result: Result = "hit") -> Lease | None:
        """Return a lease on the image that the reference has now, if that is READY."""
        if self._closed:
            raise StoreClosed
        known = self.references.get(ask.reference)
        if known is None:
            return None
        if self.references.purges.covers(ask.reference.repository, known.digest):
            raise VersionPurged(str(ask.reference))
        if known.image is None or not known.may_serve(ask.rules):
            return None
        image = await self._space.images.mount(known.image.digests)
        if image is None:
            return None
        lease = self._lease(image, known, ask, result)
        self.count(lease.result)
        return lease

    async def _pulled(self, ask: Ask) -> Lease | EarlyFile:
        """Start or join a pull; return the first lease or early file that it gives."""
        if self.references.purges.covers(ask.reference.repository, ask.reference.digest):
            raise VersionPurged(str(ask.reference))
        result: Result = "wait"
        pull = self._pulls.get(ask.reference)
        if pull is None:
            if ask.read_only:
                raise NotCached(str(ask.reference))
            missing = self._pulls.missing.get(ask.reference)
            if missing is not None:
                raise own(missing)
            pull = self._pulls.start(ask.reference, self.references.get(ask.reference), ask.rules)
            result = "pull"
        coming = Deferred.fromCoroutine(self._lazy_or_ready(ask, pull, result))
        # A file that its table of contents verifies goes before one that is not verified.
        if ask.name is None or coming.called or not ask.rules.early_serve:
            found: Lease | EarlyFile | None = await coming
        else:
            access = Access.needed(ask.rules)
            found = await sooner(self._pulls.early(ask.reference, ask.name, access), coming)
        found = found or await self._cached(ask, result)
        if found is None:
            raise SpaceContended
        return found

    async def _lazy_or_ready(self, ask: Ask, pull: Call[Readable], result: Result) -> Lease | None:
        """Return a lease on an image that can be read lazily; None when the image is READY."""
        if not ask.read_only:
            pull.urgent = True
            lazy = await self._pulls.offer(ask.reference, ask.name)
            lease = None if lazy is None else self._lazy_lease(lazy, ask, result)
            if lease is not None:
                return lease
        await pull.wait()
        return None

    def _lazy_lease(self, lazy: LazyImage, ask: Ask, result: Result) -> Lease | None:
        # If the pull began under rules that need less, the image may not be served.
        is_purged = self.references.purges.covers(ask.reference.repository, lazy.known.digest)
        image = lazy.take() if lazy.known.is_proved(ask.rules) and not is_purged else None
        if image is None:
            return None
        self.count(result)
        lease = self._lease(image, lazy.known, ask, result)
        lease.trusted_until = 0.0  # The next request asks again: the image may be READY.
        return lease

    def _tags_named(self, name: str) -> Iterable[Reference]:
        return self.references.pins.tags_named(name)

    def _lease_of_version(self, image: Readable, known: TagState, rules: RepositoryRules) -> Lease:
        ask = Ask(known.reference, rules, None, True, self._reactor.seconds())
        return self._lease(image, known, ask, "hit")

    def _trim_versions(self) -> None:
        """Drop the versions that are too old, and do so again when the next one is."""
        if self._trim_later is not None and self._trim_later.active():
            self._trim_later.cancel()
        versions = self.references.versions
        versions.trim()
        end = versions.next_end()
        delay = _TRIM_INTERVAL if end is None else end - self._wall()
        self._trim_later = self._reactor.callLater(
            min(max(delay, 1.0), _TRIM_INTERVAL), self._trim_versions
        )

    def _lease(self, image: Readable, known: TagState, ask: Ask, result: Result) -> Lease:
        if self._closed:
            image.release()
            raise StoreClosed
        if result == "hit" and known.is_stale(ask.rules, ask.at):
            result = "stale"
        layers = known.image.layers if known.image else 0
        return Lease(image, known.digest, layers, result, known.trusted_until(ask.rules))


def _plain(reference: Reference) -> Reference:
    """Return the reference by its digest alone if it has one: the tag beside it says nothing."""
    return reference.at(reference.digest) if reference.digest else reference
