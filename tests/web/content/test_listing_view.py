"""Listings on sites: their order, filter, breadcrumbs and links."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from urllib.parse import urljoin

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobserve.config import RepositoryRules
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference
from blobserve.store.index.entry import Entry, EntryKind
from blobserve.web.content.listing import Listing, ListingRecipe, listed
from blobserve.web.content.listing_view import LONGEST_FILTER, ListingView
from blobserve.web.http.target import Target
from tests.support.sites import REPOSITORY
from tests.web.content.test_listing import Shown

SITE = "app.example.com"
RULES = RepositoryRules(REPOSITORY, listing=True, content_location=True)
ACCEPTED = {b"accept": b"text/html"}


def file(name: str, size: int, mtime: int | None) -> tuple[bytes, Entry]:
    """Return a file with its name."""
    entry = Entry(b"docs/" + name.encode(), EntryKind.FILE, 0, size, b"\0" * 32, mtime)
    return name.encode(), entry


def directory(name: str, mtime: int) -> tuple[bytes, Entry]:
    """Return a directory with its name."""
    return name.encode(), Entry(b"docs/" + name.encode(), EntryKind.DIRECTORY, mtime=mtime)


@attrs.frozen
class Directory:
    """A filesystem that has these entries in one directory."""

    content: list[tuple[bytes, Entry]]

    def entries(self, directory: Entry, most: int) -> Iterator[tuple[bytes, Entry]]:
        """See `Filesystem.entries`."""
        yield from sorted(self.content, key=lambda each: each[0])


CONTENT = Directory(
    [
        file("App.js", 300, 30),
        file("b.css", 300, None),
        file("c.js", 9, 10),
        file("d&\u00e9.html", 70, 20),
        directory("old", 5),
        directory("new.js", 50),
    ]
)


def listing(
    query: bytes | None, path: bytes = b"docs/", base: str = "/", accept: bytes = b""
) -> Listing:
    """Return the listing that a site has for a request."""
    target = Target.parse(f"{REPOSITORY}:v1/".encode() + path)
    view = ListingView.parse(SITE, base, query)
    return listed(target, RULES, {b"accept": accept}, 1000, view)


def made(recipe: ListingRecipe, content: Directory = CONTENT) -> bytes:
    """Return the bytes of a listing."""
    entry = Entry(b"docs", EntryKind.DIRECTORY)
    return recipe.make(content, entry, b"").content  # type: ignore[arg-type]


def names(query: bytes | None) -> list[str]:
    """Return the names in a listing, after a check that its page and its JSON agree."""
    page = Shown(made(listing(query).recipe))
    found = json.loads(made(listing(query, accept=b"application/json").recipe))
    links = [each for each in page.links if each.startswith("./") and each != "./"]
    assert links == [each["href"] for each in found]
    return [each["name"] for each in found]


ASCENDING = ["new.js", "old", "App.js", "b.css", "c.js", "d&\u00e9.html"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (None, ASCENDING),
        (b"", ASCENDING),
        (b"sort=name&order=asc", ASCENDING),
        (b"order=desc", ["old", "new.js", "d&\u00e9.html", "c.js", "b.css", "App.js"]),
        (b"sort=size", ["new.js", "old", "c.js", "d&\u00e9.html", "App.js", "b.css"]),
        (b"sort=size&order=desc", ["new.js", "old", "App.js", "b.css", "d&\u00e9.html", "c.js"]),
        (b"sort=time", ["old", "new.js", "b.css", "c.js", "d&\u00e9.html", "App.js"]),
        (b"sort=time&order=desc", ["new.js", "old", "App.js", "d&\u00e9.html", "c.js", "b.css"]),
        (b"filter=js", ["new.js", "App.js", "c.js"]),
        (b"filter=.JS&sort=size", ["new.js", "c.js", "App.js"]),
        (b"filter=%26%C3%89", ["d&\u00e9.html"]),
        (b"filter=nothing", []),
        (b"filter=", ASCENDING),
        (b"sort=size&sort=time", ["new.js", "old", "c.js", "d&\u00e9.html", "App.js", "b.css"]),
        (b"sort=SIZE&order=down&page=2", ASCENDING),
        (b"&&=&%zz&sort", ASCENDING),
        (b"&".join([b"sort=size"] * 100), ASCENDING),
    ],
)
def test_order_and_filter(query: bytes | None, expected: list[str]) -> None:
    """The query orders files by name, size or time, directories first, and filters names."""
    assert names(query) == expected


def test_links_of_the_page() -> None:
    """Each heading sorts and keeps the filter, and the page links to the JSON of the same view."""
    page = Shown(made(listing(b"sort=size&order=desc&filter=js").recipe))
    assert page.links == [
        "/",
        "?sort=size&order=desc&filter=js&format=json",
        "?sort=size&order=desc",
        "?filter=js",
        "?sort=size&filter=js",
        "?sort=time&order=desc&filter=js",
        "../",
        "./new.js/",
        "./App.js",
        "./c.js",
    ]
    assert "1 directory, 2 files, 309 B with \u201cjs\u201d in their names" in page.text
    assert Shown(made(listing(b"filter=js").recipe)).links[2:4] == ["./", "?order=desc&filter=js"]
    for link in page.links[1:6]:
        query = link.removeprefix("?").encode()
        assert ListingView.parse(SITE, "/", query).url() == link


def test_the_state_of_the_page() -> None:
    """Assistive software learns the order, and the form keeps it."""
    page = made(listing(b"sort=size&order=desc&filter=%22js").recipe).decode()
    assert page.count("<th aria-sort=") == 1
    assert '<th aria-sort="descending"><a href="?sort=size&amp;filter=%22js">Size</a>' in page
    assert '<input type="hidden" name="sort" value="size">' in page
    assert '<input type="hidden" name="order" value="desc">' in page
    assert 'name="filter" value="&quot;js"' in page
    assert "hidden" not in made(listing(b"filter=js").recipe).decode()


@pytest.mark.parametrize("base", ["/", "/docs/", "/d&/"])
def test_breadcrumbs(base: str) -> None:
    """Breadcrumbs lead to each directory above, up to the root of the site, which has its name."""
    page = Shown(made(listing(None, b"a%20b/%3Ci%3E/c/", base).recipe))
    url = f"https://{SITE}{base}a%20b/%3Ci%3E/c/"
    assert [urljoin(url, each) for each in page.links[:3]] == [
        f"https://{SITE}{base}",
        f"https://{SITE}{base}a%20b/",
        f"https://{SITE}{base}a%20b/%3Ci%3E/",
    ]
    assert f"a b/<i>/c \u2013 {SITE}" in page.text
    assert re.sub(r"\s+", " ", page.text).count(f"{SITE} a b <i> c 2 directories") == 1
    root = Shown(made(listing(None, b"", base).recipe))
    assert root.links[0] == "?format=json"
    assert "../" not in root.links


def test_json() -> None:
    """JSON has a URL of its own, and the same bytes whatever the site is called."""
    [asked, accepted] = [
        listing(b"format=json&filter=js").recipe,
        listing(b"filter=js", b"other/", "/docs/", b"application/json").recipe,
    ]
    assert asked == accepted
    assert listing(b"format=json").recipe != listing(b"format=json&filter=js").recipe
    assert listing(b"format=xml", accept=b"text/html").recipe.is_json is False


def test_fields() -> None:
    """The page may send its filter and nothing else, and no field names the image."""
    image = Digest.parse("sha256:" + "0" * 64)
    reply = listing(b"filter=js")
    variant = reply.recipe.make(CONTENT, Entry(b"docs", EntryKind.DIRECTORY), b"").variant  # type: ignore[arg-type]
    fields = dict(reply.represented(variant, image).policy)
    assert fields == {
        b"Cache-Control": b"no-cache",
        b"Vary": b"Accept",
        b"Content-Security-Policy": b"sandbox allow-downloads allow-forms",
    }
    assert REPOSITORY.encode() not in made(reply.recipe)


def test_by_path() -> None:
    """A listing by path has no view, and another page."""
    target = Target(b"", Reference.parse(f"{REPOSITORY}:v1"), b"docs/")
    recipe = listed(target, RULES, ACCEPTED, 1000).recipe
    assert recipe.view is None
    page = Shown(made(recipe))
    found = [each["href"] for each in json.loads(made(listing(b"format=json").recipe))]
    assert page.links == ["../", *found]
    assert "form" not in page.tags


def test_bounds() -> None:
    """A long filter is cut, and the size of a view counts its texts."""
    view = ListingView.parse(SITE, "/", b"filter=" + b"x" * 5000)
    assert view.filter == "x" * LONGEST_FILTER
    assert view.size >= len(SITE) + LONGEST_FILTER
    assert listing(b"filter=" + b"x" * 50).recipe.size > listing(b"").recipe.size + 49


@given(st.binary(max_size=60), st.text(max_size=20), st.binary(max_size=20))
def test_any_query(query: bytes, site: str, path: bytes) -> None:
    """Any query, site and path make a page whose markup is ours alone."""
    view = ListingView.parse(site, "/", query)
    page = Shown(view.head(path + b"/", "0 files").encode())
    ours = (
        "html meta link title style nav ol li a bdi h1 p form input button table thead tr th tbody"
    )
    assert set(page.tags) <= set(ours.split())
    assert page.tags.count("li") == path.count(b"/") + 2
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", page.text)
    assert ListingView.parse(site, "/", view.url().lstrip("./?").encode()) == view
