"""A request's head, as far as the response depends on it.

Values of bytes, independent of connections.
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
    """Return the part of a response's cache key that depends on header fields.

    None if the response must not be cached in memory.
    """
    if VARIABLES in fields or READ_ONLY in fields:
        return None
    if b"range" not in fields:
        return accepted(fields)
    # A range is a part of the uncoded file, unless If-Range names the tag of a coded variant.
    return None if b"if-range" in fields else ()


def _listed(value: bytes) -> set[bytes]:
    """Return the members of a list of tokens, in lower case."""
    return {each.strip(b" \t").lower() for each in value.split(b",")}


@attrs.define  # and not frozen: one is made for every request
class RequestHead:
    """A request's head, as far as the response depends on it."""

    method: bytes
    target: bytes
    """The request target as the client sent it."""
    path: bytes
    """The path of the URL below the resource: not decoded, without its leading slash."""
    query: bytes | None
    fields: Fields
    selector: tuple[bytes, ...] | None
    """The result of the function `selector`."""

    @property
    def is_websocket(self) -> bool:
        """Return whether the request asks for an upgrade to WebSocket, RFC 6455 §4.1."""
        upgrade = self.fields.get(b"upgrade")
        if upgrade is None:
            return False
        options = self.fields.get(b"connection", b"")
        return b"websocket" in _listed(upgrade) and b"upgrade" in _listed(options)

    @property
    def as_plain_get(self) -> RequestHead:
        """The head of a GET for the same target, without conditions and ranges."""
        fields = {name: each for name, each in self.fields.items() if name not in _CONDITIONS}
        return RequestHead(b"GET", self.target, self.path, self.query, fields, selector(fields))

    @property
    def is_navigation(self) -> bool:
        """Return whether a browser asks for a page that its user navigates to."""
        return self.fields.get(b"sec-fetch-mode") == b"navigate"


@attrs.define
class RequestContext:
    """A request that is being answered, with the facts that the access log records."""

    head: RequestHead
    rules: RepositoryRules | None = None
    """The rules of the repository; None until they are looked up."""
    cache: str | None = None
    digest: Digest | None = None
    deadline: float = math.inf
    """The time of the reactor's clock until which the request waits for its first bytes."""
