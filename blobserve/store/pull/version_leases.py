"""Leases on earlier versions of tags, and their repair.

A version that was damaged is not READY any more. It is pulled again by its digest while requests
are answered without it. A version that its source no longer has is dropped.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from blobserve.config import RepositoryRules
from blobserve.errors import BlobserveError, NotFound
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference
from blobserve.store.blobspace import BlobSpace, Readable
from blobserve.store.lease import Lease
from blobserve.store.pull.pulls import Pulls
from blobserve.store.refs.freshness import TagState
from blobserve.store.refs.reference_table import ReferenceTable

_log = Logger()

_RETRY = 30.0
"""Seconds until the repair of a version that failed is tried again."""


class VersionLeases:
    """The leases on earlier versions of all tags."""

    def __init__(
        self,
        space: BlobSpace,
        known: ReferenceTable,
        pulls: Pulls,
        reactor: IReactorTime,
        lease: Callable[[Readable, TagState, RepositoryRules], Lease],
    ) -> None:
        """`lease` makes the lease of an image that is held."""
        self._space = space
        self._known = known
        self._pulls = pulls
        self._reactor = reactor
        self._lease = lease
        self._tried: dict[Reference, float] = {}
        """The versions that were damaged, and when their repair was tried last."""

    async def lease(self, tag: Reference, digest: Digest, read_only: bool) -> Lease | None:
        """Return a lease on a version of a tag; None if it cannot be read now.

        Unless `read_only`, a version that is damaged is repaired in the background.
        """
        rules = self._known.rules(tag.repository)
        if rules is None or self._known.purges.covers(tag.repository, digest):
            return None
        known = await self._known.recall_version(tag, digest)
        image: Readable | None = None
        if known is not None and known.image is not None and known.may_serve(rules):
            try:
                image = await self._space.images.mount(known.image.digests)
            except BlobserveError as error:
                _log.warn("{tag}: {digest}: {error}", tag=str(tag), digest=str(digest), error=error)
                return None
        if image is not None:
            if known is not None and self._known.purges.covers(tag.repository, digest):
                image.release()
                return None
            self._tried.pop(tag.at(digest), None)
            return None if known is None else self._lease(image, known, rules)
        if not read_only:
            self._repair(tag, digest, rules)
        return None

    def _repair(self, tag: Reference, digest: Digest, rules: RepositoryRules) -> None:
        """Pull a version again by its digest, unless that is under way or failed a moment ago."""
        exact, now = tag.at(digest), self._reactor.seconds()
        if not self._known.versions.has(tag, digest) or self._pulls.get(exact) is not None:
            return
        if 0 <= now - self._tried.get(exact, -_RETRY) < _RETRY:
            return
        if exact not in self._tried:
            _log.warn(
                "{tag}: the earlier version {digest} is damaged, and is pulled again",
                tag=str(tag),
                digest=str(digest),
            )
        self._tried[exact] = now
        Deferred.fromCoroutine(self._pull(tag, digest, rules))

    async def _pull(self, tag: Reference, digest: Digest, rules: RepositoryRules) -> None:
        exact = tag.at(digest)
        try:
            await self._pulls.start(exact, self._known.get(exact), rules).wait(urgent=False)
        except NotFound:
            self._known.versions.drop(tag, digest)
            self._tried.pop(exact, None)
            _log.warn(
                "{tag}: the earlier version {digest} is no longer kept: its source lost it",
                tag=str(tag),
                digest=str(digest),
            )
        except BlobserveError:  # `Pulls` has logged it.
            pass
        else:
            self._known.recheck_version(tag)
