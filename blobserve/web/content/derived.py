"""Views: bytes that are computed from an image, and what names them.

What a view shows of an entry is its recipe: another recipe is another view. Made in threads, once
however many ask, kept in memory up to a bound, forgotten by last use. Knows nothing of any recipe.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable
from contextlib import closing
from functools import partial
from typing import Protocol

import attrs

from blobserve.concurrency.singleflight import SingleFlight
from blobserve.names.digest import Digest
from blobserve.store.blobs.filesystem import Filesystem
from blobserve.store.index.entry import Entry
from blobserve.store.lease import Lease
from blobserve.web.content.leased_body import SharedLease
from blobserve.web.content.representation import Variant
from blobserve.web.http.caching import entity_tag

CAPACITY = 64 << 20
"""Bytes of views that are kept."""

_OVERHEAD = 512


@attrs.frozen
class DerivedContent:
    """The bytes that are shown, and what names them."""

    content: bytes = attrs.field(repr=False)
    variant: Variant

    @classmethod
    def of(cls, content: bytes) -> DerivedContent:
        """A view of these bytes. Hashes them."""
        return cls(content, Variant(len(content), entity_tag(hashlib.sha256(content).digest())))


class Recipe(Hashable, Protocol):
    """How a view is made of an entry; equal ones make the same bytes of the same entry."""

    @property
    def size(self) -> int:
        """Bytes that the recipe itself takes."""
        ...

    def fetched(self, entry: Entry) -> int:
        """Return how many bytes of an entry `make` needs."""
        ...

    def make(self, filesystem: Filesystem, entry: Entry, content: bytes) -> DerivedContent:
        """Make the view; blocks. `content` is the first `fetched` bytes of the entry."""
        ...


_Key = tuple[Digest, bytes, Recipe]


class DerivedCache:
    """The views that are kept, and those being made."""

    def __init__(self) -> None:
        self._kept: OrderedDict[_Key, DerivedContent] = OrderedDict()
        self.size = 0
        """Bytes that are kept; at most `CAPACITY`."""
        self._making: SingleFlight[_Key, DerivedContent] = SingleFlight()

    async def view(self, hold: SharedLease, entry: Entry, recipe: Recipe) -> DerivedContent:
        """An entry as `recipe` shows it. Raises what making it raises."""
        kept = self.kept(hold.lease, entry, recipe)
        if kept is not None:
            return kept
        if not hold.lease.filesystem.is_complete:
            # The layer is not verified as a whole, so the result is not cached.
            return await _made(hold, entry, recipe)
        key = _key(hold.lease, entry, recipe)
        making = self._making.get(key) or self._making.start(
            key,
            lambda _: _made(hold, entry, recipe),
            lambda view: self._keep(key, view),
        )
        return await making.wait()

    def kept(self, lease: Lease, entry: Entry, recipe: Recipe) -> DerivedContent | None:
        """The same, if it has been made and is still kept."""
        key = _key(lease, entry, recipe)
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
        return kept

    def flush(self) -> None:
        """Forget all of them."""
        self._kept.clear()
        self.size = 0

    def _keep(self, key: _Key, view: DerivedContent) -> None:
        self._kept[key] = view
        self.size += _cost(key, view)
        while self.size > CAPACITY:
            self.size -= _cost(*self._kept.popitem(last=False))


def _key(lease: Lease, entry: Entry, recipe: Recipe) -> _Key:
    return (lease.filesystem.digest, entry.path, recipe)


def _cost(key: _Key, view: DerivedContent) -> int:
    return len(view.content) + key[2].size + _OVERHEAD


async def _made(hold: SharedLease, entry: Entry, recipe: Recipe) -> DerivedContent:
    filesystem, size = hold.lease.filesystem, recipe.fetched(entry)
    make = partial(recipe.make, filesystem, entry)
    # The request that started this may end before its other waiters do.
    hold.acquire()
    try:
        if not size:
            return await hold.run(make, b"")
        with closing(filesystem.file(entry)) as file:
            return await file.apply(make, size, hold)
    finally:
        hold.release()
