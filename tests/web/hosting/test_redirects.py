"""Rules of ``_redirects`` in both dialects."""

from __future__ import annotations

import re
import time
from urllib.parse import unquote_to_bytes, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blobserve.web.hosting.redirects import RedirectRules, RuleMatch
from blobserve.web.hosting.rule_lines import MAX_LINES, MAX_PROBLEMS, Dialect

DIALECTS: tuple[Dialect, ...] = ("cloudflare", "netlify")


def parse(text: str, dialect: Dialect = "cloudflare") -> RedirectRules:
    """Parse rules that are given as text."""
    return RedirectRules.parse(text.encode(), dialect)


def answer(
    text: str,
    path: str,
    dialect: Dialect = "cloudflare",
    query: bytes | None = None,
    file_exists: bool = False,
) -> tuple[int, str] | None:
    """Return status and location for a path, or None if no rule applies."""
    found = parse(text, dialect).match(path.encode(), query, file_exists)
    return None if found is None else (found.status, found.location.decode())


def reports(text: str, dialect: Dialect = "cloudflare") -> list[str]:
    """Return the problems of rules as text."""
    return [str(problem) for problem in parse(text, dialect).problems]


@pytest.mark.parametrize(
    ("rules", "path", "expected"),
    [
        ("/a /b", "/a", (302, "/b")),
        ("/a /b 301", "/a", (301, "/b")),
        ("/a /b 303", "/a", (303, "/b")),
        ("/a /b 307", "/a", (307, "/b")),
        ("/a /b 308", "/a", (308, "/b")),
        ("/a /b 200", "/a", (200, "/b")),
        ("\t/a \t /b\r\n", "/a", (302, "/b")),
        ("\ufeff/a /b", "/a", (302, "/b")),
        ("# /a /c\n\n/a /b", "/a", (302, "/b")),
        ("/a /b", "/a/", None),
        ("/a /b", "/A", None),
        ("/a /b\n/a /c", "/a", (302, "/b")),
        ("a /b", "/a", (302, "/b")),
        ("/a?x=1 /b", "/a", (302, "/b")),
        ("/a#f /b", "/a", (302, "/b")),
        ("/a/../c /b", "/c", (302, "/b")),
        ("/café /tea", "/caf%c3%a9", (302, "/tea")),
        ("/caf%c3%a9 /tea", "/caf%C3%A9", (302, "/tea")),
        ("/a /café?ö#ü", "/a", (302, "/caf%C3%A9?%C3%B6#%C3%BC")),
        ("/a https://example.com", "/a", (302, "https://example.com/")),
        ("/a HTTPS://example.com:8443?x", "/a", (302, "https://example.com:8443/?x")),
        ("/a http://[::1]:8080/x", "/a", (302, "http://[::1]:8080/x")),
        ("/a http://[fe80::abcd]/x", "/a", (302, "http://[fe80::abcd]/x")),
        ("/a /b/../c/./d", "/a", (302, "/c/d")),
        ("/a /b\\c", "/a", (302, "/b%5Cc")),
        ("/n/* /blog/:splat", "/n/1/2", (302, "/blog/1/2")),
        ("/n/* /blog/:splat", "/n/", (302, "/blog/")),
        ("/n/* /blog/:splat", "/n", None),
        ("/:y/:m /p?y=:y#:m", "/2024/05", (302, "/p?y=2024#05")),
        ("/u/:id /u.html 200", "/u/7", (200, "/u.html")),
        ("/u/* /files/:splat?x#y 200", "/u/7", (200, "/files/7")),
        ("/a /:b", "/a", (302, "/:b")),
        ("/:s https://:s.example.com/:s", "/docs", (302, "https://docs.example.com/docs")),
        ("/:s https://:s.example.com/", "/a%2fb", None),
        ("/:s https://:s.example.com/", "/a.b", None),
        ("/:s https://:s.example.com/", "/a@b", None),
        ("/app/* /app/index.html 200", "/app/x", (200, "/app/index.html")),
        ("/* / 302", "/x", (302, "/")),
    ],
)
def test_cloudflare(rules: str, path: str, expected: tuple[int, str] | None) -> None:
    """The dialect of Cloudflare, rule by rule."""
    assert answer(rules, path) == expected


