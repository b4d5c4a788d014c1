"""Rules of ``_headers`` in both dialects, and the changes that they make to responses."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobserve.web.hosting.header_rules import MAX_ADDED, HeaderRules
from blobserve.web.hosting.rule_lines import MAX_LINES, MAX_PROBLEMS, Dialect
from blobserve.web.http.header_changes import NO_CHANGES, HeaderChanges

DIALECTS: tuple[Dialect, ...] = ("cloudflare", "netlify")


def parse(text: str, dialect: Dialect = "cloudflare") -> HeaderRules:
    """Parse rules that are given as text."""
    return HeaderRules.parse(text.encode(), dialect)


def added(text: str, path: str, dialect: Dialect = "cloudflare") -> list[str]:
    """Return the fields that rules set for a path, as lines."""
    changes = parse(text, dialect).changes(path.encode())
    return [f"{name.decode()}: {value.decode()}" for name, value in changes.added]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("rules", "path", "fields"),
    [
        ("/a\n  X-A: 1\n  X-B: 2:3", "/a", ["X-A: 1", "X-B: 2:3"]),
        ("/a\nX-A:1", "/a", ["X-A: 1"]),
        ("/a\r\n\tX-A : 1 \r\n", "/a", ["X-A: 1"]),
        ("# why\n/a\n# why\n\n  X-A: 1 # 2", "/a", ["X-A: 1 # 2"]),
        ("/a\n X-A: 1", "/b", []),
        ("/a\n X-A: 1", "/A", []),
        ("/café\n X-A: 1", "/caf%c3%a9", ["X-A: 1"]),
        ("/a b\n X-A: 1", "/a%20b", ["X-A: 1"]),
        ("/a?x\n X-A: 1", "/a", ["X-A: 1"]),
        ("/*\n X-A: 1", "/", ["X-A: 1"]),
        ("/*.js\n X-A: 1", "/a/b.js", ["X-A: 1"]),
        (
            '/m/:title\n X-A: You watch ":title" :other',
            "/m/x%20y",
            ['X-A: You watch "x%20y" :other'],
        ),
        ("/m/*\n Link: </s/:splat>; rel=x", "/m/1/2", ["Link: </s/1/2>; rel=x"]),
        ("/a\n X-A: 1\n x-a: 2", "/a", ["X-A: 1, 2"]),
        ("/*\n X-A: 1\n/a\n x-a: 2\n/:x\n X-B: 3", "/a", ["X-A: 1, 2", "X-B: 3"]),
        ("/a\n X-A: 1\n/*\n X-A: 2", "/a", ["X-A: 1, 2"]),
        ("/a\n X-A: 1\n/b\n X-B: 2\n/a\n X-A: 3", "/a", ["X-A: 1, 3"]),
        ("/a\n Set-Cookie: a=1\n set-cookie: b=2", "/a", ["Set-Cookie: a=1", "Set-Cookie: b=2"]),
        ("/a\n X-A: naïve", "/a", ["X-A: naïve"]),
        ("/a\n Link:https://x.example/", "/a", ["Link: https://x.example/"]),
    ],
)
def test_both_dialects(rules: str, path: str, fields: list[str], dialect: Dialect) -> None:
    """Every block that matches counts, in file order; equal names are joined."""
    assert added(rules, path, dialect) == fields


@pytest.mark.parametrize(
    ("rules", "removed", "fields"),
    [
        ("/a\n ! X-A", {b"x-a"}, []),
        ("/*\n X-A: 1\n/a\n ! X-A", {b"x-a"}, []),
        ("/a\n X-A: 1\n ! X-A", {b"x-a"}, ["X-A: 1"]),
        ("/*\n X-A: 1\n/a\n X-A: 2\n ! x-a", {b"x-a"}, ["X-A: 2"]),
        ("/a\n ! X-A\n/*\n X-A: 1", {b"x-a"}, ["X-A: 1"]),
        ("/a\n X-A: 1\n/b\n X-B: 1\n/a\n ! X-A\n X-A: 2", {b"x-a"}, ["X-A: 1, 2"]),
    ],
)
def test_removal(rules: str, removed: set[bytes], fields: list[str]) -> None:
    """A removal acts before the block's own values, wherever it stands in the block."""
    assert parse(rules).changes(b"/a").removed == removed
    assert added(rules, "/a") == fields


