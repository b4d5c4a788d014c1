"""Precompressed siblings: each is decoded once before it is believed to be a coding of a file.

The verdict belongs to the contents of both files, whichever layers they are in, and is remembered
in memory, up to a bound. Runs on the reactor's thread; each slice of the decoding is a job of its
own for the pool that extracts layers. Knows nothing of HTTP.
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
from blobserve.store.blobs.sibling_decoder import compare
from blobserve.store.index.entry import Entry
from blobserve.store.space.allocator import Allocator
from blobserve.store.space.stepped_job import SteppedJob

K = TypeVar("K")
V = TypeVar("V")

_log = Logger()

LARGEST = 1024 * MIB
"""Bytes of a file that has siblings."""
MOST_KNOWN = 10_000
"""Verdicts that are remembered; the longest unused are forgotten."""
MOST_WAITING = 1000
"""Siblings that may wait to be decoded; the one asked for longest ago is forgotten."""
RETRY = 60.0
"""Seconds after which a sibling is decoded again that could not be."""


class _Pair(NamedTuple):
    """A coding, and the SHA-256 of the coded and of the plain file."""

    coding: bytes
    coded: bytes
    plain: bytes


class _Question(NamedTuple):
    kept: ReadyBlob
    coded: Entry
    plain: Entry


class Siblings:
    """Decodes the precompressed siblings of a blob space, one at a time."""

    def __init__(
        self,
        threads: Threads,
        room: Allocator,
        lease: Callable[[ReadyBlob], BlobLease | None],
        seconds: Callable[[], float],
        metrics: Metrics,
    ) -> None:
        """`lease` gives the right to read a blob, if it is READY and open."""
        self._threads = threads
        self._room = room
        self._lease = lease
        self._seconds = seconds
        self._metrics = metrics
        self._verdicts: OrderedDict[_Pair, str] = OrderedDict()
        """What is wrong with a pair; an empty text where nothing is."""
        self._refused: OrderedDict[_Pair, float] = OrderedDict()
        """Pairs that could not be decoded, and until when they are not tried again."""
        self._told: OrderedDict[tuple[Digest, bytes], None] = OrderedDict()
        """Files that the log was told of."""
        self._waiting: OrderedDict[_Pair, _Question] = OrderedDict()
        self._pair: _Pair | None = None
        self._work: SteppedJob | None = None
        self._closed = False

    def is_coding(self, kept: ReadyBlob, coded: Entry, coding: bytes, plain: Entry) -> bool | None:
        """Return whether a file of `kept` is `plain` in a coding; None while that is found out."""
        pair = _Pair(coding, coded.sha256, plain.sha256)
        problem = self._verdicts.get(pair)
        if plain.size > LARGEST or coded.size > LARGEST:
            problem = f"a file of more than {LARGEST // MIB} MiB is not decoded"
        if problem is None:
            return self._ask(pair, _Question(kept, coded, plain))
        if problem:
            self._tell(kept, coded, coding, problem)
        elif pair in self._verdicts:
            self._verdicts.move_to_end(pair)
        return not problem

    async def close(self) -> None:
        """Decode nothing any more; returns when nothing is being decoded."""
        self._closed = True
        if self._work is not None:
            await self._work.give_up(StoreClosed())

    def _ask(self, pair: _Pair, question: _Question) -> bool | None:
        if self._closed or self._seconds() < self._refused.get(pair, 0.0):
            return None
        if pair != self._pair:
            _remember(self._waiting, pair, question, MOST_WAITING)
            if self._pair is None:
                Deferred.fromCoroutine(self._answer_all())
        problem = self._verdicts.get(pair)  # it may be known by now
        return None if problem is None else not problem

    async def _answer_all(self) -> None:
        while self._waiting and not self._closed:
            self._pair, question = self._waiting.popitem()
            blob = self._lease(question.kept)
            if blob is not None:
                await self._answer(self._pair, question, blob)
        self._pair = None

    async def _answer(self, pair: _Pair, question: _Question, blob: BlobLease) -> None:
        work = self._work = SteppedJob(question.kept.digest, self._room, self._threads)
        self._room.enter(work, gives_way=True)
        try:
            coded = blob.filesystem.file(question.coded)
            steps = compare(coded, pair.coding, question.plain)
            problem = await work.run(steps)
            _remember(self._verdicts, pair, problem, MOST_KNOWN)
            self._count(pair, "wrong" if problem else "right")
            if problem:
                self._tell(question.kept, question.coded, pair.coding, problem)
        except StoreClosed:
            pass
        except Exception as error:  # noqa: BLE001 - files are served without, whatever it is
            if isinstance(error, BlobDamaged):
                blob.report(error)
            elif not isinstance(error, (OSError, BlobserveError)):
                _log.failure("decoding a file", Failure(error))
            self._count(pair, "failed")
            _remember(self._refused, pair, self._seconds() + RETRY, MOST_WAITING)
        self._room.leave(work, 0)
        self._work = None
        blob.release()
        work.ended.succeed(None)

    def _tell(self, kept: ReadyBlob, coded: Entry, coding: bytes, problem: str) -> None:
        """Tell the operator of a sibling that is left out, once for each blob and file."""
        if (kept.digest, coded.path) in self._told:
            return
        _remember(self._told, (kept.digest, coded.path), None, MOST_KNOWN)
        _log.warn(
            "{path} of {digest} is not served as a {coding} coding: {problem}",
            path=repr(coded.path.decode("utf-8", "backslashreplace")),
            digest=str(kept.digest),
            coding=coding.decode(),
            problem=problem,
        )

    def _count(self, pair: _Pair, outcome: str) -> None:
        self._metrics.siblings.labels(pair.coding.decode(), outcome).inc()


def _remember(memory: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    """Put something in as the last; the first goes if there are more than `most`."""
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > most:
        memory.popitem(last=False)
