"""Pins: images that tags serve whatever their source says, until they are unpinned.

A pin belongs to a name: a site or a tag. A name stands for one tag or several, one for each way in
which the rules choose images, and it may stand for others after a reload.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from twisted.logger import Logger

from blobserve.errors import MalformedReference
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference, Repository
from blobserve.store.disk.metadata_db import StoredRows, pin_put, pin_removed

_log = Logger()

TagsNamed = Callable[[str], "Iterable[Reference]"]
"""A function that returns the tags that a name stands for, by the present configuration.

It raises `MalformedReference` for a name that stands for none.
"""


class Pins:
    """All pins, in memory and, a little later, on disk."""

    def __init__(self, rows: StoredRows, tags_named: TagsNamed, wall: Callable[[], float]) -> None:
        """`wall` returns the time of day, in seconds since 1970."""
        self._rows = rows
        self.tags_named = tags_named
        """Returns the tags that a name stands for now."""
        self._wall = wall
        self._names: dict[str, Digest] = {}
        self._tags: dict[Reference, Digest] = {}

    @property
    def names(self) -> Mapping[str, Digest]:
        """The pinned names, the oldest pin first."""
        return self._names

    @property
    def tags(self) -> Mapping[Reference, Digest]:
        """The pinned tags."""
        return self._tags

    def load(self) -> None:
        """Load the stored pins, and log them."""
        for digest, name in self._rows.pins:
            self._names[name] = digest
            _log.info("{name} is pinned to {digest}", name=name, digest=str(digest))
        self._rows.pins = []
        self.resolve(is_logged=True)

    def get(self, tag: Reference) -> Digest | None:
        """Return the image that a tag is pinned to."""
        return self._tags.get(tag)

    def forbids(self, tag: Reference, digest: Digest) -> bool:
        """Return whether a tag is pinned to another image."""
        return self._tags.get(tag, digest) != digest

    def set(self, name: str, digest: Digest) -> None:
        """Pin a name."""
        self._names.pop(name, None)
        self._names[name] = digest
        self._rows.put(("pin", name), pin_put(name, digest, self._wall()))
        self.resolve()
        _log.info("{name} is pinned to {digest}", name=name, digest=str(digest))

    def remove(self, name: str) -> bool:
        """Remove the pin of a name; return whether it had one."""
        digest = self._names.pop(name, None)
        if digest is None:
            return False
        self._rows.put(("pin", name), pin_removed(name))
        self.resolve()
        _log.info("{name} is no longer pinned to {digest}", name=name, digest=str(digest))
        return True

    def purge(self, repository: Repository, digest: Digest) -> None:
        """Remove the pins of an image in a repository, and those that have no effect now."""
        for name, pinned in list(self._names.items()):
            tags = self._resolved(name)
            if pinned == digest and (not tags or any(_is_in(repository, each) for each in tags)):
                self.remove(name)

    def resolve(self, is_logged: bool = False) -> None:
        """Find the tags of all names anew, because names or the configuration have changed.

        If two names stand for one tag, the pin that was set last counts. If `is_logged`, a line of
        the log names each pin without effect.
        """
        self._tags = {}
        for name, digest in self._names.items():
            tags = self._resolved(name)
            self._tags.update(dict.fromkeys(tags, digest))
            if is_logged and not tags:
                _log.warn("the pin of {name} has no effect: there is no such tag", name=name)

    def _resolved(self, name: str) -> frozenset[Reference]:
        """Return the tags that a name stands for; none if the configuration does not have it."""
        try:
            return frozenset(self.tags_named(name))
        except MalformedReference:
            return frozenset()


def _is_in(repository: Repository, tag: Reference) -> bool:
    return str(tag.repository) == str(repository)
