"""A cache of small responses: heads and bodies in memory.

An LRU cache keyed by everything in a request that affects the response; cleared on reload. An entry
is valid for a second, or until any reference switches to another image. After that the image is
leased again, to find out whether the URL still means it. Each use of an entry counts as a use of
its image, which would otherwise be evicted as unused.
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
from blobserve.store.refs.versions import Version
from blobserve.store.refstore import RefStore
from blobserve.web.content.representation import Representation
from blobserve.web.content.site_fields import dressed
from blobserve.web.http.conditional import ALL, UNCHANGED, Fields, Verdict
from blobserve.web.http.header_changes import HeaderChanges
from blobserve.web.http.mount import Mount
from blobserve.web.http.request_head import FieldBlock
from blobserve.web.http.response import Answer, BytesBody, ResponseHead

LARGEST = 64 * 1024
"""The largest body that is cached, in bytes."""

_VALID_SECONDS = 1.0
_MOST_TOO_LARGE = 1024
_OVERHEAD = 2048
"""The estimated size of an entry without its body, in bytes."""

Key = tuple[str, bytes, tuple[bytes, ...]]
"""The name of a mount, the path of a URL below it, and the accepted codings, best first."""


@attrs.define(eq=False)
class CachedResponse:
    """A representation, its body in memory, and the image that contains it."""

    shown: Representation
    content: bytes | None = attrs.field(repr=False)
    """The body. None while only the head is cached; `ResponseCache.get` reads it again."""
    source: Entry | None
    """The entry from which the body can be read again; None if there is none."""
    rules: RepositoryRules
    reference: Reference
    image: Digest
    """The image that the reference stood for."""
    mount: Mount
    changes: HeaderChanges | None
    """The changes that the site's ``_headers`` make."""
    version: Digest | None = None
    """The earlier version that has the file; None for a file of `image`."""
    kept: tuple[Version, ...] | None = None
    """The earlier versions of the tag that the response depends on; None if it depends on none."""
    digest: str = attrs.field(init=False)
    """The text of `version` or `image`."""
    touch: Callable[[], None] | None = attrs.field(init=False, default=None, repr=False)
    """Counts a use of the image, see `RefStore.touch_for`; None until it is needed."""
    result: Result = "hit"
    _valid_from: float = 0.0
    _valid_until: float = 0.0
    _valid_switches: int = 0
    _all: ResponseHead | None = None
    _unchanged: ResponseHead | None = None

    def __attrs_post_init__(self) -> None:
        """Set the attributes that depend on others."""
        self.digest = str(self.version or self.image)

    @property
    def source_reference(self) -> Reference:
        """The reference of the image that has the file."""
        return self.reference.at(self.version) if self.version else self.reference

    def is_valid(self, now: float, switches: int) -> bool:
        """Return whether the response is valid without another lease of its image.

        `switches` is the current value of `ReferenceTable.switches`.
        """
        # The lower bound matters if the clock was set back.
        is_recent = self._valid_from <= now < self._valid_until
        return is_recent and switches == self._valid_switches

    def renew(self, lease: Lease, now: float, switches: int) -> None:
        """Renew the validity by a lease that was just granted."""
        self._valid_switches = switches
        self.touch = None
        self.result = "stale" if lease.result == "stale" else "hit"
        self._valid_from = now
        self._valid_until = min(now + _VALID_SECONDS, lease.trusted_until)

    def respond(self, method: bytes, block: FieldBlock) -> tuple[int, ResponseHead, bytes]:
        """Return the status, the head and the body of the response to a GET or HEAD."""
        verdict = self.shown.judge(method, block.fields) if block.is_conditional else ALL
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
        """Return the same response as a value, without the fields of the repository's rules."""
        return self.shown.answer(method, fields, BytesBody(self.content or b""))

    def _respond(self, method: bytes, answer: Answer) -> tuple[int, ResponseHead, bytes]:
        extent = answer.extent
        body = answer.body.read_cached(extent.start, extent.length) if method == b"GET" else None
        return answer.status, ResponseHead.of(answer), body or b""

    def _head(self, verdict: Verdict) -> ResponseHead:
        return ResponseHead.of(self._answer(verdict))

    def _answer(self, verdict: Verdict) -> Answer:
        answer = self.shown.answer_to(verdict, BytesBody(self.content or b""))
        if self.mount.site is not None:
            answer = dressed(answer, self.changes, self.mount)
        return answer.with_rules(self.rules)


def read_whole(lease: Lease, entry: Entry) -> bytes | None:
    """Return all bytes of a file if it is small and in memory."""
    if entry.size > LARGEST:
        return None
    content = lease.filesystem.file(entry).read_cached(0, entry.size)
    return content if content is not None and len(content) == entry.size else None


