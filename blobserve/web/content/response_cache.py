"""Ready responses: small representations in memory, with the heads that go in front of them.

Kept by all of a request that selects them, up to a bound, forgotten by last use, and all at once
when another configuration is in force. What is kept is believed for a second, and no longer than
until some reference comes to stand for something else; then its image is leased again, which asks
whether it is still what the URL names. Each use is one of the image, which nobody reads meanwhile.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import attrs
from twisted.internet.interfaces import IReactorTime

from blobserve.config import Config, RepositoryRules
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference
from blobserve.store.index.entry import Entry
from blobserve.store.lease import Lease, Result
from blobserve.store.refstore import RefStore
from blobserve.web.content.representation import Representation
from blobserve.web.http.conditional import ALL, UNCHANGED, Fields, Verdict
from blobserve.web.http.response import Answer, BytesBody
from blobserve.web.http.serialize import ResponseHead

LARGEST = 64 * 1024
"""Bytes of a body that is kept."""

_BELIEVED = 1.0
_MOST_LARGE = 1024
_OVERHEAD = 2048
"""Bytes of a head and all that belongs to it."""

Key = tuple[bytes, tuple[bytes, ...]]
"""A URL's path, and what else of a request selects a representation: codings, the best first."""


@attrs.define(eq=False)
class CachedResponse:
    """A representation, its body in memory, and the image that it is of."""

    shown: Representation
    content: bytes | None = attrs.field(repr=False)
    """None while only the head is kept; never of what `ResponseCache` gives."""
    source: Entry | None
    """What the body can be read from again."""
    rules: RepositoryRules
    reference: Reference
    image: Digest
    touch: Callable[[], None] = attrs.field(init=False, repr=False)
    """Counts a use of the image: see `RefStore.touch_for`."""
    result: Result = "hit"
    _believed_from: float = 0.0
    _believed_until: float = 0.0
    _believed_under: int = 0
    _all: ResponseHead | None = None
    _unchanged: ResponseHead | None = None

    def is_believed(self, now: float, switches: int) -> bool:
        """Whether its image need not be asked for, after as many `RefStore.switches`."""
        # Also when the clock was set back: nothing is believed before it was found out.
        is_young = self._believed_from <= now < self._believed_until
        return is_young and switches == self._believed_under

    def believe(self, lease: Lease, now: float, switches: int) -> None:
        """Take up what a lease that was just given says of the image."""
        self._believed_under = switches
        self.result = "stale" if lease.result == "stale" else "hit"
        self._believed_from = now
        self._believed_until = min(now + _BELIEVED, lease.trusted_until)

    def respond(self, method: bytes, fields: Fields) -> tuple[int, ResponseHead, bytes]:
        """The status, the head and the body that answer a GET or HEAD."""
        verdict = self.shown.judge(method, fields)
        if verdict is UNCHANGED:
            if self._unchanged is None:
                self._unchanged = self._head(verdict)
            return 304, self._unchanged, b""
        if verdict is not ALL:
            return self._respond(method, self._answer(verdict))
        if self._all is None:
            self._all = self._head(verdict)
        return 200, self._all, (self.content or b"") if method == b"GET" else b""

    def answer(self, method: bytes, fields: Fields) -> Answer:
        """The same as a value, without what the repository's rules add."""
        return self.shown.answer(method, fields, BytesBody(self.content or b""))

    def _respond(self, method: bytes, answer: Answer) -> tuple[int, ResponseHead, bytes]:
        extent = answer.extent
        body = answer.body.read_cached(extent.start, extent.length) if method == b"GET" else None
        return answer.status, ResponseHead.of(answer), body or b""

    def _head(self, verdict: Verdict) -> ResponseHead:
        return ResponseHead.of(self._answer(verdict))

    def _answer(self, verdict: Verdict) -> Answer:
        return self.shown.answer_to(verdict, BytesBody(self.content or b"")).under(self.rules)


