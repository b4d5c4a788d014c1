"""Responses as values: status, header fields and body.

`blobserve.web.content` makes them, and `blobserve.web.server.send` writes them to connections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from http import HTTPStatus
from typing import Protocol

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.web.http import NO_BODY_CODES
from twisted.web.http_headers import Headers

from blobserve.config import RepositoryRules
from blobserve.errors import BlobDamaged
from blobserve.web.http.conditional import Range

Header = tuple[bytes, bytes]

# Twisted's own table has no 431.
PHRASES = {int(status): status.phrase.encode() for status in HTTPStatus}

_SERVER: Header = (b"Server", b"blobserve")

# Fields that caches obey in addition to Cache-Control or instead of it, as in RFC 9213.
_CACHE_FIELDS = (b"expires", b"surrogate-control", b"edge-control", b"x-accel-expires")
_SANDBOX = (b"Content-Security-Policy", b"sandbox allow-scripts")


class Body(Protocol):
    """All bytes of a representation. Any part can be read until the body is closed."""

    @property
    def size(self) -> int:
        """The size in bytes."""
        ...

    def read_cached(self, offset: int, length: int) -> bytes | None:
        """Return some of these bytes if that does not block on the disk, else None."""
        ...

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        """Return some of these bytes; an empty result means that the content is lost."""
        ...

    @property
    def stored(self) -> StoredBody | None:
        """The file on disk that contains these bytes; None if there is none."""
        ...

    def close(self) -> None:
        """Release the body. Reads that have begun may still end."""
        ...


class StoredBody(Protocol):
    """The file that contains a body, from `start` on. Valid until the body is closed."""

    @property
    def descriptor(self) -> int:
        """The file descriptor, open for reading."""
        ...

    @property
    def start(self) -> int:
        """The offset of the body's first byte in the file."""
        ...

    def is_cached(self, offset: int, length: int) -> bool:
        """Return whether these bytes of the body can be sent without blocking on the disk."""
        ...

    def read_ahead(self, offset: int, length: int) -> Deferred[None]:
        """Read these bytes into the page cache. Fails if the content is lost."""
        ...

    def lost(self, problem: str) -> BlobDamaged:
        """Report that the disk has lost bytes of the body, and return the error to raise."""
        ...


class Recallable(Protocol):
    """A file that may turn out to be wrong while it is being sent, such as an early file."""

    def when_recalled(self, call: Callable[[], None]) -> None:
        """Register `call`, which is called if the file turns out to be wrong."""
        ...


@attrs.frozen
class BytesBody:
    """A body in memory. See `Body`."""

    content: bytes = attrs.field(repr=False)

    @property
    def size(self) -> int:
        """See `Body.size`."""
        return len(self.content)

    def read_cached(self, offset: int, length: int) -> bytes:
        """See `Body.read_cached`."""
        return self.content[offset : offset + length]

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        """See `Body.read`."""
        return succeed(self.read_cached(offset, length))

    @property
    def stored(self) -> None:
        """See `Body.stored`."""

    def close(self) -> None:
        """See `Body.close`."""


