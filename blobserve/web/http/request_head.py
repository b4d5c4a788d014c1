"""Request heads: checked line by line before Twisted parses them, and as values after that.

Pure. `HeadCheck` is stricter than RFC 9112 requires, because two servers that repair malformed
heads differently can disagree about the end of a request. Requests with a body are refused, except
notifications of registries.
`RequestHead` has the parts of a head that the response depends on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Protocol

import attrs

from blobserve.config import RepositoryRules
from blobserve.errors import (
    BadRequest,
    BlobserveError,
    HeadTooLarge,
    MethodNotAllowed,
    TargetTooLong,
    VersionNotSupported,
)
from blobserve.names.digest import Digest
from blobserve.web.http.accept_encoding import accepted
from blobserve.web.http.caching import INLINE_VARIABLES
from blobserve.web.http.conditional import Fields
from blobserve.web.http.header_changes import HeaderChanges
from blobserve.web.http.mount import BY_PATH, Mount
from blobserve.web.http.target import Target, is_host, origin_form
from blobserve.web.http.version_choice import COOKIE, HEADER

MAX_LINE = 8 * 1024
MAX_SIZE = 32 * 1024
"""The largest head in bytes, line ends included."""
MAX_FIELDS = 100

_LENGTH_DIGITS = 19
"""Digits of a Content-Length that are read; more of them are no possible size."""

_CREDENTIALS = (b"authorization", b"x-hub-signature-256")

TOKEN = rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
"""The regular expression of a field name or a method, RFC 9110 §5.6.2."""

_REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([!-~]+) HTTP/([0-9])\.([0-9])")
_FIELD = re.compile(rb"(" + TOKEN + rb"):[ \t]*([\t -~\x80-\xff]*?)[ \t]*")


class BodyPermit(Protocol):
    """The permission to receive the body of one request."""

    def begin(self, too_late: Callable[[BlobserveError], None]) -> None:
        """Start the time for the body; call `too_late` with an error at its end."""
        ...

    def end(self) -> None:
        """Note that the body is complete, or that no more of it will come. Idempotent."""
        ...


class BodyGate(Protocol):
    """The decision which requests may have a body."""

    def admit(self, head: HeadCheck) -> BodyPermit | None:
        """Permit the body that a complete head announces; None: there is no place for bodies.

        :raises BlobserveError: when the request is refused for another reason.
        """
        ...


class HeadCheck:
    """A check of the lines of one request head, up to the first problem."""

    def __init__(self, gate: BodyGate | None = None) -> None:
        """Without `gate`, requests with a body are refused."""
        self.permit: BodyPermit | None = None
        """The permission for the body, after the last line of a head that announces one."""
        self.credentials: dict[bytes, bytes] = {}
        """The fields that authorize a notification, with names in lower case."""
        self._gate = gate
        self.method = self.target = self.version = b""
        self.is_open = False
        """True after the first line, even if that was an empty line before the request line."""
        self._size = 0
        self._fields = 0
        self._hosts: list[bytes] = []
        self._length: bytes | None = None
        self._is_coded = False

    @property
    def length(self) -> int | None:
        """The size of the body in bytes; None if it is not announced."""
        return None if self._length is None else int(self._length[:_LENGTH_DIGITS])

    @property
    def first_line(self) -> bytes:
        """The request line, with the version in which the request is processed."""
        return b" ".join((self.method, self.target, self.version))

    @property
    def has_begun(self) -> bool:
        """Return whether the request line has been read."""
        return bool(self.method)

    def line(self, line: bytes) -> None:
        """Check the next line, which comes without its line end.

        :raises BadRequest: if the line is not allowed.
        """
        self._size += len(line) + 2
        if not self.has_begun:
            # RFC 9112 §2.2: one empty line before the request line is ignored.
            if line or self.is_open:
                self._begin(line)
            self.is_open = True
        elif self._size > MAX_SIZE or self._fields > MAX_FIELDS:
            raise self.too_long()
        elif line:
            self._field(line)
        else:
            self._end()

    def too_long(self) -> BadRequest:
        """Return the error for a head or a line that is too long."""
        if self.has_begun:
            return HeadTooLarge("the request head is too large")
        return TargetTooLong("the request target is too long")

    def _begin(self, line: bytes) -> None:
        if len(line) > MAX_LINE:
            raise self.too_long()
        found = _REQUEST_LINE.fullmatch(line)
        if found is None:
            raise BadRequest("malformed request line")
        self.method, self.target, major, minor = found.groups()
        if major != b"1":
            raise VersionNotSupported("this server speaks HTTP/1.1")
        # RFC 9110 §2.5: a higher minor version is processed as the highest known one.
        self.version = b"HTTP/1.0" if minor == b"0" else b"HTTP/1.1"
        origin_form(self.method, self.target)

    def _field(self, line: bytes) -> None:
        found = _FIELD.fullmatch(line)
        if found is None:
            raise BadRequest("malformed header field")
        self._fields += 1
        name, value = found[1].lower(), found[2]
        if name == b"host":
            self._hosts.append(value)
        elif name == b"transfer-encoding":
            self._is_coded = True
        elif name == b"content-length":
            if self._length is not None or not value.isdigit():
                raise BadRequest("malformed Content-Length")
            self._length = value.lstrip(b"0") or b"0"
        elif self._gate is not None and name in _CREDENTIALS:
            if name in self.credentials:
                raise BadRequest("a credential must not come twice")
            self.credentials[name] = value

    def _end(self) -> None:
        if len(self._hosts) > 1 or (self.version == b"HTTP/1.1" and not self._hosts):
            raise BadRequest("a request must have exactly one Host")
        if not all(map(is_host, self._hosts)):
            raise BadRequest("malformed Host")
        if self._is_coded and self._length is not None:
            raise BadRequest("Content-Length and Transfer-Encoding exclude each other")
        if self._is_coded or (self._length or b"0") != b"0":
            if self.method in (b"GET", b"HEAD", b"OPTIONS"):
                raise BadRequest(f"a {self.method.decode()} request must not have a body")
            if self._gate is not None:
                self.permit = self._gate.admit(self)
            if self.permit is None:
                raise MethodNotAllowed(f"not allowed: {self.method.decode()}")


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


def forwarded_host(fields: Fields) -> bytes | None:
    """Return the host in ``X-Forwarded-Host``, for a trusted proxy; None without that field.

    The first member is that of the proxy next to the client.
    """
    value = fields.get(b"x-forwarded-host")
    return None if value is None else value.partition(b",")[0].strip(b" \t")


def _listed(value: bytes) -> set[bytes]:
    """Return the members of a list of tokens, in lower case."""
    return {each.strip(b" \t").lower() for each in value.split(b",")}


@attrs.define  # and not frozen: many requests need a new one
class RequestLine:
    """The parts of the request line of a plain request."""

    method: bytes
    target: bytes
    """The request target as the client sent it."""
    path: bytes
    """The whole path of the URL, not decoded, with its leading slash."""
    query: bytes | None
    names_version: bool
    """Whether the query may name a version of the image."""


@attrs.define  # and not frozen: many requests need a new one
class FieldBlock:
    """The header fields of a request, with the values that the fast path takes from them.

    Requests with equal fields share one, so that the values are looked up once.
    """

    fields: Fields
    selector: tuple[bytes, ...]
    """The result of the function `selector`."""
    is_conditional: bool
    """Whether a field is a condition or asks for a range."""
    referer: bytes | None
    agent: bytes | None
    forwarded: bytes | None
    """The value of ``X-Forwarded-For``."""
    host: bytes | None
    forwarded_host: bytes | None
    """The result of the function `forwarded_host`."""
    names_version: bool
    """Whether a field may name a version of the image, if the rules allow that."""

    @classmethod
    def of(cls, fields: Fields, chosen: tuple[bytes, ...]) -> FieldBlock:
        """Return the block with these fields; `chosen` is their `selector`."""
        return cls(
            fields,
            chosen,
            not fields.keys().isdisjoint(_CONDITIONS),
            fields.get(b"referer"),
            fields.get(b"user-agent"),
            fields.get(b"x-forwarded-for"),
            fields.get(b"host"),
            forwarded_host(fields),
            HEADER in fields or COOKIE in fields.get(b"cookie", b""),
        )


@attrs.define  # and not frozen: one is made for every request
class RequestHead:
    """A request's head, as far as the response depends on it."""

    method: bytes
    target: bytes
    """The request target as the client sent it."""
    path: bytes
    """The path of the URL below the mount, not decoded: empty, or with its leading slash."""
    query: bytes | None
    fields: Fields
    selector: tuple[bytes, ...] | None
    """The result of the function `selector`."""
    mount: Mount = BY_PATH
    """The mount that the path is relative to."""
    authority: bytes | None = None
    """The host that the client asked for, maybe with a port; None if it is that of ``Host``."""

    @property
    def prefix(self) -> bytes:
        """The part of the URL's path above the mount, without a slash at its end."""
        path = self.target.partition(b"?")[0]
        return path[: len(path) - len(self.path)]

    def parse_target(self) -> Target:
        """Return the image and the file that the URL names.

        :raises NotFound: when it cannot name a file.
        """
        return self.mount.target(self.path, self.target)

    @property
    def root(self) -> str:
        """The path of the root of the mount, as in URLs; it begins and ends with a slash."""
        return self.prefix.decode("ascii", "replace") + "/"

    @property
    def asked_host(self) -> bytes | None:
        """The host that the client asked for, maybe with a port; None if there is none."""
        return self.fields.get(b"host") if self.authority is None else self.authority or None

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
        return attrs.evolve(self, method=b"GET", fields=fields, selector=selector(fields))

    @property
    def is_navigation(self) -> bool:
        """Return whether a browser asks for a page that its user navigates to."""
        return self.fields.get(b"sec-fetch-mode") == b"navigate"


@attrs.define
class RequestContext:
    """A request that is being answered, with the facts that the access log records."""

    head: RequestHead
    rules: RepositoryRules | None = None
    """The rules of the repository or site; None until they are looked up."""
    changes: HeaderChanges | None = None
    """The changes that the site's ``_headers`` make, as far as they are known."""
    cache: str | None = None
    digest: Digest | None = None
    deadline: float = math.inf
    """The time of the reactor's clock until which the request waits for its first bytes."""