@pytest.mark.parametrize(
    ("rules", "path", "expected"),
    [
        ("/a /b", "/a", (301, "/b")),
        ("/a /b", "/a/", (301, "/b")),
        ("/a/ /b", "/a", (301, "/b")),
        ("/a /b", "/a//", None),
        ("/ /b", "/", (301, "/b")),
        ("/n/* /blog/:splat", "/n", (301, "/blog/")),
        ("/n/* /blog/:splat", "/n/x/", (301, "/blog/x/")),
        ("/n/:x/ /b/:x", "/n/1", (301, "/b/1")),
        ("/n/:x /b/:x", "/n/1/", (301, "/b/1")),
        ("/a /b 302 # why", "/a", (302, "/b")),
        ("/a /b # why", "/a", (301, "/b")),
        ("/a /b#c", "/a", (301, "/b#c")),
        ("/* /index.html 200", "/deep/link", (200, "/index.html")),
        ("/en/* /en/404.html 404", "/en/x", (404, "/en/404.html")),
        ("/a /b\n/a/ /c", "/a", (301, "/b")),
        ("/a /x\n/* /y\n/a /x", "/a", (301, "/y")),
    ],
)
def test_netlify(rules: str, path: str, expected: tuple[int, str] | None) -> None:
    """The dialect of Netlify, rule by rule."""
    assert answer(rules, path, "netlify") == expected


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("rules", "path", "location"),
    [
        ("/a /1\n/* /2", "/a", "/1"),
        ("/* /2\n/a /1", "/a", "/2"),
        ("/x/* /2\n/a /1", "/a", "/1"),
        ("/:p/c /1\n/b/* /2", "/b/c", "/1"),
        ("/b/* /2\n/:p/c /1", "/b/c", "/2"),
        ("/b/* /2\n/b/c /3\n/:p/c /1", "/b/c", "/2"),
        ("/b/d/* /2\n/b/c /3\n/:p/c /1", "/b/c", "/3"),
        ("/b/d/* /2\n/:p/c /1\n/b/c /3", "/b/c", "/1"),
        ("/b/* /1\n/* /2", "/b/c", "/1"),
        ("/* /2\n/b/* /1", "/b/c", "/2"),
        ("/b/:x/d /3\n/:p/c /2\n/b/* /1\n/* /0", "/b/c", "/2"),
    ],
)
def test_the_order_of_the_file_counts(
    rules: str, path: str, location: str, dialect: Dialect
) -> None:
    """The first rule that matches applies, with and without wildcards."""
    found = answer(rules, path, dialect)
    assert found is not None
    assert found[1] == location


@pytest.mark.parametrize(
    ("target", "query", "location"),
    [
        ("/b", None, "/b"),
        ("/b", b"", "/b"),
        ("/b", b"x=1", "/b?x=1"),
        ("/b#f", b"x=1", "/b?x=1#f"),
        ("/b?y=2", b"x=1", "/b?y=2"),
        ("/b?", b"x=1", "/b?x=1"),
        ("/b?y=2#f", b"x=1", "/b?y=2#f"),
        ("https://example.com/b", b"x=1", "https://example.com/b?x=1"),
        ("/b", b'x="\r\n #\xff', "/b?x=%22%0D%0A%20%23%FF"),
    ],
)
def test_query(target: str, query: bytes | None, location: str) -> None:
    """The request's query is kept unless the target has its own; a fragment stays at the end."""
    assert answer(f"/a {target}", "/a", query=query) == (302, location)


