"""Provenance: the repositories through which each manifest and layer was verified.

A digest is no secret, so knowing one gives no right to the content. A repository is served content
only after its own registry, or its own local source, has given that content out. An entry outlives
a restart, an eviction and an outage of the registry. See docs/reference/images.md, "Sharing by
digest".
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Callable, Iterable

import attrs

from blobserve.config import RepositoryRules
from blobserve.names.digest import Digest
from blobserve.names.reference import Repository
from blobserve.store.disk.metadata_db import WriteBehind, provenance_put, provenance_removed

MOST_LISTED = 50_000
"""Entries of listed repositories; beyond that the least recently used is dropped."""

MOST_ANONYMOUS = 10_000
"""Entries of repositories that are not listed."""

MOST_ANONYMOUS_OF_ONE = 64
"""Entries of repositories that are not listed, for one digest."""


class Access(enum.IntEnum):
    """The way in which a repository proved its content. A higher value covers the lower ones."""

    NONE = 0
    """Not at all."""
    REMEMBERED = 1
    """A tag of the repository pointed there, in metadata of a release without provenance."""
    LISTED = 2
    """A listed repository, with its credentials: its source gave the content or says it has it."""
    ANONYMOUS = 3
    """The registry gave out the content without credentials, and its bytes were verified."""

    @classmethod
    def needed(cls, rules: RepositoryRules) -> Access:
        """Return the lowest access that a repository under these rules must have proved."""
        return cls.LISTED if rules.listed else cls.ANONYMOUS


_Key = tuple[Digest, str]


@attrs.define
class _Entries:
    """Entries of one kind, the longest unused first."""

    access: Access
    most: int
    most_of_one: int
    _keys: OrderedDict[_Key, None] = attrs.field(factory=OrderedDict, init=False)
    _repositories: dict[Digest, OrderedDict[str, None]] = attrs.field(factory=dict, init=False)

    def use(self, key: _Key) -> bool:
        """Return whether the entry exists; this counts as a use."""
        if key not in self._keys:
            return False
        self._keys.move_to_end(key)
        self._repositories[key[0]].move_to_end(key[1])
        return True

    def add(self, key: _Key) -> _Key | None:
        """Add an entry that does not exist; return the one that is dropped for it, if any."""
        digest, repository = key
        of_one = self._repositories.setdefault(digest, OrderedDict())
        self._keys[key] = of_one[repository] = None
        if len(of_one) > self.most_of_one:
            dropped = digest, next(iter(of_one))
        elif len(self._keys) > self.most:
            dropped = next(iter(self._keys))
        else:
            return None
        self._remove(dropped)
        return dropped

    def _remove(self, key: _Key) -> None:
        digest, repository = key
        del self._keys[key]
        of_one = self._repositories[digest]
        del of_one[repository]
        if not of_one:
            del self._repositories[digest]


class Provenance:
    """The entries of one blob space, in memory and, a little later, in the metadata database."""

    def __init__(self, behind: WriteBehind, seconds: Callable[[], float]) -> None:
        self._behind = behind
        self._seconds = seconds
        self._kinds = (
            _Entries(Access.LISTED, MOST_LISTED, MOST_LISTED),
            _Entries(Access.ANONYMOUS, MOST_ANONYMOUS, MOST_ANONYMOUS_OF_ONE),
        )

    def load(self, rows: Iterable[tuple[Digest, str, int]]) -> None:
        """Load the entries of the metadata database; `rows` are ordered by age, oldest first."""
        for digest, repository, access in rows:
            for kind in self._kinds:
                if kind.access == access:
                    self._add(kind, (digest, repository))

    def covers(self, digest: Digest, repository: Repository, access: Access) -> bool:
        """Return whether the repository has shown this content in this way, or in a stricter one.

        This counts as a use of the entry.
        """
        key = digest, repository.key
        return any(kind.use(key) for kind in self._kinds if kind.access >= access)

    def record(self, digest: Digest, repository: Repository, access: Access) -> None:
        """Record that the repository has just shown this content in this way."""
        key = digest, repository.key
        for kind in self._kinds:
            if kind.access == access and not kind.use(key):
                change = provenance_put(*key, access, self._seconds())
                self._behind.put(("provenance", *key, access), change)
                self._add(kind, key)

    def _add(self, kind: _Entries, key: _Key) -> None:
        dropped = kind.add(key)
        if dropped is not None:
            change = provenance_removed(*dropped, kind.access)
            self._behind.put(("provenance", *dropped, kind.access), change)
