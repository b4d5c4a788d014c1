"""The rules agree with a second implementation, written from the published documentation."""

from __future__ import annotations

import pytest

from blobserve.web.hosting.header_rules import HeaderRules
from blobserve.web.hosting.redirects import RedirectRules
from tests.web.hosting import slow_rules
from tests.web.hosting.rule_files import (
    DIALECTS,
    Dialect,
    Request,
    RuleFile,
    header_files,
    redirect_files,
)

REDIRECT_FILES = 5_000
HEADER_FILES = 5_000
PARTS = 10

Redirect = tuple[int, str, bool] | None
Changes = tuple[set[str], dict[str, str]]


def text_of(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def redirects(file: RuleFile) -> list[Redirect]:
    """Return the rule that the server applies to each request."""
    rules = RedirectRules.parse(file.text.encode(), file.dialect)
    results: list[Redirect] = []
    for request in file.requests:
        query = None if request.query is None else request.query.encode()
        match = rules.match(request.path.encode(), query, request.exists)
        if match is None:
            results.append(None)
        else:
            results.append((match.status, text_of(match.location), match.is_forced))
    return results


def slow_redirects(file: RuleFile) -> list[Redirect]:
    """Return the rule that the second implementation applies to each request."""
    return [
        slow_rules.redirect(file.text, file.dialect, request.path, request.query, request.exists)
        for request in file.requests
    ]


def headers(file: RuleFile) -> list[Changes]:
    """Return the names that the server removes and the values that it sets, for each request."""
    rules = HeaderRules.parse(file.text.encode(), file.dialect)
    results = []
    for request in file.requests:
        changes = rules.changes(request.path.encode())
        results.append(
            changes_of(
                {text_of(name) for name in changes.removed},
                [(text_of(name), text_of(value)) for name, value in changes.added],
            )
        )
    return results


def slow_headers(file: RuleFile) -> list[Changes]:
    """Return the same from the second implementation."""
    return [
        changes_of(*slow_rules.header_changes(file.text, file.dialect, request.path))
        for request in file.requests
    ]


def changes_of(removed: set[str], added: list[tuple[str, str]]) -> Changes:
    """Return the changes without the case of the names; a name that is set need not be removed."""
    values = {name.lower(): value for name, value in added}
    assert len(values) == len(added)
    return removed - set(values), values


@pytest.mark.parametrize("part", range(PARTS))
def test_redirects(part: int) -> None:
    """Both implementations apply the same redirect rule to each request."""
    applied = 0
    for file in redirect_files(part, REDIRECT_FILES // PARTS):
        expected = slow_redirects(file)
        assert redirects(file) == expected, file
        applied += sum(result is not None for result in expected)
    assert applied > REDIRECT_FILES // PARTS


@pytest.mark.parametrize("part", range(PARTS))
def test_headers(part: int) -> None:
    """Both implementations change the same headers for each request."""
    changed = 0
    for file in header_files(part, HEADER_FILES // PARTS):
        expected = slow_headers(file)
        assert headers(file) == expected, file
        changed += sum(result != (set(), {}) for result in expected)
    assert changed > HEADER_FILES // PARTS


# Each row: the file, the dialect, the path, the query, whether a file exists, the expected rule.
DOCUMENTED_REDIRECTS = [
    ("/old /new", "cloudflare", "/old", None, True, (302, "/new", True)),
    ("/old /new", "netlify", "/old", None, False, (301, "/new", False)),
    ("/old /new", "netlify", "/old", None, True, None),
    ("/old /new 301!", "netlify", "/old", None, True, (301, "/new", True)),
    ("/old /new 301!", "cloudflare", "/old", None, False, None),
    ("/old /new 404", "cloudflare", "/old", None, False, None),
    ("/shop /closed 404", "netlify", "/shop", None, False, (404, "/closed", False)),
    ("/q /?a=b 301", "cloudflare", "/q", "c=d", False, (301, "/?a=b", True)),
    ("/q /new 301", "cloudflare", "/q", "c=d", False, (301, "/new?c=d", True)),
    ("/p/ /r/#part 301", "cloudflare", "/p/", "c=d", False, (301, "/r/?c=d#part", True)),
    ("/slash /slash/ 301", "cloudflare", "/slash/", None, False, None),
    ("/slash /other 301", "netlify", "/slash/", None, False, (301, "/other", False)),
    ("/news/* /blog/:splat", "cloudflare", "/news/1/2", None, False, (302, "/blog/1/2", True)),
    ("/news/* /blog/:splat", "cloudflare", "/news/", None, False, (302, "/blog/", True)),
    ("/news/* /blog/:splat", "cloudflare", "/news", None, False, None),
    ("/p/:a/:b /q?a=:a&b=:b", "cloudflare", "/p/1/2", None, False, (302, "/q?a=1&b=2", True)),
    ("/p/:a /q/:a", "cloudflare", "/p/1/2", None, False, None),
    ("/p/:a /q/:ab", "cloudflare", "/p/1", None, False, (302, "/q/:ab", True)),
    ("/a /b 200\n/b /c 200", "cloudflare", "/a", None, False, (200, "/b", True)),
    ("/a /b\n/a /c", "cloudflare", "/a", None, False, (302, "/b", True)),
    ("/:x /b\n/a /c", "cloudflare", "/a", None, False, (302, "/b", True)),
    ("/a /c\n/:x /b", "cloudflare", "/a", None, False, (302, "/c", True)),
    ("/* /index.html 200", "cloudflare", "/a", None, False, None),
    ("/* /index.html 200", "netlify", "/a", None, False, (200, "/index.html", False)),
    ("/a https://o.example/", "cloudflare", "/a", None, False, (302, "https://o.example/", True)),
    ("/a https://o.example/b 200", "netlify", "/a", None, False, None),
    ("/café /b", "cloudflare", "/caf%c3%a9", None, False, (302, "/b", True)),
    ("/go/* /:splat", "cloudflare", "/go//o.example", None, False, (302, "/o.example", True)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "dialect", "path", "query", "exists", "expected"), DOCUMENTED_REDIRECTS
)
def test_documented_redirects(
    text: str, dialect: Dialect, path: str, query: str | None, exists: bool, expected: Redirect
) -> None:
    """Both implementations apply a rule as the hosts' pages describe it."""
    file = RuleFile(dialect, text, (Request(path, query, exists),))
    assert slow_redirects(file) == [expected]
    assert redirects(file) == [expected]


DOCUMENTED_HEADERS = [
    ("/s\n  X-A: 1\n/*\n  X-A: 2\n  X-B: 3", "/s", set(), {"x-a": "1, 2", "x-b": "3"}),
    ("/*\n  X-A: 1\n/*.jpg\n  ! X-A", "/b.jpg", {"x-a"}, {}),
    ("/*\n  X-A: 1\n/*.jpg\n  ! X-A", "/b.png", set(), {"x-a": "1"}),
    ("/*\n  X-A: 1\n/b\n  X-A: 2\n  ! X-A", "/b", set(), {"x-a": "2"}),
    ("/m/:title\n  X-M: at \":title\"", "/m/one", set(), {"x-m": 'at "one"'}),
    ("/d/*\n  Link: </e/:splat>", "/d/1/2", set(), {"link": "</e/1/2>"}),
    ("/a\n  X-A: 1\n/a\n  X-A: 2", "/a", set(), {"x-a": "1, 2"}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "path", "removed", "added"), DOCUMENTED_HEADERS)
def test_documented_headers(text: str, path: str, removed: set[str], added: dict[str, str]) -> None:
    """Both implementations change headers as Cloudflare's page describes it."""
    file = RuleFile("cloudflare", text, (Request(path, None, False),))
    assert slow_headers(file) == [(removed, added)]
    assert headers(file) == [(removed, added)]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_limits(dialect: Dialect) -> None:
    """Both implementations stop after 2,000 static, 100 dynamic and 100 header rules."""
    static = [f"/s{number} /t" for number in range(2_001)]
    dynamic = [f"/d{number}/* /t" for number in range(101)]
    paths = ("/s0", "/s1999", "/s2000", "/d0/x", "/d99/x", "/d100/x")
    requests = tuple(Request(path, None, False) for path in paths)

    file = RuleFile(dialect, "\n".join(static + dynamic), requests)
    found = [result is not None for result in slow_redirects(file)]
    assert found == [True, True, False, True, True, False]
    assert redirects(file) == slow_redirects(file)

    # Only Cloudflare counts a static rule below a dynamic one as dynamic.
    last = (Request("/s98", None, False), Request("/s99", None, False))
    file = RuleFile(dialect, "\n".join(["/d/* /t", *static[:200]]), last)
    found = [result is not None for result in slow_redirects(file)]
    assert found == [True, dialect == "netlify"]
    assert redirects(file) == slow_redirects(file)

    file = RuleFile(dialect, "\n".join(f"/d{n}/*\n  X-A: {n}" for n in range(101)), requests)
    found = [result != (set(), {}) for result in slow_headers(file)]
    assert found == [False, False, False, True, True, False]
    assert headers(file) == slow_headers(file)
