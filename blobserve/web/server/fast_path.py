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
from blobserve.web.http.mount import BY_PATH
from blobserve.web.http.request_head import (
    MAX_FIELDS,
    MAX_LINE,
    MAX_SIZE,
    TOKEN,
    FieldBlock,
    RequestHead,
    RequestLine,
    selector,
)
from blobserve.web.http.target import is_host
from blobserve.web.http.version_choice import query_value
from blobserve.web.server.request_log import RequestLog
from blobserve.web.server.router import Router, asked_host

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
        # The clock's times between which this offset to the time of day and this date are used.
        self._from = self._until = self._offset = 0.0
        self._date = b""

    def answer(self, channel: Any, data: bytes) -> bool:
        """Answer `data` if it is one plain request with a response in memory.

        Return whether it was answered. If not, nothing has changed, and the channel parses `data`.
        """
        if self.is_shut or data[-4:] != _END or not is_between_requests(channel):
            return False
        config = self._config()
        if not config.hot_path:
            return False
        start, _, rest = data.partition(b"\r\n")
        line = _known_line(start) if len(start) <= _MEMORISED else _line(start)
        if line is None or len(data) > MAX_SIZE:
            return False
        block = _known_block(rest) if len(rest) <= _MEMORISED else _block(rest)
        if block is None:
            return False
        mount, path, host = BY_PATH, line.path, block.host
        if block.forwarded_host is not None:
            host = asked_host(host, block.forwarded_host, channel.peer, config)
        if config.sites:
            mount, path = self._router.route(host, path)
            if mount.detour is not None:
                return False
        key = mount.name, path, block.selector
        now = self._clock.seconds()
        is_choice = line.names_version or block.names_version
        ready = None if is_choice else self._files.cached_response(key, now)
        if ready is None:
            head = RequestHead(
                line.method, line.target, path, line.query, block.fields, block.selector, mount
            )
            if is_choice:
                ready = self._files.from_memory(head, now)
            else:
                ready = self._files.new_response(head, key)
        if ready is None:
            return False
        channel.active_at = now
        status, answer, body = ready.respond(line.method, block)
        if not self._from <= now < self._until:
            self._compare_clocks(now)
        content = b"".join((answer.before, self._date, answer.after, body))
        transport = channel.transport
        try:
            # At once, without waiting for the reactor.
            sent = transport.socket.send(content)
        except OSError:
            # The buffer is full or the client has left; the transport handles both.
            sent = 0
        if sent < len(content):
            transport.write(content[sent:])
        received = now + self._offset
        self._accounts.answered(
            channel.peer, line, block, ready, status, len(body), now, received, host, config
        )
        return True

    def _compare_clocks(self, now: float) -> None:
        """Set the date, and the offset of the time of day, until the end of this second.

        Asking for both at each request would take longer.
        """
        wall = self._wall()
        self._date, self._offset = datetimeToString(wall), wall - now
        self._from, self._until = now, now + 1 - wall % 1


def _line(line: bytes) -> RequestLine | None:
    """Return the parts of a plain request line, else None."""
    found = _REQUEST_LINE.fullmatch(line)
    if found is None or len(line) > MAX_LINE:
        return None
    method, target = found.groups()
    path, mark, query = target.partition(b"?")
    return RequestLine(
        method, target, path, query if mark else None, query_value(query) is not None
    )


def _block(block: bytes) -> FieldBlock | None:
    """Return the header fields of a plain request, else None.

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
    if len(lines) > MAX_FIELDS or not fields.keys().isdisjoint(_NOT_PLAIN):
        return None
    if fields.get(b"connection", b"keep-alive").lower() != b"keep-alive":
        return None
    chosen = selector(fields)
    if chosen is None or not is_host(fields.get(b"host", b"/")):
        return None
    return FieldBlock.of(fields, chosen)


_known_line = lru_cache(1024)(_line)
_known_block = lru_cache(1024)(_block)


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
