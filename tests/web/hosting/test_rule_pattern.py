"""Patterns with wildcards, compared with greedy regular expressions that the tests build."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobserve.web.hosting.rule_pattern import (
    Pattern,
    PatternError,
    Template,
    normalised,
    without_dot_segments,
)

PIECES = ["/", "/", "a", "b", "-", ":x", ":y", ":z", "*"]


def expression(pattern: bytes, delimiter: bytes = b"/") -> re.Pattern[bytes]:
    """Return the regular expression that means the same as a pattern."""
    parts = re.split(rb"(\*|:[A-Za-z][A-Za-z0-9_]*)", pattern)
    placeholder = b"([^" + re.escape(delimiter) + b"]+)"
    wildcards = {b"*": b"(.*)"}
    built = [
        re.escape(part) if number % 2 == 0 else wildcards.get(part, placeholder)
        for number, part in enumerate(parts)
    ]
    return re.compile(b"".join(built), re.DOTALL)


@st.composite
def patterns(draw: st.DrawFn) -> bytes:
    """Draw a pattern in which no wildcard stands twice."""
    pieces = draw(st.lists(st.sampled_from(PIECES), max_size=9))
    kept: list[str] = []
    for piece in pieces:
        if piece[0] not in ":*" or piece not in kept:
            kept.append(piece)
    return ("/" + "".join(kept)).encode()


@given(patterns(), st.lists(st.sampled_from("/ab-"), max_size=12).map("".join))
def test_matches_as_a_greedy_expression(pattern: bytes, rest: str) -> None:
    """A pattern matches the same paths as the regular expression, with the same values."""
    path = b"/" + rest.encode()
    found = expression(pattern).fullmatch(path)
    expected = None if found is None else found.groups()
    assert Pattern.parse(pattern).match(path) == expected


@given(patterns(), st.lists(st.sampled_from(["a", "b", "-", "/", "ab-", "a/b"]), min_size=4))
def test_matches_paths_that_are_made_from_it(pattern: bytes, values: list[str]) -> None:
    """A pattern matches each path that is made by filling in values."""
    filled = pattern
    for wildcard, value in zip((b"*", b":x", b":y", b":z"), values, strict=False):
        filled = filled.replace(wildcard, value.encode())
    found = expression(pattern).fullmatch(filled)
    expected = None if found is None else found.groups()
    assert Pattern.parse(pattern).match(filled) == expected


@pytest.mark.parametrize(
    ("pattern", "path", "values"),
    [
        ("/a", "/a", ()),
        ("/a", "/a/", None),
        ("/a", "/A", None),
        ("/blog/*", "/blog/", (b"",)),
        ("/blog/*", "/blog", None),
        ("/blog/*", "/blog/x/y", (b"x/y",)),
        ("/blog*", "/blogger", (b"ger",)),
        ("/*.html", "/a/b.html", (b"a/b",)),
        ("/*/edit", "/a/b/edit", (b"a/b",)),
        ("/:a/:b", "/x/y", (b"x", b"y")),
        ("/:a/:b", "/x/", None),
        ("/:a/:b", "/x/y/z", None),
        ("/:a-:b", "/x-y-z", (b"x-y", b"z")),
        ("/:a:b", "/xyz", (b"xy", b"z")),
        ("/:a:b", "/x", None),
        ("/v:a.js", "/v1.2.js", (b"1.2",)),
        ("/:a_1", "/x", (b"x",)),
        ("/t/12:30", "/t/12:30", ()),
        ("/:a/*/:b", "/1/2/3/4", (b"1", b"2/3", b"4")),
        ("/:a/*/:b", "/1/2", None),
        ("/:a*:b", "/xyz", (b"xy", b"", b"z")),
        ("/p:a*q:b", "/pxy/zqw", (b"xy", b"/z", b"w")),
    ],
)
def test_examples(pattern: str, path: str, values: tuple[bytes, ...] | None) -> None:
    """A placeholder stays within a segment, a splat does not, and the leftmost takes most."""
    assert Pattern.parse(pattern.encode()).match(path.encode()) == values


@pytest.mark.parametrize(
    ("host", "values"),
    [(b"b.pages.dev", (b"b",)), (b"a.b.pages.dev", None), (b"pages.dev", None)],
)
def test_labels(host: bytes, values: tuple[bytes, ...] | None) -> None:
    """With a dot as delimiter, a placeholder matches one label of a host."""
    assert Pattern.parse(b":branch.pages.dev", b".").match(host) == values


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [(b"/*/a/*", "only one `*`"), (b"/:a/:a", "`:a` stands twice"), (b"/:splat/*", "twice")],
)
def test_impossible_patterns(pattern: bytes, problem: str) -> None:
    """Two splats, or a name that stands twice, are refused."""
    with pytest.raises(PatternError, match=problem):
        Pattern.parse(pattern)


def test_time_is_bounded() -> None:
    """Hundreds of placeholders in one segment cannot make a match slow."""
    names = "-".join(f":n{number}" for number in range(150))
    pattern = Pattern.parse(f"/{names}/x".encode())
    start = time.process_time()
    for _ in range(20):
        assert pattern.match(b"/" + b"-a" * 4000 + b"/y") is None
        assert pattern.match(b"/" + b"-" * 8000 + b"/x") is not None
        assert pattern.match(b"/" + b"a" * 8000 + b"/x") is None
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        (b"/caf%c3%a9", b"/caf%C3%A9"),
        ("/café".encode(), b"/caf%C3%A9"),
        (b"/%61", b"/%61"),
        (b"/a b", b"/a%20b"),
        (b"/a\\b", b"/a%5Cb"),
        (b"/{a}^`", b"/%7Ba%7D%5E%60"),
        (b"/a\r\n\0", b"/a%0D%0A%00"),
        (b"/%zz%4", b"/%zz%4"),
        (b"/a|b[c]'", b"/a|b[c]'"),
    ],
)
def test_normal_form(raw: bytes, normal: bytes) -> None:
    """Hex digits get upper case, unsafe characters are encoded, and nothing is decoded."""
    assert normalised(raw) == normal
    assert normalised(normal) == normal


@pytest.mark.parametrize(
    ("path", "result"),
    [
        (b"/a/./b", b"/a/b"),
        (b"/a/../b", b"/b"),
        (b"/../../b", b"/b"),
        (b"/a/%2e%2E/b", b"/b"),
        (b"/a/..", b"/"),
        (b"/a/b/..", b"/a/"),
        (b"/a/.", b"/a/"),
        (b"/a//b", b"/a//b"),
        (b"/...", b"/..."),
        (b"/", b"/"),
    ],
)
def test_dot_segments(path: bytes, result: bytes) -> None:
    """Dot segments are resolved as browsers do, and cannot go above the root."""
    assert without_dot_segments(path) == result


def test_template() -> None:
    """A template replaces known names, longest first, and leaves other text."""
    template = Template.parse(b"/:a/:ab/:c:a", [b"a", b"ab"])
    assert template.names == (b"a", b"ab", b"a")
    assert template.expand({b"a": b":ab", b"ab": b"2"}) == b"/:ab/2/:c:ab"
