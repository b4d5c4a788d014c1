"""The answer of a site to a URL: its hosting rules, then its files.

Pure, except for lookups in the image.
"""

from __future__ import annotations

from typing import TypeAlias

import attrs

from blobserve.web.content.lookup import Directory, EarlierVersions, NeedsSlash, Page
from blobserve.web.content.representation import Role
from blobserve.web.content.rewrite import Variables
from blobserve.web.content.selection import Selection
from blobserve.web.content.site_lookup import Found, Relocation, SiteLookup
from blobserve.web.content.site_rules import ImageRules
from blobserve.web.hosting.rule_match import RuleMatch
from blobserve.web.http.target import Target, canonical

Selected: TypeAlias = Selection | Directory | NeedsSlash | Relocation | RuleMatch


def select_on_site(
    lookup: SiteLookup,
    target: Target,
    rules: ImageRules,
    query: bytes | None,
    variables: Variables | None,
    is_navigation: bool,
    earlier: EarlierVersions | None,
) -> Selected:
    """Return what `target` selects on a site. A `RuleMatch` is a redirect.

    :raises PathNotFound: when there is no such file, and no page for missing files.
    """
    if target.path is None:  # below another resource, at its place without the slash
        return NeedsSlash()
    page = _page(lookup, target, target.path, rules, query, is_navigation, earlier)
    if not isinstance(page, Page):
        return page
    return Selection.of(target, lookup.site.rules, page, variables, lookup.site)


def _page(
    lookup: SiteLookup,
    target: Target,
    path: bytes,
    rules: ImageRules,
    query: bytes | None,
    is_navigation: bool,
    earlier: EarlierVersions | None,
) -> Page | Directory | NeedsSlash | Relocation | RuleMatch:
    match = None
    if rules.redirects is not None:
        match = rules.redirects.match(
            b"/" + target.raw, query, lambda: _named(lookup, path, earlier) is not None
        )
    if match is None:
        return _named(lookup, path, earlier) or lookup.missing(path, is_navigation)
    if match.status not in (200, 404):
        return match
    rewritten = canonical(match.location.partition(b"?")[0].partition(b"#")[0].lstrip(b"/"))
    page = _rewritten(lookup, rewritten, earlier if match.status == 200 else None)
    if page is None:
        return lookup.missing(rewritten, is_navigation)
    return attrs.evolve(page, role=Role.REWRITTEN if match.status == 200 else Role.NOT_FOUND)


def _named(lookup: SiteLookup, path: bytes, earlier: EarlierVersions | None) -> Found | None:
    """Return the file, directory or redirect that a path names, maybe in an earlier version."""
    if earlier is None:
        return lookup.named(path)
    return earlier.chosen(path) or lookup.named(path) or earlier.page(path)


def _rewritten(lookup: SiteLookup, path: bytes, earlier: EarlierVersions | None) -> Page | None:
    """Return the file at the target of a rewrite, maybe in an earlier version."""
    if earlier is None:
        return lookup.page(path)
    return earlier.chosen(path) or lookup.page(path) or earlier.page(path)
