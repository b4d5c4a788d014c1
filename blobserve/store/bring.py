"""The layers of an image, made READY side by side.

Each with a permit of its own, each once for all images. Knows nothing of tags and indexes.
"""

from __future__ import annotations

from typing import cast

from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.python.failure import Failure

from blobserve.config import RepositoryRules
from blobserve.errors import BlobNotFound, SpaceContended
from blobserve.oci.manifest import Descriptor
from blobserve.oci.reference import Repository
from blobserve.oci.source import Source
from blobserve.store.blobspace import Blob, BlobSpace, BlobState, Readable
from blobserve.store.download import Downloads
from blobserve.store.flight import Flight
from blobserve.store.image import Image


class Bringing:
    """Brings layers into one blob space."""

    def __init__(self, space: BlobSpace, downloads: Downloads) -> None:
        self._space = space
        self._downloads = downloads

    async def bring(
        self,
        repository: Repository,
        image: Image,
        source: Source,
        rules: RepositoryRules,
        flight: Flight[Readable],
    ) -> Readable:
        """Make all layers that are served READY, each with a permit of its own, and hold them."""
        layers = {layer.kept_as: layer for layer in image.served}
        with self._space.pulling(image.digest, image.served):
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
        digest = layer.kept_as
        is_foreign = not rules.listed and (
            self._downloads.wants(digest) or self._space.state_of(digest) is not BlobState.UNKNOWN
        )
        # A digest is no secret: who may see the layer, the repository's own registry must say.
        if is_foreign and not await source.holds(repository, layer):
            raise BlobNotFound(str(layer.digest))
        blob = await self._space.mount(digest)
        if blob is None:
            await self._downloads.pull(source, repository, layer, flight)
            blob = await self._space.mount(digest)
        if blob is None:
            raise SpaceContended
        return blob


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
