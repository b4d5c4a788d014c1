"""Ready responses: small representations in memory, with the heads that go in front of them.

Kept by all of a request that selects them, up to a bound, forgotten by last use, and all at once
when a reference comes to stand for something else, or another configuration is in force. What is
kept is believed for a second; then its image is leased again, which counts the use and asks
whether it is still what the URL names.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import attrs
from twisted.internet.interfaces import IReactorTime

from blobserve.config import Config
from blobserve.oci.digest import Digest
from blobserve.store.lease import Lease, Result
from blobserve.store.refstore import RefStore
from blobserve.web.answer import Answer
from blobserve.web.conditional import Fields, Verdict
from blobserve.web.representation import Representation, Selection
from blobserve.web.wire import Head

LARGEST = 64 * 1024
"""Bytes of a body that is kept."""

_BELIEVED = 1.0
_OVERHEAD = 3072

Key = tuple[bytes, ...]
"""A URL's path, and what else of a request selects a representation."""


@attrs.define(eq=False)
class Ready:
    """A representation whose body is in memory, and what it is a part of."""

    shown: Representation
    content: bytes = attrs.field(repr=False)
    selection: Selection
    image: Digest
    """Of the manifest or index that its reference stands for."""
    digest: str = attrs.field(init=False)
    """The same as the log has it."""
    result: Result = "hit"
    believed_from: float = 0.0
    believed_until: float = 0.0
    _heads: dict[int, Head] = attrs.field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self.digest = str(self.image)

    def believe(self, lease: Lease, now: float) -> None:
        """Take up what a lease that was just given says of the image."""
        self.result = "stale" if lease.result == "stale" else "hit"
        self.believed_from = now
        self.believed_until = min(now + _BELIEVED, lease.trusted_until)

    def respond(self, method: bytes, fields: Fields) -> tuple[int, Head, bytes]:
        """The status, the head and the body that answer a GET or HEAD."""
        verdict = self.shown.judge(method, fields)
        if not verdict.is_plain:
            return self._respond(method, self._answer(verdict))
        head = self._heads.get(verdict.status)
        if head is None:
            head = self._heads[verdict.status] = Head.of(self._answer(verdict))
        has_body = method == b"GET" and verdict.status == 200
        return verdict.status, head, self.content if has_body else b""

    def _respond(self, method: bytes, answer: Answer) -> tuple[int, Head, bytes]:
        extent = answer.extent
        body = answer.body.read_cached(extent.start, extent.length) if method == b"GET" else None
        return answer.status, Head.of(answer), body or b""

    def _answer(self, verdict: Verdict) -> Answer:
        return self.shown.answer_to(verdict).under(self.selection.rules)

    @property
    def cost(self) -> int:
        """Bytes of memory that it takes, or a little more."""
        return len(self.content) + _OVERHEAD


class ReadyResponses:
    """The responses that are kept."""

    def __init__(self, store: RefStore, config: Callable[[], Config], clock: IReactorTime) -> None:
        self._store = store
        self._config = config
        self._clock = clock
        self._kept: OrderedDict[Key, Ready] = OrderedDict()
        self._switches = 0
        self._under: Config | None = None
        self.size = 0
        """Bytes that are kept; at most the limit ``responseCacheSize``."""

    def get(self, key: Key) -> Ready | None:
        """What is kept under `key`, if it is still what the URL names; counts as a use."""
        if self._is_past:
            self.flush()
            self._switches, self._under = self._store.switches, self._config()
        ready = self._kept.get(key)
        if ready is None:
            return None
        # Also when the clock was set back: nothing is believed before it was found out.
        if ready.believed_from <= self._clock.seconds() < ready.believed_until:
            self._store.count(ready.result)
        elif not self._is_confirmed(ready):
            self._forget(key)
            return None
        self._kept.move_to_end(key)
        return ready

    def keep(self, key: Key, ready: Ready, lease: Lease) -> Ready:
        """Keep what was just made of `lease`, where `get` had nothing; returns it."""
        ready.believe(lease, self._clock.seconds())
        self._kept[key] = ready
        self.size += ready.cost
        most = self._config().limits.response_cache_size
        while self.size > most:
            self._forget(next(iter(self._kept)))
        return ready

    def flush(self) -> None:
        """Forget all of them."""
        self._kept.clear()
        self.size = 0

    @property
    def _is_past(self) -> bool:
        """Whether a reference was switched, or the configuration, since something was kept."""
        return self._switches != self._store.switches or self._under is not self._config()

    def _is_confirmed(self, ready: Ready) -> bool:
        lease = self._store.lease_at_once(ready.selection.location.reference)
        if lease is None:
            return False
        with lease:
            ready.believe(lease, self._clock.seconds())
            return lease.digest == ready.image

    def _forget(self, key: Key) -> None:
        self.size -= self._kept.pop(key).cost