def test_the_slash_at_netlify() -> None:
    """Netlify ignores the slash at the end of a path; Cloudflare does not."""
    assert added("/a\n X-A: 1", "/a/") == []
    assert added("/a\n X-A: 1", "/a/", "netlify") == ["X-A: 1"]
    assert added("/b/*\n X-A: 1", "/b", "netlify") == ["X-A: 1"]


def test_hosts() -> None:
    """A pattern of Cloudflare with a host applies to that host only."""
    rules = parse(
        "https://a.example/x\n X-A: 1\nhttps://:p.pages.dev/*\n X-P: :p:splat\n/*\n X-B: 2"
    )
    assert rules.problems == ()
    assert rules.changes(b"/x", b"a.example").added == ((b"X-A", b"1"), (b"X-B", b"2"))
    assert rules.changes(b"/x", b"b.example").added == ((b"X-B", b"2"),)
    assert rules.changes(b"/x", b"q.pages.dev").added == ((b"X-P", b"qx"), (b"X-B", b"2"))
    assert rules.changes(b"/x", b"r.q.pages.dev").added == ((b"X-B", b"2"),)


@pytest.mark.parametrize(
    ("line", "report"),
    [
        ("X-B", "has no colon"),
        ("!X-B", "write `Name: value` to set a header, or `! Name` to remove it"),
        (": 1", "has no name"),
        ("X-B:", "has no value"),
        ("X B: 1", "`X B` is not a header name"),
        ("X-Bé: 1", "is not a header name"),
        ("X-B: a\x00b", "control character"),
        ("X-B: a\rX-C: b", "control character"),
        (f"X-B: {'a' * 2000}", "longer than 2,000 characters"),
        ("Location: /b", "write a rule in `_redirects`"),
        ("Basic-Auth: user:password", "holds a password"),
    ],
)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_wrong_lines(line: str, report: str, dialect: Dialect) -> None:
    """A wrong line is skipped and reported with its number; the other lines apply."""
    text = f"/a\n X-A: 1\n {line}\n X-Z: 2"
    [problem] = parse(text, dialect).problems
    assert (problem.file, problem.line) == ("_headers", 3)
    assert report in problem.text
    assert added(text, "/a", dialect) == ["X-A: 1", "X-Z: 2"]


PROTECTED = [
    "Content-Length",
    "Transfer-Encoding",
    "Connection",
    "Keep-Alive",
    "Upgrade",
    "Trailer",
    "TE",
    "Proxy-Connection",
    "ETag",
    "Last-Modified",
    "Content-Encoding",
    "Content-Range",
    "Accept-Ranges",
    "Date",
    "Age",
]


@pytest.mark.parametrize("name", PROTECTED)
def test_protected_fields(name: str) -> None:
    """Framing, validators, codings, ranges and dates can be neither set nor removed."""
    rules = parse(f"/*\n  {name}: x\n  {name.lower()} : x\n  ! {name}\n  X-A: 1")
    assert [problem.line for problem in rules.problems] == [2, 3, 4]
    assert all("remove it" in problem.text for problem in rules.problems)
    assert rules.changes(b"/") == HeaderChanges(frozenset(), ((b"X-A", b"1"),))