@attrs.frozen
class Answer:
    """A response with `part` of `body`, or all of it. The owner sends it or closes the body."""

    status: int
    headers: tuple[Header, ...] = ()
    body: Body = BytesBody(b"")
    part: Range | None = None
    recallable: Recallable | None = None
    """If set, the response can be recalled, and configured fields cannot make it cacheable."""

    @property
    def is_refusal(self) -> bool:
        """Return whether this is an error response."""
        return self.status >= 400

    @property
    def extent(self) -> Range:
        """The range of the body that is sent."""
        return self.part or Range(0, self.body.size)

    def with_rules(self, rules: RepositoryRules) -> Answer:
        """Return the same answer with the header fields that the repository's rules configure.

        Configured fields replace ours, but not in error responses: an operator could make errors
        cacheable by accident. If the rules let fields of the request choose among versions, the
        answer says so to caches.
        """
        answer = self._configured(rules)
        if not (rules.version_header or rules.version_cookie) or rules.versions is None:
            return answer
        return answer._varied(rules)

    def _varied(self, rules: RepositoryRules) -> Answer:
        """Return the same answer for caches that know the fields that choose among versions."""
        fields = list(self.headers)
        deciding = [
            each.strip() for name, value in fields if _is_vary(name) for each in value.split(b",")
        ]
        if rules.version_header:
            deciding.append(b"X-Deployment-Id")
        if rules.version_cookie:
            deciding.append(b"Cookie")
            controls = [value for name, value in fields if name.lower() == b"cache-control"]
            # Fields for single kinds of caches could allow what `private` forbids.
            fields = [each for each in fields if not _controls_shared_caches(each[0].lower())]
            fields.append((b"Cache-Control", _private(b", ".join(controls))))
        named = {each.lower(): each for each in reversed(deciding) if each}
        kept = [each for each in fields if not _is_vary(each[0])]
        vary = b"*" if b"*" in named else b", ".join(reversed(named.values()))
        return attrs.evolve(self, headers=(*kept, (b"Vary", vary)))

    def _configured(self, rules: RepositoryRules) -> Answer:
        configured = {
            name.lower().encode(): (name.encode(), value.encode()) for name, value in rules.headers
        }
        if not rules.listed:
            configured[_SANDBOX[0].lower()] = _SANDBOX
        if self.recallable is not None:
            configured = {
                name: each for name, each in configured.items() if not _controls_caches(name)
            }
        if not configured:
            return self
        own = {name.lower(): (name, value) for name, value in self.headers}
        merged = {**configured, **own} if self.is_refusal else {**own, **configured}
        return attrs.evolve(self, headers=tuple(merged.values()))


def _is_vary(name: bytes) -> bool:
    return name.lower() == b"vary"


def _controls_shared_caches(name: bytes) -> bool:
    """Return whether a field with this name, in lower case, controls caches of many clients."""
    return name != b"expires" and _controls_caches(name)


def _private(control: bytes) -> bytes:
    """Return the same ``Cache-Control`` for caches of a single client only."""
    directives = [each.strip() for each in control.split(b",")]
    kept = [
        each
        for each in directives
        if each and each.partition(b"=")[0].lower() not in (b"public", b"private", b"s-maxage")
    ]
    return b", ".join((b"private", *kept))


def _controls_caches(name: bytes) -> bool:
    """Return whether a field with this name, in lower case, controls caches."""
    return name.endswith(b"cache-control") or name in _CACHE_FIELDS


@attrs.frozen
class ResponseHead:
    """The head of a response, split where the value of ``Date`` goes."""

    before: bytes
    after: bytes

    @classmethod
    def of(cls, answer: Answer, *connection: Header) -> ResponseHead:
        """Return the head of `answer`; the fields in `connection` come last."""
        (_, server), *fields = _unique((*framed(answer), *connection))
        after = [b"%s: %s\r\n" % field for field in fields]
        return cls(_before(answer.status, server), b"\r\n%s\r\n" % b"".join(after))


def framed(answer: Answer) -> tuple[Header, ...]:
    """Return the fields of `answer` with Server and, if it has a body, Content-Length."""
    if answer.status in NO_BODY_CODES:
        return (_SERVER, *answer.headers)
    return (_SERVER, *answer.headers, (b"Content-Length", b"%d" % answer.extent.length))


@lru_cache(64)  # So that thousands of cached heads share a few values.
def _before(status: int, server: bytes) -> bytes:
    return b"HTTP/1.1 %d %s\r\nServer: %s\r\nDate: " % (status, PHRASES[status], server)


def _unique(fields: Iterable[Header]) -> Iterable[Header]:
    """Return one field per name: the last value at the place of the first, as `Headers` does."""
    return {_canonical_name(name): value for name, value in fields}.items()


@lru_cache(1024)  # The only names are ours and the configured ones.
def _canonical_name(name: bytes) -> bytes:
    """Return a field name in Twisted's spelling."""
    headers = Headers()
    headers.setRawHeaders(name, [b""])
    [(spelled, _)] = headers.getAllRawHeaders()
    return spelled
