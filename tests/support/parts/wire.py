"""HTTP/1 replies for a strict client, with checks of the fields that each reply must have.

Nothing is repaired: a reply that two programs could read differently fails the test.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from email.utils import parsedate_to_datetime

import attrs

_STATUS_LINE = re.compile(rb"HTTP/(1\.[01]) ([1-5][0-9]{2}) ([\x20-\x7e]*)")
_FIELD = re.compile(rb"([A-Za-z0-9!#$%&'*+.^_`|~-]+): ([\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?)")
_DATE = re.compile(r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT")
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")

_HOP_BY_HOP = frozenset(
    ["keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"]
)
_WITHOUT_BODY = (204, 304)


class NotWhole(Exception):
    """The reply is not complete yet."""


@attrs.frozen
class Reply:
    """One reply, as received."""

    status: int
    headers: dict[str, str]
    """Fields by lower-case name, in their order; no field comes twice."""
    body: bytes = attrs.field(repr=False)
    version: str = "1.1"
    size: int = 0
    """The size of the reply with its head, in bytes."""

    @classmethod
    def read(cls, raw: bytes, method: str = "GET") -> Reply:
        """Parse the reply at the start of `raw` to a request by this method, after any 1xx.

        :raises NotWhole: if the reply is not complete.
        """
        head, end, rest = raw.partition(b"\r\n\r\n")
        if not end:
            raise NotWhole
        first, *lines = head.split(b"\r\n")
        start = _STATUS_LINE.fullmatch(first)
        assert start, f"no status line: {first!r}"
        status = int(start[2])
        if status < 200:
            later = cls.read(rest, method)
            return attrs.evolve(later, size=later.size + len(head) + 4)
        fields = [_FIELD.fullmatch(line) for line in lines]
        assert all(fields), f"a malformed field: {lines!r}"
        named = [(field[1].decode().lower(), field[2].decode()) for field in fields if field]
        headers = dict(named)
        assert len(headers) == len(named), f"a field came twice: {lines!r}"
        length = 0
        if method != "HEAD" and status not in _WITHOUT_BODY:
            length = int(headers["content-length"])
        if len(rest) < length:
            raise NotWhole
        return cls(status, headers, rest[:length], start[1].decode(), len(head) + 4 + length)

    @property
    def timeless(self) -> dict[str, str]:
        """The headers without the date."""
        return {name: value for name, value in self.headers.items() if name != "date"}


def replies(raw: bytes, methods: Iterable[str]) -> list[Reply]:
    """Parse all replies in `raw`, at most one for each of `methods`, and nothing else."""
    found = []
    for method in methods:
        if raw:
            found.append(Reply.read(raw, method))
            raw = raw[found[-1].size :]
    assert not raw, f"more than was asked for: {raw[:200]!r}"
    return found


def lint(reply: Reply, method: str = "GET") -> None:
    """Check that a reply of blobserve has the required headers and no hop-by-hop ones."""
    status, headers = reply.status, reply.headers
    assert _DATE.fullmatch(headers["date"])
    assert parsedate_to_datetime(headers["date"]).tzinfo is not None
    assert headers["server"] == "blobserve"
    assert not _HOP_BY_HOP & headers.keys()
    assert headers.get("connection", "close") == "close"
    if status in _WITHOUT_BODY:
        assert not {"content-length", "content-type"} & headers.keys()
    else:
        assert headers["content-length"].isdigit()
        assert method == "HEAD" or int(headers["content-length"]) == len(reply.body)
    if status != 204:
        assert headers["cache-control"]
    if status not in _WITHOUT_BODY:
        assert headers["x-content-type-options"] == "nosniff"
    if status in (200, 206, 304):
        assert re.fullmatch(r'"[!#-~]+"', headers["etag"])
    if status in (200, 206):
        assert headers["accept-ranges"] == "bytes"
        assert "content-type" in headers
    if status >= 400:
        assert headers["cache-control"] == "no-store"
        assert not {"etag", "last-modified", "content-location"} & headers.keys()
    _lint_particulars(reply)


def _lint_particulars(reply: Reply) -> None:
    """Check the headers that one status, or one field, requires."""
    status, headers = reply.status, reply.headers
    # RFC 9110 §15.3.7.2: in a multipart answer each part has its own range.
    has_parts = headers.get("content-type", "").startswith("multipart/byteranges")
    assert (status in (206, 416) and not has_parts) == ("content-range" in headers)
    if status == 206 and not has_parts:
        found = _RANGE.fullmatch(headers["content-range"])
        assert found
        first, last, size = map(int, found.groups())
        assert first <= last < size
        assert int(headers["content-length"]) == last - first + 1
    assert (status in (204, 405)) == ("allow" in headers)
    assert (status == 503) == ("retry-after" in headers)
    assert (status == 301) == ("location" in headers)
    for name in ("location", "content-location"):
        value = headers.get(name, "./")
        # Relative, so that it never leads to another host, and without characters to escape.
        assert re.fullmatch(r"\.\.?/[A-Za-z0-9%/?:@!$&'()*+,;=._~\[\]-]*", value), value
        assert not re.search(r"%(?![0-9A-Fa-f]{2})", value), value
