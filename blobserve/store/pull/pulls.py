"""Pulls: an image from its source into the blob space, one at a time for each reference.

After the first look-up, everything is fetched by digest. The layers of an image are made READY side
by side, and each layer once for all images. A layer that is READY through another repository is
shared only after this one has shown it too. A reference switches to the new image when all of it is
READY, and stays as it is if the pull fails. `Revalidations` decides when a tag is looked up again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import attrs
from twisted.internet.defer import Deferred, DeferredSemaphore, FirstError, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from blobserve.concurrency.fair_queue import FairQueue
from blobserve.concurrency.singleflight import Call, SingleFlight
from blobserve.config import Limits, RepositoryRules
from blobserve.errors import (
    BlobNotFound,
    BlobserveError,
    ImageNotFound,
    NotFound,
    RegistryRefused,
    SpaceContended,
    StoreClosed,
    VersionPurged,
)
from blobserve.metrics import Metrics
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference, Repository
from blobserve.oci.manifest import Descriptor
from blobserve.oci.source import Source
from blobserve.store.blobspace import BlobLease, BlobSpace, BlobState, Readable
from blobserve.store.ingest.early_files import EarlyFile
from blobserve.store.lazy.availability import Availability, AvailabilityPublisher, LazyImage
from blobserve.store.lazy.lazy_indexes import LazyIndexes
from blobserve.store.lazy.lazy_layer import LazyLayer
from blobserve.store.pull.downloads import Downloads
from blobserve.store.refs.freshness import TagState
from blobserve.store.refs.image import Image
from blobserve.store.refs.reference_table import NegativeCache, ReferenceTable
from blobserve.store.space.provenance import Access

_ASKED_AT_ONCE = 10
"""Layers that sources are asked about at a time, without fetching them."""

_log = Logger()

Provider = Callable[[Repository], Source]

T = TypeVar("T")


@attrs.frozen(eq=False)
class _Pull:
    """One pull that is under way, and the requests that wait for single files of its image."""

    reference: Reference
    rules: RepositoryRules
    source: Source
    call: Call[Readable]
    access: Access
    """The access that the repository has shown when the image is READY."""
    availability: Availability = attrs.field(factory=Availability)
    image: Call[Image] = attrs.field(factory=Call)
    """Succeeds when files of the layer may go to clients while it streams past.

    Only with one layer: of several, an upper one may hide them.
    """
    early_waits: set[Deferred[Any]] = attrs.field(factory=set)


class Pulls:
    """Every pull under way into one blob space."""

    def __init__(
        self,
        space: BlobSpace,
        provider: Provider,
        known: ReferenceTable,
        reactor: IReactorTime,
        metrics: Metrics,
        limits: Callable[[], Limits],
    ) -> None:
        """`provider` is asked for a repository's source anew at each pull."""
        self.missing = NegativeCache(reactor)
        """The references for which a pull has just found no image."""
        self._space = space
        self._provider = provider
        self._known = known
        self._reactor = reactor
        self._limits = limits
        self._downloads = Downloads(space, metrics, limits)
        self._indexes = LazyIndexes(space, metrics, limits)
        self._asking = DeferredSemaphore(_ASKED_AT_ONCE)
        # A queue for each call: until all its waiters have run, the image is held and takes space.
        self._calls: SingleFlight[Reference, Readable] = SingleFlight(lambda: FairQueue(reactor).do)
        self._running: dict[Reference, _Pull] = {}

    def get(self, reference: Reference) -> Call[Readable] | None:
        """Return the pull of `reference` that is under way."""
        return self._calls.get(reference)

    def ended(self, reference: Reference) -> Deferred[None]:
        """Return a Deferred that fires when no pull of `reference` is under way."""
        return self._calls.ended(reference)

    def start(
        self, reference: Reference, wanted: TagState | None, rules: RepositoryRules
    ) -> Call[Readable]:
        """Pull the digest that is `wanted`, or the one that the source gives if that is None.

        No pull of this reference may be under way. The image of the call is held until all waiters
        have run; they acquire their own lease.
        """
        return self._calls.start(
            reference,
            lambda call: self._run(reference, wanted, rules, call),
            after=lambda image: image.release(),
        )

    def early(self, reference: Reference, name: bytes, access: Access) -> Deferred[EarlyFile]:
        """Return a file of the image that is being pulled for `reference`, before it is READY.

        See `StreamingLayer.wait`. Never fires if the pull will not show at least `access`.
        """
        pull = self._running.get(reference)
        if pull is None or pull.access < access:
            return Deferred()
        early = Deferred.fromCoroutine(self._early(pull.image, name))
        pull.early_waits.add(early)

        def ended(outcome: T) -> T:
            pull.early_waits.discard(early)
            return outcome

        return early.addBoth(ended)

    async def offer(self, reference: Reference, name: bytes | None) -> LazyImage | None:
        """Return the image by its table of contents, as soon as it can be read so.

        See `Availability.wait`. None when it cannot, or when the pull ends before; the call has the
        outcome of the pull.
        """
        pull = self._running.get(reference)
        return None if pull is None else await pull.availability.wait(name)

    async def close(self) -> None:
        """Fail every wait and abandon every pull; return when ingest is wiped."""
        await self._calls.close(StoreClosed())
        await self._downloads.close()
        await self._indexes.close()

    async def _early(self, coming: Call[Image], name: bytes) -> EarlyFile:
        image = await coming.wait()
        file = await self._space.early.of(image.served[0].kept_as).wait(name)
        file.image = image.digest
        return file

    async def _run(
        self,
        reference: Reference,
        wanted: TagState | None,
        rules: RepositoryRules,
        call: Call[Readable],
    ) -> Readable:
        # The current rules, like the source: they say whether the source uses credentials.
        rules = self._known.rules(reference.repository) or rules
        try:
            source = self._provider(reference.repository)
            pull = _Pull(reference, rules, source, call, Access.needed(rules))
            self._running[reference] = pull
            if wanted is not None and wanted.is_pinned:
                return await self._image(pull, wanted)
            if wanted is not None and reference.tag is not None:
                try:
                    return await self._image(pull, wanted)
                except VersionPurged:
                    raise
                except (ImageNotFound, BlobNotFound) as lost:
                    _log.info("{lost}; resolving the tag anew", lost=lost)
                    self._known.disprove(wanted)
            return await self._image(pull, None)
        except BlobserveError as error:
            _log.warn("cannot pull {reference}: {error}", reference=str(reference), error=error)
            if wanted is None:
                if isinstance(error, ImageNotFound):
                    self.missing.note(reference, error)
            elif isinstance(error, (NotFound, RegistryRefused)):
                self._known.disprove(wanted)
                is_lost = isinstance(error, ImageNotFound) and not wanted.is_pinned
                if is_lost and self._known.is_current(wanted):
                    self._known.forget(reference)
            raise
        finally:
            ended = self._running.pop(reference, None)
            if ended is not None:
                # The layer may stream on for another pull; these requests no longer wait for it.
                for wait in list(ended.early_waits):
                    wait.cancel()
                ended.availability.settle(None)

    async def _image(self, pull: _Pull, wanted: TagState | None) -> Readable:
        """Make an image READY, switch the reference to it, and hold it."""
        reference = pull.reference
        target = reference.at(wanted.digest) if wanted else reference
        image, documents = await self._known.images.read(target, pull.rules, pull.source)
        digests = [each.digest for each in documents]
        self._known.purges.refuse(reference, digests)
        known = wanted or TagState(reference, image.digest, self._reactor.seconds())
        # No more than the source has shown, or shows with this pull.
        known = attrs.evolve(known, image=image, access=pull.access)
        if self._may_be_lazy(known, image, pull.rules):
            readable = await self._lazy_layer(pull, known, image)
        else:
            pull.availability.settle(None)
            readable = await self._layers(pull, image)
        try:
            for document in documents:
                await self._space.manifests.put(document)
            # It may have been purged while it was pulled.
            self._known.purges.refuse(reference, digests)
        except Exception as error:
            readable.release()
            if isinstance(error, VersionPurged):
                await self._space.evict_unused(layer.kept_as for layer in image.served)
            raise
        # The image last: without its entry, a tag in the state file counts as an older build's.
        for document in reversed(documents):
            self._space.provenance.record(document.digest, reference.repository, known.access)
        self._known.learn(known)
        return readable

    def _may_be_lazy(self, known: TagState, image: Image, rules: RepositoryRules) -> bool:
        """Return whether reading the layer through its table of contents may be faster.

        It is not where the image, or one that the reference serves meanwhile, is READY.
        """
        current = self._known.get(known.reference)
        layers: tuple[Digest, ...] = image.digests
        others: tuple[Digest, ...] = ()
        if current is not None and current.image is not None and current.may_serve(rules):
            others = current.image.digests
        if any(self._space.state_of(each) is BlobState.READY for each in (*layers, *others)):
            return False
        least = self._limits().published_index_min_size
        return len(layers) == 1 and image.served[0].file is None and image.served[0].size >= least

    async def _lazy_layer(self, pull: _Pull, known: TagState, image: Image) -> Readable:
        """Make an image of one layer READY, and until then let requests read it lazily."""
        opening: Deferred[LazyLayer | None] = self._indexes.open(
            pull.source, pull.reference.repository, image.served[0], pull.availability.first_names
        )
        publisher = AvailabilityPublisher(known, pull.availability, opening, self._reactor)
        try:
            await publisher.head_start()
            readable = await self._layers(pull, image)
            publisher.replace(self._space.blobs.acquire(image.served[0].kept_as))
            return readable
        finally:
            publisher.end()

    async def _layers(self, pull: _Pull, image: Image) -> Readable:
        """Make all layers that are served READY, each with a permit of its own, and hold them.

        :raises BlobNotFound: also when a layer is READY, and the source does not have it.
        """
        layers = {layer.kept_as: layer for layer in image.served}
        with self._space.pulling(image.digest, image.served):
            fetching = [
                Deferred.fromCoroutine(self._layer(pull, image, layer)) for layer in layers.values()
            ]
            try:
                blobs = await gatherResults(fetching, consumeErrors=True)
            except FirstError as first:
                for each in fetching:
                    each.addBoth(_release)
                    each.cancel()
                raise cast("Exception", first.subFailure.value) from first
            try:
                readable = await self._space.images.mount(image.digests)
            finally:
                for blob in blobs:
                    blob.release()
        if readable is None:
            raise SpaceContended
        return readable

    async def _layer(self, pull: _Pull, image: Image, layer: Descriptor) -> BlobLease:
        repository, digest, access = pull.reference.repository, layer.kept_as, pull.access
        covers = self._space.provenance.covers
        if not covers(layer.digest, repository, access) and (
            self._downloads.is_foreign(digest, repository, access)
            or self._space.state_of(digest) is BlobState.READY
        ):
            await self._prove(pull, layer)
        # From now on the repository may have the bytes of the layer as they stream past. A download
        # that begins below shows the layer itself.
        if len(image.served) == 1:
            pull.image.succeed(image)
        blob = await self._space.blobs.mount(digest)
        if blob is None:
            await self._downloads.pull(pull.source, repository, layer, access, pull.call)
            if covers(layer.digest, repository, access):
                blob = await self._space.blobs.mount(digest)
        if blob is None:
            raise SpaceContended
        return blob

    async def _prove(self, pull: _Pull, layer: Descriptor) -> None:
        """Let the repository's own source show a layer that is READY or being downloaded.

        The answer of a registry that the configuration names is enough. Any other source must give
        out the content.
        """
        repository, source, access = pull.reference.repository, pull.source, pull.access
        if not pull.rules.listed or pull.rules.source is not None:
            await self._downloads.pull(source, repository, layer, access, pull.call, is_proof=True)
            return
        has_it = await self._asking.run(
            lambda: Deferred.fromCoroutine(source.holds(repository, layer))
        )
        if not has_it:
            raise BlobNotFound(str(layer.digest))
        self._space.provenance.record(layer.digest, repository, access)


def _release(outcome: BlobLease | Failure | None) -> None:
    if isinstance(outcome, BlobLease):
        outcome.release()
