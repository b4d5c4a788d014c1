"""What was asked for: a request's head, as far as answers depend on it.

Values of bytes; connections are not known here.
"""

from __future__ import annotations

import math

import attrs

from blobserve.config import RepositoryRules
from blobserve.names.digest import Digest
from blobserve.web.http.accept_encoding import accepted
from blobserve.web.http.caching import INLINE_VARIABLES
from blobserve.web.http.conditional import Fields

VARIABLES = INLINE_VARIABLES.lower()
READ_ONLY = b"x-blobserve-readonly"
_CONDITIONS = frozenset(
    (
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
        b"range",
    )
)


def selector(fields: Fields) -> tuple[bytes, ...] | None:
    """What fields of a request select by, beside its path; None where that cannot be kept."""
    if VARIABLES in fields or READ_ONLY in fields:
        return None
    if b"range" not in fields:
        return accepted(fields)
    # A range is of the file as it is, unless the request names the tag of a coding.
    return None if b"if-range" in fields else ()


def _listed(value: bytes) -> set[bytes]:
    """Return the members of a list of tokens, in lower case."""
    return {each.strip(b" \t").lower() for each in value.split(b",")}


@attrs.define  # and not frozen: one is made for every request
class RequestHead:
    """A request's head, as far as answers depend on it."""

    method: bytes
    target: bytes
    """As it was sent."""
    path: bytes
    """Of the URL, relative to where ours begin: not decoded, without a slash in front."""
    query: bytes | None
    fields: Fields
    selector: tuple[bytes, ...] | None
    """See `selector`."""

    @property
    def is_websocket(self) -> bool:
        """Whether this asks to speak WebSocket from here on, RFC 6455 §4.1."""
        upgrade = self.fields.get(b"upgrade")
        if upgrade is None:
            return False
        options = self.fields.get(b"connection", b"")
        return b"websocket" in _listed(upgrade) and b"upgrade" in _listed(options)

    @property
    def as_plain_get(self) -> RequestHead:
        """The head of a GET for the same, with no conditions and of all of it."""
        fields = {name: each for name, each in self.fields.items() if name not in _CONDITIONS}
        return RequestHead(b"GET", self.target, self.path, self.query, fields, selector(fields))

    @property
    def is_navigation(self) -> bool:
        """Whether a person waits for this to become a page."""
        return self.fields.get(b"sec-fetch-mode") == b"navigate"


@attrs.define
class RequestContext:
    """One request on its way to an answer, and what the log wants to know of it."""

    head: RequestHead
    rules: RepositoryRules | None = None
    """Of the repository, as soon as they are known."""
    cache: str | None = None
    digest: Digest | None = None
    deadline: float = math.inf
    """When, by the reactor's clock, its first bytes should be there."""
