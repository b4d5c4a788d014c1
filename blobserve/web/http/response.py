"""Responses as values: status, header fields and body.

`blobserve.web.content` makes them, and `blobserve.web.server.send` writes them to connections.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import attrs
from twisted.internet.defer import Deferred, succeed

from blobserve.config import RepositoryRules
from blobserve.errors import BlobDamaged
from blobserve.web.http.conditional import Range

Header = tuple[bytes, bytes]

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
        cacheable by accident.
        """
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


def _controls_caches(name: bytes) -> bool:
    """Return whether a field with this name, in lower case, controls caches."""
    return name.endswith(b"cache-control") or name in _CACHE_FIELDS
