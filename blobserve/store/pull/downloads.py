"""Downloads: layers on their way from a source into the blob space.

At most ten layers are downloaded at a time, and each layer digest once, however many pulls need it.
A permit covers one layer from its first byte request until it is verified. Downloads that a request
waits for go first. A finished download records that its repository has shown the layer. A proof is
a download too: of a layer that the blob space has, or is getting, through another repository. Its
bytes are verified and dropped. The caller decides whether a proof is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredList, DeferredSemaphore
from twisted.internet.interfaces import IConsumer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from blobserve.concurrency.singleflight import Call, reason_of
from blobserve.config import Limits
from blobserve.errors import (
    ContentMismatch,
    DiskFull,
    NotFound,
    QueueFull,
    StoreClosed,
    UpstreamError,
)
from blobserve.metrics import Metrics
from blobserve.names.digest import Digest
from blobserve.names.reference import Repository
from blobserve.oci.manifest import Descriptor
from blobserve.oci.source import Source
from blobserve.store.blobspace import BlobSpace
from blobserve.store.pull.proof import Proof
from blobserve.store.space.provenance import Access

_log = Logger()

_Key: TypeAlias = "Digest | tuple[Digest, Repository, Access]"


@attrs.frozen(eq=False)
class _Download:
    key: _Key
    """The digest of a layer, or a repository's proof of it: one download of it runs at a time."""
    source: Source
    repository: Repository
    descriptor: Descriptor
    access: Access
    """The access that the repository has shown when the download is complete."""
    is_proof: bool
    outcome: Call[None] = attrs.field(factory=Call)
    pulls: list[Call[Any]] = attrs.field(factory=list)
    """The pulls that need it; any of them may become urgent at any time."""


