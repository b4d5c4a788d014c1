"""Responses as bytes: status lines and header fields, for what is sent past Twisted's `Request`.

Pure. Byte for byte what a `Request` would write for the same answer: Twisted's own spelling of the
names, Server and Date in front, one field of each name.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from http import HTTPStatus

import attrs
from twisted.web.http import NO_BODY_CODES
from twisted.web.http_headers import Headers

from blobserve.web.http.response import Answer, Header

# Twisted's own table ends before 431.
PHRASES = {int(status): status.phrase.encode() for status in HTTPStatus}

_SERVER: Header = (b"Server", b"blobserve")


@attrs.frozen
class ResponseHead:
    """The head of a response, all but the value of its ``Date``, which goes in between."""

    before: bytes
    after: bytes

    @classmethod
    def of(cls, answer: Answer, *connection: Header) -> ResponseHead:
        """The head of `answer`; `connection` are fields about the connection, at the end."""
        (_, server), *fields = _singled((*framed(answer), *connection))
        after = [b"%s: %s\r\n" % field for field in fields]
        return cls(_before(answer.status, server), b"\r\n%s\r\n" % b"".join(after))


def framed(answer: Answer) -> tuple[Header, ...]:
    """The fields of `answer`, and those that say who sends it and where it ends."""
    if answer.status in NO_BODY_CODES:
        return (_SERVER, *answer.headers)
    return (_SERVER, *answer.headers, (b"Content-Length", b"%d" % answer.extent.length))


@lru_cache(64)  # The same for all: thousands of heads are kept.
def _before(status: int, server: bytes) -> bytes:
    return b"HTTP/1.1 %d %s\r\nServer: %s\r\nDate: " % (status, PHRASES[status], server)


def _singled(fields: Iterable[Header]) -> Iterable[Header]:
    """The fields, of each name the last in the place of the first, as `Headers` keeps them."""
    return {_spelled(name): value for name, value in fields}.items()


@lru_cache(1024)  # There are no more names than ours and those that are configured.
def _spelled(name: bytes) -> bytes:
    """A field's name as Twisted writes it."""
    headers = Headers()
    headers.setRawHeaders(name, [b""])
    [(spelled, _)] = headers.getAllRawHeaders()
    return spelled
