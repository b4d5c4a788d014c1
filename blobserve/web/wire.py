"""Responses as bytes: status lines and header fields, for what is sent past Twisted's `Request`.

Pure. Byte for byte what a `Request` would write for the same answer: Twisted's own spelling of the
names, Server and Date in front, one field of each name.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus

import attrs
from twisted.web.http import NO_BODY_CODES
from twisted.web.http_headers import Headers

from blobserve.web.answer import Answer, Header

# Twisted's own table ends before 431.
PHRASES = {int(status): status.phrase.encode() for status in HTTPStatus}

_SERVER: Header = (b"Server", b"blobserve")


@attrs.frozen
class Head:
    """The head of a response, all but the value of its ``Date``, which goes in between."""

    before: bytes
    after: bytes

    @classmethod
    def of(cls, answer: Answer, *connection: Header) -> Head:
        """The head of `answer`; `connection` are fields about the connection, at the end."""
        before = b"HTTP/1.1 %d %s\r\nServer: " % (answer.status, PHRASES[answer.status])
        (_, server), *fields = _spelled((*framed(answer), *connection))
        after = b"".join(b"%s: %s\r\n" % field for field in fields)
        return cls(before + server + b"\r\nDate: ", b"\r\n" + after + b"\r\n")


def framed(answer: Answer) -> tuple[Header, ...]:
    """The fields of `answer`, and those that say who sends it and where it ends."""
    if answer.status in NO_BODY_CODES:
        return (_SERVER, *answer.headers)
    return (_SERVER, *answer.headers, (b"Content-Length", b"%d" % answer.extent.length))


def _spelled(fields: Iterable[Header]) -> Iterable[Header]:
    headers = Headers()
    for name, value in fields:
        headers.setRawHeaders(name, [value])
    return [(name, value) for name, values in headers.getAllRawHeaders() for value in values]
