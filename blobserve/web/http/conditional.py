"""Preconditions and ranges: RFC 9110 §13 and §14, in the order of §13.2.2.

Pure, over the bytes of header fields: names in lower case, several lines of one field joined by
commas. Knows nothing of where a representation comes from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import attrs
from werkzeug.http import parse_date

Fields = Mapping[bytes, bytes]

_ENTITY_TAG = re.compile(rb'[ \t,]*((?:W/)?"[!#-~\x80-\xff]*")[ \t]*(?=,|\Z)')
# Twenty digits hold every 64-bit offset; more are junk.
_RANGE = re.compile(rb"([0-9]{0,20})-([0-9]{0,20})")


@attrs.frozen
class Range:
    """`length` bytes from `start`."""

    start: int
    length: int


@attrs.frozen
class Verdict:
    """What a request's conditions come to: 200, 206, 304, 412 or 416.

    Only a 206 has a `range`, or two `ranges` or more, in ascending order.
    """

    status: int
    range: Range | None = None
    ranges: tuple[Range, ...] = ()


MOST_RANGES = 64
"""Ranges of one request that are answered as such."""

ALL = Verdict(200)
"""The one verdict on a request without conditions."""
UNCHANGED = Verdict(304)
"""The one verdict on a client that has the selected representation."""
_CONDITIONS = frozenset(
    (b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"range")
)


def evaluate(
    method: bytes, fields: Fields, etag: bytes, size: int, modified: int | None
) -> Verdict:
    """Judge a GET or HEAD by its conditional fields, against the selected representation.

    `etag` is strong and quoted, `size` in bytes, `modified` in seconds since the epoch; None where
    dates say nothing about the bytes: then the conditions on dates are ignored. The entity tag of
    another representation never matches: a cache would update the wrong stored response by the
    304, RFC 9110 §15.4.5.
    """
    if _CONDITIONS.isdisjoint(fields):
        return ALL
    if not _may_go_on(fields, etag, modified):
        return Verdict(412)
    match = fields.get(b"if-none-match")
    if match is None:
        if _is_unmodified(fields, modified):
            return UNCHANGED
    elif match == etag or _is_listed(etag, match):
        return UNCHANGED
    asked = fields.get(b"range")
    if method != b"GET" or asked is None or not _is_range_current(fields, etag, modified):
        return ALL
    return select(asked, size)


def select(asked: bytes, size: int) -> Verdict:
    """Return which parts of `size` bytes a ``Range`` asks for.

    All bytes where it is junk, and where it has more than `MOST_RANGES`, or ranges that overlap or
    do not ascend: these are attacks or mistakes, RFC 9110 §14.2.
    """
    unit, _, ranges = asked.partition(b"=")
    members = [member for member in (part.strip(b" \t") for part in ranges.split(b",")) if member]
    if unit.strip(b" \t").lower() != b"bytes" or not 0 < len(members) <= MOST_RANGES:
        return ALL
    parts: list[Range] = []
    end = 0
    for member in members:
        part = _resolve(member, size)
        if part is None or part.start < end:
            return ALL
        end = part.start + part.length
        if part.length > 0:
            parts.append(part)
    if not parts:
        return Verdict(416)
    return Verdict(206, parts[0]) if len(parts) == 1 else Verdict(206, None, tuple(parts))


def _resolve(member: bytes, size: int) -> Range | None:
    """Return the part of `size` bytes that one range is, of no length where it has none of them."""
    found = _RANGE.fullmatch(member)
    if found is None or member == b"-":
        return None
    first, last = found[1], found[2]
    if not first:
        length = min(int(last), size)
        return Range(size - length, length)
    start, end = int(first), int(last) if last else size
    if start > end and last:
        return None
    return Range(start, max(0, min(end + 1, size) - start))


def _may_go_on(fields: Fields, etag: bytes, modified: int | None) -> bool:
    """RFC 9110 §13.1.1 and, only where that field is absent, §13.1.4."""
    match = fields.get(b"if-match")
    if match is not None:
        return match.strip(b" \t") == b"*" or etag in _entity_tags(match)
    limit = _date(fields.get(b"if-unmodified-since"))
    return limit is None or modified is None or modified <= limit


def _is_listed(etag: bytes, match: bytes) -> bool:
    """Return whether the field lists `etag`, by weak comparison, RFC 9110 §13.1.2."""
    if match.strip(b" \t") == b"*":
        return True
    return any(tag.removeprefix(b"W/") == etag for tag in _entity_tags(match))


def _is_unmodified(fields: Fields, modified: int | None) -> bool:
    """RFC 9110 §13.1.3."""
    since = _date(fields.get(b"if-modified-since"))
    return since is not None and modified is not None and modified <= since


def _is_range_current(fields: Fields, etag: bytes, modified: int | None) -> bool:
    """RFC 9110 §13.1.5: the tag strongly, the date exactly."""
    condition = fields.get(b"if-range")
    if condition is None or condition == etag:
        return True
    return modified is not None and _date(condition) == modified


def _entity_tags(value: bytes) -> Iterator[bytes]:
    """The entity tags of a list, up to the first thing that is none."""
    found = _ENTITY_TAG.match(value)
    while found is not None:
        yield found[1]
        found = _ENTITY_TAG.match(value, found.end())


def _date(value: bytes | None) -> int | None:
    """Seconds since the epoch of an HTTP-date in any of its three forms, RFC 9110 §5.6.7."""
    # The parser would take the first of two dates.
    if value is None or value.count(b",") > 1:
        return None
    date = parse_date(value.decode("ascii", "replace"))
    return None if date is None else int(date.timestamp())
