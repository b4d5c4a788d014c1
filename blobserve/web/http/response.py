"""Answers: what goes out for a request, before anything of it has.

Values, made by the rooms that decide, written to a connection by `blobserve.web.server.send` alone.
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

# What caches obey beside, or before, Cache-Control; RFC 9213 for one.
_KEEPING = (b"expires", b"surrogate-control", b"edge-control", b"x-accel-expires")
_SANDBOX = (b"Content-Security-Policy", b"sandbox allow-scripts")


class Body(Protocol):
    """The whole of a representation, of which any part can be read until it is closed."""

    @property
    def size(self) -> int:
        """Its length in bytes."""
        ...

    def read_cached(self, offset: int, length: int) -> bytes | None:
        """Some of the bytes there, if that needs no waiting for a disk."""
        ...

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        """Some of the bytes there; none at all only where the content has been lost."""
        ...

    @property
    def stored(self) -> StoredBody | None:
        """The same bytes in a file, if that is where they are."""
        ...

    def close(self) -> None:
        """Nobody reads on. Reads that have begun may end."""
        ...


class StoredBody(Protocol):
    """A body as it lies in a file, from `start` on, until it is closed."""

    @property
    def descriptor(self) -> int:
        """The file, open for reading."""
        ...

    @property
    def start(self) -> int:
        """Where in the file its first byte is."""
        ...

    def is_cached(self, offset: int, length: int) -> bool:
        """Whether those bytes of the body can be sent without waiting for a disk."""
        ...

    def read_ahead(self, offset: int, length: int) -> Deferred[None]:
        """Fires when they can; fails where the content has been lost."""
        ...

    def lost(self, problem: str) -> BlobDamaged:
        """Report that bytes could not be sent because the disk has lost them; what to raise."""
        ...


class Recallable(Protocol):
    """What may turn out, while it is being sent, to be what nobody should have."""

    def when_recalled(self, call: Callable[[], None]) -> None:
        """Have `call` called then."""
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
    """A response: `part` of `body`, or all of it. Whoever holds one sends it or closes its body."""

    status: int
    headers: tuple[Header, ...] = ()
    body: Body = BytesBody(b"")
    part: Range | None = None
    recallable: Recallable | None = None
    """What may recall it: nobody keeps such an answer, whatever is configured."""

    @property
    def is_refusal(self) -> bool:
        """Whether it says that something went wrong."""
        return self.status >= 400

    @property
    def extent(self) -> Range:
        """The bytes of the body that it consists of."""
        return self.part or Range(0, self.body.size)

    def under(self, rules: RepositoryRules) -> Answer:
        """The same answer as a response of the repository with these rules.

        Configured fields take the place of ours, but never in an answer that refuses: what keeps an
        error out of caches is not the operator's to undo by accident.
        """
        configured = {
            name.lower().encode(): (name.encode(), value.encode()) for name, value in rules.headers
        }
        if not rules.listed:
            configured[_SANDBOX[0].lower()] = _SANDBOX
        if self.recallable is not None:
            configured = {name: each for name, each in configured.items() if not _keeps(name)}
        if not configured:
            return self
        own = {name.lower(): (name, value) for name, value in self.headers}
        merged = {**configured, **own} if self.is_refusal else {**own, **configured}
        return attrs.evolve(self, headers=tuple(merged.values()))


def _keeps(name: bytes) -> bool:
    """Whether a field of this name, in lower case, tells a cache what it may keep."""
    return name.endswith(b"cache-control") or name in _KEEPING
