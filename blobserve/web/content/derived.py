"""Content that is computed from an image, such as rewritten files and listings.

A `Recipe` computes it in a thread, once for all requests that ask at the same time. An LRU cache
keeps the results, keyed by entry and recipe.
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
"""The size of the cache in bytes."""

_OVERHEAD = 512


@attrs.frozen
class DerivedContent:
    """Computed bytes with their size and entity tag."""

    content: bytes = attrs.field(repr=False)
    variant: Variant

    @classmethod
    def of(cls, content: bytes) -> DerivedContent:
        """Return these bytes with their entity tag. Hashes them."""
        return cls(content, Variant(len(content), entity_tag(hashlib.sha256(content).digest())))


class Recipe(Hashable, Protocol):
    """A computation on an entry. Equal recipes make the same bytes from the same entry."""

    @property
    def size(self) -> int:
        """The size of the recipe itself, in bytes."""
        ...

    def fetched(self, entry: Entry) -> int:
        """Return how many bytes of an entry `make` needs."""
        ...

    def make(self, filesystem: Filesystem, entry: Entry, content: bytes) -> DerivedContent:
        """Compute the content; blocks. `content` is the first `fetched` bytes of the entry."""
        ...


_Key = tuple[Digest, bytes, Recipe]


class DerivedCache:
    """The LRU cache of computed content, with the computations under way."""

    def __init__(self) -> None:
        self._entries: OrderedDict[_Key, DerivedContent] = OrderedDict()
        self.size = 0
        """The size of the cached content in bytes; at most `CAPACITY`."""
        self._making: SingleFlight[_Key, DerivedContent] = SingleFlight()

    async def get(self, shared: SharedLease, entry: Entry, recipe: Recipe) -> DerivedContent:
        """Return the content that `recipe` makes from an entry.

        :raises Exception: the error of `Recipe.make`.
        """
        cached = self.cached(shared.lease, entry, recipe)
        if cached is not None:
            return cached
        if not shared.lease.filesystem.is_complete:
            # The layer is not verified as a whole, so the result is not cached.
            return await _made(shared, entry, recipe)
        key = _key(shared.lease, entry, recipe)
        making = self._making.get(key) or self._making.start(
            key,
            lambda _: _made(shared, entry, recipe),
            lambda content: self._add(key, content),
        )
        return await making.wait()

    def cached(self, lease: Lease, entry: Entry, recipe: Recipe) -> DerivedContent | None:
        """Return the content if it is cached."""
        key = _key(lease, entry, recipe)
        cached = self._entries.get(key)
        if cached is not None:
            self._entries.move_to_end(key)
        return cached

    def flush(self) -> None:
        """Clear the cache."""
        self._entries.clear()
        self.size = 0

    def _add(self, key: _Key, content: DerivedContent) -> None:
        self._entries[key] = content
        self.size += _cost(key, content)
        while self.size > CAPACITY:
            self.size -= _cost(*self._entries.popitem(last=False))


def _key(lease: Lease, entry: Entry, recipe: Recipe) -> _Key:
    return (lease.filesystem.digest, entry.path, recipe)


def _cost(key: _Key, content: DerivedContent) -> int:
    return len(content.content) + key[2].size + _OVERHEAD


async def _made(shared: SharedLease, entry: Entry, recipe: Recipe) -> DerivedContent:
    filesystem, size = shared.lease.filesystem, recipe.fetched(entry)
    make = partial(recipe.make, filesystem, entry)
    # The request that started the computation may end before the requests that wait for it.
    shared.acquire()
    try:
        if not size:
            return await shared.run(make, b"")
        with closing(filesystem.file(entry)) as file:
            return await file.apply(make, size, shared)
    finally:
        shared.release()