@pytest.mark.parametrize("status", ["200", "301", "404"])
def test_existing_files_win_at_netlify(status: str) -> None:
    """An existing file wins over a rule of Netlify, unless the rule is forced."""
    assert answer(f"/a /b {status}", "/a", "netlify", file_exists=True) is None
    forced = answer(f"/a /b {status}!", "/a", "netlify", file_exists=True)
    assert forced == (int(status), "/b")


def test_files_are_looked_up_only_if_that_matters() -> None:
    """The site's files are asked for a rule that matches and is not forced, and only then."""
    asked: list[bytes] = []

    def exists() -> bool:
        asked.append(b"")
        return True

    rules = parse("/a /b\n/c /d 301!", "netlify")
    assert rules.match(b"/x", None, exists) is None
    assert rules.match(b"/c", None, exists) == RuleMatch(301, b"/d", True)
    assert asked == []
    assert rules.match(b"/a", None, exists) is None
    assert asked == [b""]
    assert parse("/a /b").match(b"/a", None, exists) == RuleMatch(302, b"/b", True)
    assert asked == [b""]


def test_the_first_rule_decides_even_if_the_file_wins() -> None:
    """No later rule applies if an existing file wins over the first rule that matches."""
    rules = "/a /b\n/* /c 301!"
    assert answer(rules, "/a", "netlify", file_exists=True) is None
    assert answer(rules, "/x", "netlify", file_exists=True) == (301, "/c")


@pytest.mark.parametrize("target", ["/index.html", "/", "/./index.html", "/index.html#top"])
def test_the_single_page_rule(target: str) -> None:
    """Cloudflare's loop is skipped and reported; Netlify accepts the same rule."""
    rules = f"/* {target} 200\n/a /b"
    assert answer(rules, "/a") == (302, "/b")
    assert answer(rules, "/c") is None
    [report] = reports(rules)
    assert report.startswith("_redirects:1: ")
    assert "endless loop" in report
    assert "404.html" in report
    found = answer(rules, "/c", "netlify")
    assert found is not None
    assert found[0] == 200


@pytest.mark.parametrize(
    ("line", "report"),
    [
        ("/a", "has no target"),
        ("/a 301", "has no target"),
        ("/a b", "begin it with `/`, `https://` or `http://`"),
        ("/a ftp://example.com/", "begin it with"),
        ("/a //example.com/", "begins with two slashes"),
        ("/a /\\example.com/", "begins with two slashes"),
        ("/a /%2Fexample.com/", "begins with two slashes"),
        ("/a /.//example.com/", "begins with two slashes"),
        ("/a /b%0d%0aX", "control character"),
        ("/a https://", "is not a host"),
        ("/a https:///b", "is not a host"),
        ("/a https://user@example.com/", "is not a host"),
        ("/a https://example.com\\.org/", "is not a host"),
        ("/a https://[::z]/", "is not a host"),
        ("/a https://bücher.example/", "`xn--` form"),
        ("/:h https://:h/", "one label below a domain"),
        ("/:h https://example.com:h/", "write a slash before a name"),
        ("/:h https://example.com.:h/", "one label below a domain"),
        ("/a https://:h.example.com/", "one label below a domain"),
        ("/a /b 300", "write 200, 301, 302, 303, 307"),
        ("/a /b 3011", "is not supported"),
        ("/a /b ok", "is not supported"),
        ("/a /b 301 302", "has 4 words"),
        ("https://example.com/a /b", "write only its path"),
        ("/*/b/* /c", "only one `*`"),
        ("/:a/:a /c", "stands twice"),
        ("/a https://example.com/ 200", "proxying is not supported"),
        ("/a /b 302 Country=us", "`Country=us` is not supported"),
        ("/a /b 302 Language=de", "`Language=de` is not supported"),
        ("/a /b 302 Cookie=x", "`Cookie=x` is not supported"),
        ("/a /b 302 Role=admin", "`Role=admin` is not supported"),
        ("/a /b Country=us", "`Country=us` is not supported"),
        ("/a /_redirects 200", "not a file that the site serves"),
        ("/a /%5Fheaders 200", "not a file that the site serves"),
        ("/a /x/..//_headers 200", "two slashes"),
        ("/a /_headers/ 200", "not a file that the site serves"),
        ("/a /..%2f..%2fetc 200", "not a file that the site serves"),
        ("/a /%2e%2e%2fetc 200", "not a file that the site serves"),
        (f"/{'a' * 1000} /b", "longer than 1,000 characters"),
        ("/a /b\x01", "control character"),
        ("/a\r/b /c", "control character"),
    ],
)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_wrong_lines(line: str, report: str, dialect: Dialect) -> None:
    """A wrong line is skipped and reported with its number; the other lines apply."""
    rules = parse(f"# rules\n{line}\n/ok /fine", dialect)
    [problem] = rules.problems
    assert (problem.file, problem.line) == ("_redirects", 2)
    assert report in problem.text
    assert rules.problem_count == 1
    assert rules.rule_count == 1
    assert rules.match(b"/ok", None, False) is not None


