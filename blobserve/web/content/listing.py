"""Listings of directories without an index page, as HTML or JSON.

Pure, except that the directory is read. The bytes depend only on the directory's entries, on the
view of a site and, for HTML, on the path of the URL, so they are the same on every replica.
Directories come first; both directories and files are sorted by the bytes of their names, unless
the view has another order. Bytes that are not UTF-8 are shown as ``\\xNN``, and the link is exact.
A listing is never immutable, because a later version of blobserve may format it differently.
"""

from __future__ import annotations

import time
from base64 import b64encode
from json.encoder import encode_basestring_ascii
from urllib.parse import quote

import attrs
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from blobserve.config import MIB, RepositoryRules
from blobserve.errors import ListingTooLarge
from blobserve.names.digest import Digest
from blobserve.store.blobs.filesystem import Filesystem
from blobserve.store.index.entry import Entry, EntryKind
from blobserve.web.content.derived import DerivedContent
from blobserve.web.content.listing_view import LISTING_STYLE, ListingView, as_html
from blobserve.web.content.representation import Representation, Role, Variant
from blobserve.web.http.caching import cache_control, content_location, vary
from blobserve.web.http.conditional import Fields
from blobserve.web.http.response import Header
from blobserve.web.http.target import Target, shown

LARGEST = 32 * MIB
"""The largest listing in bytes."""

