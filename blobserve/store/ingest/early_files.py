"""Early files: what has streamed past of a layer that is still being pulled, before it is verified.

Whoever waits, waits for a name in a layer, whichever ingest brings it; whoever was given a file
hears at once when it must not be used after all: when a later entry of the layer has taken its
place, or the layer turns out bad, or is given up. Runs on the reactor's thread. Knows nothing of
how names are found, nor of what is done with a file.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar
from weakref import WeakValueDictionary

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from blobserve.concurrency.refcount import RefCounted
from blobserve.metrics import Metrics
from blobserve.names.digest import Digest
from blobserve.store.blobs.blob import BlobLease
from blobserve.store.disk.page_cache import read_resident
from blobserve.store.index.name_watch import FileLocation, Seen

Reason = Literal["overtaken", "damaged", "abandoned"]
"""Why a file must not be used: another has taken its place, or its layer is bad, or given up."""

T = TypeVar("T")

_log = Logger()


class EarlyContent(RefCounted):
    """The content of an ingest, open for as long as anybody reads it, whatever becomes of it."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(self._close)
        self.descriptor = os.dup(descriptor)
        self.blob: BlobLease | None = None
        """The READY blob that it has become, which stays as long."""

    def _close(self) -> None:
        os.close(self.descriptor)
        if self.blob is not None:
            self.blob.release()


@attrs.define(eq=False)
class _EarlyName:
    """What was made of one name: where it lies, who reads it, and how many have ended to."""

    place: FileLocation
    files: set[EarlyFile] = attrs.field(factory=set)
    ended: int = 0


class EarlyFile:
    """A file of a layer that is not verified yet, to be read until `close`."""

    image: Digest | None = None
    """Of the manifest or index through which it was asked for."""

    def __init__(self, content: EarlyContent, given: _EarlyName) -> None:
        self.size = given.place.size
        """In bytes."""
        self._at = given.place.offset
        self._content = content
        self._given: _EarlyName | None = given
        self._recall: Callable[[], None] = lambda: None
        content.acquire()
        given.files.add(self)

    def when_recalled(self, call: Callable[[], None]) -> None:
        """Have `call` called if it must not be used after all, and has not been closed before."""
        self._recall = call

    def recall(self) -> None:
        """Say that it must not be used."""
        self._recall()

    def read_cached(self, offset: int, length: int) -> bytes | None:
        """What is there, if that needs no waiting for a disk; None when nothing is."""
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        return read_resident(self._content.descriptor, self._at + offset, length)

    def read(self, offset: int, length: int) -> bytes:
        """Some of what is there, none only at its end. Blocks; for any thread."""
        length = max(0, min(length, self.size - offset))
        return os.pread(self._content.descriptor, length, self._at + offset)

    def close(self) -> None:
        """Nobody reads on; once is enough, more is harmless."""
        given, self._given = self._given, None
        if given is not None:
            given.files.discard(self)
            given.ended += 1
            self._content.release()


