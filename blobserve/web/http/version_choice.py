"""The version of a site that a request asks for, and the fields of responses that depend on it.

Pure. The query field ``dpl`` comes before ``X-Deployment-Id``, and that before the cookie
``__vdpl``. A value is a digest, or at least the first 12 of its hexadecimal digits. See
docs/reference/versions.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from urllib.parse import unquote_to_bytes

from blobserve.config import RepositoryRules
from blobserve.names.digest import Digest
from blobserve.web.http.conditional import Fields

HEADER = b"x-deployment-id"
COOKIE = b"__vdpl"
QUERY = b"dpl"

_VALUE = re.compile(rb"(?:([a-z0-9]{1,16}):)?([0-9a-f]{12,128})", re.IGNORECASE)
_LONGEST = 256


def query_value(query: bytes | None) -> bytes | None:
    """Return the first value of ``dpl`` in a query; None if there is none."""
    if query is None or b"dpl=" not in query:
        return None
    for field in query.split(b"&"):
        name, mark, value = field.partition(b"=")
        if name == QUERY and mark:
            return unquote_to_bytes(value[:_LONGEST])
    return None


def header_values(fields: Fields, rules: RepositoryRules) -> Iterator[bytes]:
    """Yield the values of the header field and the cookie, as far as the rules allow them."""
    if rules.version_header and HEADER in fields:
        yield fields[HEADER]
    if rules.version_cookie and COOKIE in fields.get(b"cookie", b""):
        for pair in fields[b"cookie"].split(b";"):
            name, mark, value = pair.strip(b" \t").partition(b"=")
            if name == COOKIE and mark:
                yield unquote_to_bytes(value[:_LONGEST].strip(b'"'))
                break


def matching(value: bytes, digests: Iterable[Digest]) -> Digest | None:
    """Return the digest that a value stands for; None for an unknown or ambiguous value."""
    found = _VALUE.fullmatch(value.strip(b" \t")) if len(value) <= _LONGEST else None
    if found is None:
        return None
    algorithm, start = (found[1] or b"").lower().decode(), found[2].lower().decode()
    matches = {
        each for each in digests if each.hex.startswith(start) and algorithm in ("", each.algorithm)
    }
    return matches.pop() if len(matches) == 1 else None
