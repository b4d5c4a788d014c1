"""Response heads as bytes, for responses that are not sent through Twisted's `Request`.

Pure. The result is byte for byte equal to the output of a `Request` for the same answer: Server
and Date come first, names are spelled as in Twisted, and each name occurs once.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from http import HTTPStatus

import attrs
from twisted.web.http import NO_BODY_CODES
from twisted.web.http_headers import Headers

from blobserve.web.http.response import Answer, Header

# Twisted's own table has no 431.
PHRASES = {int(status): status.phrase.encode() for status in HTTPStatus}

_SERVER: Header = (b"Server", b"blobserve")


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