def read_whole(lease: Lease, entry: Entry) -> bytes | None:
    """All bytes of a file, if it is small and all of it is in memory."""
    if entry.size > LARGEST:
        return None
    content = lease.filesystem.file(entry).read_cached(0, entry.size)
    return content if content is not None and len(content) == entry.size else None


class ResponseCache:
    """The responses that are kept, the bodies of fewer than the heads."""

    def __init__(self, store: RefStore, config: Callable[[], Config], clock: IReactorTime) -> None:
        self._store = store
        self._config = config
        self._clock = clock
        self._kept: OrderedDict[Key, CachedResponse] = OrderedDict()
        self._whole: OrderedDict[Key, CachedResponse] = OrderedDict()
        self._large: OrderedDict[Key, None] = OrderedDict()
        self._switches = 0
        self._under: Config | None = None
        self.size = 0
        """Bytes that are kept; but for the last used, at most the limit ``responseCacheSize``."""

    def is_too_large(self, key: Key) -> bool:
        """Whether there is no use in looking for what could be kept under `key`."""
        return key in self._large

    def pass_over(self, key: Key) -> None:
        """Remember that what `key` selects is too large to be kept."""
        self._large[key] = None
        if len(self._large) > _MOST_LARGE:
            self._large.popitem(last=False)

    def get(self, key: Key) -> CachedResponse | None:
        """What is kept under `key`, if it is still what the URL names; counts as a use."""
        if self._under is not self._config():
            self.flush()
            self._under = self._config()
        switches = self._store.switches
        if self._switches != switches:
            self._large.clear()
            self._switches = switches
        ready = self._kept.get(key)
        if ready is None:
            return None
        if ready.content is not None and ready.is_believed(self._clock.seconds(), switches):
            self._whole.move_to_end(key)
            ready.touch()
        elif not self._is_confirmed(key, ready):
            self._forget(key)
            return None
        self._kept.move_to_end(key)
        self._store.count(ready.result)
        return ready

    def keep(self, key: Key, ready: CachedResponse, lease: Lease) -> CachedResponse:
        """Keep what was just made of `lease`, where `get` had nothing; returns it."""
        self._believe(ready, lease)
        self._kept[key] = ready
        self.size += _OVERHEAD
        self._add_body(key, ready)
        return ready

    def flush(self) -> None:
        """Forget all of them."""
        self._kept.clear()
        self._whole.clear()
        self._large.clear()
        self.size = 0

    def _is_confirmed(self, key: Key, ready: CachedResponse) -> bool:
        """Whether the image is still the same, and the body there; both are looked for anew."""
        lease = self._store.lease_at_once(ready.reference)
        if lease is None:
            return False
        with lease:
            self._believe(ready, lease)
            if lease.digest != ready.image:
                return False
            if ready.content is None and ready.source is not None:
                ready.content = read_whole(lease, ready.source)
                self._add_body(key, ready)
            return ready.content is not None

    def _believe(self, ready: CachedResponse, lease: Lease) -> None:
        ready.believe(lease, self._clock.seconds(), self._store.switches)
        ready.touch = self._store.touch_for(ready.reference)

    def _add_body(self, key: Key, ready: CachedResponse) -> None:
        if ready.content is None:
            return
        self._whole[key] = ready
        self.size += len(ready.content)
        most = self._config().limits.response_cache_size
        while self.size > most and len(self._kept) > 1:
            # Bodies go first: what was made to find and describe them is what cost most.
            if len(self._whole) > 1 and _OVERHEAD * len(self._kept) <= most * 3 // 4:
                self._drop_body(next(iter(self._whole)))
            else:
                self._forget(next(iter(self._kept)))

    def _drop_body(self, key: Key) -> None:
        ready = self._whole.pop(key)
        self.size -= len(ready.content or b"")
        ready.content = None

    def _forget(self, key: Key) -> None:
        if key in self._whole:
            self._drop_body(key)
        del self._kept[key]
        self.size -= _OVERHEAD
