"""The content codings that a request accepts: Accept-Encoding, RFC 9110 §12.5.3.

Pure. Nothing here raises: malformed members are ignored. This is not werkzeug's parser, because
that accepts invalid weights, does not know ``x-gzip``, and ignores the whole field after one
unbalanced quote.
"""

from __future__ import annotations

import re
from functools import lru_cache

from blobserve.web.http.conditional import Fields

CODINGS = (b"br", b"zstd", b"gzip")
"""All codings that blobserve can send, in our order of preference."""

_MEMBER = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:[ \t]*;[ \t]*[qQ]=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?))?"
)
_IDENTITY, _ANY = b"identity", b"*"
_SYNONYMS = {b"x-gzip": b"gzip"}  # RFC 9110 §8.4.1.3
_LONGEST_CACHED = 256
_MOST_MEMBERS = 64  # More than any client needs; further members are ignored.


def preferred(accept_encoding: bytes | None, offered: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Return the codings among `offered` that the client prefers to ``identity``, best first.

    `offered` is in our order of preference, which decides between equal weights; it does not
    contain ``identity``. An offered coding beats ``identity`` unless ``identity`` has a larger
    weight. If the field is missing, no coding is accepted, because such clients often cannot
    decode. If a coding occurs several times, its first member counts.
    """
    if not accept_encoding:
        return ()
    if len(accept_encoding) > _LONGEST_CACHED:
        return _preferred(accept_encoding, offered)
    return _cached_preferred(accept_encoding, offered)


def _preferred(accept_encoding: bytes, offered: tuple[bytes, ...]) -> tuple[bytes, ...]:
    weights = _weights(accept_encoding)
    minimum = max(weights.get(_IDENTITY, 0), 1)
    others = weights.get(_ANY, 0)
    weighed = [(weights.get(coding, others), coding) for coding in offered]
    weighed.sort(key=lambda each: -each[0])  # stable: equal weights stay in our order
    return tuple(coding for weight, coding in weighed if weight >= minimum)


_cached_preferred = lru_cache(1024)(_preferred)


def _weights(accept_encoding: bytes) -> dict[bytes, int]:
    """Return the weight of each named coding, in thousandths."""
    weights: dict[bytes, int] = {}
    for member in accept_encoding.split(b",", _MOST_MEMBERS)[:_MOST_MEMBERS]:
        found = _MEMBER.fullmatch(member.strip(b" \t"))
        if found is not None:
            coding, weight = found[1].lower(), found[2] or b"1"
            weights.setdefault(_SYNONYMS.get(coding, coding), round(1000 * float(weight)))
    return weights


def accepted(fields: Fields, offered: tuple[bytes, ...] = CODINGS) -> tuple[bytes, ...]:
    """Return the codings among `offered` that a request prefers to ``identity``, best first."""
    return preferred(fields.get(b"accept-encoding"), offered)
