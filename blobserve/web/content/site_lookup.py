"""The lookup of a URL's path in a site: clean URLs, slashes, 404 pages, single-page applications.

It is independent of header fields, except that a navigation can be a route of an application.
"""

from __future__ import annotations

from typing import TypeAlias

import attrs

from blobserve.config import Site
from blobserve.errors import PathNotFound
from blobserve.store.blobs.filesystem import Filesystem
from blobserve.store.index.entry import Entry, EntryKind
from blobserve.store.lease import Lease
from blobserve.web.content.lookup import Directory, NeedsSlash, Page, configured, joined
from blobserve.web.content.representation import Role
from blobserve.web.content.rewrite import INDEX
from blobserve.web.hosting.rule_match import RULE_FILES
from blobserve.web.http.media_types import is_known
from blobserve.web.http.target import shown

_HTML = b".html"
_MISSING = b"404.html"


@attrs.frozen
class Relocation:
    """A page with another URL on the same site, by `path` from the site's root, not encoded."""

    path: bytes


Found: TypeAlias = Page | Directory | NeedsSlash | Relocation


@attrs.frozen
class SiteLookup:
    """Lookups in one image for one site."""

    lease: Lease
    site: Site

    @property
    def _filesystem(self) -> Filesystem:
        return self.lease.filesystem

    def rule_files(self) -> tuple[Entry | None, Entry | None]:
        """Return the entries of `RULE_FILES`, as far as they exist and count."""
        if self.site.dialect == "none":
            return None, None
        redirects, headers = (self._entry(name, EntryKind.FILE) for name in RULE_FILES)
        return redirects, headers

    @property
    def hidden(self) -> frozenset[bytes]:
        """The paths in the image of the files that are never served."""
        return frozenset(entry.path for entry in self.rule_files() if entry is not None)

    def named(self, path: bytes) -> Found | None:
        """Return the file, directory or redirect that a path names; None if there is none."""
        bare, has_slash = path.rstrip(b"/"), not path or path.endswith(b"/")
        if self._is_rule_file(bare):
            return None
        entry = self._entry(bare)
        if entry is not None and entry.kind is EntryKind.FILE:
            return None if has_slash else self._file(bare, entry)
        page = self._index(bare) if entry else None
        is_index = page is not None
        page = page or self._clean(bare)
        if page is None:
            if entry is None or not self.site.rules.listing:
                return None
            return Directory(entry) if has_slash else NeedsSlash()
        if bare and has_slash != self._has_slash(is_index):
            return Relocation(bare) if has_slash else NeedsSlash()
        return page

    def page(self, path: bytes) -> Page | None:
        """Return the file that a path names, whatever its canonical URL is. For rewrites."""
        bare = path.rstrip(b"/")
        if self._is_rule_file(bare):
            return None
        entry = self._entry(bare)
        if entry is None:
            return self._clean(bare)
        if entry.kind is EntryKind.FILE:
            return Page(entry, self._name(bare)) if self._may_serve(entry) else None
        return self._index(bare) or self._clean(bare)

    def file(self, path: bytes) -> Page | None:
        """Return the file that has exactly this path. For earlier versions."""
        page = None if self._is_rule_file(path) else self._page_at(path)
        return page if page and self._may_serve(page.entry) else None

    def missing(self, path: bytes, is_navigation: bool) -> Page:
        """Return the page for a path that names nothing.

        :raises PathNotFound: when the site has none.
        """
        rules, workdir = self.site.rules, self.site.rules.workdir.encode()
        bare = path.rstrip(b"/")
        last = bare.rpartition(b"/")[2]
        page = None
        # As by path, a directory is no route: it exists, but has no page.
        if b"." not in last and self._entry(bare) is None:
            page = configured(self._filesystem, workdir, rules.fallback, Role.FALLBACK)
        page = page or configured(self._filesystem, workdir, rules.not_found, Role.NOT_FOUND)
        page = page or self._nearest_404(bare)
        if page is None and self.site.has_app_fallback and not self._is_rule_file(bare):
            is_plain_route = not is_known(last) and rules.file_type(last) is None
            if is_plain_route or is_navigation:
                role = Role.FALLBACK if is_plain_route else Role.NAVIGATED
                page = configured(self._filesystem, workdir, "/index.html", role)
        if page is None:
            raise PathNotFound(shown(path))
        return page

    def _file(self, bare: bytes, entry: Entry) -> Found | None:
        """Return a file, or the redirect to its clean URL."""
        if not self._may_serve(entry):
            return None
        page = Page(entry, self._name(bare))
        directory, _, last = bare.rpartition(b"/")
        if not self.site.clean_urls or not last.endswith(_HTML):
            return page
        clean = directory if last == INDEX else bare[: -len(_HTML)]
        found = None if last == _HTML else self.page(clean)
        # Something else may have the clean URL, such as a folder with an index.
        if found is None or found.name != page.name:
            return page
        return Relocation(clean + b"/" if clean and self._has_slash(last == INDEX) else clean)

    def _index(self, bare: bytes) -> Page | None:
        return self._page_at(joined(bare, INDEX))

    def _clean(self, bare: bytes) -> Page | None:
        return self._page_at(bare + _HTML) if self.site.clean_urls and bare else None

    def _has_slash(self, is_index: bool) -> bool:
        """Return whether the canonical URL of a page ends with a slash."""
        how = self.site.trailing_slash
        return is_index if how == "keep" else how == "add"

    def _nearest_404(self, bare: bytes) -> Page | None:
        """Return the 404 page of the deepest directory on the way to a path that has one."""
        nearest, directory = None, b""
        for segment in (*bare.split(b"/"), b""):
            nearest = self._page_at(joined(directory, _MISSING), Role.NOT_FOUND) or nearest
            directory = joined(directory, segment)
            if not segment or self._entry(directory, EntryKind.DIRECTORY) is None:
                break
        return nearest

    def _page_at(self, path: bytes, role: Role = Role.ASKED) -> Page | None:
        """Return the file at exactly this path."""
        entry = self._entry(path, EntryKind.FILE)
        return Page(entry, self._name(path), role) if entry else None

    def _entry(self, path: bytes, kind: EntryKind | None = None) -> Entry | None:
        try:
            entry = self._filesystem.lookup(self._name(path))
        except PathNotFound:
            return None
        return entry if kind is None or entry.kind is kind else None

    def _name(self, path: bytes) -> bytes:
        return joined(self.site.rules.workdir.encode(), path)

    def _is_rule_file(self, bare: bytes) -> bool:
        return self.site.dialect != "none" and bare in RULE_FILES

    def _may_serve(self, entry: Entry) -> bool:
        """Return whether an entry is no rule file, also when a link leads to it."""
        is_named_so = entry.path.rpartition(b"/")[2] in RULE_FILES
        return not is_named_so or entry.path not in self.hidden
