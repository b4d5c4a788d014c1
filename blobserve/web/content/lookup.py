"""The lookup of a URL's path in an image, relative to the repository's ``workdir``.

It finds files, index pages, directories to list, the fallback of single-page applications and the
page for missing files, and decides about redirects. It is independent of header fields.
"""

from __future__ import annotations

from typing import Protocol

import attrs

from blobserve.config import RepositoryRules
from blobserve.errors import PathNotFound
from blobserve.names.digest import Digest
from blobserve.store.blobs.filesystem import Filesystem
from blobserve.store.index.entry import Entry, EntryKind
from blobserve.store.lease import Lease
from blobserve.web.content.representation import Role
from blobserve.web.content.rewrite import INDEX
from blobserve.web.http.target import Target, shown


@attrs.frozen
class Page:
    """A file to serve, and its path from the image's root."""

    entry: Entry
    name: bytes
    role: Role = Role.ASKED
    version: Digest | None = None
    """The earlier version that has the file; None for a file of the leased image."""


class EarlierVersions(Protocol):
    """The files of the versions that a tag had before, for one request."""

    def chosen(self, path: bytes) -> Page | None:
        """Return the file at a path in the version that the request asks for, if it has one."""
        ...

    def page(self, path: bytes) -> Page | None:
        """Return the file at a path in the newest version that has it, if it stays reachable."""
        ...


@attrs.frozen
class NeedsSlash:
    """A directory with a URL that needs a slash at its end, or relative links would be wrong."""


@attrs.frozen
class Directory:
    """A directory without an index page, to be shown as a listing."""

    entry: Entry


def find(
    lease: Lease,
    target: Target,
    rules: RepositoryRules,
    is_inlined: bool,
    earlier: EarlierVersions | None = None,
) -> Page | Directory | NeedsSlash:
    """Find the file or directory for `target`.

    A request with inline variables (`is_inlined`) is not redirected from the root. A file that the
    image does not have may be one of `earlier` versions.

    :raises PathNotFound: when there is no such file, and no page for missing files.
    """
    filesystem = lease.filesystem
    path = target.path or b""
    workdir = rules.workdir.encode()
    name, entry = joined(workdir, path), None
    if earlier is not None and (chosen := earlier.chosen(path)) is not None:
        return chosen
    try:
        entry = filesystem.lookup(name)
        return _named(filesystem, target, name, entry, is_inlined, rules.listing)
    except PathNotFound:
        pass
    if earlier is not None and entry is None and (kept := earlier.page(path)) is not None:
        return kept
    last = path.rstrip(b"/").rpartition(b"/")[2]
    if b"." not in last and entry is None:
        page = configured(filesystem, workdir, rules.fallback, Role.FALLBACK)
        if page is not None:
            return page
    page = configured(filesystem, workdir, rules.not_found, Role.NOT_FOUND)
    if page is None:
        raise PathNotFound(shown(path), lease.layers if rules.layers == "first" else 1)
    return page


def _named(
    filesystem: Filesystem,
    target: Target,
    name: bytes,
    entry: Entry,
    is_inlined: bool,
    is_listed: bool,
) -> Page | Directory | NeedsSlash:
    if entry.kind is EntryKind.FILE:
        if target.asks_directory:
            raise PathNotFound(shown(name))
        return Page(entry, name)
    is_bare_root = target.path is None
    if not target.asks_directory and not (is_bare_root and is_inlined):
        return NeedsSlash()
    try:
        return _file(filesystem, joined(name, INDEX), Role.ASKED)
    except PathNotFound:
        if not is_listed:
            raise
    return NeedsSlash() if is_bare_root else Directory(entry)


def configured(filesystem: Filesystem, workdir: bytes, path: str | None, role: Role) -> Page | None:
    """Return the page at a configured path below `workdir`; None if it is not there."""
    try:
        return None if path is None else _file(filesystem, joined(workdir, path.encode()), role)
    except PathNotFound:
        return None


def _file(filesystem: Filesystem, name: bytes, role: Role) -> Page:
    entry = filesystem.lookup(name)
    if entry.kind is not EntryKind.FILE:
        raise PathNotFound(shown(name))
    return Page(entry, name, role)


def joined(base: bytes, path: bytes) -> bytes:
    """Return `path` below `base`, both without a slash at either end."""
    return b"/".join(filter(None, (base.strip(b"/"), path.strip(b"/"))))
