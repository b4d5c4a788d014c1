"""Early files: files of a layer that are served before the layer is complete and verified.

A caller waits for a name in a layer, and does not care which ingest delivers it. A file is recalled
at once if a later entry of the layer replaces it, or if the layer turns out to be bad, or if its
pull is abandoned. Runs on the reactor's thread. See docs/early-serve.md.
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
"""The reason of a recall: a later entry replaced it, or its layer is bad, or was abandoned."""

T = TypeVar("T")

_log = Logger()


class EarlyContent(RefCounted):
    """The content file of an ingest, which stays open until the last reader has closed it."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(self._close)
        self.descriptor = os.dup(descriptor)
        self.blob: BlobLease | None = None
        """A lease of the READY blob that it has become, held as long."""

    def _close(self) -> None:
        os.close(self.descriptor)
        if self.blob is not None:
            self.blob.release()


@attrs.define(eq=False)
class _EarlyName:
    """The uses of one name: its location, its open files, and the number of closed ones."""

    location: FileLocation
    files: set[EarlyFile] = attrs.field(factory=set)
    ended: int = 0


class EarlyFile:
    """A file of a layer that is not verified yet; it can be read until `close`."""

    image: Digest | None = None
    """The digest of the manifest or index through which it was requested."""

    def __init__(self, content: EarlyContent, served: _EarlyName) -> None:
        self.size = served.location.size
        """Its size in bytes."""
        self.is_text = served.location.is_text
        """Whether it starts as text does, see `Entry.is_text`."""
        self._at = served.location.offset
        self._content = content
        self._served: _EarlyName | None = served
        self._recall: Callable[[], None] = lambda: None
        content.acquire()
        served.files.add(self)

    def when_recalled(self, call: Callable[[], None]) -> None:
        """Set the function that is called if the file is recalled before it is closed."""
        self._recall = call

    def recall(self) -> None:
        """Call the function that `when_recalled` has set."""
        self._recall()

    def read_cached(self, offset: int, length: int) -> bytes | None:
        """Return the bytes that are in memory, without blocking; None if there are none."""
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        return read_resident(self._content.descriptor, self._at + offset, length)

    def read(self, offset: int, length: int) -> bytes:
        """Return at most `length` bytes; none only at the end. It blocks, in any thread."""
        length = max(0, min(length, self.size - offset))
        return os.pread(self._content.descriptor, length, self._at + offset)

    def close(self) -> None:
        """Close the file. Idempotent."""
        served, self._served = self._served, None
        if served is not None:
            served.files.discard(self)
            served.ended += 1
            self._content.release()


