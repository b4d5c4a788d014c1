"""The fast path: a shortcut for plain requests with a response in memory.

Such a GET or HEAD is answered before Twisted's parser sees it, with the same bytes as on the
ordinary way. Everything else goes to the parser unchanged, including each head with anything
unusual in it. This module uses private names of Twisted's channel and transport.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.internet.tcp import Connection
from twisted.web.http import datetimeToString

from blobserve.config import Config
from blobserve.web.content.responder import Responder
from blobserve.web.http.conditional import Fields
from blobserve.web.http.request_head import (
    MAX_FIELDS,
    MAX_LINE,
    MAX_SIZE,
    TOKEN,
    RequestHead,
    selector,
)
from blobserve.web.http.target import is_host
from blobserve.web.server.request_log import RequestLog
from blobserve.web.server.router import Router

_END = b"\r\n\r\n"
_REQUEST_LINE = re.compile(rb"(GET|HEAD) (/[!\x22$-~]*) HTTP/1\.1")
_FIELD_LINES = re.compile(rb"(?:" + TOKEN + rb":[\t -~\x80-\xff]*\r\n)+")

# Fields that announce a body, change the connection or authenticate the client.
_NOT_PLAIN = frozenset(
    (
        b"authorization",
        b"content-length",
        b"expect",
        b"transfer-encoding",
        b"upgrade",
    )
)

_MEMORISED = 2048
"""The largest request line and the largest field block that is cached after parsing, in bytes.

The caches have 1,024 entries each. Browsers send the same lines repeatedly.
"""


class FastPath:
    """The fast path of one server, for connections that are between two requests."""

    def __init__(
        self,
        files: Responder,
        router: Router,
        accounts: RequestLog,
        config: Callable[[], Config],
        clock: IReactorTime,
        wall: Callable[[], float],
    ) -> None:
        """`wall` returns the time of day, in seconds since 1970."""
        self._wall = wall
        self.is_shut = False
        """True when the server drains; then no request is answered."""
        self._files = files
        self._router = router
        self._config = config
        self._accounts = accounts
        self._clock = clock
        # An offset to the clock, since asking for the time of day at each request takes longer.
        self._compared_at, self._offset = -1, 0.0
        self._second, self._date = 0, b""

    def answer(self, channel: Any, data: bytes) -> bool:
        """Answer `data` if it is one plain request with a response in memory.

        Return whether it was answered. If not, nothing has changed, and the channel parses `data`.
        """
        if self.is_shut or data[-4:] != _END or not is_between_requests(channel):
            return False
        head = parse(data)
        config = self._config()
        if head is None or not config.hot_path:
            return False
        if config.sites:
            head.mount, head.path = self._router.route(head.fields, channel.peer, head.path)
        ready = self._files.from_memory(head)
        if ready is None:
            return False
        now = channel.active_at = self._clock.seconds()
        status, answer, body = ready.respond(head.method, head.fields)
        if int(now) != self._compared_at:
            self._compared_at, self._offset = int(now), self._wall() - now
        wall = now + self._offset
        date = self._date if int(wall) == self._second else self._now(wall)
        _write(channel.transport, b"".join((answer.before, date, answer.after, body)))
        self._accounts.answered(channel.peer, head, ready, status, len(body), now, wall)
        return True

    def _now(self, seconds: float) -> bytes:
        """Return the value of ``Date``, and cache it for this second."""
        self._second, self._date = int(seconds), datetimeToString(seconds)
        return self._date


def parse(data: bytes) -> RequestHead | None:
    """Parse the head of one plain GET or HEAD; None for anything else.

    :param data: all received bytes, which end with an empty line.
    """
    line, _, block = data.partition(b"\r\n")
    target = _known_target(line) if len(line) <= _MEMORISED else _target(line)
    if target is None or len(data) > MAX_SIZE:
        return None
    plain = _known_fields(block) if len(block) <= _MEMORISED else _fields(block)
    return None if plain is None else RequestHead(*target, *plain)


def _target(line: bytes) -> tuple[bytes, bytes, bytes, bytes | None] | None:
    """Return the method, target, path and query of a plain request line, else None."""
    found = _REQUEST_LINE.fullmatch(line)
    if found is None or len(line) > MAX_LINE:
        return None
    method, target = found.groups()
    path, mark, query = target.partition(b"?")
    return method, target, path, query if mark else None


def _fields(block: bytes) -> tuple[Fields, tuple[bytes, ...]] | None:
    """Return the header fields and the `selector` of a plain request, else None.

    :param block: the field lines, with the empty line at their end.
    """
    if _FIELD_LINES.fullmatch(block, 0, len(block) - 2) is None:
        return None
    lines = block.split(b"\r\n")[:-2]
    fields: dict[bytes, bytes] = {}
    for line in lines:
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if name in fields:  # two Host fields become an invalid one
            value = b"%s, %s" % (fields[name], value)
        fields[name] = value
    if len(lines) > MAX_FIELDS or not _NOT_PLAIN.isdisjoint(fields):
        return None
    if fields.get(b"connection", b"keep-alive").lower() != b"keep-alive":
        return None
    chosen = selector(fields)
    if chosen is None or not is_host(fields.get(b"host", b"/")):
        return None
    return fields, chosen


_known_target = lru_cache(1024)(_target)
_known_fields = lru_cache(1024)(_fields)


def is_between_requests(channel: Any) -> bool:
    """Return whether the connection expects a new request and has sent all earlier responses.

    False for TLS connections, because their transport cannot tell.
    """
    transport = channel.transport
    return bool(
        isinstance(transport, Connection)
        and not transport.TLS
        and not channel.requests
        and channel._HTTPChannel__first_line == 1
        and not channel._buffer
        and channel.persistent
        and channel._requestProducer is None
        and not transport.dataBuffer
        and not transport._tempDataLen
        and not transport.disconnecting
        and not transport._writeDisconnecting
    )


def _write(transport: Any, data: bytes) -> None:
    """Write to the socket at once, without waiting for the reactor."""
    try:
        sent = transport.socket.send(data)
    except OSError:
        # The buffer is full or the client has left; the transport handles both.
        sent = 0
    if sent < len(data):
        transport.write(data[sent:])
