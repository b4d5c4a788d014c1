"""The hot path: a shortcut for whole, plain requests whose answer is in memory.

Such a GET or HEAD is answered before Twisted's parser sees it, by the same rules, from the same
values and with the same bytes; all else goes to the parser untouched. Strict: a head that is not
understood to the last byte is not answered here. The only room that knows private names of
Twisted's channel and transport.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.internet.tcp import Connection
from twisted.web.http import datetimeToString

from blobserve.web.accounts import Accounts
from blobserve.web.conditional import Fields
from blobserve.web.files import Asked, Files, Head
from blobserve.web.head import MAX_FIELDS, MAX_LINE, MAX_SIZE, TOKEN, is_host

_END = b"\r\n\r\n"
_REQUEST_LINE = re.compile(rb"(GET|HEAD) (/[!-~]*) HTTP/1\.1")
_FIELD_LINES = re.compile(rb"(?:" + TOKEN + rb":[\t -~\x80-\xff]*\r\n)+")

# What says that a body comes, that the connection is to end or to become another, or who asks.
_NOT_PLAIN = frozenset(
    (
        b"authorization",
        b"content-length",
        b"expect",
        b"transfer-encoding",
        b"upgrade",
        b"x-blobserve-inlinevars",
        b"x-blobserve-readonly",
    )
)

_MEMORISED = 2048
"""Bytes of header fields up to which their reading is remembered: browsers repeat themselves."""


class HotPath:
    """Answers what needs no waiting, on connections that are between two requests."""

    def __init__(self, files: Files, accounts: Accounts, clock: IReactorTime) -> None:
        self._files = files
        self._accounts = accounts
        self._clock = clock
        self._date = (0, b"")

    def answer(self, channel: Any, data: bytes) -> bool:
        """Answer `data` if it is one plain request and the answer is ready; whether it was.

        If not, nothing has happened, and the data is the channel's to read.
        """
        if data[-4:] != _END or not is_between_requests(channel):
            return False
        plain = parse(data)
        if plain is None:
            return False
        started = self._clock.seconds()
        asked = Asked(plain.head)
        ready = self._files.at_once(asked)
        if ready is None:
            return False
        channel.active_at = started
        method = plain.head.method
        status, head, body = ready.respond(method, plain.head.fields)
        _write(channel.transport, b"".join((head.before, self._now(started), head.after, body)))
        self._accounts.at_once(channel.peer, plain.target, asked, status, len(body), started)
        return True

    def _now(self, seconds: float) -> bytes:
        """The time as ``Date`` has it."""
        second, text = self._date
        if second != int(seconds):
            text = datetimeToString(seconds)
            self._date = int(seconds), text
        return text


@attrs.define
class Plain:
    """A request whose head asks for nothing but a file."""

    head: Head
    target: bytes
    """As it was sent."""


def parse(data: bytes) -> Plain | None:
    """Read the head of one plain GET or HEAD; None for whatever else it is.

    :param data: all that has come, ending in an empty line.
    """
    line, _, block = data.partition(b"\r\n")
    found = _REQUEST_LINE.fullmatch(line)
    if found is None or len(line) > MAX_LINE or len(data) > MAX_SIZE:
        return None
    fields = _remembered(block) if len(block) <= _MEMORISED else _fields(block)
    if fields is None:
        return None
    method, target = found.groups()
    path, mark, query = target.partition(b"?")
    return Plain(Head(method, path[1:], query if mark else None, fields), target)


def _fields(block: bytes) -> Fields | None:
    """Header fields with the empty line at their end, if they make a request plain."""
    if _FIELD_LINES.fullmatch(block, 0, len(block) - 2) is None:
        return None
    lines = block.split(b"\r\n")[:-2]
    fields: dict[bytes, bytes] = {}
    for line in lines:
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if name in fields:
            if name == b"host":
                return None
            value = b"%s, %s" % (fields[name], value)
        fields[name] = value
    if len(lines) > MAX_FIELDS or not _NOT_PLAIN.isdisjoint(fields):
        return None
    if fields.get(b"connection", b"keep-alive").lower() != b"keep-alive":
        return None
    return fields if is_host(fields.get(b"host", b"/")) else None


_remembered = lru_cache(1024)(_fields)


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
    sent = transport.writeSomeData(data)
    if sent != len(data):
        # What is left, or all of it where the connection is lost: the transport will find out.
        transport.write(data[sent:] if isinstance(sent, int) else data)
