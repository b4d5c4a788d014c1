"""Ranges: RFC 9110 §14."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobserve.web.http.conditional import MOST_RANGES, Range, Verdict, evaluate, select

WHOLE = Verdict(200)
UNSATISFIABLE = Verdict(416)


def part(start: int, length: int) -> Verdict:
    """Return the verdict for a satisfiable range."""
    return Verdict(206, Range(start, length))


@pytest.mark.parametrize(
    ("asked", "verdict"),
    [
        (b"bytes=0-0", part(0, 1)),
        (b"bytes=0-4", part(0, 5)),
        (b"bytes=3-7", part(3, 5)),
        (b"bytes=10-10", part(10, 1)),
        (b"bytes=4-", part(4, 7)),
        (b"bytes=0-", part(0, 11)),
        (b"bytes=-1", part(10, 1)),
        (b"bytes=-11", part(0, 11)),
        (b"bytes=-99", part(0, 11)),
        (b"bytes=5-99", part(5, 6)),
        (b"bytes=0-18446744073709551615", part(0, 11)),
        (b"bytes=-18446744073709551616", part(0, 11)),
        (b"Bytes=0-1", part(0, 2)),
        (b"bytes = 0-1", part(0, 2)),
        (b"bytes=, \t0-1,,", part(0, 2)),
    ],
)
def test_satisfiable(asked: bytes, verdict: Verdict) -> None:
    """A single range selects its part, cut off at the end of the file."""
    assert select(asked, 11) == verdict


@pytest.mark.parametrize(
    "asked",
    [
        b"bytes=11-",
        b"bytes=11-12",
        b"bytes=100-",
        b"bytes=100-1000",
        b"bytes=-0",
        b"bytes=9223372036854775807-",
        b"bytes=18446744073709551616-",
    ],
)
def test_unsatisfiable(asked: bytes) -> None:
    """A range beyond the end of the file is a 416."""
    assert select(asked, 11) == UNSATISFIABLE


@pytest.mark.parametrize(
    "asked",
    [
        b"",
        b"bytes",
        b"bytes=",
        b"bytes=-",
        b"bytes=--1",
        b"bytes=5-2",
        b"bytes=a-b",
        b"bytes=0x1-2",
        b"bytes=1_0-2_0",
        b"bytes=+1-2",
        b"bytes=1 -2",
        b"bytes=1-2-3",
        b"bytes=1.5-2",
        b"bytes=\xd9\xa1-2",
        b"bytes=0-" + b"9" * 30,
        b"lines=0-1",
        b"bytes:0-1",
        b"bytes=0-1;2-3",
    ],
)
def test_junk(asked: bytes) -> None:
    """An invalid byte range is ignored."""
    assert select(asked, 11) == WHOLE


@pytest.mark.parametrize(
    "asked",
    [
        b"bytes=0-9, -10, 10-19",
        b"bytes=0-9,9-10",
        b"bytes=5-8,0-1",
        b"bytes=0-,-1",
        b"bytes=-1,-1",
        b"bytes=0-1,lines=5-8",
        b"bytes=0-1,8-5",
        b"bytes=" + b",".join(b"%d-%d" % (n, n) for n in range(MOST_RANGES + 1)),
        b"bytes=0-9,-10,100000-,10-19",
        b"bytes=1 -2 , 4- 5, , ,",
        b"bytes=" + b",".join([b"0-"] * 1200),
        b"bytes=0-1, bytes=2-3",
    ],
)
def test_too_tangled(asked: bytes) -> None:
    """Ranges that are many, overlap or do not ascend get the whole file."""
    assert select(asked, 1000) == WHOLE


@pytest.mark.parametrize(
    ("asked", "slices"),
    [
        (b"bytes=0-0,-2", [(0, 1), (998, 2)]),
        (b"bytes=0-1,5-8", [(0, 2), (5, 4)]),
        (b"bytes=0-4,5-8,9-", [(0, 5), (5, 4), (9, 991)]),
        (b"bytes=0-1 ,, 990-2000", [(0, 2), (990, 10)]),
        (b"bytes=0-1,5-5,1000-", [(0, 2), (5, 1)]),
        (b"bytes=0-1,5-5,-0", [(0, 2), (5, 1)]),
    ],
)
def test_several(asked: bytes, slices: list[tuple[int, int]]) -> None:
    """Several ascending ranges are parts, without those beyond the end."""
    assert select(asked, 1000) == Verdict(206, None, tuple(Range(*each) for each in slices))


def test_several_of_which_few_are_left() -> None:
    """A single remaining range is sent as a single part, and no remaining range is a 416."""
    assert select(b"bytes=0-1,1000-", 1000) == part(0, 2)
    assert select(b"bytes=1000-,-0", 1000) == UNSATISFIABLE
    assert select(b"bytes=1000-,1000-", 1000) == UNSATISFIABLE
    assert select(b"bytes=1000-,0-1", 1000) == WHOLE
    most = b"bytes=" + b",".join(b"%d-%d" % (n, n) for n in range(MOST_RANGES))
    assert len(select(most, 1000).ranges) == MOST_RANGES


@pytest.mark.parametrize("asked", [b"bytes=0-0", b"bytes=0-", b"bytes=-1", b"bytes=-0"])
def test_empty_file(asked: bytes) -> None:
    """An empty file has no ranges."""
    assert select(asked, 0) == UNSATISFIABLE


@pytest.mark.parametrize("boundary", [1 << 31, 1 << 32, 1 << 40])
def test_large_files(boundary: int) -> None:
    """Offsets around the powers of two at the limits of integers are exact."""
    size = boundary + 10
    for at in (boundary - 1, boundary, boundary + 1):
        assert select(b"bytes=%d-%d" % (at, at), size) == part(at, 1)
        assert select(b"bytes=%d-" % at, size) == part(at, size - at)


def test_head() -> None:
    """Ranges apply to GET alone."""
    fields = {b"range": b"bytes=0-1"}
    assert evaluate(b"HEAD", fields, b'"A"', 11, None) == WHOLE
    assert evaluate(b"GET", fields, b'"A"', 11, None) == part(0, 2)


@given(st.binary(max_size=40), st.integers(0, 50))
def test_any_bytes(junk: bytes, size: int) -> None:
    """A part lies within the file and is not empty, for any field."""
    verdict = select(b"bytes=" + junk, size)
    end = 0
    for each in (verdict.range, *verdict.ranges):
        if each is not None:
            assert end <= each.start < each.start + each.length <= size
            end = each.start + each.length


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 50))
def test_as_slices(first: int, last: int, size: int) -> None:
    """A range is the same slice that Python takes, or none."""
    verdict = select(b"bytes=%d-%d" % (first, last), size)
    expected = range(size)[first : last + 1]
    if first > last:
        assert verdict == WHOLE
    elif not expected:
        assert verdict == UNSATISFIABLE
    else:
        assert verdict == part(first, len(expected))