@pytest.mark.parametrize(
    ("line", "dialect", "report"),
    [
        ("/a /b 301!", "cloudflare", "write `301`"),
        ("/a /b 404", "cloudflare", "`404.html`"),
        ("a /b", "netlify", "write `/a`"),
        ("/store id=:id /blog/:id 301", "netlify", "rules see no query"),
        ("/a en /b 301", "netlify", "before the target"),
        ("/a /b 410", "netlify", "308 or 404"),
        ("/a https://example.com/ 404", "netlify", "another host"),
        ("/admin/* 200! Role=admin", "netlify", "`Role=admin`"),
    ],
)
def test_lines_that_are_wrong_in_one_dialect(line: str, dialect: Dialect, report: str) -> None:
    """Forms of the other dialect are reported with the form to write."""
    rules = parse(line, dialect)
    [problem] = rules.problems
    assert report in problem.text
    assert rules.rule_count == 0


@pytest.mark.parametrize(
    ("rules", "line", "report"),
    [
        ("/a?b /c", 1, "query and fragment of the source `/a?b` are ignored"),
        ("/a /:b?x=:b", 1, "captures no `:b`"),
        ("/a https://example.com/:splat", 1, "captures no `:splat`"),
        ("/a /a", 1, "endless loop"),
        ("/a /b\n/a /c", 2, "the rule for `/a` in line 1 stays"),
        ("/caf%c3%a9 /b\n/café /c", 2, "in line 1 stays"),
    ],
)
def test_reports_about_rules_that_apply(rules: str, line: int, report: str) -> None:
    """A rule with a part that has no effect applies, and the part is reported."""
    parsed = parse(rules)
    [problem] = parsed.problems
    assert problem.line == line
    assert report in problem.text
    assert parsed.rule_count == 1


def test_equal_rules_at_netlify() -> None:
    """At Netlify the place of the last of several equal rules counts."""
    [report] = reports("/a /b 301!\n/x /y\n/a /b 301!", "netlify")
    assert report.startswith("_redirects:1: line 3 has the same rule")


def test_limits_of_cloudflare() -> None:
    """2,000 rules without wildcards and 100 with them apply; the rest is reported."""
    static = [f"/s{number} /t" for number in range(2001)]
    dynamic = [f"/d{number}/* /t" for number in range(101)]
    rules = parse("\n".join([*static, *dynamic, "/late /t"]))
    assert rules.rule_count == 2100
    assert [problem.line for problem in rules.problems] == [2001, 2102]
    assert rules.match(b"/s1999", None, False) is not None
    assert rules.match(b"/s2000", None, False) is None
    assert rules.match(b"/d99/x", None, False) is not None
    assert rules.match(b"/d100/x", None, False) is None
    assert rules.match(b"/late", None, False) is None