class Downloads:
    """Every download into one blob space, under way or waiting for a permit."""

    def __init__(self, space: BlobSpace, metrics: Metrics, limits: Callable[[], Limits]) -> None:
        self._space = space
        self._metrics = metrics
        self._limits = limits
        self._permits = DeferredSemaphore(limits().parallel_downloads)
        self._turns: list[Deferred[None]] = []
        self._downloads: dict[_Key, _Download] = {}
        self._queue: list[_Download] = []
        self._closed = False

    def is_foreign(self, digest: Digest, repository: Repository, access: Access) -> bool:
        """Return whether a layer is being downloaded, and that will not show it is `repository`'s.

        Also while the download waits for its turn.
        """
        download = self._downloads.get(digest)
        if download is None:
            return False
        return download.repository != repository or download.access < access

    async def pull(
        self,
        source: Source,
        repository: Repository,
        descriptor: Descriptor,
        access: Access,
        pull: Call[Any],
        is_proof: bool = False,
    ) -> None:
        """Download a layer on behalf of `pull`; return when it is READY.

        If it `is_proof`, verify all bytes of the layer, as its repository gives them out, and keep
        none. This joins a download of the same layer. Cancelling ends this wait only: a download
        that runs goes on, and one that waits for a permit is dropped if no other pull needs it.

        :raises QueueFull: when too many downloads wait already.
        :raises StoreClosed: after `close`, also when waiting by then.
        :raises ContentMismatch: when the repository gives out something else.
        """
        key: _Key = (descriptor.digest, repository, access) if is_proof else descriptor.kept_as
        while True:
            download = self._downloads.get(key)
            if download is None:
                download = _Download(key, source, repository, descriptor, access, is_proof)
                self._enqueue(download)
            download.pulls.append(pull)
            try:
                return await download.outcome.wait()
            except (NotFound, UpstreamError):
                # If another repository's registry failed, our own may still answer: try again.
                if download.repository == repository:
                    raise
            finally:
                download.pulls.remove(pull)
                if not download.pulls and download in self._queue:
                    self._queue.remove(download)
                    del self._downloads[key]
                    self._count()

    async def close(self) -> None:
        """Fail every wait, stop every download, and return when ingest is wiped. Idempotent."""
        self._closed = True
        self._queue.clear()
        for download in list(self._downloads.values()):
            download.outcome.fail(StoreClosed())
        for turn in self._turns:
            turn.cancel()
        await DeferredList(self._turns)
        self._downloads.clear()
        self._count()

    def _enqueue(self, download: _Download) -> None:
        if self._closed:
            raise StoreClosed
        # A reload may change the limit. Permits taken from running downloads leave a token debt.
        added = self._limits().parallel_downloads - self._permits.limit
        self._permits.limit += added
        self._permits.tokens += added
        if self._permits.tokens <= 0 and len(self._queue) >= self._limits().queued_downloads:
            raise QueueFull
        self._downloads[download.key] = download
        self._queue.append(download)
        while self._queue and self._permits.tokens > 0:
            self._turns = [turn for turn in self._turns if not turn.called]
            self._turns.append(Deferred.fromCoroutine(self._take_turns()))
        self._count()

    async def _take_turns(self) -> None:
        """Use one permit for one layer after another, until none waits.

        No download waits inside the semaphore. It serves in order of arrival, and hands a permit
        over by a nested call: a thousand downloads that fail at once would recurse deeply.
        """
        async with self._permits:
            while self._queue and self._permits.tokens >= 0:
                urgent = (
                    n for n, each in enumerate(self._queue) if any(p.urgent for p in each.pulls)
                )
                download = self._queue.pop(next(urgent, 0))
                self._count()
                await Deferred.fromCoroutine(self._download(download)).addBoth(self._end, download)

    def _end(self, outcome: Failure | None, download: _Download) -> None:
        del self._downloads[download.key]
        self._count()
        if outcome is None:
            self._metrics.pulls.labels("proved" if download.is_proof else "ready").inc()
            digest, repository = download.descriptor.digest, download.repository
            self._space.provenance.record(digest, repository, download.access)
            download.outcome.succeed(None)
            return
        error = reason_of(outcome)
        result = "cancelled" if isinstance(error, CancelledError) else "failed"
        self._metrics.pulls.labels(result).inc()
        download.outcome.fail(error)

    def _count(self) -> None:
        self._metrics.pulls_queued.set(len(self._queue))
        self._metrics.pulls_in_flight.set(len(self._downloads) - len(self._queue))

    async def _download(self, download: _Download) -> None:
        attempt = self._attempt_proof if download.is_proof else self._attempt
        try:
            await attempt(download)
        except ContentMismatch as mismatch:
            # Another node of a content delivery network may have the right bytes.
            _log.warn("{mismatch}; downloading it once more", mismatch=mismatch)
            await attempt(download)
        except DiskFull:
            # The disk filled up during a write, when eviction could no longer help.
            if not await self._space.relieve(download.descriptor.size):
                raise
            await attempt(download)

    async def _attempt(self, download: _Download) -> None:
        ingest = await self._space.ingest(download.descriptor)
        try:
            if download.descriptor.size:
                consumer = _ByteCounter(ingest, self._metrics)
                fetch = Deferred.fromCoroutine(
                    download.source.fetch(download.repository, download.descriptor, consumer)
                )
                failures: list[Failure] = []

                def stop(failure: Failure) -> None:
                    failures.append(failure)
                    fetch.cancel()

                ingest.failure.addErrback(stop)
                await fetch.addBoth(lambda outcome: failures[0] if failures else outcome)
            await ingest.finish()
        except Exception:
            await ingest.abandon()
            raise

    async def _attempt_proof(self, download: _Download) -> None:
        proof = Proof(download.descriptor)
        if download.descriptor.size:
            consumer = _ByteCounter(proof, self._metrics)
            await download.source.fetch(download.repository, download.descriptor, consumer)
        proof.finish()


@implementer(IConsumer)
class _ByteCounter:
    """Counts the bytes of a layer on their way to a consumer."""

    def __init__(self, consumer: IConsumer, metrics: Metrics) -> None:
        self.registerProducer = consumer.registerProducer
        self.unregisterProducer = consumer.unregisterProducer
        self._write = consumer.write
        self._bytes = metrics.pulled_bytes

    def write(self, data: bytes) -> None:
        """See `IConsumer.write`."""
        self._bytes.inc(len(data))
        self._write(data)
