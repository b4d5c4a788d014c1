"""Downloads: layers on their way from a source into the blob space.

At most ten at a time and one per layer digest, however many ask. A permit covers one layer from its
first byte request until it is verified. What somebody waits for goes before what nobody waits for.
Records that the repository it came from has shown the layer. A proof is a download too: of a layer
that is here, or on its way, through another repository. Its bytes are verified and dropped.
Knows nothing of tags and manifests, and decides for nobody whether a proof is needed.
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
    source: Source
    repository: Repository
    descriptor: Descriptor
    access: Access
    """What the repository will have shown by it."""
    is_proof: bool = False
    flight: Call[None] = attrs.field(factory=Call)
    pulls: list[Call[Any]] = attrs.field(factory=list)
    """The pulls that need it; any of them may become urgent at any time."""

    @property
    def key(self) -> _Key:
        """What there is one download of at a time: a layer, or a repository's proof of it."""
        if self.is_proof:
            return self.descriptor.digest, self.repository, self.access
        return self.descriptor.kept_as


class Downloads:
    """Every download into one blob space, under way or waiting for a permit."""

    def __init__(self, space: BlobSpace, metrics: Metrics, limits: Callable[[], Limits]) -> None:
        self._space = space
        self._metrics = metrics
        self._limits = limits
        self._permits = DeferredSemaphore(limits().parallel_downloads)
        self._turns: set[Deferred[None]] = set()
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
    ) -> None:
        """Bring a layer into the blob space on behalf of `pull`; returns when it is READY.

        Joins the download of the same layer that is under way. Cancelling ends this wait; what has
        begun goes on, what has not is dropped if no other pull needs it.

        :raises QueueFull: when too many wait already.
        :raises StoreClosed: after `close`, also when waiting by then.
        """
        await self._wait_for(_Download(source, repository, descriptor, access), pull)

    async def prove(
        self,
        source: Source,
        repository: Repository,
        descriptor: Descriptor,
        access: Access,
        pull: Call[Any],
    ) -> None:
        """Verify all bytes of a layer as its repository gives them out; keep none.

        Like `pull` in all else.

        :raises ContentMismatch: when the repository gives out something else.
        """
        await self._wait_for(_Download(source, repository, descriptor, access, True), pull)

    async def close(self) -> None:
        """Fail every wait, stop every download, and return when ingest is wiped. Idempotent."""
        self._closed = True
        self._queue.clear()
        for download in list(self._downloads.values()):
            download.flight.fail(StoreClosed())
        turns = list(self._turns)
        for turn in turns:
            turn.cancel()
        await DeferredList(turns)
        self._downloads.clear()
        self._count()

    async def _wait_for(self, wanted: _Download, pull: Call[Any]) -> None:
        while True:
            # A new one each time: what has failed has told its waiters so.
            download = self._downloads.get(wanted.key)
            if download is None:
                download = self._begin(attrs.evolve(wanted, flight=Call(), pulls=[]))
            download.pulls.append(pull)
            try:
                return await download.flight.wait()
            except (NotFound, UpstreamError):
                # Another repository's registry failed it; what its own will say is not known yet.
                if download.repository == wanted.repository:
                    raise
            finally:
                download.pulls.remove(pull)
                self._drop_unneeded(download)

    def _begin(self, download: _Download) -> _Download:
        if self._closed:
            raise StoreClosed
        self._follow_limits()
        if self._permits.tokens <= 0 and len(self._queue) >= self._limits().queued_downloads:
            raise QueueFull
        self._downloads[download.key] = download
        self._queue.append(download)
        while self._queue and self._permits.tokens > 0:
            self._begin_turns()
        self._count()
        return download

    def _drop_unneeded(self, download: _Download) -> None:
        if not download.pulls and download in self._queue:
            self._queue.remove(download)
            del self._downloads[download.key]
            self._count()

    def _follow_limits(self) -> None:
        """Have as many permits as the limits say now; they may say something else after a reload.

        Permits that are taken away from downloads under way leave a debt of tokens.
        """
        added = self._limits().parallel_downloads - self._permits.limit
        self._permits.limit += added
        self._permits.tokens += added

    def _begin_turns(self) -> None:
        turn = self._permits.run(self._take_turns)
        self._turns.add(turn)
        turn.addBoth(lambda _: self._turns.discard(turn))

    async def _take_turns(self) -> None:
        """Use one permit for one layer after another, until none waits.

        Nobody waits inside the semaphore: it serves in order of arrival, and hands a permit over by
        a nested call, which a thousand downloads failing at once would turn into a deep recursion.
        """
        while self._queue and self._permits.tokens >= 0:
            urgent = (n for n, each in enumerate(self._queue) if any(p.urgent for p in each.pulls))
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
            download.flight.succeed(None)
            return
        error = reason_of(outcome)
        result = "cancelled" if isinstance(error, CancelledError) else "failed"
        self._metrics.pulls.labels(result).inc()
        download.flight.fail(error)

    def _count(self) -> None:
        self._metrics.pulls_queued.set(len(self._queue))
        self._metrics.pulls_in_flight.set(len(self._downloads) - len(self._queue))

    async def _download(self, download: _Download) -> None:
        try:
            await self._attempt(download)
        except ContentMismatch as mismatch:
            # One bad node of a content delivery network need not be asked twice.
            _log.warn("{mismatch}; downloading it once more", mismatch=mismatch)
            await self._attempt(download)
        except DiskFull:
            # Where the disk was full in the middle of something, making room then was too late.
            if not await self._space.relieve(download.descriptor.size):
                raise
            await self._attempt(download)

    async def _attempt(self, download: _Download) -> None:
        if download.is_proof:
            await self._attempt_proof(download)
            return
        ingest = await self._space.ingest(download.descriptor)
        try:
            if download.descriptor.size:
                consumer = _ByteCounter(ingest, self._metrics)
                fetch = Deferred.fromCoroutine(
                    download.source.fetch(download.repository, download.descriptor, consumer)
                )
                await _stopped_early(fetch, ingest.failure)
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


async def _stopped_early(fetch: Deferred[None], failure: Deferred[None]) -> None:
    """Wait for a fetch, but stop it when what it is written to has failed, and fail with that."""
    reasons: list[Failure] = []

    def stop(reason: Failure) -> None:
        reasons.append(reason)
        fetch.cancel()

    failure.addErrback(stop)
    await fetch.addBoth(lambda outcome: reasons[0] if reasons else outcome)


@implementer(IConsumer)
class _ByteCounter:
    """Counts the bytes of a layer on their way into its ingest."""

    def __init__(self, consumer: IConsumer, metrics: Metrics) -> None:
        self.registerProducer = consumer.registerProducer
        self.unregisterProducer = consumer.unregisterProducer
        self._write = consumer.write
        self._bytes = metrics.pulled_bytes

    def write(self, data: bytes) -> None:
        """See `IConsumer.write`."""
        self._bytes.inc(len(data))
        self._write(data)
