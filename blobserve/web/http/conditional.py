"""Preconditions and ranges: RFC 9110 §13 and §14, in the order of §13.2.2.

Pure functions over header fields in bytes. Names are in lower case; several lines of one field are
joined by commas.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import timezone
from email.utils import parsedate_to_datetime

import attrs

Fields = Mapping[bytes, bytes]

_ENTITY_TAG = re.compile(rb'[ \t,]*((?:W/)?"[!#-~\x80-\xff]*")[ \t]*(?=,|\Z)')
# Twenty digits hold every 64-bit offset; longer numbers are invalid.
_RANGE = re.compile(rb"([0-9]{0,20})-([0-9]{0,20})")


@attrs.frozen
class Range:
    """The range of `length` bytes from `start` on."""

    start: int
    length: int


@attrs.frozen
class Verdict:
    """The result of a request's conditions: status 200, 206, 304, 412 or 416.

    Only a 206 has a `range`, or at least two `ranges` in ascending order.
    """

    status: int
    range: Range | None = None
    ranges: tuple[Range, ...] = ()


MOST_RANGES = 64
"""The largest number of ranges in one request; more are answered with the whole file."""

ALL = Verdict(200)
"""The verdict for a response with all bytes. Compare it by identity."""
UNCHANGED = Verdict(304)
"""The verdict for a client that has the selected representation. Compare it by identity."""
_CONDITIONS = frozenset(
    (b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"range")
)


def evaluate(
    method: bytes, fields: Fields, etag: bytes, size: int, modified: int | None
) -> Verdict:
    """Evaluate the conditions of a GET or HEAD against the selected representation.

    `etag` is strong and quoted, `size` in bytes, `modified` in seconds since the epoch. If
    `modified` is None, conditions on dates are ignored. The entity tag of another representation
    never matches: the 304 would make a cache update the wrong stored response, RFC 9110 §15.4.5.
    """
    if _CONDITIONS.isdisjoint(fields):
        return ALL
    if not _preconditions_hold(fields, etag, modified):
        return Verdict(412)
    match = fields.get(b"if-none-match")
    if match is None:
        if _is_unmodified(fields, modified):
            return UNCHANGED
    elif match == etag or _is_listed(etag, match):
        return UNCHANGED
    requested = fields.get(b"range")
    if method != b"GET" or requested is None or not _is_range_current(fields, etag, modified):
        return ALL
    return select(requested, size)


def select(requested: bytes, size: int) -> Verdict:
    """Return the parts of `size` bytes that a ``Range`` asks for.

    The result is `ALL` if the field is malformed, has more than `MOST_RANGES` ranges, or has ranges
    that overlap or do not ascend. Such ranges are attacks or mistakes, RFC 9110 §14.2.
    """
    unit, _, ranges = requested.partition(b"=")
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
    """Return one range within `size` bytes, empty if it is beyond the end; None if malformed."""
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


def _preconditions_hold(fields: Fields, etag: bytes, modified: int | None) -> bool:
    """Evaluate If-Match, RFC 9110 §13.1.1, or without that If-Unmodified-Since, §13.1.4."""
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
    """Evaluate If-Modified-Since, RFC 9110 §13.1.3."""
    since = _date(fields.get(b"if-modified-since"))
    return since is not None and modified is not None and modified <= since


def _is_range_current(fields: Fields, etag: bytes, modified: int | None) -> bool:
    """Evaluate If-Range, RFC 9110 §13.1.5: strong comparison of tags, equality of dates."""
    condition = fields.get(b"if-range")
    if condition is None or condition == etag:
        return True
    return modified is not None and _date(condition) == modified


def _entity_tags(value: bytes) -> Iterator[bytes]:
    """Yield the entity tags of a list, up to the first member that is malformed."""
    found = _ENTITY_TAG.match(value)
    while found is not None:
        yield found[1]
        found = _ENTITY_TAG.match(value, found.end())


def _date(value: bytes | None) -> int | None:
    """Parse an HTTP-date in any of its three forms, RFC 9110 §5.6.7, to seconds since the epoch."""
    # If there are two dates, the parser would return the first one.
    if value is None or value.count(b",") > 1:
        return None
    try:
        date = parsedate_to_datetime(value.decode("ascii", "replace"))
    except (TypeError, ValueError):
        return None
    # The asctime form names no zone.
    return int((date if date.tzinfo else date.replace(tzinfo=timezone.utc)).timestamp())
