"""prePull and sites: each image is pulled at the start or reload; a failure is only logged."""

from __future__ import annotations

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger
from twisted.python.failure import Failure

from blobserve.config import Config
from blobserve.errors import BlobserveError
from blobserve.names.reference import Reference
from blobserve.store.refstore import RefStore

_log = Logger()


class PrePull:
    """Pulls the prePull tags of the current configuration, and the fixed images of its sites."""

    def __init__(self, store: RefStore) -> None:
        self._store = store
        self._wanted: set[Reference] = set()

    async def follow(self, config: Config) -> None:
        """Pull every new image; return when each is cached or its pull has ended."""
        before = self._wanted
        self._wanted = config.kept_images
        new = self._wanted - before
        await DeferredList([Deferred.fromCoroutine(self._begin(each)) for each in new])

    async def _begin(self, reference: Reference) -> None:
        try:
            (await self._store.blob_for(reference, read_only=True)).release()
            is_here = True
        except BlobserveError:
            is_here = False
        pulling = self._store.pre_pull(reference)
        pulling.addErrback(_note, reference)
        # A cached image can be served already; its revalidation runs in the background.
        if not is_here:
            await pulling


def _note(failure: Failure, reference: Reference) -> None:
    failure.trap(BlobserveError)
    _log.warn(
        "prePull of {reference} failed: {error}", reference=str(reference), error=failure.value
    )
