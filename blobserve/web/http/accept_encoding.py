"""Which content codings a request accepts: the field Accept-Encoding. RFC 9110 §12.5.3.

Pure, and never an error: a member that is not understood counts for nothing, and where nothing is
left the file goes out as it is. Hand-written since werkzeug's parser takes weights that are none,
knows no ``x-gzip``, and drops the whole field for one stray quote.
"""

from __future__ import annotations

import re
from functools import lru_cache

from blobserve.web.http.conditional import Fields

CODINGS = (b"br", b"zstd", b"gzip")
"""All that is known, the favourite first."""

_MEMBER = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:[ \t]*;[ \t]*[qQ]=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?))?"
)
_IDENTITY, _ANY = b"identity", b"*"
_SYNONYMS = {b"x-gzip": b"gzip"}  # RFC 9110 §8.4.1.3
_LONGEST_REMEMBERED = 256
_MOST_MEMBERS = 64  # No client has so many codings; what comes after them counts for nothing.


def preferred(accept_encoding: bytes | None, offered: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """The codings among `offered`, best first, that are to be preferred to the file as it is.

    `offered` is in our order of preference, which decides between equal weights; it does not
    contain ``identity``, to which what it lists is preferred unless it was given a larger weight.
    Without the field, nothing is accepted: clients that say nothing often cannot decode. Of several
    members for one coding the first counts.
    """
    if not accept_encoding:
        return ()
    if len(accept_encoding) > _LONGEST_REMEMBERED:
        return _preferred(accept_encoding, offered)
    return _remembered(accept_encoding, offered)


def _preferred(accept_encoding: bytes, offered: tuple[bytes, ...]) -> tuple[bytes, ...]:
    weights = _weights(accept_encoding)
    least = max(weights.get(_IDENTITY, 0), 1)
    others = weights.get(_ANY, 0)
    weighed = [(weights.get(coding, others), coding) for coding in offered]
    weighed.sort(key=lambda each: -each[0])  # stable: equals stay in our order
    return tuple(coding for weight, coding in weighed if weight >= least)


_remembered = lru_cache(1024)(_preferred)


def _weights(accept_encoding: bytes) -> dict[bytes, int]:
    """The weight of each coding that is named, in thousandths."""
    weights: dict[bytes, int] = {}
    for member in accept_encoding.split(b",", _MOST_MEMBERS)[:_MOST_MEMBERS]:
        found = _MEMBER.fullmatch(member.strip(b" \t"))
        if found is not None:
            coding, weight = found[1].lower(), found[2] or b"1"
            weights.setdefault(_SYNONYMS.get(coding, coding), _thousandths(weight))
    return weights


def _thousandths(weight: bytes) -> int:
    units, _, fraction = weight.partition(b".")
    return int(units + fraction.ljust(3, b"0"))


def accepted(fields: Fields, offered: tuple[bytes, ...] = CODINGS) -> tuple[bytes, ...]:
    """The codings among `offered` that a request prefers to the file as it is, best first."""
    return preferred(fields.get(b"accept-encoding"), offered)