def test_static_rules_below_a_dynamic_one_count_as_dynamic() -> None:
    """Cloudflare counts each rule below the first dynamic one as dynamic; Netlify does not."""
    text = "\n".join(["/d/* /t", *(f"/s{number} /t" for number in range(150))])
    rules = parse(text)
    assert rules.rule_count == 100
    assert "move rules without them to the top" in rules.problems[0].text
    assert parse(text, "netlify").rule_count == 151


def test_a_colon_is_not_always_a_name() -> None:
    """A source with a colon before a digit has no placeholder and counts as such."""
    dynamic = [f"/d{number}/* /t" for number in range(100)]
    rules = parse("\n".join([*dynamic, "/t/12:30 /t"]), "netlify")
    assert rules.problems == ()
    assert rules.match(b"/t/12:30", None, False) is not None


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "content",
    [
        b"".join(b"/s%d /t 301\n" % number for number in range(MAX_LINES + 5)),
        b"nonsense\n" * (MAX_LINES + 5),
        b"/a /b\n" + b"x" * (1 << 20) + b"\n/c /d\n",
        b"/a /" + b"\xff" * 3000,
        b"\n" * (17 << 20),
        b"x" * (17 << 20),
        b"#" * (17 << 20),
    ],
    ids=["many rules", "many problems", "long line", "invalid", "newlines", "huge", "comment"],
)
def test_bounds(content: bytes, dialect: Dialect) -> None:
    """Huge and broken files are reported, with a bounded list of problems, in bounded time."""
    start = time.process_time()
    rules = RedirectRules.parse(content, dialect)
    assert time.process_time() - start < 10
    assert 1 <= len(rules.problems) <= MAX_PROBLEMS
    assert rules.problem_count >= len(rules.problems)
    assert all(len(problem.text) < 400 for problem in rules.problems)


def test_lines_around_a_broken_one_apply() -> None:
    """A line that is too long or not UTF-8 is reported, and its neighbours apply."""
    content = b"/a /b\n" + b"x" * (1 << 20) + b"\n/caf\xe9 /d\n# caf\xe9\n/e /f\n"
    rules = RedirectRules.parse(content, "cloudflare")
    assert [(problem.line, problem.text) for problem in rules.problems] == [
        (2, "the line is longer than 1,000 characters; shorten it"),
        (3, "the line is not UTF-8; save the file as UTF-8"),
    ]
    assert rules.match(b"/e", None, False) == RuleMatch(302, b"/f", True)


def test_many_paths() -> None:
    """The results that are remembered for paths are bounded and right."""
    rules = parse("/n/* /b/:splat")
    for _ in range(2):
        for number in range(2000):
            found = rules.match(b"/n/%d" % number, b"q", False)
            assert found is not None
            assert found.location == b"/b/%d?q" % number
    assert rules.match(b"/n/" + b"x" * 9000, None, False) is not None


def test_long_locations() -> None:
    """A rule that repeats a long value does not apply instead of making a huge header."""
    assert answer(f"/* /x/{':splat' * 100}", "/" + "a" * 1000) is None


HOSTILE = st.lists(
    st.sampled_from(
        [
            *rb"/ \ %2f %5C . %2e .. %09 %0d%0a %00 a evil.example @ : % 0a 2e 2f".split(),
            *rb"_headers _redirects %5f - ? # ' < & \t \r \n \0".split(),
            *(b"\t", b"\r\n", b"\0", b"\xff", b" ", b'"'),
        ]
    ),
    max_size=8,
).map(b"".join)

TARGETS = ["/:splat", "/:splat/:splat", "/:splat/x", "/x:splat", "/.:splat", "/%:splat"]
TARGETS += ["/a?b=:splat", "/a#:splat", "/%2:splat", "/x/../:splat"]