_HTML, _JSON = "text/html", "application/json"
_LONGEST_ACCEPT = 1024
_UNITS = (("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30))
# A second defence after escaping: a name that became markup could still do nothing. Without
# allow-downloads, a click on a file that the browser cannot show would do nothing.
_SANDBOX: Header = (b"Content-Security-Policy", b"sandbox allow-downloads")
# The filter is a form.
_SITE_SANDBOX: Header = (_SANDBOX[0], b"sandbox allow-downloads allow-forms")

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
<h1>{title}</h1>
<p>{summary}</p>
<table>
<thead><tr><th>Name<th>Size<th>Modified (UTC)<th>Integrity
<tbody>
"""
_UP = '<tr><td><a href="../">../</a><td><td><td>\n'

_BY_PATH = ListingView("")


@attrs.frozen
class ListingRecipe:
    """The form of a listing and its largest number of entries. See `Recipe`.

    `make` raises `ListingTooLarge`.
    """

    is_json: bool
    path: bytes
    """For HTML, the path of the URL. The page of the root has no link to a parent directory."""
    most: int
    view: ListingView | None = None
    """The view of a listing on a site; None for a listing by path."""

    @property
    def size(self) -> int:
        """See `Recipe.size`."""
        return len(self.path) + (self.view.size if self.view else 0)

    def fetched(self, entry: Entry) -> int:
        """See `Recipe.fetched`."""
        return 0

    def make(self, filesystem: Filesystem, entry: Entry, content: bytes) -> DerivedContent:
        """See `Recipe.make`."""
        view = self.view or _BY_PATH
        directories: list[tuple[int, str]] = []
        files: list[tuple[int, str]] = []
        size = left = 0
        row = _object if self.is_json else _row
        for name, each in filesystem.entries(entry, self.most):
            if not view.shows(name, each):
                continue
            made = row(name, each)
            left += len(made)
            if left > LARGEST:
                raise ListingTooLarge(shown(entry.path), f"{LARGEST // MIB} MiB")
            rows = files if each.kind is EntryKind.FILE else directories
            rows.append((view.sort_key(each), made))
            size += each.size
        ordered = view.arranged(directories) + view.arranged(files)
        if self.is_json:
            return DerivedContent.of(f"[{','.join(ordered)}\n]\n".encode())
        summary = f"{_counted(directories, 'director', 'y', 'ies')}, "
        summary += f"{_counted(files, 'file', '', 's')}, {_measure(size)}"
        return DerivedContent.of(
            "".join([self._head(summary), _UP if self.path else "", *ordered]).encode()
        )

    def _head(self, summary: str) -> str:
        if self.view is not None:
            return self.view.head(self.path, summary)
        return _PAGE.format(title=f"/{as_html(self.path)}", style=LISTING_STYLE, summary=summary)


@attrs.frozen
class Listing:
    """The listing that a request for a directory gets."""

    target: Target
    rules: RepositoryRules
    recipe: ListingRecipe

    def represented(self, variant: Variant, image: Digest) -> Representation:
        """Return the representation; `image` is the digest that the reference stands for."""
        kind = b"application/json" if self.recipe.is_json else b"text/html; charset=utf-8"
        control = cache_control(kind, is_immutable=False, rules=self.rules)
        policy: tuple[Header, ...] = ((b"Cache-Control", control), vary(b"Accept"))
        view = self.recipe.view
        if not self.recipe.is_json:
            policy += (_SANDBOX if view is None else _SITE_SANDBOX,)
        if view is None:
            policy += content_location(self.target, self.rules, image)
        return Representation(variant, kind, Role.ASKED, None, policy)


def listed(
    target: Target,
    rules: RepositoryRules,
    fields: Fields,
    most: int,
    view: ListingView | None = None,
) -> Listing:
    """Return the listing for a request, in the form that it prefers: RFC 9110 §12.5.1.

    The form is HTML unless the request prefers JSON, and also if it accepts neither. The `view` of
    a listing on a site may ask for JSON too. Without a view, the listing is one by path.
    """
    if (view is not None and view.is_json) or prefers_json(fields.get(b"accept", b"")):
        view = view and view.for_json
        return Listing(target, rules, ListingRecipe(True, b"", most, view))
    return Listing(target, rules, ListingRecipe(False, target.path or b"", most, view))


def prefers_json(accept: bytes) -> bool:
    """Return whether an Accept field prefers JSON to HTML; False for a very long field.

    If the weights are equal, the more specific member wins: programs send
    ``application/json, */*``.
    """
    if len(accept) > _LONGEST_ACCEPT:
        return False
    parsed = parse_accept_header(accept.decode("latin-1"), MIMEAccept)
    # Parameters such as a charset do not matter for this choice.
    accepted = MIMEAccept((media_type.partition(";")[0], weight) for media_type, weight in parsed)
    return _weight(accepted, _JSON) > _weight(accepted, _HTML)


def _weight(accepted: MIMEAccept, media_type: str) -> tuple[float, int]:
    """Return the weight of a type, and how specific its member is; larger is more specific."""
    at = accepted.find(media_type)
    if at < 0:
        return 0.0, 0
    media_range, weight = accepted[at]
    return weight, -media_range.count("*")


def link(name: bytes, entry: Entry) -> str:
    """Return the URL of an entry, relative to the URL of its directory.

    It begins with ``./``, because clients would take a name such as ``x:1`` for a scheme.
    """
    return f"./{quote(name, safe='')}{'/' if entry.kind is EntryKind.DIRECTORY else ''}"


def _row(name: bytes, entry: Entry) -> str:
    slash = "/" if entry.kind is EntryKind.DIRECTORY else ""
    text = as_html(name)
    modified = ""
    if entry.mtime:
        modified = time.strftime("%Y-%m-%d %H:%M", time.gmtime(entry.mtime))
    if slash:
        size = integrity = ""
    else:
        size, integrity = _measure(entry.size), _integrity(entry)
    return (
        f'<tr><td><a href="{link(name, entry)}"><bdi>{text}</bdi>{slash}</a>'
        f"<td>{size}<td>{modified}<td>{integrity}\n"
    )


def _object(name: bytes, entry: Entry) -> str:
    text = encode_basestring_ascii(name.decode("utf-8", "backslashreplace"))
    size = sha256 = integrity = "null"
    if entry.kind is EntryKind.FILE:
        size, sha256, integrity = str(entry.size), f'"{entry.sha256.hex()}"', _integrity(entry)
        integrity = f'"{integrity}"'
    return (
        f'\n{{"name": {text}, "href": "{link(name, entry)}", '
        f'"type": "{"file" if entry.kind is EntryKind.FILE else "directory"}", "size": {size}, '
        f'"mtime": {"null" if entry.mtime is None else entry.mtime}, '
        f'"sha256": {sha256}, "integrity": {integrity}}}'
    )


def _integrity(entry: Entry) -> str:
    """Return the value of HTML's `integrity` attribute, Subresource Integrity §3.5."""
    return f"sha256-{b64encode(entry.sha256).decode()}"


def _measure(size: int) -> str:
    """Return a size in a readable unit."""
    if size < 1024:
        return f"{size} B"
    # A number of 1,000 or more takes the next unit, so there are at most four digits.
    unit, bytes_ = next((each for each in _UNITS if size < 999.95 * each[1]), _UNITS[-1])
    return f"{size / bytes_:.1f} {unit}"


def _counted(rows: list[tuple[int, str]], stem: str, one: str, many: str) -> str:
    return f"{len(rows)} {stem}{one if len(rows) == 1 else many}"
