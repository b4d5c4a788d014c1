"""HTTP/1 as a strict client reads it: replies off one connection, one by one, and what they owe.

Nothing is repaired here: a reply that two programs could read differently fails the test.
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
    """The reply has not come to its end yet."""


@attrs.frozen
class Reply:
    """One reply, as it came."""

    status: int
    headers: dict[str, str]
    """By name in lower case, in the order they came; no field comes twice."""
    body: bytes = attrs.field(repr=False)
    version: str = "1.1"
    size: int = 0
    """Bytes that it took, head and all."""

    @classmethod
    def read(cls, raw: bytes, method: str = "GET") -> Reply:
        """The reply at the beginning of `raw`, to a request by this method; 1xx are passed over.

        :raises NotWhole: when there is more to come.
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
        """The headers, but for the time at which they were sent."""
        return {name: value for name, value in self.headers.items() if name != "date"}


def replies(raw: bytes, methods: Iterable[str]) -> list[Reply]:
    """Every reply in `raw`, which consists of nothing else; at most one for each of `methods`."""
    found = []
    for method in methods:
        if raw:
            found.append(Reply.read(raw, method))
            raw = raw[found[-1].size :]
    assert not raw, f"more than was asked for: {raw[:200]!r}"
    return found


def lint(reply: Reply, method: str = "GET") -> None:
    """See that a reply of blobserve has what every reply must have, and nothing of a hop's own."""
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
    """What one status, or one field, asks for."""
    status, headers = reply.status, reply.headers
    # RFC 9110 §15.3.7.2: of several parts each says its own range.
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
        # Relative, so that nobody is led to another host, and nothing in it that needs escaping.
        assert re.fullmatch(r"\.\.?/[A-Za-z0-9%/?:@!$&'()*+,;=._~\[\]-]*", value), value
        assert not re.search(r"%(?![0-9A-Fa-f]{2})", value), value
