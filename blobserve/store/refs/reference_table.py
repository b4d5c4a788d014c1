"""The known state of every reference, in memory and in the blob space across restarts.

Each image is also known by its digest, so a digest that a tag once had needs no registry. Sources
are not known here. A tag that switches leaves an earlier version behind, see `Versions`. A pinned
tag does not switch.

`CurrentParts` counts the layers and merged indexes that tags serve now. Eviction takes them after
all others.

`NegativeCache` holds the references for which a registry has just found no image. Requests for such
a name, however frequent, cost the registry one look-up in `MISSING_LIFE` seconds. A new image is
seen that much later at most.
"""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable

import attrs
from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from blobserve.config import RepositoryRules
from blobserve.errors import BlobserveError, ImageNotFound, MalformedReference
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference, Repository
from blobserve.store.blobspace import BlobSpace
from blobserve.store.disk.metadata_db import MOST_REFERENCES
from blobserve.store.refs.freshness import TagState
from blobserve.store.refs.image import Image, ImageReader
from blobserve.store.refs.pins import Pins, TagsNamed
from blobserve.store.refs.versions import Purges, Version, Versions
from blobserve.store.space.merged_indexes import parts_of
from blobserve.store.space.provenance import Access

_log = Logger()

Rules = Callable[[Repository], "RepositoryRules | None"]

OnSwitch = Callable[[Reference, "Digest | None", Digest], object]
"""A callback with a tag, its digest before (None: unknown), and its new digest.

It may return an awaitable, and is not waited for.
"""


_NEVER = -1e12
"""The time of the last check of a reference that its source has not been asked about."""


