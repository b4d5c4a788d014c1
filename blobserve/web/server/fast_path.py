"""The hot path: a shortcut for whole, plain requests whose answer is in memory.

Such a GET or HEAD is answered before Twisted's parser sees it, by the same rules, from the same
values and with the same bytes; all else goes to the parser untouched. Strict: a head that is not
understood to the last byte is not answered here. The only room that knows private names of
Twisted's channel and transport.
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
from blobserve.web.http.request import RequestHead, selector
from blobserve.web.http.request_head import MAX_FIELDS, MAX_LINE, MAX_SIZE, TOKEN
from blobserve.web.http.target import is_host
from blobserve.web.server.request_log import RequestLog

_END = b"\r\n\r\n"
_REQUEST_LINE = re.compile(rb"(GET|HEAD) (/[!\x22$-~]*) HTTP/1\.1")
_FIELD_LINES = re.compile(rb"(?:" + TOKEN + rb":[\t -~\x80-\xff]*\r\n)+")

# What says that a body comes, that the connection is to end or to become another, or who asks.
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
"""Bytes up to which what was read is remembered, of 1,024 each: browsers repeat themselves."""


class FastPath:
    """Answers what needs no waiting, on connections that are between two requests."""

    def __init__(
        self,
        files: Responder,
        accounts: RequestLog,
        config: Callable[[], Config],
        clock: IReactorTime,
    ) -> None:
        self.is_shut = False
        """Set when the server drains."""
        self._files = files
        self._config = config
        self._accounts = accounts
        self._clock = clock
        self._second, self._date = 0, b""

    def answer(self, channel: Any, data: bytes) -> bool:
        """Answer `data` if it is one plain request and the answer is ready; whether it was.

        If not, nothing has happened, and the data is the channel's to read.
        """
        if self.is_shut or data[-4:] != _END or not is_between_requests(channel):
            return False
        head = parse(data)
        if head is None or not self._config().hot_path:
            return False
        ready = self._files.from_memory(head)
        if ready is None:
            return False
        now = channel.active_at = self._clock.seconds()
        status, answer, body = ready.respond(head.method, head.fields)
        date = self._date if int(now) == self._second else self._now(now)
        _write(channel.transport, b"".join((answer.before, date, answer.after, body)))
        self._accounts.at_once(channel.peer, head, ready, status, len(body), now)
        return True

    def _now(self, seconds: float) -> bytes:
        """The time as ``Date`` has it."""
        self._second, self._date = int(seconds), datetimeToString(seconds)
        return self._date


def parse(data: bytes) -> RequestHead | None:
    """Read the head of one plain GET or HEAD; None for whatever else it is.

    :param data: all that has come, ending in an empty line.
    """
    line, _, block = data.partition(b"\r\n")
    target = _known_target(line) if len(line) <= _MEMORISED else _target(line)
    if target is None or len(data) > MAX_SIZE:
        return None
    plain = _known_fields(block) if len(block) <= _MEMORISED else _fields(block)
    return None if plain is None else RequestHead(*target, *plain)


def _target(line: bytes) -> tuple[bytes, bytes, bytes, bytes | None] | None:
    """Method, target, path and query of a request line, if it is that of a plain request."""
    found = _REQUEST_LINE.fullmatch(line)
    if found is None or len(line) > MAX_LINE:
        return None
    method, target = found.groups()
    path, mark, query = target.partition(b"?")
    return method, target, path[1:], query if mark else None


def _fields(block: bytes) -> tuple[Fields, tuple[bytes, ...]] | None:
    """Header fields with the empty line at their end, if they are those of a plain request.

    Beside them what they select by.
    """
    if _FIELD_LINES.fullmatch(block, 0, len(block) - 2) is None:
        return None
    lines = block.split(b"\r\n")[:-2]
    fields: dict[bytes, bytes] = {}
    for line in lines:
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if name in fields:  # which makes of two hosts none
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
    """Whether the next byte on a connection is the first of a request, and all before it is sent.

    Only of plain connections, whose transport can be asked.
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
    """Write at once, without waiting for the reactor to say that it may be done."""
    try:
        sent = transport.socket.send(data)
    except OSError:
        # There is no room, or nobody there any more: the transport will find out.
        sent = 0
    if sent < len(data):
        transport.write(data[sent:])
