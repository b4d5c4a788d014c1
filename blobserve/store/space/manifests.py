"""Stored manifests: checked by digest at each read, and removed when no reference needs them.

A pull does not fail if its manifest cannot be stored: the manifest is fetched again. Together they
take at most a fixed share of the quota.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import attrs
from twisted.logger import Logger

from blobserve.config import MIB, Limits
from blobserve.errors import BadImage, BlobserveError
from blobserve.names.digest import Digest
from blobserve.oci.manifest import ImageIndex, parse
from blobserve.oci.source import Document
from blobserve.store.disk.directory import SpaceDirectory
from blobserve.store.disk.disk_errors import is_lost
from blobserve.store.disk.files import blocks, read, write
from blobserve.store.disk.metadata_db import MetadataDb, manifest_put, manifest_removed

if TYPE_CHECKING:
    from blobserve.concurrency.threads import Threads
    from blobserve.store.space.quota import Allocator, Quota

_log = Logger()

_SHARE = 8  # The part of the quota that manifests may take: one eighth.
_SHARE_UNBOUNDED = 64 * MIB


@attrs.frozen
class StoredManifest:
    """A manifest that is on disk."""

    digest: Digest
    media_type: str
    size: int
    """Bytes it is charged with."""
    children: tuple[Digest, ...]
    """The manifests that it lists, if it is an index."""


class ManifestFiles:
    """The files under ``manifests`` and their rows in the metadata. Every method blocks."""

    def __init__(
        self, location: SpaceDirectory, state: MetadataDb, limits: Callable[[], Limits]
    ) -> None:
        self._location = location
        self._state = state
        self._limits = limits

    def survey(self) -> list[StoredManifest]:
        """Return every manifest, the oldest first; remove damaged ones."""
        media_types = dict(self._state.manifests())
        found = {}
        for digest in self._location.manifests():
            content = self.read(digest)
            if content is not None:
                found[digest] = self._stored(digest, content, media_types.get(digest, ""))
        self._state.change(*(manifest_removed(each) for each in media_types if each not in found))
        known = [found.pop(digest) for digest in media_types if digest in found]
        return [*found.values(), *known]

    def read(self, digest: Digest) -> bytes | None:
        """Return a manifest's bytes; if they do not match the digest, remove it and return None."""
        path = self._location.manifest(digest)
        self._location.check(path)
        try:
            content = read(path, self._limits().manifest_size)
        except FileNotFoundError:
            return None
        except OSError as error:
            # A link or a directory in its place is damage, too.
            if not is_lost(error) and error.errno not in (errno.ELOOP, errno.EISDIR):
                raise
            content = b""
        if Digest.of(content, digest.algorithm) == digest:
            return content
        _log.warn("the stored manifest {digest} is damaged: removed", digest=str(digest))
        self._location.discard(path)
        return None

    def write(self, document: Document, now: float) -> StoredManifest:
        """Store a manifest by one rename."""
        made = self._location.new_ingest()
        try:
            write(made / "manifest", document.content)
            self._location.publish(made / "manifest", self._location.manifest(document.digest))
        finally:
            self._location.dispose(made)
        try:
            self._state.change(manifest_put(document.digest, document.media_type, now))
        except sqlite3.Error:
            # Without a row its media type is lost at a restart, and it is not counted.
            self._location.discard(self._location.manifest(document.digest))
            raise
        return self._stored(document.digest, document.content, document.media_type)

    def remove(self, digests: Iterable[Digest]) -> None:
        """Remove manifests."""
        for digest in digests:
            self._location.discard(self._location.manifest(digest))
            self._state.change(manifest_removed(digest))

    def _stored(self, digest: Digest, content: bytes, media_type: str) -> StoredManifest:
        return StoredManifest(
            digest, media_type, blocks(len(content)), self._children(content, media_type)
        )

    def _children(self, content: bytes, media_type: str) -> tuple[Digest, ...]:
        try:
            document = parse(content, media_type, self._limits())
        except BadImage:
            return ()
        if not isinstance(document, ImageIndex):
            return ()
        return tuple(each.digest for each in document.manifests)


class Manifests:
    """The manifests of a blob space."""

    def __init__(
        self,
        files: ManifestFiles,
        threads: Threads,
        allocator: Allocator,
        quota: Quota,
        seconds: Callable[[], float],
    ) -> None:
        self._files = files
        self._threads = threads
        self._allocator = allocator
        self._quota = quota
        self._seconds = seconds
        self._stored: dict[Digest, StoredManifest] = {}
        self._size = 0
        self._being_stored: set[Digest] = set()
        self._unneeded: frozenset[Digest] = frozenset()

    def load(self, found: Iterable[StoredManifest]) -> None:
        """Register and count the manifests that are on disk."""
        for stored in found:
            self._add(stored)
            self._quota.take(stored.size)

    async def put(self, document: Document) -> None:
        """Store a manifest that has been verified, if it fits."""
        size = blocks(len(document.content))
        limit = self._quota.limit
        share = _SHARE_UNBOUNDED if limit is None else limit // _SHARE
        if document.digest in self._stored or document.digest in self._being_stored or size > share:
            return
        self._being_stored.add(document.digest)
        try:
            while self._size + size > share and self._stored:
                await self._remove([next(iter(self._stored))])
            await self._allocator.reserve(None, size)
            try:
                self._add(await self._threads.run(self._files.write, document, self._seconds()))
            except BaseException:
                self._quota.give(size)
                raise
        except (BlobserveError, OSError, sqlite3.Error) as error:
            _log.info("{digest} is not stored: {error}", digest=str(document.digest), error=error)
        finally:
            self._being_stored.remove(document.digest)

    async def get(self, digest: Digest) -> Document | None:
        """Return a stored manifest, checked by its digest; None if it is missing or damaged."""
        stored = self._stored.get(digest)
        if stored is None:
            return None
        try:
            content = await self._threads.run(self._files.read, digest)
        except OSError as error:
            _log.warn("{digest} cannot be read: {error}", digest=str(digest), error=error)
            return None
        if content is None:
            await self._remove([digest])
            return None
        return Document(digest, stored.media_type, content)

    def below(self, digest: Digest) -> set[Digest]:
        """Return a manifest and all manifests that it lists, as far as they are known."""
        stored = self._needed([digest])
        return {digest, *stored, *(each for one in stored for each in self._stored[one].children)}

    async def reclaim(self, roots: Iterable[Digest]) -> None:
        """Remove manifests that no root needs, neither now nor at the previous call.

        One call is not enough: a manifest is stored before a reference to it is.
        """
        idle = frozenset(self._stored) - self._needed(roots)
        unneeded, self._unneeded = self._unneeded & idle, idle
        await self._remove(unneeded)

    def _needed(self, roots: Iterable[Digest]) -> set[Digest]:
        needed: set[Digest] = set()
        queue = list(roots)
        while queue:
            digest = queue.pop()
            stored = self._stored.get(digest)
            if stored is not None and digest not in needed:
                needed.add(digest)
                queue += stored.children
        return needed

    def _add(self, stored: StoredManifest) -> None:
        self._stored[stored.digest] = stored
        self._size += stored.size

    async def _remove(self, digests: Iterable[Digest]) -> None:
        removed = [self._stored.pop(digest) for digest in digests if digest in self._stored]
        if not removed:
            return
        size = sum(stored.size for stored in removed)
        self._size -= size
        try:
            await self._threads.run(self._files.remove, [stored.digest for stored in removed])
        except (OSError, sqlite3.Error) as error:
            _log.warn("manifests could not be removed: {error}", error=error)
        self._quota.give(size)