@pytest.mark.parametrize(
    ("text", "dialect", "line", "report"),
    [
        ("X-A: 1\n/b\n X-B: 2", "cloudflare", 1, "stands below no path"),
        ("/a\n/b\n X-B: 2", "cloudflare", 1, "no header stands below `/a`"),
        ("/b\n X-B: 2\n/a", "cloudflare", 3, "no header stands below `/a`"),
        ("http://a.example/*\n X-A: 1\n/b\n X-B: 2", "cloudflare", 1, "begins with `https://`"),
        ("https://a.example:80/*\n X-A: 1\n/b\n X-B: 2", "cloudflare", 1, "remove the port"),
        ("https:///x\n X-A: 1\n/b\n X-B: 2", "cloudflare", 1, "is not a host"),
        ("https://*.a.example/*\n X-A: 1\n/b\n X-B: 2", "cloudflare", 1, "use it once"),
        ("/*/*\n X-A: 1\n/b\n X-B: 2", "cloudflare", 1, "only one `*`"),
        ("https://a.example/*\n X-A: 1\n/b\n X-B: 2", "netlify", 1, "write only its path"),
        ("/b\n X-B: 2\n ! X-A", "netlify", 3, "is Cloudflare's"),
        ("/b\n X-B: 2\n ! Vary", "cloudflare", 3, "cannot be removed"),
    ],
)
def test_other_reports(text: str, dialect: Dialect, line: int, report: str) -> None:
    """A wrong block is reported once, and the other blocks apply."""
    [problem] = parse(text, dialect).problems
    assert problem.line == line
    assert report in problem.text
    assert added(text, "/b", dialect) == ["X-B: 2"]


def test_a_second_block() -> None:
    """A second block for a path is merged, and reported where Cloudflare differs."""
    text = "/a\n X-A: 1\n/a\n X-A: 2"
    assert added(text, "/a") == added(text, "/a", "netlify") == ["X-A: 1, 2"]
    [problem] = parse(text).problems
    assert problem.line == 3
    assert "Cloudflare uses only the last block" in problem.text
    assert parse(text, "netlify").problems == ()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_limit(dialect: Dialect) -> None:
    """The first 100 blocks apply; empty ones do not count."""
    text = "/empty\n" + "".join(f"/{number}\n X-A: 1\n" for number in range(102))
    rules = parse(text, dialect)
    assert rules.rule_count == 100
    assert "more than 100 blocks" in rules.problems[-1].text
    assert rules.changes(b"/99") != NO_CHANGES
    assert rules.changes(b"/100") is NO_CHANGES


OWN = (
    (b"Content-Type", b"text/html"),
    (b"ETag", b'"x"'),
    (b"Cache-Control", b"no-cache"),
    (b"Vary", b"Accept-Encoding"),
)


def test_the_defaults_of_the_server_are_replaced() -> None:
    """A field that is set replaces the server's, also if two blocks set it."""
    rules = parse("/*\n cache-control: max-age=1\n/a\n Cache-Control: public\n ! content-type")
    assert rules.changes(b"/a").apply(OWN, 200) == (
        (b"ETag", b'"x"'),
        (b"Vary", b"Accept-Encoding"),
        (b"cache-control", b"max-age=1, public"),
    )
    assert rules.changes(b"/b").apply(OWN, 404)[-1] == (b"cache-control", b"max-age=1")


def test_no_changes() -> None:
    """Without a rule for the path, the fields stay the same object."""
    assert parse("/a\n X-A: 1").changes(b"/b").apply(OWN, 200) is OWN


@pytest.mark.parametrize(
    ("own", "value", "result"),
    [
        ([], b"Cookie", b"Cookie"),
        ([b"Accept-Encoding"], b"Cookie", b"Accept-Encoding, Cookie"),
        ([b"Accept-Encoding", b"Origin"], b"accept-encoding, X", b"Accept-Encoding, Origin, X"),
        ([b"Accept-Encoding"], b"*", b"Accept-Encoding, *"),
    ],
)
def test_vary_is_added_to(own: list[bytes], value: bytes, result: bytes) -> None:
    """``Vary`` keeps the server's members and gets those of the rules."""
    changes = parse(f"/*\n Vary: {value.decode()}").changes(b"/")
    headers = tuple((b"vary", each) for each in own)
    for status in (200, 304, 404):
        assert changes.apply(headers, status) == ((b"Vary", result),)


def test_a_304() -> None:
    """A 304 gets only the fields of RFC 9110 §15.4.5 from the rules."""
    text = (
        "/*\n Cache-Control: max-age=9\n Expires: 0\n Vary: Origin\n Content-Location: /b\n"
        " X-A: 1\n Content-Type: a/b\n Set-Cookie: a=b\n Content-Security-Policy: x\n"
    )
    own = ((b"ETag", b'"x"'), (b"Cache-Control", b"no-cache"))
    assert parse(text).changes(b"/").apply(own, 304) == (
        (b"ETag", b'"x"'),
        (b"Cache-Control", b"max-age=9"),
        (b"Expires", b"0"),
        (b"Vary", b"Origin"),
        (b"Content-Location", b"/b"),
    )