class ResponseCache:
    """The cache. It may hold a head without its body."""

    def __init__(self, store: RefStore, config: Callable[[], Config], clock: IReactorTime) -> None:
        self._store = store
        self._config = config
        self._clock = clock
        self._entries: OrderedDict[Key, CachedResponse] = OrderedDict()
        self._with_body: OrderedDict[Key, CachedResponse] = OrderedDict()
        self._too_large: OrderedDict[Key, None] = OrderedDict()
        self._switches = 0
        self._config_used: Config | None = None
        self.size = 0
        """The size in bytes; above ``limits.responseCacheSize`` only if there is a single entry."""

    def is_too_large(self, key: Key) -> bool:
        """Return whether the response for `key` is known to be too large for the cache."""
        return key in self._too_large

    def note_too_large(self, key: Key) -> None:
        """Remember that the response for `key` is too large for the cache."""
        self._too_large[key] = None
        if len(self._too_large) > _MOST_TOO_LARGE:
            self._too_large.popitem(last=False)

    def get(self, key: Key, now: float) -> CachedResponse | None:
        """Return the response for `key` if it is cached and still valid. Counts as a use.

        :param now: the time by the reactor's clock.
        """
        config = self._config()
        if self._config_used is not config:
            self.flush()
            self._config_used = config
        switches = self._store.references.switches
        if self._switches != switches:
            self._too_large.clear()
            self._switches = switches
        cached = self._entries.get(key)
        if cached is None:
            return None
        if cached.content is not None and cached.is_valid(now, switches):
            self._with_body.move_to_end(key)
            if cached.touch is None:
                cached.touch = self._store.touch_for(cached.source_reference)
            cached.touch()
        elif not self._is_revalidated(key, cached):
            self._remove(key)
            return None
        self._entries.move_to_end(key)
        self._store.count(cached.result)
        return cached

    def add(self, key: Key, cached: CachedResponse, lease: Lease) -> CachedResponse:
        """Cache and return a response that was just made from `lease`, after a miss in `get`."""
        self._renew(cached, lease)
        self._entries[key] = cached
        self.size += _OVERHEAD
        self._add_body(key, cached)
        return cached

    def flush(self) -> None:
        """Clear the cache."""
        self._entries.clear()
        self._with_body.clear()
        self._too_large.clear()
        self.size = 0

    def _is_revalidated(self, key: Key, cached: CachedResponse) -> bool:
        """Lease the image again; return whether it is the same one and the body is in memory."""
        lease = self._store.lease_at_once(cached.reference)
        if lease is None:
            return False
        with lease:
            self._renew(cached, lease)
            # Usually it is the same object. Comparing two takes ten times as long.
            if lease.digest is not cached.image and lease.digest != cached.image:
                return False
            if not self._has_versions(cached):
                return False
            if cached.version is None:
                return self._has_body(key, cached, lease)
        version = self._store.version_at_once(cached.reference, cached.version)
        if version is None:
            return False
        with version:
            return self._has_body(key, cached, version)

    def _has_versions(self, cached: CachedResponse) -> bool:
        """Return whether the tag has the same earlier versions as when the response was made."""
        if cached.kept is None:
            return True
        versions = self._store.references.versions
        return versions.of(cached.reference, cached.rules.versions) == cached.kept

    def _has_body(self, key: Key, cached: CachedResponse, lease: Lease) -> bool:
        """Return whether the body is in memory, after reading it again from its image."""
        if cached.content is None and cached.source is not None:
            cached.content = read_whole(lease, cached.source)
            self._add_body(key, cached)
        return cached.content is not None

    def _renew(self, cached: CachedResponse, lease: Lease) -> None:
        cached.renew(lease, self._clock.seconds(), self._store.references.switches)

    def _add_body(self, key: Key, cached: CachedResponse) -> None:
        if cached.content is None:
            return
        self._with_body[key] = cached
        self.size += len(cached.content)
        limit = self._config().limits.response_cache_size
        while self.size > limit and len(self._entries) > 1:
            # Bodies are evicted first: reading one again costs less than making a new head.
            if len(self._with_body) > 1 and _OVERHEAD * len(self._entries) <= limit * 3 // 4:
                self._drop_body(next(iter(self._with_body)))
            else:
                self._remove(next(iter(self._entries)))

    def _drop_body(self, key: Key) -> None:
        cached = self._with_body.pop(key)
        self.size -= len(cached.content or b"")
        cached.content = None

    def _remove(self, key: Key) -> None:
        if key in self._with_body:
            self._drop_body(key)
        del self._entries[key]
        self.size -= _OVERHEAD