class StreamingLayer:
    """A layer that is being received: the callers that wait for its files, and its early files.

    The ingest calls `begin`, `names`, `update`, `hold` and `end`; the rest is for readers.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.has_new_names = False
        """Whether callers wait for names that `names` has not returned yet."""
        self._metrics = metrics
        self._waiting: dict[bytes, dict[Deferred[EarlyFile], None]] = {}
        self._served: dict[bytes, _EarlyName] = {}
        self._watched: frozenset[bytes] | None = None
        self._wake: Callable[[], None] = lambda: None
        self._descriptor = -1
        self._content: EarlyContent | None = None

    @property
    def has_waiters(self) -> bool:
        """Return whether any caller waits."""
        return bool(self._waiting)

    def wait(self, name: bytes) -> Deferred[EarlyFile]:
        """Wait for the file of this name; the caller closes it.

        Fires when the file was received. The caller cancels it when the layer is READY, for it
        does not fire if there is no such file.
        """
        waiter: Deferred[EarlyFile] = Deferred(partial(self._withdraw, name))
        self._waiting.setdefault(name, {})[waiter] = None
        if name in self._served:
            self._answer(name)
        else:
            self._watched = None
            self.has_new_names = True
            self._wake()
        return waiter

    def begin(self, content: int, wake: Callable[[], None]) -> None:
        """Serve files from the descriptor `content`; call `wake` when a new name is requested."""
        self._descriptor, self._wake = content, wake

    def names(self) -> frozenset[bytes]:
        """Return the names to watch: those that callers wait for, and those that were served."""
        self.has_new_names = False
        if self._watched is None:
            self._watched = frozenset((*self._waiting, *self._served))
        return self._watched

    def update(self, seen: Seen | None, is_last: bool) -> None:
        """Pass on the changes that were `seen` of the names; None if the layer is bad.

        `is_last` says that all bytes were received: the layer is verified next, and no more files
        are served early.
        """
        if seen is None:
            self._recall_all("damaged")
        if seen is None or is_last:
            self._descriptor = -1
        seen = seen or {}
        for name, location in seen.items():
            served = self._served.pop(name, None)
            if served is not None:
                self._recall(served, "overtaken")
            if location is not None:
                self._served[name] = _EarlyName(location)
            self._watched = None
        for name in seen:
            self._answer(name)

    def hold(self, acquire: Callable[[], BlobLease | None]) -> None:
        """Let files that are still open keep the READY layer leased, by the lease of `acquire`."""
        if any(served.files for served in self._served.values()) and self._content is not None:
            self._content.blob = acquire()

    def end(self, reason: Reason | None = None) -> None:
        """End the ingest, and recall its files for this `reason`, if any."""
        if reason is not None:
            self._recall_all(reason)
        self._served.clear()
        self._watched = None
        self._descriptor, self._wake = -1, lambda: None
        content, self._content = self._content, None
        if content is not None:
            content.release()

    def _withdraw(self, name: bytes, waiter: Deferred[EarlyFile]) -> None:
        waiters = self._waiting.get(name, {})
        waiters.pop(waiter, None)
        if not waiters and self._waiting.pop(name, None) is not None:
            self._watched = None

    def _answer(self, name: bytes) -> None:
        """Give a file to all callers that wait for it, if it may be served."""
        waiters, served = self._waiting.get(name), self._served.get(name)
        if self._descriptor < 0 or served is None or not waiters:
            return
        try:
            self._content = self._content or EarlyContent(self._descriptor)
        except OSError as error:
            # No free descriptor. The callers are served when the layer is READY.
            _log.warn("a file cannot be served early: {error}", error=error)
            return
        for waiter in list(waiters):
            if waiter not in waiters:
                continue  # cancelled by a waiter before it
            self._withdraw(name, waiter)
            self._metrics.early_served.inc()
            waiter.callback(EarlyFile(self._content, served))

    def _recall_all(self, reason: Reason) -> None:
        served = list(self._served.values())
        self._served.clear()
        for each in served:
            self._recall(each, reason)

    def _recall(self, served: _EarlyName, reason: Reason) -> None:
        if served.ended:
            self._metrics.early_unconfirmed.labels(reason).inc(served.ended)
        for file in list(served.files):
            self._metrics.early_aborted.labels(reason).inc()
            file.recall()


class EarlyFiles:
    """The layers that are being ingested or waited for."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        # Each lives as long as an ingest or a waiter refers to it.
        self._layers: WeakValueDictionary[Digest, StreamingLayer] = WeakValueDictionary()

    def of(self, digest: Digest) -> StreamingLayer:
        """Return the layer with this digest."""
        layer = self._layers.get(digest)
        if layer is None:
            layer = self._layers[digest] = StreamingLayer(self._metrics)
        return layer


def sooner(early: Deferred[EarlyFile], other: Deferred[T]) -> Deferred[EarlyFile | T]:
    """Return a Deferred that fires with the early file or with the result of `other`.

    The first to fire wins, and the other is cancelled. An error of `other` is passed on.
    Cancelling ends both waits.
    """
    received: list[EarlyFile] = []

    def stop(file: EarlyFile) -> None:
        received.append(file)
        other.cancel()

    def ended(outcome: Any) -> Any:
        early.cancel()
        return received[0] if received else outcome

    early.addCallbacks(stop, lambda failure: failure.trap(CancelledError))
    return other.addBoth(ended)