@given(HOSTILE, st.sampled_from(TARGETS), st.sampled_from(DIALECTS), st.none() | HOSTILE)
@example(b"/evil.example", "/:splat", "cloudflare", None)
@example(b"\\evil.example", "/:splat", "cloudflare", None)
@example(b"%09/evil.example", "/:splat", "cloudflare", None)
@example(b"./%2fevil.example", "/:splat", "netlify", None)
@example(b"x/../y", "/:splat", "cloudflare", None)
@example(b"x%2f%2E%2e%5cy", "/:splat", "cloudflare", None)
@example(b"./y", "/.:splat", "cloudflare", None)
def test_redirects_are_safe(
    tail: bytes, target: str, dialect: Dialect, query: bytes | None
) -> None:
    """No value makes a path of the site a URL of another host, or a header a second line."""
    found = parse(f"/* {target} 301!\n/* {target} 301", dialect).match(b"/" + tail, query, False)
    if found is None:
        return
    location = found.location
    assert re.fullmatch(rb"/(?![/\\])[!-~]*", location)
    assert b"\\" not in location.partition(b"?")[0]
    path = re.split(rb"[?#]", location)[0]
    decoded = unquote_to_bytes(path)
    assert not re.match(rb"/\.?[/\\]", decoded)
    assert not re.search(rb"[\0-\x1f\x7f]", decoded)
    assert b".." not in re.split(rb"[/\\]", decoded)


@given(HOSTILE, st.sampled_from(["https://:x.example.com/:x", "http://:x.example.com:80/a"]))
def test_hosts_are_safe(tail: bytes, target: str) -> None:
    """A name in the host of a target is one label, so the domain is that of the rule."""
    found = parse(f"/:x {target}").match(b"/" + tail, None, False)
    if found is not None:
        host = urlsplit(found.location.decode()).hostname
        assert host is not None
        assert re.fullmatch(r"[a-z0-9-]+\.example\.com", host)


@given(
    HOSTILE,
    st.sampled_from(["/:splat", "/x/:splat", "/x/.:splat", "/_:splat", "/%:splat"]),
    st.sampled_from(["200", "404"]),
)
@example(b"_headers", "/:splat", "200")
@example(b"%2e%2e%2f_headers", "/x/:splat", "200")
def test_rewrites_stay_in_the_site(tail: bytes, target: str, status: str) -> None:
    """A rewrite names a file within the site, and never one of the two rule files."""
    found = parse(f"/* {target} {status}", "netlify").match(b"/" + tail, None, False)
    if found is None:
        return
    segments = unquote_to_bytes(found.location).split(b"/")
    assert b".." not in segments
    kept = [segment for segment in segments if segment not in (b"", b".")]
    assert kept not in ([b"_headers"], [b"_redirects"])
    assert not re.search(rb"[\0-\x1f\x7f]", unquote_to_bytes(found.location))


def test_the_next_rule_applies_if_one_is_not_safe() -> None:
    """The next rule that matches applies if one would not be safe for a path."""
    rules = "/:file /:file 200\n/* /app.html 200"
    assert answer(rules, "/x") == (200, "/x")
    assert answer(rules, "/_headers") == (200, "/app.html")


@given(st.binary(max_size=300), st.sampled_from(DIALECTS), st.binary(max_size=20))
def test_any_bytes(content: bytes, dialect: Dialect, path: bytes) -> None:
    """Any file can be parsed, and any path can be matched."""
    rules = RedirectRules.parse(content, dialect)
    rules.match(b"/" + path, path, False)


LINES = st.lists(
    st.lists(
        st.sampled_from(["/a", "/*", "/:x", "/a/:x/*", "/:splat", "https://a.b/:x", "200", "301!"]),
        max_size=4,
    ).map(" ".join),
    max_size=6,
).map("\n".join)


@given(LINES, st.sampled_from(DIALECTS), HOSTILE)
def test_a_remembered_result_is_the_same(text: str, dialect: Dialect, tail: bytes) -> None:
    """The second request for a path gets the result of the first."""
    rules = parse(text, dialect)
    first = rules.match(b"/" + tail, b"q", False)
    assert rules.match(b"/" + tail, b"q", False) == first
    assert parse(text, dialect).match(b"/" + tail, b"q", False) == first