class ReferenceTable:
    """The only place that switches a tag to another digest."""

    def __init__(
        self,
        space: BlobSpace,
        images: ImageReader,
        rules: Rules,
        wall_ahead: Callable[[], float] = lambda: 0.0,
        wall: Callable[[], float] = lambda: 0.0,
        tags_named: TagsNamed = lambda name: (),
    ) -> None:
        """`wall_ahead` returns the time of day minus the reactor's clock, in seconds.

        Times in memory are of the reactor's clock; stored times are times of day, as `wall` returns
        them.
        """
        self.images = images
        self.rules = rules
        """The current rules of a repository; None if it is not allowed."""
        self.switches = 0
        """How often a reference has switched to another digest, or has been forgotten.

        Changes of the earlier versions, and purges, count as well.
        """
        self.versions = Versions(space.rows, rules, wall)
        """The earlier versions of tags."""
        self.pins = Pins(space.rows, tags_named, wall)
        """The tags that do not switch."""
        self.purges = Purges(space.rows, wall)
        """The images that are not served."""
        self._version_watchers: list[Callable[[Reference], object]] = []
        self._wall_ahead = wall_ahead
        self._now = wall
        self._space = space
        self._known: dict[Reference, TagState] = {}
        self._current = CurrentParts()
        self._watchers: dict[object, OnSwitch] = {}
        space.mark_current(self._current)
        space.mark_kept(self.versions.parts, self._kept_roots)
        space.blobs.on_evicted = self.versions.evicted
        self.versions.on_change = self._versions_changed

    async def load(self) -> None:
        """Load the references of the blob space, and read the images that tags serve.

        A tag is evidence that its repository had the image. If an older build has left no
        provenance, that is enough until the source is asked.
        """
        ahead = self._wall_ahead()
        for text, digest, checked in self._space.references.all():
            try:
                reference = Reference.from_key(text)
            except MalformedReference as error:
                _log.warn("the blob space has a malformed reference: {error}", error=error)
                self._space.references.forget(text)
            else:
                self._known[reference] = TagState(reference, digest, checked - ahead)
        tagged = {(tag.repository, self._known[tag].digest) for tag in self.tags()}
        for reference, known in self._known.items():
            key = known.digest, reference.repository
            if key[::-1] in tagged and not self._space.provenance.covers(*key, Access.LISTED):
                self._known[reference] = attrs.evolve(known, access=Access.REMEMBERED)
        self.purges.load()
        self.pins.load()
        self.versions.load()
        self.follow_pins()
        for reference in self.tags():
            rules = self.rules(reference.repository)
            if rules is not None:
                await self.recall(reference, rules)
        for tag in self.versions.tags():
            rules = self.rules(tag.repository)
            for version in self.versions.of(tag) if rules else ():
                await self.recall_version(tag, version.digest)

    def on_switch(self, callback: OnSwitch) -> Callable[[], None]:
        """Call `callback` at each switch of a tag, when its new image is READY.

        Return a function that ends this. Errors of the callback are logged.
        """
        key = object()
        self._watchers[key] = callback

        def remove() -> None:
            self._watchers.pop(key, None)

        return remove

    def on_versions(self, callback: Callable[[Reference], object]) -> None:
        """Call `callback` with each tag that has other earlier versions than before."""
        self._version_watchers.append(callback)

    def get(self, reference: Reference) -> TagState | None:
        """Return the known state of `reference`; counts as a use of it."""
        known = self._known.pop(reference, None)
        if known is not None:
            self._known[reference] = known
        return known

    async def recall(self, reference: Reference, rules: RepositoryRules) -> TagState | None:
        """Return the known state of `reference`, with its image if its manifests are cached.

        No source is asked. Returns at once if the image has been read for these rules before.
        """
        known = self.get(reference)
        if known is None or (known.image and known.image.suits(rules)):
            return known
        exact, is_trusted = reference.at(known.digest), known.is_remembered(rules)
        image: Image | None = None
        digests: list[Digest] = []
        try:
            image, documents = await self.images.read(exact, rules, None, is_trusted)
            digests += [document.digest for document in documents]
            digests += [layer.digest for layer in image.served]
        except BlobserveError:
            image = None
        access, covers = Access.needed(rules), self._space.provenance.covers
        if image is None or not all(covers(each, reference.repository, access) for each in digests):
            # The provenance of an image that other rules had chosen does not count for this one.
            access = Access.REMEMBERED if known.access is Access.REMEMBERED else Access.NONE
        self.update(known, lambda each: attrs.evolve(each, image=image, access=access))
        return self._known.get(reference)

    async def recall_version(self, tag: Reference, digest: Digest) -> TagState | None:
        """Return the known state of an earlier version of a tag. See `recall`."""
        exact, rules = tag.at(digest), self.rules(tag.repository)
        if rules is None:
            return None
        if exact not in self._known:
            # It was not used for long, so it was forgotten, but the version is still wanted.
            self._put(TagState(exact, digest, _NEVER))
        known = await self.recall(exact, rules)
        if known is not None and known.image is not None:
            self.versions.describe(tag, digest, parts_of(known.image.digests))
        return known

    def recheck_version(self, tag: Reference) -> None:
        """Note that an earlier version of a tag can be read again."""
        self._versions_changed(tag)

    def follow_pins(self) -> None:
        """Let every pinned tag, and every tag that is no longer pinned, follow its pin.

        A pinned image that is not READY is pulled when the tag is next requested.
        """
        for tag, digest in list(self.pins.tags.items()):
            known, exact = self._known.get(tag), self._known.get(tag.at(digest))
            if known is None or known.digest != digest:
                image, access = (exact.image, exact.access) if exact else (None, Access.NONE)
                self._switch(TagState(tag, digest, _NEVER, image, access=access))
        for tag in self.tags():
            known = self._known[tag]
            if known.is_pinned and tag not in self.pins.tags:
                # It is looked up at the next request, also for responses that are in memory.
                self.switches += 1
                self._put(attrs.evolve(known, is_pinned=False, checked=_NEVER, quiet_until=_NEVER))
            elif not known.is_pinned and tag in self.pins.tags:
                self._put(attrs.evolve(known, is_pinned=True))

    def purge(self, repository: Repository, digest: Digest) -> bool:
        """Make an image unreachable through a repository; return whether it was known there.

        The manifests that it lists become unreachable as well.
        """
        digests = self._space.manifests.below(digest)
        self.purges.add(repository, digests)
        found = False
        for tag in self.versions.tags():
            if str(tag.repository) == str(repository) and self.versions.has(tag, digest):
                self.versions.drop(tag, digest)
                found = True
        for reference in list(self._known):
            if str(reference.repository) != str(repository):
                continue
            if reference.tag is None and reference.digest in digests:
                self.forget(reference)
                found = True
        self.switches += 1
        return found

    def learn(self, known: TagState) -> None:
        """Switch a reference to a new state; its image is READY.

        A tag that is pinned to another image stays as it is.
        """
        exact, image = known.reference.at(known.digest), known.image
        if exact not in self._known and image is not None:
            for warning in image.warnings:
                _log.warn("{image} {warning}", image=str(exact), warning=warning)
        for reference in sorted({exact, known.reference}, key=lambda each: each.tag is not None):
            learned = attrs.evolve(known, reference=reference)
            if self.is_current(learned):
                self.update(
                    learned, lambda present: attrs.evolve(present, image=image, access=known.access)
                )
            elif not self.pins.forbids(reference, known.digest):
                self._switch(learned)

    def _switch(self, known: TagState) -> None:
        reference = known.reference
        former = self._known.get(reference)
        if former is not None:
            self.switches += 1
        elif len(self._known) >= MOST_REFERENCES:
            self._forget_one()
        if reference.tag is None:
            self._put(attrs.evolve(known, is_pinned=False))
            return
        self._put(attrs.evolve(known, is_pinned=reference in self.pins.tags))
        left = None
        if former is not None and not self.purges.covers(reference.repository, former.digest):
            parts = parts_of(former.image.digests) if former.image else ()
            left = Version(former.digest, self._now(), parts)
        self.versions.replaced(reference, left, known.digest)
        self._tell(reference, former.digest if former else None, known.digest)

    def _forget_one(self) -> None:
        """Forget the reference that was not used for longest, except pinned tags."""
        self.forget(next(each for each in self._known if each not in self.pins.tags))

    def _kept_roots(self) -> set[Digest]:
        """Return the images whose manifests must stay, besides those of references."""
        return self.versions.digests()

    def _versions_changed(self, tag: Reference) -> None:
        self.switches += 1
        for watcher in self._version_watchers:
            watcher(tag)

    def is_current(self, known: TagState) -> bool:
        """Return whether the reference has neither been switched nor forgotten since."""
        present = self._known.get(known.reference)
        return present is not None and present.digest == known.digest

    def update(self, known: TagState, change: Callable[[TagState], TagState]) -> None:
        """Change the state of a reference, if `known` still has its digest."""
        if self.is_current(known):
            self._put(change(self._known[known.reference]))

    def forget(self, reference: Reference) -> None:
        """Forget `reference`."""
        if self._known.pop(reference, None):
            self.switches += 1
            self._current.serves(reference, ())
            self._space.references.forget(reference.key)
            pinned = self.pins.get(reference)
            if pinned is not None:
                self._put(TagState(reference, pinned, _NEVER, is_pinned=True))

    def disprove(self, known: TagState) -> None:
        """Forget a reference that its source has denied, and its digest if only tags vouch for it.

        See `Access.REMEMBERED`.
        """
        for reference in {known.reference, known.reference.at(known.digest)}:
            present = self._known.get(reference)
            if present is None or present.digest != known.digest:
                continue
            if present.access is Access.REMEMBERED:
                self.forget(reference)

    def current(self, reference: Reference) -> Digest | None:
        """Return the digest that a reference stands for now."""
        known = self._known.get(reference)
        return None if known is None else known.digest

    def tags(self) -> list[Reference]:
        """Return every known tag."""
        return [reference for reference in self._known if reference.tag is not None]

    def mark(self, reference: Reference) -> None:
        """Tell the blob space which layers a tag serves under the current rules."""
        known = self._known.get(reference)
        if known is not None and reference.tag is not None:
            image = known.image if self.rules(reference.repository) is not None else None
            self._current.serves(reference, parts_of(image.digests) if image else ())

    def _tell(self, tag: Reference, before: Digest | None, now: Digest) -> None:
        for key in list(self._watchers):
            watcher = self._watchers.get(key)
            if watcher is not None:  # A watcher may remove others.
                maybeDeferred(watcher, tag, before, now).addErrback(_log_failed, tag)

    def _put(self, known: TagState) -> None:
        reference, before = known.reference, self._known.get(known.reference)
        self._known[reference] = known
        if before is None or before.image is not known.image:
            self.mark(reference)
        if before is None or (before.digest, before.checked) != (known.digest, known.checked):
            checked = known.checked + self._wall_ahead()
            self._space.references.remember(reference.key, known.digest, checked)


