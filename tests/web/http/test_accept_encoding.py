"""The content codings that a request accepts."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blobserve.web.http.accept_encoding import preferred
from tests.support.slack import SLACK

OFFERED = (b"br", b"zstd", b"gzip")
TABLE = [
    (None, ""),
    (b"", ""),
    (b" \t", ""),
    (b"gzip", "gzip"),
    (b"gzip, deflate, br, zstd", "br zstd gzip"),
    (b"GZip,BR", "br gzip"),
    (b"x-gzip", "gzip"),
    (b"X-GZIP;q=0.5, br;q=0.4", "gzip br"),
    (b"gzip;q=1.0, br;q=0.9", "gzip br"),
    (b"gzip;q=0.001", "gzip"),
    (b"gzip;q=0", ""),
    (b"gzip;q=0.000", ""),
    (b"gzip;q=0., br;q=1., zstd;q=1.000", "br zstd"),
    (b"gzip \t; \tQ=0.5 ,\tbr;q=0.4", "gzip br"),
    # The wildcard covers each coding that is not named.
    (b"*", "br zstd gzip"),
    (b"*;q=0", ""),
    (b"gzip, *;q=0", "gzip"),
    (b"*, br;q=0", "zstd gzip"),
    (b"*;q=0.5, gzip", "gzip br zstd"),
    (b"gzip;q=0.1, *;q=0.5", "br zstd gzip"),
    # Identity has a lower weight than listed codings, unless stated otherwise.
    (b"identity", ""),
    (b"identity, gzip", "gzip"),
    (b"identity;q=0.5, gzip;q=0.4, br;q=0.5, zstd;q=0.6", "zstd br"),
    (b"identity;q=1, *;q=0.5", ""),
    (b"gzip;q=0.5, identity;q=0", "gzip"),
    (b"identity;q=0", ""),
    (b"*;q=0, identity;q=0.5, gzip;q=0.4", ""),
    # The first of several members for one coding counts.
    (b"gzip;q=0, gzip", ""),
    (b"x-gzip;q=0.1, gzip, br;q=0.5", "br gzip"),
    # Invalid members are ignored.
    (b"gzip;q=2, br", "br"),
    (b"gzip;q=1.001, br", "br"),
    (b"gzip;q=0.1234, br", "br"),
    (b"gzip;q=.5, br", "br"),
    (b"gzip;q=-1, br", "br"),
    (b"gzip;q=, br", "br"),
    (b"gzip;q, br", "br"),
    (b"gzip;, br", "br"),
    (b"gzip; q = 0.5, br", "br"),
    (b"gzip;q=0.5;q=1, br", "br"),
    (b"gzip;level=9, br", "br"),
    (b"gzip;q=nan, zstd;q=1e0, br", "br"),
    (b"gzip zstd, br", "br"),
    (b'gz"ip, br', "br"),
    (b"gzip\x00, zstd\xff, \xc2\xa0gzip, br", "br"),
    (b",, ,br,", "br"),
    (b"gzipped, brotli, br2", ""),
]


@pytest.mark.parametrize(("field", "expected"), TABLE)
def test_table(field: bytes | None, expected: str) -> None:
    """The accepted codings, best first, are those of RFC 9110 §12.5.3."""
    assert preferred(field, OFFERED) == tuple(expected.encode().split())


def test_offered() -> None:
    """Only offered codings are returned, and our order decides between equal weights."""
    assert preferred(b"br, gzip, zstd", (b"gzip", b"zstd")) == (b"gzip", b"zstd")
    assert preferred(b"*", ()) == ()


_NAMES = [b"br", b"zstd", b"gzip", b"identity", b"*", b"deflate"]
_WEIGHTS = st.integers(0, 1000)


@given(weights=st.dictionaries(st.sampled_from(_NAMES), _WEIGHTS), spaced=st.booleans())
def test_any_weights(weights: dict[bytes, int], spaced: bool) -> None:
    """For any weights the order is by weight, and never below identity."""
    blank = b" " if spaced else b""
    field = (b"," + blank).join(
        b"%b;%bq=%d.%03d" % (name, blank, *divmod(weight, 1000)) for name, weight in weights.items()
    )
    weight_of = {each: weights.get(each, weights.get(b"*", 0)) for each in OFFERED}
    found = preferred(field, OFFERED)
    assert set(found) == {
        each
        for each in OFFERED
        if weight_of[each] and weight_of[each] >= weights.get(b"identity", 0)
    }
    assert list(found) == sorted(found, key=lambda each: (-weight_of[each], OFFERED.index(each)))


@given(st.binary(max_size=400) | st.text("gzipbr*xq=;, \t.0519-", max_size=400).map(str.encode))
@example(b"gzip" * 70)
def test_any_bytes(field: bytes) -> None:
    """Any value is accepted without an error, an unoffered coding or a repetition."""
    found = preferred(field, OFFERED)
    assert set(found) <= set(OFFERED)
    assert len(set(found)) == len(found)
    assert found == preferred(field + b" " * 300, OFFERED)


@pytest.mark.parametrize(
    "piece",
    [b" ", b",", b";", b"a", b"a,", b"gzip;q=0.", b'"', b"a ;", b"\t;q=", b"gzip ", b"q=1,"],
)
def test_hostile_values(piece: bytes) -> None:
    """Parsing any value takes little time."""
    field = piece * (200_000 // len(piece)) + b"\x00"
    began = time.process_time()
    for _ in range(10):
        preferred(field, OFFERED)
    assert time.process_time() - began < 0.2 * SLACK
