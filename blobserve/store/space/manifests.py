"""Manifests on disk: small, checked again whenever they are read, gone when nothing needs them.

A manifest that cannot be kept is not worth failing a pull for: it is fetched again. Together they
take at most a fixed share of the bound.
"""

from __future__ import annotations

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
    from blobserve.store.space.allocator import Allocator
    from blobserve.store.space.quota import Quota

_log = Logger()

_SHARE = 8
_SHARE_UNBOUNDED = 64 * MIB


@attrs.frozen
class StoredManifest:
    """A manifest that is on disk."""

    digest: Digest
    media_type: str
    size: int
    """Bytes it is charged with."""
    children: tuple[Digest, ...]
    """What it lists, if it is an index."""


class ManifestFiles:
    """The files under ``manifests`` and their rows in the state. Every method blocks."""

    def __init__(
        self, location: SpaceDirectory, state: MetadataDb, limits: Callable[[], Limits]
    ) -> None:
        self._location = location
        self._state = state
        self._limits = limits

    def survey(self) -> list[StoredManifest]:
        """Every manifest that is here, the longest kept first; damaged ones are removed."""
        media_types = dict(self._state.manifests())
        found = {}
        for digest in self._location.manifests():
            content = self.read(digest)
            if content is not None:
                found[digest] = self._held(digest, content, media_types.get(digest, ""))
        self._state.change(*(manifest_removed(each) for each in media_types if each not in found))
        known = [found.pop(digest) for digest in media_types if digest in found]
        return [*found.values(), *known]

    def read(self, digest: Digest) -> bytes | None:
        """The manifest's bytes; None, and no file any more, when they are not what they were."""
        path = self._location.manifest(digest)
        try:
            content = read(path, self._limits().manifest_size)
        except FileNotFoundError:
            return None
        except OSError as error:
            if not is_lost(error):
                raise
            content = b""
        if Digest.of(content, digest.algorithm) == digest:
            return content
        _log.warn("the stored manifest {digest} is damaged: removed", digest=str(digest))
        self._location.discard(path)
        return None

    def write(self, document: Document, now: float) -> StoredManifest:
        """Keep a manifest, by one rename."""
        made = self._location.new_ingest()
        try:
            write(made / "manifest", document.content)
            self._location.publish(made / "manifest", self._location.manifest(document.digest))
        finally:
            self._location.dispose(made)
        try:
            self._state.change(manifest_put(document.digest, document.media_type, now))
        except sqlite3.Error:
            # Nobody could tell what it is after a restart, and it is not counted.
            self._location.discard(self._location.manifest(document.digest))
            raise
        return self._held(document.digest, document.content, document.media_type)

    def remove(self, digests: Iterable[Digest]) -> None:
        """Remove manifests."""
        for digest in digests:
            self._location.discard(self._location.manifest(digest))
            self._state.change(manifest_removed(digest))

    def _held(self, digest: Digest, content: bytes, media_type: str) -> StoredManifest:
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
        self, files: ManifestFiles, threads: Threads, room: Allocator, bound: Quota
    ) -> None:
        self._files = files
        self._threads = threads
        self._room = room
        self._bound = bound
        self._held: dict[Digest, StoredManifest] = {}
        self._size = 0
        self._coming: set[Digest] = set()
        self._doomed: frozenset[Digest] = frozenset()

    def load(self, found: Iterable[StoredManifest]) -> None:
        """Take up what is on disk."""
        for held in found:
            self._add(held)
            self._bound.take(held.size)

    async def put(self, document: Document, now: float) -> None:
        """Keep a manifest, if there is room for it."""
        size = blocks(len(document.content))
        limit = self._bound.limit
        share = _SHARE_UNBOUNDED if limit is None else limit // _SHARE
        if document.digest in self._held or document.digest in self._coming or size > share:
            return
        self._coming.add(document.digest)
        try:
            while self._size + size > share and self._held:
                await self._remove([next(iter(self._held))])
            await self._room.reserve(None, size)
            try:
                self._add(await self._threads.run(self._files.write, document, now))
            except BaseException:
                self._bound.give(size)
                raise
        except (BlobserveError, OSError, sqlite3.Error) as error:
            _log.info("{digest} is not kept: {error}", digest=str(document.digest), error=error)
        finally:
            self._coming.remove(document.digest)

    async def get(self, digest: Digest) -> Document | None:
        """A manifest that is here, can be read, and is still what it was."""
        held = self._held.get(digest)
        if held is None:
            return None
        try:
            content = await self._threads.run(self._files.read, digest)
        except OSError as error:
            _log.warn("{digest} cannot be read: {error}", digest=str(digest), error=error)
            return None
        if content is None:
            await self._remove([digest])
            return None
        return Document(digest, held.media_type, content)

    async def reclaim(self, roots: Iterable[Digest]) -> None:
        """Remove what none of `roots` needs, and none needed at the last call either.

        Once is not enough: a manifest is put before anything remembers it.
        """
        idle = frozenset(self._held) - self._needed(roots)
        doomed, self._doomed = self._doomed & idle, idle
        await self._remove(doomed)

    def _needed(self, roots: Iterable[Digest]) -> set[Digest]:
        needed: set[Digest] = set()
        todo = list(roots)
        while todo:
            digest = todo.pop()
            held = self._held.get(digest)
            if held is not None and digest not in needed:
                needed.add(digest)
                todo += held.children
        return needed

    def _add(self, held: StoredManifest) -> None:
        self._held[held.digest] = held
        self._size += held.size

    async def _remove(self, digests: Iterable[Digest]) -> None:
        gone = [self._held.pop(digest) for digest in digests if digest in self._held]
        if not gone:
            return
        size = sum(held.size for held in gone)
        self._size -= size
        try:
            await self._threads.run(self._files.remove, [held.digest for held in gone])
        except (OSError, sqlite3.Error) as error:
            _log.warn("manifests could not be removed: {error}", error=error)
        self._bound.give(size)
