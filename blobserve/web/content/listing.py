"""Listings: directories without an index page, as a page for people or as JSON for programs.

Pure but for the reading of the directory. The bytes depend on what is in it, for a page on the path
that was asked for, and on nothing else: they are the same on every replica. Directories come first;
both they and files are in the order of their names' bytes. A name may be any bytes: what is not
UTF-8 in it is shown as ``\\xNN``, and the link beside it is exact. No listing is kept for ever:
unlike a file's bytes, a listing's are ours to change.
"""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Callable
from html import escape
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
from blobserve.web.content.representation import Representation, Role, Variant
from blobserve.web.http.caching import cache_control, content_location, vary
from blobserve.web.http.conditional import Fields
from blobserve.web.http.response import Header
from blobserve.web.http.target import Target, shown

LARGEST = 32 * MIB
"""Bytes of a listing."""

_HTML, _JSON = "text/html", "application/json"
_LONGEST_ACCEPT = 1024
_UNITS = (("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30))
# No name gets out of a page; should one, it could do nothing there. Without the second word a click
# on what a browser does not show itself would do nothing either.
_SANDBOX: Header = (b"Content-Security-Policy", b"sandbox allow-downloads")

# What changes the order of the text around it, and would have exe.txt stand for txt.exe.
_REORDERING = {
    code: f"\\u{code:04x}"
    for code in (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem }
h1 { font-size: 1.25rem; overflow-wrap: anywhere; margin: 0 }
p { color: GrayText; margin: 0 0 1rem }
table { border-collapse: collapse; width: 100% }
th { text-align: left; font-weight: 600; border-bottom: 1px solid GrayText }
th, td { padding: .2rem 1.5rem .2rem 0; vertical-align: baseline; white-space: nowrap }
tbody tr:hover { background: color-mix(in srgb, GrayText 15%, transparent) }
th:first-child, td:first-child { width: 100%; white-space: normal; overflow-wrap: anywhere }
th:nth-child(2), td:nth-child(2) { text-align: right }
td:nth-child(n + 2) { font-variant-numeric: tabular-nums }
td:nth-child(4) { font: 12px ui-monospace, monospace; padding-right: 0 }
a { text-decoration: none }
a:hover, a:focus-visible { text-decoration: underline }
@media (max-width: 60rem) { th:nth-child(4), td:nth-child(4) { display: none } }
@media (max-width: 32rem) { th:nth-child(3), td:nth-child(3) { display: none } }
"""
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

_Row = Callable[[bytes, Entry], str]


@attrs.frozen
class ListingRecipe:
    """How a directory is listed: in which form, with how many entries at most. See `views.Recipe`.

    Making it raises `ListingTooLarge`.
    """

    is_json: bool
    path: bytes
    """The path of the URL, of a page; pages of the root have no link to what is above."""
    most: int

    @property
    def size(self) -> int:
        """See `views.Recipe.size`."""
        return len(self.path)

    def fetched(self, entry: Entry) -> int:
        """See `views.Recipe.fetched`."""
        return 0

    def make(self, filesystem: Filesystem, entry: Entry, content: bytes) -> DerivedContent:
        """See `views.Recipe.make`."""
        directories: list[str] = []
        files: list[str] = []
        size = left = 0
        row = _object if self.is_json else _row
        for name, each in filesystem.entries(entry, self.most):
            made = row(name, each)
            left += len(made)
            if left > LARGEST:
                raise ListingTooLarge(shown(entry.path), f"{LARGEST // MIB} MiB")
            (files if each.kind is EntryKind.FILE else directories).append(made)
            size += each.size
        if self.is_json:
            return DerivedContent.of(f"[{','.join(directories + files)}\n]\n".encode())
        summary = f"{_counted(directories, 'director', 'y', 'ies')}, "
        summary += f"{_counted(files, 'file', '', 's')}, {_measure(size)}"
        head = _PAGE.format(
            title=escape(shown(self.path).translate(_REORDERING)), style=_STYLE, summary=summary
        )
        return DerivedContent.of(
            "".join([head, _UP if self.path else "", *directories, *files]).encode()
        )


@attrs.frozen
class Listing:
    """A directory as a request is shown it."""

    location: Target
    rules: RepositoryRules
    recipe: ListingRecipe

    def represented(self, variant: Variant, image: Digest) -> Representation:
        """The listing with what names its bytes; `image` is what the reference stands for."""
        kind = b"application/json" if self.recipe.is_json else b"text/html; charset=utf-8"
        control = cache_control(kind, is_immutable=False, rules=self.rules)
        policy: tuple[Header, ...] = ((b"Cache-Control", control), vary(b"Accept"))
        if not self.recipe.is_json:
            policy += (_SANDBOX,)
        policy += content_location(self.location, self.rules, image)
        return Representation(variant, kind, Role.ASKED, None, policy)


def listed(location: Target, rules: RepositoryRules, fields: Fields, most: int) -> Listing:
    """The listing that a request for a directory gets: RFC 9110 §12.5.1.

    JSON where the request prefers it, else a page, also to who accepts neither.
    """
    is_json = prefers_json(fields.get(b"accept", b""))
    return Listing(
        location, rules, ListingRecipe(is_json, b"" if is_json else location.path or b"", most)
    )


def prefers_json(accept: bytes) -> bool:
    """Whether a field, if it is of a sane length, gives JSON a larger weight than HTML.

    Of equal weights that of the type counts which is named: programs say ``application/json, */*``.
    """
    if len(accept) > _LONGEST_ACCEPT:
        return False
    parsed = parse_accept_header(accept.decode("latin-1"), MIMEAccept)
    # Parameters such as a charset are not what the two differ in.
    accepted = MIMEAccept((media_type.partition(";")[0], weight) for media_type, weight in parsed)
    return _weight(accepted, _JSON) > _weight(accepted, _HTML)


def _weight(accepted: MIMEAccept, media_type: str) -> tuple[float, int]:
    """The weight of a type, and how little of its name is a wildcard's."""
    at = accepted.find(media_type)
    if at < 0:
        return 0.0, 0
    media_range, weight = accepted[at]
    return weight, -media_range.count("*")


def link(name: bytes, entry: Entry) -> str:
    """The URL of an entry of this name, relative to that of its directory.

    It begins with ``./``: a name such as ``x:1`` would be taken for a scheme.
    """
    return f"./{quote(name, safe='')}{'/' if entry.kind is EntryKind.DIRECTORY else ''}"


def _row(name: bytes, entry: Entry) -> str:
    slash = "/" if entry.kind is EntryKind.DIRECTORY else ""
    text = escape(shown(name)[1:].translate(_REORDERING))
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
    """The value of HTML's `integrity` attribute, Subresource Integrity §3.5."""
    return f"sha256-{b64encode(entry.sha256).decode()}"


def _measure(size: int) -> str:
    """A size for people."""
    if size < 1024:
        return f"{size} B"
    # From 1,000 on in the next unit: no more than four digits.
    unit, bytes_ = next((each for each in _UNITS if size < 999.95 * each[1]), _UNITS[-1])
    return f"{size / bytes_:.1f} {unit}"


def _counted(rows: list[str], stem: str, one: str, many: str) -> str:
    return f"{len(rows)} {stem}{one if len(rows) == 1 else many}"
