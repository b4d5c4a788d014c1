"""What every reference is known to stand for, in memory and through the blob space across restarts.

Each image is known by its digest too, so that a digest which a tag once named needs no registry.
Knows nothing of where images come from.

`CurrentParts` counts which layers and merged indexes tags serve now; they are evicted after all
others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import attrs
from twisted.logger import Logger

from blobserve.config import RepositoryRules
from blobserve.errors import BlobserveError, MalformedReference
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference, Repository
from blobserve.store.blobspace import BlobSpace
from blobserve.store.disk.write_behind import MOST_REFERENCES
from blobserve.store.refs.freshness import TagState
from blobserve.store.refs.image import Image, ImageReader
from blobserve.store.space.provenance import Access

_log = Logger()

Rules = Callable[[Repository], "RepositoryRules | None"]


class ReferenceTable:
    """The one place where a tag switches."""

    def __init__(self, space: BlobSpace, images: ImageReader, rules: Rules) -> None:
        self._space = space
        self._images = images
        self._rules = rules
        self._known: dict[Reference, TagState] = {}
        self._current = CurrentParts()
        space.mark_current(self._current)
        self.switches = 0
        """How often a reference has come to stand for something else than before."""

    async def load(self) -> None:
        """Take up what the blob space remembers, and read the images that tags serve.

        A tag is evidence that its repository had the image. That is enough until the source is
        asked, where an older build has left no provenance.
        """
        for text, digest, checked in self._space.references.all():
            try:
                reference = Reference.parse(text)
            except MalformedReference as error:
                _log.warn("the blob space remembers a strange reference: {error}", error=error)
                self._space.references.forget(text)
            else:
                self._known[reference] = TagState(reference, digest, checked)
        tagged = {(tag.repository, self._known[tag].digest) for tag in self.tags()}
        for reference, known in self._known.items():
            key = known.digest, reference.repository
            if key[::-1] in tagged and not self._space.provenance.covers(*key, Access.LISTED):
                self._known[reference] = attrs.evolve(known, access=Access.REMEMBERED)
        for reference in self.tags():
            rules = self._rules(reference.repository)
            if rules is not None:
                await self.recall(reference, rules)

    def get(self, reference: Reference) -> TagState | None:
        """What is known of `reference`; counts as a use of it."""
        known = self._known.pop(reference, None)
        if known is not None:
            self._known[reference] = known
        return known

    async def recall(self, reference: Reference, rules: RepositoryRules) -> TagState | None:
        """What is known of `reference`, its image read if the blob space has its manifests.

        Asks no source. Returns at once when the image has been read for these rules before.
        """
        known = self.get(reference)
        if known is None or (known.image and known.image.suits(rules)):
            return known
        exact, is_trusted = reference.at(known.digest), known.is_remembered(rules)
        image: Image | None = None
        digests: list[Digest] = []
        try:
            image, documents = await self._images.read(exact, rules, None, is_trusted)
            digests += [document.digest for document in documents]
            digests += [layer.digest for layer in image.served]
        except BlobserveError:
            image = None
        access = Access.needed(rules)
        if image is None or not self._are_proved(reference.repository, digests, rules):
            # More may have been shown, but of the image that other rules had chosen.
            access = Access.REMEMBERED if known.access is Access.REMEMBERED else Access.NONE
        self.update(known, lambda each: attrs.evolve(each, image=image, access=access))
        return self._known.get(reference)

    def learn(self, known: TagState) -> None:
        """Switch a reference to what it is now known to stand for, an image that is READY."""
        exact, image = known.reference.at(known.digest), known.image
        if exact not in self._known and image is not None:
            for warning in image.warnings:
                _log.warn("{image} {warning}", image=str(exact), warning=warning)
        for reference in {exact, known.reference}:
            learned = attrs.evolve(known, reference=reference)
            if self.is_current(learned):
                self.update(
                    learned, lambda present: attrs.evolve(present, image=image, access=known.access)
                )
            else:
                self.switches += reference in self._known
                self._remember(learned)

    def is_current(self, known: TagState) -> bool:
        """Whether the reference has neither been switched nor forgotten since."""
        present = self._known.get(known.reference)
        return present is not None and present.digest == known.digest

    def update(self, known: TagState, change: Callable[[TagState], TagState]) -> None:
        """Change what is known of a reference, if `known` is still current."""
        if not self.is_current(known):
            return
        before = self._known[known.reference]
        after = change(before)
        self._put(after)
        if after.checked != before.checked:
            self._write_down(after)

    def forget(self, reference: Reference) -> None:
        """Know nothing of `reference` any more."""
        if self._known.pop(reference, None):
            self.switches += 1
            self._current.serves(reference, ())
            self._space.references.forget(str(reference))

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

    def tags(self) -> list[Reference]:
        """Every tag of which something is known."""
        return [reference for reference in self._known if reference.tag is not None]

    def mark(self, reference: Reference) -> None:
        """Tell the blob space what a tag serves, by the rules of now; a digest is no tag."""
        known = self._known.get(reference)
        if known is not None and reference.tag is not None:
            image = known.image if self._rules(reference.repository) is not None else None
            self._current.serves(reference, image.parts if image else ())

    def _are_proved(
        self, repository: Repository, digests: list[Digest], rules: RepositoryRules
    ) -> bool:
        covers, access = self._space.provenance.covers, Access.needed(rules)
        return all(covers(digest, repository, access) for digest in digests)

    def _remember(self, known: TagState) -> None:
        if known.reference not in self._known and len(self._known) >= MOST_REFERENCES:
            self.forget(next(iter(self._known)))  # the longest unused
        self._put(known)
        self._write_down(known)

    def _put(self, known: TagState) -> None:
        before = self._known.get(known.reference)
        self._known[known.reference] = known
        if before is None or before.image is not known.image:
            self.mark(known.reference)

    def _write_down(self, known: TagState) -> None:
        self._space.references.remember(str(known.reference), known.digest, known.checked)


class CurrentParts:
    """Digests of what tags serve; `in` tells whether any tag serves it."""

    def __init__(self) -> None:
        self._served: dict[Reference, tuple[Digest, ...]] = {}
        self._tags: Counter[Digest] = Counter()
        """By how many tags each is served; by one at least."""

    def __contains__(self, digest: object) -> bool:
        return digest in self._tags

    def serves(self, tag: Reference, parts: tuple[Digest, ...]) -> None:
        """Say what a tag serves from now on: these and no others, each named once."""
        former = self._served.pop(tag, ())
        if parts:
            self._served[tag] = parts
        self._tags.update(parts)
        self._tags.subtract(former)
        for digest in former:
            if not self._tags[digest]:
                del self._tags[digest]
