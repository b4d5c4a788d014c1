"""The file that a URL selects under a repository's rules, and its caching.

Pure, except for lookups in the image. All rules for Cache-Control, Vary and Last-Modified of files
are applied here.
"""

from __future__ import annotations

import attrs

from blobserve.config import RepositoryRules, Site
from blobserve.names.digest import Digest
from blobserve.store.index.entry import Entry, EntryKind
from blobserve.store.lease import Lease
from blobserve.tar.header import split
from blobserve.web.content.lookup import Directory, EarlierVersions, NeedsSlash, Page, find
from blobserve.web.content.representation import Representation, Role, Variant
from blobserve.web.content.rewrite import INDEX, Edits, Variables, edits_for, is_index
from blobserve.web.hosting.content_hash import is_immutable_name
from blobserve.web.http.caching import (
    INLINE_VARIABLES,
    cache_control,
    content_location,
    is_fixed,
    is_immutable_path,
    vary,
)
from blobserve.web.http.media_types import is_html, served_type
from blobserve.web.http.response import Header
from blobserve.web.http.target import Target


@attrs.frozen
class Selection:
    """The file that a URL and a request's variables select under a repository's rules."""

    target: Target
    rules: RepositoryRules
    page: Page
    is_inlined: bool
    """True if the request has inline variables."""
    edits: Edits
    """The replacements that rules and variables make in the file."""
    site: Site | None = None
    """The site of the URL; None for a URL that names its image."""
    is_stable: bool = True
    """False if the site has had other content under the same path."""
    names_version: bool = False
    """True if the query of the URL names the version that has the file."""

    @classmethod
    def of(
        cls,
        target: Target,
        rules: RepositoryRules,
        page: Page,
        variables: Variables | None,
        site: Site | None = None,
    ) -> Selection:
        """Return the selection of a page; `variables` are those of the request."""
        edits: Edits = ()
        if rules.replacements or variables is not None:
            edits = edits_for(page.name, page.entry, rules, variables)
        return cls(target, rules, page, variables is not None, edits, site)

    @property
    def kind(self) -> bytes:
        """The content type."""
        return served_type(self.page.name, self.page.entry.is_text, self.rules)

    @property
    def coding(self) -> bytes | None:
        """The coding that the bytes of the file have by its name, whatever the request accepts."""
        found = self.rules.file_type(self.page.name)
        return found.coding.encode() if found and found.coding and not self.edits else None

    def represented(self, variant: Variant, image: Digest, now: float) -> Representation:
        """Return the representation; `image` is the digest that the reference stands for."""
        kind = self.kind
        # A constant URL always means these bytes: an immutable image, and no rewriting.
        is_own = self.page.role is Role.ASKED and not self.edits and not self._varies
        is_fixed_url = is_fixed(self.target, self.rules)
        is_constant = is_own and (is_fixed_url or (self.names_version and not is_html(kind)))
        modified = self.page.entry.mtime
        # RFC 9110 §8.8.2.1: Last-Modified is never later than Date.
        is_dated = is_constant and modified and 0 < modified <= now
        policy = self._policy(kind, is_constant, variant.is_negotiated, image)
        return Representation(variant, kind, self.page.role, modified if is_dated else None, policy)

    @property
    def has_immutable_path(self) -> bool:
        """Return whether the path promises that the content never changes."""
        path = self.target.path or b""
        if self.site is not None and self.site.has_immutable_names:
            return self.is_stable and is_immutable_name(path)
        return is_immutable_path(path, self.rules)

    @property
    def _varies(self) -> bool:
        """Return whether the response depends on inline variables."""
        if self.rules.inline_static and is_index(self.page.name, self.page.entry):
            return True
        # Without variables, the response is a redirect.
        return self.target.path is None

    def _policy(
        self, kind: bytes, is_constant: bool, is_negotiated: bool, image: Digest
    ) -> tuple[Header, ...]:
        if self.page.role is Role.NOT_FOUND:
            return ((b"Cache-Control", b"no-store"),)
        if self._varies:
            control = b"private, no-cache" if self.is_inlined else b"no-cache"
        else:
            is_unchanged = self.page.role is Role.ASKED and not self.edits
            is_immutable = is_constant or (is_unchanged and self.has_immutable_path)
            control = cache_control(kind, is_immutable, self.rules)
        policy: tuple[Header, ...] = ((b"Cache-Control", control),)
        deciding = [b"Accept-Encoding"] * is_negotiated + [INLINE_VARIABLES] * self._varies
        deciding += [b"Sec-Fetch-Mode"] * (self.page.role is Role.NAVIGATED)
        if deciding:
            policy += (vary(*deciding),)
        return policy + content_location(self.target, self.rules, image)


def select(
    lease: Lease,
    target: Target,
    rules: RepositoryRules,
    variables: Variables | None,
    earlier: EarlierVersions | None = None,
) -> Selection | Directory | NeedsSlash:
    """Return what `target` selects in an image; `variables` are those of the request.

    :raises PathNotFound: when there is no such file, and no page for missing files.
    """
    page = find(lease, target, rules, variables is not None, earlier)
    return Selection.of(target, rules, page, variables) if isinstance(page, Page) else page


def early_name(target: Target, rules: RepositoryRules, variables: Variables | None) -> bytes | None:
    """Return the path of the only file that can answer a request, whatever else the image has.

    None if the rest of the image decides, or if a rule changes the bytes.
    """
    if target.path is None:
        return None
    name = b"/".join(split(rules.workdir.encode() + b"/" + target.path))
    if target.asks_directory:
        name = b"/".join(filter(None, (name, INDEX)))
    entry = Entry(name, EntryKind.FILE)
    is_changed = bool(rules.inline_static) and is_index(name, entry)
    if not is_changed and (rules.replacements or variables is not None):
        is_changed = bool(edits_for(name, entry, rules, variables))
    return None if is_changed else name