def _log_failed(why: Failure, tag: Reference) -> None:
    _log.failure("a callback for the switch of {tag} failed", why, tag=str(tag))


class CurrentParts:
    """Digests that tags serve; `in` tells whether any tag serves one."""

    def __init__(self) -> None:
        self._served: dict[Reference, tuple[Digest, ...]] = {}
        self._tags: Counter[Digest] = Counter()
        """The number of tags that serve each digest; at least one."""

    def __contains__(self, digest: object) -> bool:
        return digest in self._tags

    def serves(self, tag: Reference, parts: tuple[Digest, ...]) -> None:
        """Replace the digests that a tag serves; each is named once."""
        former = self._served.pop(tag, ())
        if parts:
            self._served[tag] = parts
        self._tags.update(parts)
        self._tags.subtract(former)
        for digest in former:
            if not self._tags[digest]:
                del self._tags[digest]


MISSING_LIFE = 2.0
"""Seconds for which the negative cache uses an answer."""

MOST_MISSING = 4096
"""Names in the negative cache; beyond that, the oldest is dropped."""


class NegativeCache:
    """Missing images, the oldest answer first."""

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._found: OrderedDict[Reference, tuple[ImageNotFound, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._found)

    def note(self, reference: Reference, error: ImageNotFound) -> None:
        """Remember for a while that there is no such image."""
        self._found.pop(reference, None)
        # A copy, since the frames that an error has passed through hang on it.
        self._found[reference] = copy.copy(error), self._reactor.seconds()
        if len(self._found) > MOST_MISSING:
            self._found.popitem(last=False)

    def get(self, reference: Reference) -> ImageNotFound | None:
        """Return the error for an image that was missing a moment ago."""
        found = self._found.get(reference)
        if found is None:
            return None
        error, since = found
        if 0 <= self._reactor.seconds() - since < MISSING_LIFE:
            return error
        del self._found[reference]
        return None

    def names(self) -> list[Reference]:
        """Return all references that were missing."""
        return list(self._found)

    def forget(self, references: Iterable[Reference]) -> None:
        """Forget the answers for these references, because they may have been pushed."""
        for reference in references:
            self._found.pop(reference, None)

    def clear(self) -> None:
        """Forget all answers, because the configuration has changed."""
        self._found.clear()
