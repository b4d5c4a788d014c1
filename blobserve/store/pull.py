"""Pulls: an image from its source into the blob space, one at a time for each reference.

Everything after the first look-up goes by digest. A reference switches to what was pulled when that
is READY, and is left alone when the pull fails. Knows nothing of when a tag is looked up again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import attrs
from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from blobserve.config import RepositoryRules
from blobserve.errors import (
    BlobNotFound,
    BlobserveError,
    ImageNotFound,
    SpaceContended,
    StoreClosed,
)
from blobserve.oci.digest import Digest
from blobserve.oci.manifest import Descriptor
from blobserve.oci.reference import Reference, Repository
from blobserve.oci.source import Source
from blobserve.store.blobspace import Blob, BlobSpace, BlobState, Readable
from blobserve.store.download import Downloads
from blobserve.store.flight import Flight, Flights
from blobserve.store.freshness import Known
from blobserve.store.image import Image, Images
from blobserve.store.known import KnownReferences
from blobserve.store.missing import Missing

_log = Logger()

Provider = Callable[[Repository], Source]


class Pulls:
    """Every pull under way into one blob space."""

    def __init__(
        self,
        space: BlobSpace,
        provider: Provider,
        images: Images,
        known: KnownReferences,
        missing: Missing,
        downloads: Downloads,
        reactor: IReactorTime,
    ) -> None:
        self._space = space
        self._provider = provider
        self._images = images
        self._known = known
        self._missing = missing
        self._downloads = downloads
        self._reactor = reactor
        self._flights: Flights[Reference, Readable] = Flights()

    def get(self, reference: Reference) -> Flight[Readable] | None:
        """The pull of `reference` that is under way."""
        return self._flights.get(reference)

    def begin(
        self, reference: Reference, wanted: Known | None, rules: RepositoryRules
    ) -> Flight[Readable]:
        """Pull the digest that is `wanted`, or if that is None what the source says it is.

        None is under way for this reference. The flight's image is held until all who wait have
        been told; they acquire their own.
        """
        return self._flights.begin(
            reference,
            lambda flight: self._pull(reference, wanted, rules, flight),
            after=lambda image: image.release(),
        )

    async def close(self) -> None:
        """Fail every wait and abandon every pull; returns when ingest is wiped."""
        await self._flights.close(StoreClosed())
        await self._downloads.close()

    async def _pull(
        self,
        reference: Reference,
        wanted: Known | None,
        rules: RepositoryRules,
        flight: Flight[Readable],
    ) -> Readable:
        try:
            source = self._provider(reference.repository)
            if wanted is not None and reference.tag is not None:
                try:
                    return await self._bring(reference, wanted, source, rules, flight)
                except (ImageNotFound, BlobNotFound) as lost:
                    _log.info("{lost}; resolving the tag anew", lost=lost)
            return await self._bring(reference, None, source, rules, flight)
        except BlobserveError as error:
            _log.warn("cannot pull {reference}: {error}", reference=str(reference), error=error)
            if isinstance(error, ImageNotFound):
                self._lost(reference, wanted, error)
            raise

    def _lost(self, reference: Reference, wanted: Known | None, error: ImageNotFound) -> None:
        """Draw the conclusion from there being no such image."""
        if wanted is None:
            self._missing.note(reference, error)
        elif self._known.is_current(wanted):
            self._known.forget(reference)

    async def _bring(
        self,
        reference: Reference,
        wanted: Known | None,
        source: Source,
        rules: RepositoryRules,
        flight: Flight[Readable],
    ) -> Readable:
        """Make an image READY, switch `reference` to it, and hold it."""
        target = reference.at(wanted.digest) if wanted else reference
        image, documents = await self._images.read(target, rules, source)
        known = wanted or Known(reference, image.digest, self._reactor.seconds())
        readable = await self._image(reference.repository, image, source, rules, flight)
        try:
            for document in documents:
                await self._space.put_manifest(
                    document.digest, document.content, document.media_type
                )
        except Exception:
            readable.release()
            raise
        self._known.learn(attrs.evolve(known, image=image))
        return readable

    async def _image(
        self,
        repository: Repository,
        image: Image,
        source: Source,
        rules: RepositoryRules,
        flight: Flight[Readable],
    ) -> Readable:
        """Make all layers that are served READY, each with a permit of its own, and hold them."""
        layers = {layer.digest: layer for layer in image.served}
        blobs = await _all(
            [
                Deferred.fromCoroutine(self._layer(repository, layer, source, rules, flight))
                for layer in layers.values()
            ]
        )
        try:
            readable = await self._space.mount_image(image.digests)
        finally:
            for blob in blobs:
                blob.release()
        if readable is None:
            raise SpaceContended
        return readable

    async def _layer(
        self,
        repository: Repository,
        layer: Descriptor,
        source: Source,
        rules: RepositoryRules,
        flight: Flight[Readable],
    ) -> Blob:
        digest = layer.digest
        is_foreign = not rules.listed and (
            self._downloads.wants(digest) or self._space.state_of(digest) is not BlobState.UNKNOWN
        )
        # A digest is no secret: who may see the layer, the repository's own registry must say.
        if is_foreign and not await source.holds(repository, layer):
            raise BlobNotFound(str(digest))
        blob = await self._mounted(digest)
        if blob is None:
            await self._downloads.pull(source, repository, layer, flight)
            blob = await self._mounted(digest)
        if blob is None:
            raise SpaceContended
        return blob

    async def _mounted(self, digest: Digest) -> Blob | None:
        return self._space.acquire(digest) or await self._space.mount(digest)


async def _all(bringing: list[Deferred[Blob]]) -> list[Blob]:
    """What all of them bring; when one fails the others are waited for no longer, nothing is held.

    :raises BlobserveError: what made the first fail.
    """
    try:
        return await gatherResults(bringing, consumeErrors=True)
    except FirstError as first:
        for each in bringing:
            each.addBoth(_give_back)
            each.cancel()
        raise cast("Exception", first.subFailure.value) from first


def _give_back(outcome: Blob | Failure | None) -> None:
    if isinstance(outcome, Blob):
        outcome.release()
