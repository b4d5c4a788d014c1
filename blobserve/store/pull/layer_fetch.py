"""The layers of an image, made READY side by side.

Each with a permit of its own, each once for all images. A layer that is here through another
repository is shared only after this one has shown it too. Knows nothing of tags and indexes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from twisted.internet.defer import Deferred, DeferredSemaphore, FirstError, gatherResults
from twisted.python.failure import Failure

from blobserve.concurrency.singleflight import Call
from blobserve.config import RepositoryRules
from blobserve.errors import BlobNotFound, SpaceContended
from blobserve.names.reference import Repository
from blobserve.oci.manifest import Descriptor
from blobserve.oci.source import Source
from blobserve.store.blobspace import BlobLease, BlobSpace, BlobState, Readable
from blobserve.store.pull.downloads import Downloads
from blobserve.store.refs.image import Image
from blobserve.store.space.provenance import Access

_ASKED_AT_ONCE = 10
"""Layers that sources are asked for at a time, without fetching them."""


class LayerFetcher:
    """Brings layers into one blob space."""

    def __init__(self, space: BlobSpace, downloads: Downloads) -> None:
        self._space = space
        self._downloads = downloads
        self._asking = DeferredSemaphore(_ASKED_AT_ONCE)

    async def bring(
        self,
        repository: Repository,
        image: Image,
        source: Source,
        rules: RepositoryRules,
        flight: Call[Readable],
        allowed: Callable[[], None],
    ) -> Readable:
        """Make all layers that are served READY, each with a permit of its own, and hold them.

        `allowed` is called for each layer as soon as the repository may be given what comes of it.

        :raises BlobNotFound: also when a layer is here, and the source does not have it.
        """
        layers = {layer.kept_as: layer for layer in image.served}
        with self._space.pulling(image.digest, image.served):
            blobs = await _all(
                [
                    Deferred.fromCoroutine(
                        self._layer(repository, layer, source, rules, flight, allowed)
                    )
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
        flight: Call[Readable],
        allowed: Callable[[], None],
    ) -> BlobLease:
        digest, access = layer.kept_as, Access.needed(rules)
        if not self._is_proved(repository, layer, access) and (
            self._downloads.is_foreign(digest, repository, access)
            or self._space.state_of(digest) is BlobState.READY
        ):
            await self._prove(repository, layer, source, rules, flight)
        # Nothing is waited for before a download begins that is to show the layer itself.
        allowed()
        blob = await self._space.mount(digest)
        if blob is None:
            await self._downloads.pull(source, repository, layer, access, flight)
            if self._is_proved(repository, layer, access):
                blob = await self._space.mount(digest)
        if blob is None:
            raise SpaceContended
        return blob

    def _is_proved(self, repository: Repository, layer: Descriptor, access: Access) -> bool:
        return self._space.provenance.covers(layer.digest, repository, access)

    async def _prove(
        self,
        repository: Repository,
        layer: Descriptor,
        source: Source,
        rules: RepositoryRules,
        flight: Call[Readable],
    ) -> None:
        """Have the repository's own source show a layer that is here, or on its way.

        A registry that the configuration names is believed to have what it says it has. Any other
        source must give out the content.
        """
        access = Access.needed(rules)
        if not rules.listed or rules.source is not None:
            await self._downloads.prove(source, repository, layer, access, flight)
            return
        has_it = await self._asking.run(
            lambda: Deferred.fromCoroutine(source.holds(repository, layer))
        )
        if not has_it:
            raise BlobNotFound(str(layer.digest))
        self._space.provenance.record(layer.digest, repository, access)


async def _all(bringing: list[Deferred[BlobLease]]) -> list[BlobLease]:
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


def _give_back(outcome: BlobLease | Failure | None) -> None:
    if isinstance(outcome, BlobLease):
        outcome.release()
