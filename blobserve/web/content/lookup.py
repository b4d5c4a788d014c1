"""Pages: which entry of an image a URL's path means.

Index files, directories to be listed, the fallback of single-page applications, the page for what
is not found, and what is redirected, all relative to the repository's workdir. Knows nothing of
headers.
"""

from __future__ import annotations

import attrs

from blobserve.config import RepositoryRules
from blobserve.errors import PathNotFound
from blobserve.store.blobs.filesystem import Filesystem
from blobserve.store.index.entry import Entry, EntryKind
from blobserve.store.lease import Lease
from blobserve.web.content.representation import Role
from blobserve.web.content.rewrite import INDEX
from blobserve.web.http.target import Target, shown


@attrs.frozen
class Page:
    """A file to serve, and the path it was found under, from the image's root."""

    entry: Entry
    name: bytes
    role: Role = Role.ASKED


@attrs.frozen
class NeedsSlash:
    """A directory whose URL has no slash at its end: its links would lead beside it."""


@attrs.frozen
class Directory:
    """A directory without an index page, whose entries are to be listed."""

    entry: Entry


def find(
    lease: Lease, location: Target, rules: RepositoryRules, is_inlined: bool
) -> Page | Directory | NeedsSlash:
    """What to serve for `location`; `is_inlined` requests are never redirected from the root.

    :raises PathNotFound: when there is nothing, not even a page that says so.
    """
    filesystem = lease.filesystem
    path = location.path or b""
    base = rules.workdir.encode()
    name, entry = _joined(base, path), None
    try:
        entry = filesystem.lookup(name)
        return _asked(filesystem, location, name, entry, is_inlined, rules.listing)
    except PathNotFound:
        pass
    last = path.rstrip(b"/").rpartition(b"/")[2]
    if b"." not in last and entry is None:
        page = _configured(filesystem, base, rules.fallback, Role.FALLBACK)
        if page is not None:
            return page
    page = _configured(filesystem, base, rules.not_found, Role.NOT_FOUND)
    if page is None:
        raise PathNotFound(shown(path), lease.layers if rules.layers == "first" else 1)
    return page


def _asked(
    filesystem: Filesystem,
    location: Target,
    name: bytes,
    entry: Entry,
    is_inlined: bool,
    is_listed: bool,
) -> Page | Directory | NeedsSlash:
    if entry.kind is EntryKind.FILE:
        if location.asks_directory:
            raise PathNotFound(shown(name))
        return Page(entry, name)
    is_bare_root = location.path is None
    if not location.asks_directory and not (is_bare_root and is_inlined):
        return NeedsSlash()
    try:
        return _file(filesystem, _joined(name, INDEX), Role.ASKED)
    except PathNotFound:
        if not is_listed:
            raise
    return NeedsSlash() if is_bare_root else Directory(entry)


def _configured(filesystem: Filesystem, base: bytes, path: str | None, role: Role) -> Page | None:
    try:
        return None if path is None else _file(filesystem, _joined(base, path.encode()), role)
    except PathNotFound:
        return None


def _file(filesystem: Filesystem, name: bytes, role: Role) -> Page:
    entry = filesystem.lookup(name)
    if entry.kind is not EntryKind.FILE:
        raise PathNotFound(shown(name))
    return Page(entry, name, role)


def _joined(base: bytes, path: bytes) -> bytes:
    return b"/".join(filter(None, (base.strip(b"/"), path.strip(b"/"))))
