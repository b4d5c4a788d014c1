"""The order, the filter and the page of a listing on a site, as its URL asks for them.

Pure. Everything works without scripts: each order and filter is a URL. The query of a listing knows
``sort`` (``name``, ``size``, ``time``), ``order`` (``asc``, ``desc``), ``filter`` and
``format=json``. Other fields and values are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from operator import itemgetter
from typing import Literal
from urllib.parse import parse_qsl, quote, urlencode

import attrs

from blobserve.store.index.entry import Entry
from blobserve.web.http.target import shown

LONGEST_FILTER = 100
"""The number of characters of a filter that count; the rest is cut off."""

Sort = Literal["name", "size", "time"]
Order = Literal["asc", "desc"]

_COLUMNS: tuple[tuple[Sort, str, Order], ...] = (
    ("name", "Name", "asc"),
    ("size", "Size", "desc"),
    ("time", "Modified (UTC)", "desc"),
)
"""Each column that sorts: its name, its heading, and the order that is usual for it."""

_SORTS: dict[str, Sort] = {name: name for name, _, _ in _COLUMNS}
_MOST_FIELDS = 32

# Characters that change the direction of text, and could show txt.exe as exe.txt.
_REORDERING = {
    code: f"\\u{code:04x}"
    for code in (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}

_NO_TIME = -(1 << 63)

LISTING_STYLE = """
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
_STYLE = """nav li { display: inline }
nav li + li::before { content: " / "; color: GrayText; font-weight: 400 }
nav ol { margin: 0; padding: 0; font-size: 1.25rem; font-weight: 600; overflow-wrap: anywhere }
h1 { display: inline; font-size: inherit }
form { margin: 0 0 1rem; display: flex; flex-wrap: wrap; gap: .5rem; align-items: baseline }
input, button { font: inherit; padding: .1rem .5rem }
input { flex: 0 1 16rem; min-width: 0 }
th a { color: inherit }
th[aria-sort=ascending] a::after { content: " \\2191" }
th[aria-sort=descending] a::after { content: " \\2193" }
"""
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
<nav aria-label="Breadcrumbs"><ol>
{breadcrumbs}</ol></nav>
<p>{summary} \u00b7 <a href="{json}" type="application/json">JSON</a></p>
<form role="search">{hidden}<input type="search" name="filter" value="{filter}" \
maxlength="{most}" aria-label="Part of a name" placeholder="Part of a name">
<button>Filter</button>{all}</form>
<table>
<thead><tr>{headings}<th>Integrity
<tbody>
"""


@attrs.frozen
class ListingView:
    """The view of a listing on a site that a request asks for. Created by `parse`."""

    site: str
    """The name that stands for the root of the site, such as its host."""
    base: str = "/"
    """The path of the site's root as in URLs; it begins and ends with a slash."""
    sort: Sort = "name"
    order: Order = "asc"
    filter: str = ""
    """A part of the names that are shown, in any case; all if empty."""
    is_json: bool = False
    """True if the URL asks for JSON, whatever the request accepts."""
    hidden: frozenset[bytes] = frozenset()
    """Paths in the image that are not served, and so not listed."""

    @classmethod
    def parse(
        cls, site: str, base: str, query: bytes | None, hidden: frozenset[bytes] = frozenset()
    ) -> ListingView:
        """Return the view for the query of a URL. Faults in the query are ignored."""
        try:
            pairs = parse_qsl((query or b"").decode("latin-1"), max_num_fields=_MOST_FIELDS)
        except ValueError:
            pairs = []
        fields = dict(reversed(pairs))  # the first of repeated fields counts
        sort = _SORTS.get(fields.get("sort", ""), "name")
        order: Order = "desc" if fields.get("order") == "desc" else "asc"
        part = fields.get("filter", "")[:LONGEST_FILTER]
        return cls(site, base, sort, order, part, fields.get("format") == "json", hidden)

    @property
    def size(self) -> int:
        """The size of the texts in bytes, at most."""
        texts = 4 * (len(self.site) + len(self.base) + len(self.filter))
        return texts + sum(map(len, self.hidden))

    @property
    def for_json(self) -> ListingView:
        """The same view without the facts that only the page shows."""
        return attrs.evolve(self, site="", base="/", is_json=True)

    def shows(self, name: bytes, entry: Entry) -> bool:
        """Return whether an entry is listed under a name."""
        if entry.path in self.hidden:
            return False
        return not self.filter or self.filter.casefold() in shown(name)[1:].casefold()

    def sort_key(self, entry: Entry) -> int:
        """Return the number that orders a row; an entry without a time is the oldest."""
        if self.sort == "size":
            return entry.size
        if self.sort == "time":
            return _NO_TIME if entry.mtime is None else entry.mtime
        return 0

    def arranged(self, rows: list[tuple[int, str]]) -> list[str]:
        """Return the texts of rows, which come with their keys and in the order of their names."""
        if self.sort == "name" and self.order == "desc":
            return [text for _, text in reversed(rows)]
        # Rows with equal keys stay in the order of their names.
        ordered = sorted(rows, key=itemgetter(0), reverse=self.order == "desc")
        return [text for _, text in ordered]

    def url(self, **changes: str | bool) -> str:
        """Return the URL of this view with some changes, relative to the listing's own URL."""
        view = attrs.evolve(self, **changes)  # type: ignore[arg-type]
        fields = {
            "sort": view.sort if view.sort != "name" else "",
            "order": view.order if view.order != "asc" else "",
            "filter": view.filter,
            "format": "json" if view.is_json else "",
        }
        query = urlencode({name: value for name, value in fields.items() if value})
        return f"?{query}" if query else "./"

    def head(self, path: bytes, summary: str) -> str:
        """Return the page up to the first row. `path` is that of the listed directory."""
        names = path.split(b"/")[:-1]
        title = f"{as_html(path[:-1])} \u2013 {_text(self.site)}" if names else _text(self.site)
        return _PAGE.format(
            title=title,
            style=LISTING_STYLE + _STYLE,
            breadcrumbs="".join(self._breadcrumbs(names)),
            summary=f"{summary}{self._filtered}",
            json=escape(self.url(is_json=True)),
            hidden="".join(
                f'<input type="hidden" name="{name}" value="{value}">'
                for name, value, usual in (
                    ("sort", self.sort, "name"),
                    ("order", self.order, "asc"),
                )
                if value != usual
            ),
            filter=_text(self.filter),
            most=LONGEST_FILTER,
            all=f' <a href="{escape(self.url(filter=""))}">Show all</a>' if self.filter else "",
            headings="".join(map(self._heading, _COLUMNS)),
        )

    @property
    def _filtered(self) -> str:
        return f" with \u201c{_text(self.filter)}\u201d in their names" if self.filter else ""

    def _breadcrumbs(self, names: list[bytes]) -> Iterator[str]:
        texts = [_text(self.site), *map(as_html, names)]
        urls = [self.base]
        for name in names:
            urls.append(f"{urls[-1]}{quote(name, safe='')}/")
        for text, url in list(zip(texts, urls, strict=True))[:-1]:
            yield f'<li><a href="{escape(url)}"><bdi>{text}</bdi></a>\n'
        yield f'<li aria-current="page"><h1><bdi>{texts[-1]}</bdi></h1>\n'

    def _heading(self, column: tuple[Sort, str, Order]) -> str:
        name, text, order = column
        state = ""
        if name == self.sort:
            state = f' aria-sort="{self.order}ending"'
            order = "desc" if self.order == "asc" else "asc"
        return f'<th{state}><a href="{escape(self.url(sort=name, order=order))}">{text}</a>'


def as_html(path: bytes) -> str:
    """Return a name or a path without its leading slash as text in HTML, and in attributes."""
    return escape(shown(path)[1:].translate(_REORDERING))


def _text(value: str) -> str:
    return as_html(value.encode("utf-8", "surrogatepass"))
