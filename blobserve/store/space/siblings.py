"""Precompressed siblings: each is decoded and compared once before it is served as a coding.

The verdict depends on the contents of both files, not on their layers. It is kept in memory, up to
a limit. Runs on the reactor's thread; the decoding is cut into short jobs for the compute threads.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from blobserve.concurrency.threads import Threads
from blobserve.config import MIB
from blobserve.errors import BlobDamaged, BlobserveError, StoreClosed
from blobserve.metrics import Metrics
from blobserve.names.digest import Digest
from blobserve.store.blobs.blob import BlobLease, ReadyBlob
from blobserve.store.index.entry import Entry
from blobserve.store.space.quota import Allocator
from blobserve.store.space.stepped_job import SteppedJob

K = TypeVar("K")
V = TypeVar("V")

_log = Logger()

LARGEST = 1024 * MIB
"""Bytes of the largest file with siblings."""
MOST_KNOWN = 10_000
"""Verdicts that are kept; the least recently used are dropped."""
MOST_WAITING = 1000
"""Siblings that may wait to be decoded; beyond that, the one requested longest ago is dropped."""
RETRY = 60.0
"""Seconds until a sibling that could not be decoded is tried again."""


class _Pair(NamedTuple):
    """A coding, and the SHA-256 of the coded and of the plain file."""

    coding: bytes
    coded: bytes
    plain: bytes


class _Question(NamedTuple):
    blob: ReadyBlob
    coded: Entry
    plain: Entry


class Siblings:
    """Decodes the precompressed siblings of a blob space, one at a time."""

    def __init__(
        self,
        threads: Threads,
        allocator: Allocator,
        lease: Callable[[ReadyBlob], BlobLease | None],
        seconds: Callable[[], float],
        metrics: Metrics,
    ) -> None:
        """`lease` returns a lease of a blob if it is READY and open."""
        self._threads = threads
        self._allocator = allocator
        self._lease = lease
        self._seconds = seconds
        self._metrics = metrics
        self._verdicts: OrderedDict[_Pair, str] = OrderedDict()
        """The problem of each pair; an empty string if the coding is right."""
        self._refused: OrderedDict[_Pair, float] = OrderedDict()
        """Pairs that could not be decoded, with the times until which they are not tried."""
        self._logged: OrderedDict[tuple[Digest, bytes], None] = OrderedDict()
        """Files that were named in the log."""
        self._waiting: OrderedDict[_Pair, _Question] = OrderedDict()
        self._pair: _Pair | None = None
        self._work: SteppedJob | None = None
        self._closed = False

    def is_coding(self, blob: ReadyBlob, coded: Entry, coding: bytes, plain: Entry) -> bool | None:
        """Return whether a file of `blob` is `plain` in a coding; None until that is known."""
        pair = _Pair(coding, coded.sha256, plain.sha256)
        problem = self._verdicts.get(pair)
        if plain.size > LARGEST or coded.size > LARGEST:
            problem = f"a file of more than {LARGEST // MIB} MiB is not decoded"
        if problem is None:
            return self._enqueue(pair, _Question(blob, coded, plain))
        if problem:
            self._log_problem(blob, coded, coding, problem)
        elif pair in self._verdicts:
            self._verdicts.move_to_end(pair)
        return not problem

    async def close(self) -> None:
        """Stop decoding; return when the job that is running has ended."""
        self._closed = True
        if self._work is not None:
            await self._work.give_up(StoreClosed())

    def _enqueue(self, pair: _Pair, question: _Question) -> bool | None:
        if self._closed or self._seconds() < self._refused.get(pair, 0.0):
            return None
        if pair != self._pair:
            _remember(self._waiting, pair, question, MOST_WAITING)
            if self._pair is None:
                Deferred.fromCoroutine(self._decode_all())
        problem = self._verdicts.get(pair)  # it may be known by now
        return None if problem is None else not problem

    async def _decode_all(self) -> None:
        while self._waiting and not self._closed:
            self._pair, question = self._waiting.popitem()
            blob = self._lease(question.blob)
            if blob is not None:
                await self._decode(self._pair, question, blob)
        self._pair = None

    async def _decode(self, pair: _Pair, question: _Question, blob: BlobLease) -> None:
        # Imported late: most servers never need the decoders.
        from blobserve.store.blobs.sibling_decoder import compare

        work = self._work = SteppedJob(question.blob.digest, self._allocator, self._threads)
        self._allocator.enter(work, gives_way=True)
        try:
            coded = blob.filesystem.file(question.coded)
            steps = compare(coded, pair.coding, question.plain)
            problem = await work.run(steps)
            _remember(self._verdicts, pair, problem, MOST_KNOWN)
            self._count(pair, "wrong" if problem else "right")
            if problem:
                self._log_problem(question.blob, question.coded, pair.coding, problem)
        except StoreClosed:
            pass
        except Exception as error:  # noqa: BLE001 - the file is served without the sibling
            if isinstance(error, BlobDamaged):
                blob.report(error)
            elif not isinstance(error, (OSError, BlobserveError)):
                _log.failure("a file could not be decoded", Failure(error))
            self._count(pair, "failed")
            _remember(self._refused, pair, self._seconds() + RETRY, MOST_WAITING)
        self._allocator.leave(work, 0)
        self._work = None
        blob.release()
        work.ended.succeed(None)

    def _log_problem(self, blob: ReadyBlob, coded: Entry, coding: bytes, problem: str) -> None:
        """Write to the log that a sibling is not served, once for each blob and file."""
        if (blob.digest, coded.path) in self._logged:
            return
        _remember(self._logged, (blob.digest, coded.path), None, MOST_KNOWN)
        _log.warn(
            "{path} of {digest} is not served as a {coding} coding: {problem}",
            path=repr(coded.path.decode("utf-8", "backslashreplace")),
            digest=str(blob.digest),
            coding=coding.decode(),
            problem=problem,
        )

    def _count(self, pair: _Pair, outcome: str) -> None:
        self._metrics.siblings.labels(pair.coding.decode(), outcome).inc()


def _remember(memory: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    """Put a value at the end, and drop the first if there are more than `most`."""
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > most:
        memory.popitem(last=False)
