"""Earlier versions of tags, and images that were purged. See docs/reference/versions.md.

A version is an image that a tag has served before. Each tag has a short list of them, the newest
first, which the rules bound by number and age. The blobs of these images are evicted after those
that nothing refers to, and before those that tags serve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import attrs
from twisted.logger import Logger

from blobserve.config import KeepVersions, RepositoryRules
from blobserve.errors import MalformedReference, VersionPurged
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference, Repository
from blobserve.store.disk.metadata_db import (
    StoredRows,
    purge_put,
    version_put,
    version_removed,
)

_log = Logger()

MOST_STORED = 20_000
"""Versions of all tags together; beyond that, the oldest is dropped."""


@attrs.frozen
class Version:
    """An image that a tag has served before."""

    digest: Digest
    ended: float
    """When the tag left it, as time of day in seconds since 1970."""
    parts: tuple[Digest, ...] = ()
    """Its layers and merged index; empty until its manifest has been read."""

    def is_within(self, keep: KeepVersions, now: float) -> bool:
        """Return whether it is not too old."""
        return now - self.ended <= keep.seconds


class KeptParts(Mapping[Digest, float]):
    """The blobs of versions, each with the time when the newest version that has it ended."""

    def __init__(self) -> None:
        self._uses: dict[Digest, dict[tuple[Reference, Digest], float]] = {}

    def __getitem__(self, blob: Digest) -> float:
        return max(self._uses[blob].values())

    def __iter__(self) -> Iterator[Digest]:
        return iter(self._uses)

    def __len__(self) -> int:
        return len(self._uses)

    def __contains__(self, blob: object) -> bool:
        return blob in self._uses

    def add(self, tag: Reference, version: Version) -> None:
        """Add the blobs of a version."""
        for part in version.parts:
            self._uses.setdefault(part, {})[tag, version.digest] = version.ended

    def remove(self, tag: Reference, version: Version) -> None:
        """Remove the blobs of a version."""
        for part in version.parts:
            uses = self._uses[part]
            del uses[tag, version.digest]
            if not uses:
                del self._uses[part]

    def users(self, blob: Digest) -> list[tuple[Reference, Digest]]:
        """Return the tags and digests of all versions that have a blob."""
        return list(self._uses.get(blob, ()))


class Versions:
    """The earlier versions of all tags, in memory and, a little later, on disk."""

    def __init__(
        self,
        rows: StoredRows,
        rules: Callable[[Repository], RepositoryRules | None],
        wall: Callable[[], float],
    ) -> None:
        """`wall` returns the time of day, in seconds since 1970."""
        self.parts = KeptParts()
        """The blobs of all versions."""
        self.on_change: Callable[[Reference], object] = lambda tag: None
        """Called with each tag that has other versions than before."""
        self._rows = rows
        self._rules = rules
        self._wall = wall
        self._of: dict[Reference, tuple[Version, ...]] = {}
        self._count = 0

    def load(self) -> None:
        """Load the stored versions. Their parts are unknown until `describe`."""
        for digest, text, ended in self._rows.versions:
            try:
                tag = Reference.from_key(text)
            except MalformedReference as error:
                _log.warn("the blob space has a malformed reference: {error}", error=error)
                self._rows.put(("version", text, digest), version_removed(text, digest))
            else:
                self._of[tag] = (*self._of.get(tag, ()), Version(digest, ended))
                self._count += 1
        self._rows.versions = []
        self.trim()

    def tags(self) -> list[Reference]:
        """Return every tag that has versions."""
        return list(self._of)

    def digests(self) -> set[Digest]:
        """Return the images of all versions."""
        return {each.digest for versions in self._of.values() for each in versions}

    def of(self, tag: Reference, keep: KeepVersions | None = None) -> tuple[Version, ...]:
        """Return the versions of a tag, the newest first; with `keep`, only those that it keeps."""
        versions = self._of.get(tag, ())
        if not versions or keep is None:
            return versions
        # Versions are ordered by age, so only the last ones can be too old.
        versions, now = versions[: keep.count], self._wall()
        while versions and not versions[-1].is_within(keep, now):
            versions = versions[:-1]
        return versions

    def has(self, tag: Reference, digest: Digest) -> bool:
        """Return whether an image is an earlier version of a tag."""
        return any(each.digest == digest for each in self._of.get(tag, ()))

    def replaced(self, tag: Reference, former: Version | None, current: Digest) -> None:
        """Note that a tag has switched: `former` is no longer current, and `current` is."""
        kept = [each for each in self._of.get(tag, ()) if each.digest != current]
        if former is not None and former.digest != current:
            kept = [former, *(each for each in kept if each.digest != former.digest)]
        self._set(tag, kept)
        while self._count > MOST_STORED:
            oldest = min(self._of, key=lambda each: self._of[each][-1].ended)
            self._set(oldest, self._of[oldest][:-1])

    def describe(self, tag: Reference, digest: Digest, parts: tuple[Digest, ...]) -> None:
        """Set the parts of a version, when its manifest has been read."""
        versions = self._of.get(tag, ())
        if any(each.digest == digest and each.parts != parts for each in versions):
            self._put(
                tag,
                tuple(
                    attrs.evolve(each, parts=parts) if each.digest == digest else each
                    for each in versions
                ),
            )

    def drop(self, tag: Reference, digest: Digest) -> None:
        """Forget one version of a tag."""
        self._set(tag, [each for each in self._of.get(tag, ()) if each.digest != digest])

    def evicted(self, blobs: Iterable[Digest]) -> None:
        """Forget the versions that have any of these blobs, because the quota took them."""
        for blob in blobs:
            for tag, digest in self.parts.users(blob):
                _log.warn(
                    "{tag}: the earlier version {digest} is no longer kept: "
                    "blobSpace.maxSizeBytes has no space for it",
                    tag=str(tag),
                    digest=str(digest),
                )
                self.drop(tag, digest)

    def trim(self) -> None:
        """Drop all versions that the present rules do not keep."""
        for tag, versions in list(self._of.items()):
            self._set(tag, versions)

    def next_end(self) -> float | None:
        """Return the time of day at which the next version becomes too old; None without any."""
        ends = [
            versions[-1].ended + keep.seconds
            for tag, versions in self._of.items()
            if (keep := self._keep(tag)) is not None
        ]
        return min(ends, default=None)

    def _keep(self, tag: Reference) -> KeepVersions | None:
        rules = self._rules(tag.repository)
        # The versions of a site that the configuration does not have now may be wanted again.
        return KeepVersions() if rules is None else rules.versions

    def _set(self, tag: Reference, versions: Iterable[Version]) -> None:
        """Replace the versions of a tag by those of `versions` that its rules keep."""
        keep, now = self._keep(tag), self._wall()
        kept = () if keep is None else tuple(each for each in versions if each.is_within(keep, now))
        self._put(tag, kept[: keep.count] if keep else ())

    def _put(self, tag: Reference, versions: tuple[Version, ...]) -> None:
        former = self._of.pop(tag, ())
        if versions:
            self._of[tag] = versions
        self._count += len(versions) - len(former)
        for each in former:
            self.parts.remove(tag, each)
        for each in versions:
            self.parts.add(tag, each)
        if former == versions:
            return
        stored = {each.digest: each.ended for each in former}
        for each in versions:
            if stored.pop(each.digest, None) != each.ended:
                change = version_put(tag.key, each.digest, each.ended)
                self._rows.put(("version", tag.key, each.digest), change)
        for digest in stored:
            self._rows.put(("version", tag.key, digest), version_removed(tag.key, digest))
        self.on_change(tag)


class Purges:
    """The images that are never served again from a repository, whatever names them."""

    def __init__(self, rows: StoredRows, wall: Callable[[], float]) -> None:
        self._rows = rows
        self._wall = wall
        self._purged: set[tuple[str, Digest]] = set()

    def load(self) -> None:
        """Load the stored purges."""
        self._purged = {(repository, digest) for digest, repository in self._rows.purges}
        self._rows.purges = []

    def covers(self, repository: Repository, digest: Digest | None) -> bool:
        """Return whether an image was purged from a repository, in any scope."""
        return bool(self._purged) and (str(repository), digest) in self._purged

    def refuse(self, reference: Reference, digests: Iterable[Digest]) -> None:
        """Raise `VersionPurged` if one of these images was purged from the repository."""
        if any(self.covers(reference.repository, each) for each in digests):
            raise VersionPurged(str(reference))

    def add(self, repository: Repository, digests: Iterable[Digest]) -> None:
        """Purge images from a repository."""
        for digest in digests:
            self._purged.add((str(repository), digest))
            change = purge_put(digest, str(repository), self._wall())
            self._rows.put(("purge", str(repository), digest), change)