class StreamingLayer:
    """One layer while it streams past: who waits for which of its files, and who was given some.

    `begin` and `end` are for the ingest of the moment, as are `asked` and `tell`.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.is_asked = False
        """Whether there are names that were not `asked` for yet."""
        self._metrics = metrics
        self._waiting: dict[bytes, dict[Deferred[EarlyFile], None]] = {}
        self._given: dict[bytes, _EarlyName] = {}
        self._names: frozenset[bytes] | None = None
        self._wake: Callable[[], None] = lambda: None
        self._descriptor = -1
        self._content: EarlyContent | None = None

    @property
    def is_awaited(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiting)

    def wait(self, name: bytes) -> Deferred[EarlyFile]:
        """The file of that name, as soon as it is there; who gets it closes it.

        Never fires when it does not come: to be cancelled, at READY at the latest.
        """
        waiter: Deferred[EarlyFile] = Deferred(partial(self._withdraw, name))
        self._waiting.setdefault(name, {})[waiter] = None
        if name in self._given:
            self._answer(name)
        else:
            self._names = None
            self.is_asked = True
            self._wake()
        return waiter

    def begin(self, content: int, wake: Callable[[], None]) -> None:
        """Give out files that lie in the file `content`; `wake` is called when one is asked for."""
        self._descriptor, self._wake = content, wake

    def asked(self) -> frozenset[bytes]:
        """The names to look for: what is waited for, and what was given and may yet change."""
        self.is_asked = False
        if self._names is None:
            self._names = frozenset((*self._waiting, *self._given))
        return self._names

    def tell(self, seen: Seen | None, is_last: bool) -> None:
        """Say what was seen of the names; None: that the layer is bad.

        After the `is_last` of the layer's bytes no more is given out: it is about to be verified.
        """
        if seen is None:
            self._recall_all("damaged")
        if seen is None or is_last:
            self._descriptor = -1
        seen = seen or {}
        for name, place in seen.items():
            given = self._given.pop(name, None)
            if given is not None:
                self._recall(given, "overtaken")
            if place is not None:
                self._given[name] = _EarlyName(place)
            self._names = None
        for name in seen:
            self._answer(name)

    def hold(self, acquire: Callable[[], BlobLease | None]) -> None:
        """Say that the layer is READY: what still reads it holds what `acquire` gives."""
        if any(given.files for given in self._given.values()) and self._content is not None:
            self._content.blob = acquire()

    def end(self, reason: Reason | None = None) -> None:
        """Say that the ingest is over, and why its files must not be used; None: they may be."""
        if reason is not None:
            self._recall_all(reason)
        self._given.clear()
        self._names = None
        self._descriptor, self._wake = -1, lambda: None
        content, self._content = self._content, None
        if content is not None:
            content.release()

    def _withdraw(self, name: bytes, waiter: Deferred[EarlyFile]) -> None:
        waiters = self._waiting.get(name, {})
        waiters.pop(waiter, None)
        if not waiters and self._waiting.pop(name, None) is not None:
            self._names = None

    def _answer(self, name: bytes) -> None:
        """Give a file to all who wait for it, if it may be given."""
        waiters, given = self._waiting.get(name), self._given.get(name)
        if self._descriptor < 0 or given is None or not waiters:
            return
        try:
            self._content = self._content or EarlyContent(self._descriptor)
        except OSError as error:
            # Out of descriptors. They are served when the layer is READY.
            _log.warn("no early answer: {error}", error=error)
            return
        for waiter in list(waiters):
            if waiter not in waiters:
                continue  # one who was told before has cancelled it
            self._withdraw(name, waiter)
            self._metrics.early_served.inc()
            waiter.callback(EarlyFile(self._content, given))

    def _recall_all(self, reason: Reason) -> None:
        given = list(self._given.values())
        self._given.clear()
        for each in given:
            self._recall(each, reason)

    def _recall(self, given: _EarlyName, reason: Reason) -> None:
        if given.ended:
            self._metrics.early_unconfirmed.labels(reason).inc(given.ended)
        for file in list(given.files):
            self._metrics.early_aborted.labels(reason).inc()
            file.recall()


class EarlyFiles:
    """Every layer of which files are waited for, or that is being ingested."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        # Each lives for as long as an ingest has it, or somebody waits.
        self._layers: WeakValueDictionary[Digest, StreamingLayer] = WeakValueDictionary()

    def of(self, digest: Digest) -> StreamingLayer:
        """The layer with this digest."""
        passing = self._layers.get(digest)
        if passing is None:
            passing = self._layers[digest] = StreamingLayer(self._metrics)
        return passing


def sooner(early: Deferred[EarlyFile], other: Deferred[T]) -> Deferred[EarlyFile | T]:
    """Fires with an early file, or what the other brings if it comes first; fails when that fails.

    Whichever comes later is cancelled; cancelling ends both waits.
    """
    came: list[EarlyFile] = []

    def stop(file: EarlyFile) -> None:
        came.append(file)
        other.cancel()

    def ended(outcome: Any) -> Any:
        early.cancel()
        return came[0] if came else outcome

    early.addCallbacks(stop, lambda failure: failure.trap(CancelledError))
    return other.addBoth(ended)
