"""Preconditions: RFC 9110 §13."""

from __future__ import annotations

import pytest

from blobserve.web.http.conditional import Range, Verdict, evaluate

ETAG = b'"A"'
NOW = 1_700_000_000  # Tue, 14 Nov 2023 22:13:20 GMT
DATE = b"Tue, 14 Nov 2023 22:13:20 GMT"
BEFORE = b"Tue, 14 Nov 2023 22:13:19 GMT"
AFTER = b"Tue, 14 Nov 2023 22:13:21 GMT"


def status(method: bytes = b"GET", modified: int | None = NOW, **fields: bytes) -> int:
    """Return the status for a file of 11 bytes; field names have _ for -."""
    named = {name.replace("_", "-").encode(): value for name, value in fields.items()}
    return evaluate(method, named, ETAG, 11, modified).status


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
class TestIfNoneMatch:
    """If-None-Match: a client that has the bytes does not get them again."""

    @pytest.mark.parametrize(
        "value",
        [
            b'"A"',
            b'W/"A"',
            b"*",
            b" * ",
            b'"x", "A"',
            b'"A","x"',
            b'"x",\t"A"',
            b'"x" , W/"A" , "y"',
            b', ,"A"',
            b'"x,y", "A"',
        ],
    )
    def test_match(self, method: bytes, value: bytes) -> None:
        """A listed tag, weak or strong, gives 304."""
        assert status(method, if_none_match=value) == 304

    @pytest.mark.parametrize(
        "value",
        [b'"a"', b"A", b",", b'"A', b'A"', b"", b'w/"A"', b'"x" "A"', b'"x", A', b'"A"x', b'"*"'],
    )
    def test_no_match(self, method: bytes, value: bytes) -> None:
        """Another tag, or an invalid one, gives 200."""
        assert status(method, if_none_match=value) == 200

    def test_dates_do_not_count(self, method: bytes) -> None:
        """If-Modified-Since is ignored in the presence of If-None-Match."""
        assert status(method, if_none_match=b'"x"', if_modified_since=AFTER) == 200
        assert status(method, if_none_match=b'"A"', if_modified_since=BEFORE) == 304


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (DATE, 304),
        (AFTER, 304),
        (BEFORE, 200),
        (b"Tuesday, 14-Nov-23 22:13:20 GMT", 304),
        (b"Tue Nov 14 22:13:20 2023", 304),
        (b"Tue, 14 Nov 2023 22:13:20 gmt", 304),
        (b"Tue, 19 Jan 2038 03:14:08 GMT", 304),
        (b"Fri, 01 Jan 2174 00:00:00 GMT", 304),
        (b"Tue, 14 Nov 2023 22:13:60 GMT", 200),
        (DATE + b", " + DATE, 200),
        (b"garbage", 200),
        (b"", 200),
        (b"1700000000", 200),
        (b"\xff\xfe", 200),
        (b"Tue, 14 Nov 99999 22:13:20 GMT", 200),
    ],
)
def test_if_modified_since(value: bytes, expected: int) -> None:
    """A date in one of the three forms counts, and anything else is ignored."""
    assert status(if_modified_since=value) == expected
    assert status(b"HEAD", if_modified_since=value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b'"A"', 200),
        (b'"x", "A"', 200),
        (b"*", 200),
        (b'"B"', 412),
        (b'W/"A"', 412),
        (b"A", 412),
    ],
)
def test_if_match(value: bytes, expected: int) -> None:
    """If-Match uses the strong comparison."""
    assert status(if_match=value) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(DATE, 200), (AFTER, 200), (BEFORE, 412), (b"garbage", 200)]
)
def test_if_unmodified_since(value: bytes, expected: int) -> None:
    """If-Unmodified-Since refuses a later change, and is ignored in the presence of If-Match."""
    assert status(if_unmodified_since=value) == expected
    assert status(if_unmodified_since=value, if_match=ETAG) == 200


def test_no_dates() -> None:
    """For a file without a date, conditions on dates are ignored."""
    for name in ("if_modified_since", "if_unmodified_since"):
        assert status(modified=None, **{name: BEFORE}) == 200
        assert status(modified=None, **{name: AFTER}) == 200
    assert status(modified=None, range=b"bytes=0-1", if_range=DATE) == 200


def test_order() -> None:
    """If-Match is evaluated first, then If-None-Match, then ranges."""
    both = {"if_none_match": ETAG, "range": b"bytes=0-1"}
    assert status(if_match=b'"B"', **both) == 412
    assert status(if_unmodified_since=BEFORE, **both) == 412
    assert status(if_match=ETAG, **both) == 304
    assert status(if_modified_since=DATE, range=b"bytes=0-1") == 304
    assert status(if_none_match=b'"B"', range=b"bytes=0-1") == 206


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (b'"A"', 206),
        (DATE, 206),
        (b'"B"', 200),
        (b'W/"A"', 200),
        (b"A", 200),
        (BEFORE, 200),
        (AFTER, 200),
        (b"garbage", 200),
    ],
)
def test_if_range(condition: bytes, expected: int) -> None:
    """A range is sent only to a client with the rest of the same bytes."""
    assert status(range=b"bytes=0-1", if_range=condition) == expected
    assert status(if_range=condition) == 200


def test_if_range_first() -> None:
    """An unsatisfiable range is refused only if a valid one would be honoured."""
    assert status(range=b"bytes=99-", if_range=b'"A"') == 416
    assert status(range=b"bytes=99-", if_range=b'"B"') == 200


def test_the_part() -> None:
    """A verdict of 206 has the range."""
    asked = {b"range": b"bytes=2-3"}
    assert evaluate(b"GET", asked, ETAG, 11, NOW) == Verdict(206, Range(2, 2))


def test_long_lists() -> None:
    """A list of tags is parsed in linear time."""
    assert status(if_none_match=b'"x" ,' * 20_000 + b'"A"') == 304
    assert status(if_none_match=b" ," * 50_000) == 200
    assert status(if_none_match=b'"' + b"x" * 100_000) == 200
