"""The site that a host and a path belong to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobserve.config import ImageTemplate, Site
from blobserve.names.reference import Repository
from blobserve.web.hosting.host_table import (
    Found,
    HostRedirect,
    HostTable,
    PrefixSlash,
    SiteMatch,
    UnknownPath,
)

IMAGE = ImageTemplate(Repository.parse("r.example/x"), "v1")


def table(*keys: str, **redirects: str) -> HostTable:
    """Return a table of sites with these keys; `redirects` are hosts below ``old.example``."""
    sites = [Site(key, *_parts(key), image=IMAGE) for key in keys]
    old = [(f"{name}.old.example", target) for name, target in redirects.items()]
    return HostTable([*sites, *(Site(key, key, "", target) for key, target in old)])


def _parts(key: str) -> tuple[str, str]:
    host = key.partition("/")[0]
    return host, key[len(host) :]


def shown(found: Found | None) -> object:
    """Return a result in a short form."""
    if isinstance(found, SiteMatch):
        return found.site.key, found.label, found.rest
    if isinstance(found, PrefixSlash):
        return found.site.key, found.location
    if isinstance(found, HostRedirect):
        return "->", found.host
    return None if found is None else ("unknown", found.host)


@pytest.mark.parametrize(
    "authority",
    [
        b"a.example",
        b"A.EXAMPLE",
        b"a.example:80",
        b"a.example:",
        b"a.example.",
        b"A.example.:8443",
        b"%61.example",
    ],
)
def test_spellings_of_a_host(authority: bytes) -> None:
    """A host is compared without port, case and the dot at its end."""
    found = table("a.example")
    for _ in range(2):
        assert shown(found.find(authority, b"/x")) == ("a.example", None, b"/x")


@pytest.mark.parametrize(
    "authority",
    [
        b"b.example",
        b"a.example..",
        b"xa.example",
        b"x.a.example",
        b"[::1]:80",
        b"127.0.0.1",
        b"",
        b":80",
        b"*",
        b"a.example" * 1000,
        b"\xff\xfe",
        "☃.example".encode(),
    ],
)
def test_other_hosts(authority: bytes) -> None:
    """A host that no key matches has no site, and ``*`` matches all of them."""
    assert table("a.example", "*.c.example").find(authority, b"/x") is None
    for _ in range(2):
        assert shown(table("a.example", "*").find(authority, b"/x")) == ("*", None, b"/x")


@pytest.mark.parametrize("authority", ["bücher.example", "BÜCHER.example:80", "bücher。example"])
def test_international_hosts(authority: str) -> None:
    """A host in UTF-8 means its A-labels."""
    found = table("xn--bcher-kva.example").find(authority.encode(), b"/")
    assert shown(found) == ("xn--bcher-kva.example", None, b"/")


def test_exact_hosts_win_over_wildcards() -> None:
    """An exact host wins over a wildcard, which matches one label and wins over ``*``."""
    found = table("a.p.example", "*.p.example", "*")
    assert shown(found.find(b"a.p.example", b"/")) == ("a.p.example", None, b"/")
    assert shown(found.find(b"B.P.example:1", b"/")) == ("*.p.example", "b", b"/")
    assert shown(found.find(b"a.b.p.example", b"/")) == ("*", None, b"/")
    assert shown(found.find(b"p.example", b"/")) == ("*", None, b"/")
    assert shown(found.find(b".p.example", b"/")) == ("*", None, b"/")


def test_the_longest_prefix_wins() -> None:
    """A prefix ends at a slash, and the longest one wins."""
    found = table("a.example", "a.example/docs", "a.example/docs/api")
    for path, key, rest in (
        (b"/docs/", "/docs", b"/"),
        (b"/docs/x", "/docs", b"/x"),
        (b"/docs/api/", "/docs/api", b"/"),
        (b"/docs/apix", "/docs", b"/apix"),
        (b"/docsx", "", b"/docsx"),
        (b"/x/docs/", "", b"/x/docs/"),
        (b"/DOCS/", "", b"/DOCS/"),
        (b"/docs//x", "/docs", b"//x"),
        (b"/docs/../x", "/docs", b"/../x"),
    ):
        assert shown(found.find(b"a.example", path)) == (f"a.example{key}", None, rest)
    assert shown(found.find(b"a.example", b"/docs")) == ("a.example/docs", b"/docs/")
    assert shown(found.find(b"a.example", b"/docs/api")) == ("a.example/docs/api", b"/docs/api/")


def test_a_host_with_prefixes_alone() -> None:
    """Other paths of a host that has only prefixes are unknown, also where ``*`` has a site."""
    found = table("a.example/docs", "*")
    assert shown(found.find(b"a.example", b"/")) == ("unknown", "a.example")
    assert shown(found.find(b"a.example", b"/doc")) == ("unknown", "a.example")
    assert shown(found.find(b"a.example", b"/docs/")) == ("a.example/docs", None, b"/")
    assert isinstance(table("*/docs").find(b"any.example", b"/x"), UnknownPath)


@pytest.mark.parametrize("path", [b"/d%6Fcs", b"//docs", b"/./docs", b"/%2e/docs", b"/%64ocs"])
def test_a_prefix_in_another_spelling(path: bytes) -> None:
    """Escapes, and empty and ``.`` segments, do not change the site; no redirect copies them."""
    found = table("a.example", "a.example/docs")
    assert shown(found.find(b"a.example", path)) == ("a.example/docs", b"/docs/")
    assert shown(found.find(b"a.example", path + b"/%78")) == ("a.example/docs", None, b"/%78")
    assert shown(found.find(b"a.example", path + b"x/")) == ("a.example", None, path + b"x/")


def test_an_escaped_slash_ends_no_segment() -> None:
    """A prefix does not match a path with an escaped slash in place of its own."""
    found = table("a.example", "a.example/a/b", "a.example/docs")
    for path in (b"/a%2Fb/", b"/docs%2fx", b"/docs%2F"):
        assert shown(found.find(b"a.example", path)) == ("a.example", None, path)


def test_a_prefix_outside_ascii() -> None:
    """A prefix outside ASCII matches its percent-encoded form, and the redirect is encoded."""
    found = table("a.example/büro x")
    assert shown(found.find(b"a.example", b"/b%c3%bcro%20x/y")) == (
        "a.example/büro x",
        None,
        b"/y",
    )
    assert shown(found.find(b"a.example", b"/b%C3%BCro%20x")) == (
        "a.example/büro x",
        b"/b%C3%BCro%20x/",
    )


def test_redirects() -> None:
    """A redirect holds for every path of its host."""
    found = table("a.example", b="a.example")
    assert shown(found.find(b"B.old.example:80", b"/x//y")) == ("->", "a.example")
    old = Site("a.example/old", "a.example", "/old", "b.example:8443")
    at = HostTable([Site("a.example", "a.example", image=IMAGE), old])
    assert shown(at.find(b"a.example", b"/old")) == ("->", "b.example:8443")
    assert shown(at.find(b"a.example", b"/old/x")) == ("->", "b.example:8443")
    assert shown(at.find(b"a.example", b"/older")) == ("a.example", None, b"/older")


def test_spellings_are_forgotten() -> None:
    """Clients that send many hosts fill no memory, and get the right sites all the time."""
    found = table("a.example", "*.p.example")
    for number in range(10_000):
        label = f"l{number}"
        assert shown(found.find(f"{label}.P.example".encode(), b"/"))[1] == label  # type: ignore[index]
    assert len(found._remembered) <= 4096
    found.find(b"x" * 10_000, b"/")
    assert max(map(len, found._remembered)) < 300


def test_the_cost_does_not_depend_on_the_number_of_sites() -> None:
    """A look-up of an exact host compares no other site."""
    found = table(*(f"h{number}.example" for number in range(1000)))
    assert shown(found.find(b"h999.example", b"/x")) == ("h999.example", None, b"/x")
    assert not found._remembered
    assert found
    assert not table()


segments = st.sampled_from(["a", "b", "ab"])
paths = st.lists(segments, max_size=4).map(lambda each: "".join(f"/{part}" for part in each))


@given(st.lists(paths, min_size=1, max_size=6, unique=True), paths, st.booleans(), st.data())
def test_prefixes_by_their_definition(
    prefixes: list[str], path: str, has_slash: bool, data: st.DataObject
) -> None:
    """The site is that of the longest prefix that the path equals or that a slash follows."""
    path = path + "/" * has_slash or "/"
    matching = [each for each in prefixes if path == each or path.startswith(f"{each}/")]
    keys = ["a.example" + each for each in prefixes]
    coded = data.draw(st.sets(st.integers(0, len(path) - 1)))
    raw = "".join(
        f"%{ord(each):02x}" if at in coded and each != "/" else each for at, each in enumerate(path)
    )
    found = table(*keys).find(b"a.example", raw.encode())
    if not matching:
        assert isinstance(found, UnknownPath)
        return
    longest = max(matching, key=len)
    assert isinstance(found, (SiteMatch, PrefixSlash))
    assert found.site.prefix == longest
    assert isinstance(found, PrefixSlash) == (bool(longest) and path == longest)
