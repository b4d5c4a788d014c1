"""Pushes: tags that a registry has announced are looked up at once.

A notification is a hint. Only the registry's own answer to a look-up moves a tag. A registry may
send the notification before it has written the tag, so the first look-up waits for a moment, and
one that finds nothing new is repeated after the times of `PAUSES`.

Notifications for one tag are merged, and none is lost: one that comes while a look-up runs causes
another look-up after it.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredList, DeferredSemaphore
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from blobserve.errors import BlobserveError, ImageNotFound, StoreClosed
from blobserve.names.reference import Reference, Repository
from blobserve.store.pull.pulls import Pulls
from blobserve.store.pull.revalidation import Revalidations
from blobserve.store.refs.freshness import moves
from blobserve.store.refs.reference_table import ReferenceTable

SETTLE = 0.02
"""Seconds before the first look-up. Most registries write the tag in this time."""

PAUSES = (0.2, 0.3, 1.5)
"""Seconds before each repetition: 0.2, 0.5 and 2 seconds after the first look-up."""

LEAST_PAUSE = 0.2
"""Seconds between the beginnings of two look-ups of a tag, for any number of notifications."""

_RETRY = 1.0
"""Seconds until the first attempt after a failure; each further one waits twice as long."""

_MOST_FAILURES = 8
"""Failures in a row, in about four minutes, after which only requests look the tag up."""

_LONGEST_QUIET = 60.0
"""Seconds for which a registry that asks for a pause is left alone after a notification."""

_AT_ONCE = 10
"""Look-ups that run at a time."""

_log = Logger()


class _LookUp(enum.Enum):
    """The outcome of one look-up."""

    NEW = enum.auto()
    SAME = enum.auto()
    FAILED = enum.auto()
    NOTHING = enum.auto()
    """The reference is not served, or it does not move. The end of a pin looks it up anyway."""


@attrs.define(eq=False)
class _Watch:
    """A tag that is being looked up because of notifications."""

    following: Deferred[None] | None = None
    notifications: int = 0
    is_covered: bool = False
    """Whether the last look-up began after the last notification."""
    sleep: Deferred[None] | None = None

    def notify(self) -> None:
        """Count a notification; end a pause."""
        self.notifications += 1
        self.is_covered = False
        self.wake()

    def wake(self) -> None:
        """End a pause, if there is one."""
        sleep, self.sleep = self.sleep, None
        if sleep is not None:
            sleep.callback(None)


class Pushes:
    """The tags of one store that registries have announced."""

    def __init__(
        self,
        known: ReferenceTable,
        pulls: Pulls,
        revalidations: Revalidations,
        reactor: IReactorTime,
    ) -> None:
        self._known = known
        self._pulls = pulls
        self._revalidations = revalidations
        self._reactor = reactor
        self._watches: dict[Reference, _Watch] = {}
        self._turns = DeferredSemaphore(_AT_ONCE)
        self._closed = False

    def announce(
        self,
        repositories: Collection[Repository],
        tags: Collection[str] | None,
        expected: Iterable[Reference],
    ) -> int:
        """Look up the tags of repositories; return the number of references concerned.

        :param tags: the tags that were pushed; None: any tag may have been.
        :param expected: further references of the repositories. One that is not known is pulled.
        :raises StoreClosed: after `close`.
        """
        if self._closed:
            raise StoreClosed
        missing = self._pulls.missing
        if tags is None:
            found = {tag for tag in self._known.tags() if tag.repository in repositories}
            missing.forget(each for each in missing.names() if each.repository in repositories)
        else:
            named = [Reference(each, tag) for each in repositories for tag in tags]
            found = {reference for reference in named if self._known.get(reference)}
            missing.forget(named)
        for reference in expected:
            if tags is None or reference.tag is None or reference.tag in tags:
                found.add(reference)
        for reference in found:
            self._notify(reference)
        return len(found)

    async def close(self) -> None:
        """Stop all look-ups that wait for their time; the next start does them instead."""
        self._closed = True
        for reference in self._watches:
            self._distrust(reference)
        following = [each.following for each in self._watches.values() if each.following]
        for each in following:
            each.cancel()
        await DeferredList(following)

    def _distrust(self, reference: Reference) -> None:
        """Make a tag old, also in the blob space."""
        known, rules = self._known.get(reference), self._known.rules(reference.repository)
        if known is not None and rules is not None:
            before = self._reactor.seconds() - 2 * rules.tag_max_age - 1
            old = min(known.checked, before)
            self._known.update(known, lambda each: attrs.evolve(each, checked=old))

    def _notify(self, reference: Reference) -> None:
        watch = self._watches.get(reference)
        if watch is not None:
            watch.notify()
            return
        watch = self._watches[reference] = _Watch()
        watch.notify()
        following = Deferred.fromCoroutine(self._follow(reference, watch))
        watch.following = following

        def end(outcome: Failure | None) -> None:
            del self._watches[reference]
            if isinstance(outcome, Failure) and not outcome.check(StoreClosed, CancelledError):
                _log.failure("cannot follow a push of {tag}", outcome, tag=str(reference))

        following.addBoth(end)

    async def _follow(self, reference: Reference, watch: _Watch) -> None:
        step = failures = 0
        await self._wait(SETTLE)
        while True:
            begun, watch.is_covered = self._reactor.seconds(), True
            found = await self._look(reference)
            if found is _LookUp.NOTHING:
                return
            failures = failures + 1 if found is _LookUp.FAILED else 0
            if not watch.is_covered:
                step = 0
            elif failures > _MOST_FAILURES or (
                # With several notifications, the new image may not be that of the last one.
                found is _LookUp.NEW and watch.notifications == 1
            ):
                return
            elif failures:
                await self._pause(watch, self._retry_after(reference, failures))
            elif step < len(PAUSES):
                await self._pause(watch, PAUSES[step])
                step += 1
            else:
                return
            if not watch.is_covered:
                step = 0
                await self._wait(begun + LEAST_PAUSE - self._reactor.seconds())

    def _retry_after(self, reference: Reference, failures: int) -> float:
        """Return the seconds until the next attempt, also as the registry has asked for them."""
        known, delay = self._known.get(reference), _RETRY * 2.0 ** (failures - 1)
        asked = known.quiet_until - self._reactor.seconds() if known else 0.0
        return max(delay, min(asked, _LONGEST_QUIET))

    async def _pause(self, watch: _Watch, seconds: float) -> None:
        """Wait, or until the next notification."""
        sleep = watch.sleep = Deferred()
        timer = self._reactor.callLater(seconds, watch.wake)
        await _woken(sleep, timer)

    async def _wait(self, seconds: float) -> None:
        if seconds > 0:
            wait: Deferred[None] = Deferred()
            await _woken(wait, self._reactor.callLater(seconds, wait.callback, None))

    async def _look(self, reference: Reference) -> _LookUp:
        """Look a reference up, after any look-up or pull of it that began before."""
        await self._revalidations.ended(reference)
        await self._pulls.ended(reference)
        rules = self._known.rules(reference.repository)
        if rules is None:
            return _LookUp.NOTHING
        known = await self._known.recall(reference, rules)
        if known is None:
            return await self._pulled(reference)
        if known.is_pinned or not moves(reference, rules):
            return _LookUp.NOTHING
        await self._turns.acquire()
        begun = self._reactor.seconds()
        try:
            await self._revalidations.look_up(known, rules).wait(urgent=False)
        finally:
            self._turns.release()
        # A large image may be pulled for longer than that.
        await self._revalidations.ended(reference)
        now = self._known.get(reference)
        if now is None:
            return _LookUp.SAME
        if now.is_pinned:
            return _LookUp.NOTHING
        if now.digest != known.digest:
            return _LookUp.NEW
        # A pull that a request has started meanwhile keeps a look-up from following the tag.
        is_answered = not now.failures and now.checked >= begun
        return _LookUp.SAME if is_answered else _LookUp.FAILED

    async def _pulled(self, reference: Reference) -> _LookUp:
        """Pull an image that the store does not know."""
        rules = self._known.rules(reference.repository)
        if rules is None:
            return _LookUp.NOTHING
        try:
            pull = self._pulls.get(reference) or self._pulls.start(reference, None, rules)
            await pull.wait(urgent=False)
        except StoreClosed:
            raise
        except ImageNotFound:
            return _LookUp.SAME
        except BlobserveError:
            return _LookUp.FAILED
        return _LookUp.NEW


async def _woken(sleep: Deferred[None], timer: IDelayedCall) -> None:
    """Wait for `sleep`, and stop its timer if anything else has ended it."""
    try:
        await sleep
    finally:
        if timer.active():
            timer.cancel()