@pytest.mark.parametrize("control", [b"no-store", b"private, no-cache", b"No-Store"])
def test_uncacheable_responses_stay_so(control: bytes) -> None:
    """Rules cannot make a response cacheable that the server marks as not cacheable."""
    rules = parse(
        "/*\n Cache-Control: public\n Expires: 1\n CDN-Cache-Control: public\n X-A: 1\n"
        "/a\n ! Cache-Control\n"
    )
    own = ((b"Cache-Control", control),)
    for path in (b"/", b"/a"):
        assert rules.changes(path).apply(own, 503) == (*own, (b"X-A", b"1"))


def test_several_ranges_keep_their_type() -> None:
    """Rules cannot change the type of a response with several ranges, which has the boundary."""
    own = ((b"Content-Type", b"multipart/byteranges; boundary=x"),)
    assert parse("/*\n Content-Type: a/b").changes(b"/").apply(own, 206) == own
    assert parse("/*\n ! Content-Type").changes(b"/").apply(own, 206) == own


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "content",
    [
        b"/a\n X: y\n" + b"".join(b"/s%d\n" % number for number in range(MAX_LINES + 5)),
        b"/a\n" + b"".join(b" X-%d: y\n" % number for number in range(MAX_LINES + 5)),
        b"nonsense\n" * (MAX_LINES + 5),
        b"/a\n X: " + b"x" * (1 << 20),
        b"/a\n X: " + b"\xff" * 3000,
        b"\n" * (17 << 20),
    ],
    ids=["many blocks", "many fields", "many problems", "long line", "invalid", "newlines"],
)
def test_bounds(content: bytes, dialect: Dialect) -> None:
    """Huge and broken files are reported, with a bounded list of problems, in bounded time."""
    start = time.process_time()
    rules = HeaderRules.parse(content, dialect)
    fields = rules.changes(b"/a").added
    assert time.process_time() - start < 10
    assert sum(len(name) + len(value) for name, value in fields) <= MAX_ADDED
    assert 1 <= len(rules.problems) <= MAX_PROBLEMS
    assert all(len(problem.text) < 400 for problem in rules.problems)


def test_long_values() -> None:
    """A value is left out if its captured text makes it larger than the limit."""
    text = f"/*\n X-A: 1\n X-B: {':splat' * 300}\n X-C: 2"
    assert added(text, "/" + "a" * 200) == ["X-A: 1"]
    assert len(added(text, "/a")) == 3


def test_many_paths() -> None:
    """The results that are remembered for paths are bounded and right; equal ones are shared."""
    rules = parse("/*\n X-A: 1\n/n/:x\n X-B: :x")
    for _ in range(2):
        for number in range(2000):
            assert rules.changes(b"/n/%d" % number).added[1] == (b"X-B", b"%d" % number)
    assert rules.changes(b"/1") is rules.changes(b"/2")


@given(
    st.lists(
        st.sampled_from(
            [b"/", b"\r\n", b"\n", b"\0", b"%0d%0a", b"X: y", b"a", b"\xff", b"\x80", b":", b" "]
        )
    ).map(b"".join)
)
def test_values_are_clean(tail: bytes) -> None:
    """No path adds a line or a control character to a value."""
    rules = parse("/*\n X-A: <:splat>\n Link: :splat\n/:x/*\n X-B: :x")
    for _, value in rules.changes(b"/" + tail).added:
        assert not re.search(rb"[\0-\x1f\x7f-\xff]", value)


@given(st.binary(max_size=300), st.sampled_from(DIALECTS), st.binary(max_size=20))
def test_any_bytes(content: bytes, dialect: Dialect, path: bytes) -> None:
    """Any file can be parsed, and the fields that it sets are clean."""
    rules = HeaderRules.parse(content, dialect)
    for name, value in rules.changes(b"/" + path).apply(OWN, 200):
        assert re.fullmatch(rb"[!-9;-~]+", name)
        assert not re.search(rb"[\0-\x08\x0a-\x1f\x7f]", value)
