"""Pulls: an image from its source into the blob space, one at a time for each reference.

Everything after the first look-up goes by digest. A reference switches to what was pulled when that
is READY, and is left alone when the pull fails. Knows nothing of when a tag is looked up again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from blobserve.concurrency.fair_queue import FairQueue
from blobserve.concurrency.singleflight import Call, SingleFlight
from blobserve.config import RepositoryRules
from blobserve.errors import (
    BlobNotFound,
    BlobserveError,
    ImageNotFound,
    NotFound,
    RegistryRefused,
    StoreClosed,
)
from blobserve.names.reference import Reference, Repository
from blobserve.oci.source import Source
from blobserve.store.blobspace import BlobSpace, BlobState, Readable
from blobserve.store.ingest.early_files import EarlyFile
from blobserve.store.lazy.availability import Availability, AvailabilityPublisher, LazyImage
from blobserve.store.lazy.lazy_indexes import LazyIndexes
from blobserve.store.lazy.lazy_layer import LazyLayer
from blobserve.store.pull.downloads import Downloads
from blobserve.store.pull.layer_fetch import LayerFetcher
from blobserve.store.refs.freshness import TagState
from blobserve.store.refs.image import Image, ImageReader
from blobserve.store.refs.negative_cache import NegativeCache
from blobserve.store.refs.reference_table import ReferenceTable, Rules
from blobserve.store.space.provenance import Access

_log = Logger()

Provider = Callable[[Repository], Source]

T = TypeVar("T")


@attrs.frozen(eq=False)
class _PendingPull:
    """An image that is being pulled, and those who wait for a file of its one layer."""

    access: Access
    """What its repository will have shown when it is READY."""
    image: Call[Image] = attrs.field(factory=Call)
    """Lands as soon as the repository may be given what streams past of the layer."""
    waits: set[Deferred[Any]] = attrs.field(factory=set)

    def land(self, image: Image) -> None:
        """Let files of the layer be given out; of several layers, an upper one may hide them."""
        if len(image.served) == 1:
            self.image.succeed(image)

    def end(self) -> None:
        """End every wait: whatever streams past from now on comes through other pulls."""
        for wait in list(self.waits):
            wait.cancel()


class Pulls:
    """Every pull under way into one blob space."""

    def __init__(
        self,
        space: BlobSpace,
        provider: Provider,
        images: ImageReader,
        known: ReferenceTable,
        missing: NegativeCache,
        downloads: Downloads,
        indexes: LazyIndexes,
        rules: Rules,
        reactor: IReactorTime,
    ) -> None:
        self._space = space
        self._provider = provider
        self._images = images
        self._known = known
        self._missing = missing
        self._downloads = downloads
        self._layers = LayerFetcher(space, downloads)
        self._indexes = indexes
        self._rules = rules
        self._reactor = reactor
        # Of each its own: as long as not all are told, the image is held, and takes up room.
        self._flights: SingleFlight[Reference, Readable] = SingleFlight(
            lambda: FairQueue(reactor).do
        )
        self._coming: dict[Reference, _PendingPull] = {}
        self._offers: dict[Reference, Availability] = {}

    def get(self, reference: Reference) -> Call[Readable] | None:
        """The pull of `reference` that is under way."""
        return self._flights.get(reference)

    def begin(
        self, reference: Reference, wanted: TagState | None, rules: RepositoryRules
    ) -> Call[Readable]:
        """Pull the digest that is `wanted`, or if that is None what the source says it is.

        None is under way for this reference. The flight's image is held until all who wait have
        been told; they acquire their own.
        """
        self._offers[reference] = Availability()
        return self._flights.start(
            reference,
            lambda flight: self._pull(reference, wanted, rules, flight),
            after=lambda image: image.release(),
        )

    def early(self, reference: Reference, name: bytes, access: Access) -> Deferred[EarlyFile]:
        """A file of the image that `reference` is being pulled for, before it is READY.

        See `StreamingLayer.wait`. Never fires when the pull will not show so much `access`.
        """
        coming = self._coming.get(reference)
        if coming is None or coming.access < access:
            return Deferred()
        early = Deferred.fromCoroutine(self._early(coming.image, name))
        coming.waits.add(early)

        def ended(outcome: T) -> T:
            coming.waits.discard(early)
            return outcome

        return early.addBoth(ended)

    async def offer(self, reference: Reference, name: bytes | None = None) -> LazyImage | None:
        """The image by its published index, as soon as it can be read by that; see `wait`.

        None when it cannot, or its pull is over before; what came of that the flight says.
        """
        offers = self._offers.get(reference)
        return None if offers is None else await offers.wait(name)

    async def close(self) -> None:
        """Fail every wait and abandon every pull; returns when ingest is wiped."""
        await self._flights.close(StoreClosed())
        await self._downloads.close()
        await self._indexes.close()

    async def _pull(
        self,
        reference: Reference,
        wanted: TagState | None,
        rules: RepositoryRules,
        flight: Call[Readable],
    ) -> Readable:
        # Of the same moment as its source: they say whether that uses credentials.
        rules = self._rules(reference.repository) or rules
        self._coming[reference] = _PendingPull(Access.needed(rules))
        try:
            source = self._provider(reference.repository)
            if wanted is not None and reference.tag is not None:
                try:
                    return await self._bring(reference, wanted, source, rules, flight)
                except (ImageNotFound, BlobNotFound) as lost:
                    _log.info("{lost}; resolving the tag anew", lost=lost)
                    self._known.disprove(wanted)
            return await self._bring(reference, None, source, rules, flight)
        except BlobserveError as error:
            _log.warn("cannot pull {reference}: {error}", reference=str(reference), error=error)
            if isinstance(error, ImageNotFound):
                self._lost(reference, wanted, error)
            elif wanted is not None and isinstance(error, (NotFound, RegistryRefused)):
                self._known.disprove(wanted)
            raise
        finally:
            self._coming.pop(reference).end()
            self._offers.pop(reference).settle(None)

    async def _early(self, coming: Call[Image], name: bytes) -> EarlyFile:
        image = await coming.wait()
        file = await self._space.early.of(image.served[0].kept_as).wait(name)
        file.image = image.digest
        return file

    def _lost(self, reference: Reference, wanted: TagState | None, error: ImageNotFound) -> None:
        """Draw the conclusion from there being no such image."""
        if wanted is None:
            self._missing.note(reference, error)
            return
        self._known.disprove(wanted)
        if self._known.is_current(wanted):
            self._known.forget(reference)

    async def _bring(
        self,
        reference: Reference,
        wanted: TagState | None,
        source: Source,
        rules: RepositoryRules,
        flight: Call[Readable],
    ) -> Readable:
        """Make an image READY, switch `reference` to it, and hold it."""
        target = reference.at(wanted.digest) if wanted else reference
        image, documents = await self._images.read(target, rules, source)
        known = wanted or TagState(reference, image.digest, self._reactor.seconds())
        # It is learned, and offered, as that alone which the source has shown or is to show.
        known = attrs.evolve(known, image=image, access=Access.needed(rules))
        readable = await self._offered(known, image, source, rules, flight)
        try:
            for document in documents:
                await self._space.put_manifest(
                    document.digest, document.content, document.media_type
                )
        except Exception:
            readable.release()
            raise
        # The image last: where its entry is missing, a tag in the state file is taken for old.
        for document in reversed(documents):
            self._space.provenance.record(document.digest, reference.repository, known.access)
        self._known.learn(known)
        return readable

    async def _offered(
        self,
        known: TagState,
        image: Image,
        source: Source,
        rules: RepositoryRules,
        flight: Call[Readable],
    ) -> Readable:
        """Make an image READY, and until then offer it by its published index if it has one."""
        repository = known.reference.repository
        opening = self._opening(known, image, source, rules)
        offering = AvailabilityPublisher(
            known, self._offers[known.reference], opening, self._reactor
        )
        try:
            await offering.head_start()
            coming = self._coming[known.reference]
            readable = await self._layers.bring(
                repository, image, source, rules, flight, partial(coming.land, image)
            )
            offering.replace(self._space.acquire(image.served[0].kept_as))
            return readable
        finally:
            offering.end()

    def _opening(
        self, known: TagState, image: Image, source: Source, rules: RepositoryRules
    ) -> Deferred[LazyLayer | None]:
        """The one layer of an image by its published index; None where there is better."""
        current = self._known.get(known.reference)
        may_serve = current is not None and current.may_serve(rules)
        served = current.image.digests if may_serve and current and current.image else ()
        is_here = any(
            self._space.state_of(each) is BlobState.READY for each in (*image.digests, *served)
        )
        if is_here or len(image.served) > 1 or image.served[0].file is not None:
            return succeed(None)
        first_names = self._offers[known.reference].first_names
        return self._indexes.open(source, known.reference.repository, image.served[0], first_names)
