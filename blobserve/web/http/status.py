"""The one table from errors to HTTP statuses, and what a refusal looks like.

Pure. An error's own text is shown: `blobserve.errors` promises that it may be. What is not in the
table is a fault of ours, and shown as nothing but the id under which the log has it.
"""

from __future__ import annotations

import math

from blobserve.errors import (
    BadRequest,
    BlobserveError,
    Forbidden,
    HeadTooLarge,
    HeadTooSlow,
    MethodNotAllowed,
    NoSpace,
    NotFound,
    TargetTooLong,
    TemporarilyUnavailable,
    UpstreamError,
    VersionNotSupported,
)
from blobserve.web.http.caching import NO_SNIFF
from blobserve.web.http.response import Answer, BytesBody, Header

ALLOW: Header = (b"Allow", b"GET, HEAD, OPTIONS")

COME_AGAIN = "timeout"
"""The body of every 503, which clients of the original look for; no newline ends it."""

_PAGE_COMES_AGAIN_AFTER = b"2"

_STATUSES: tuple[tuple[type[BlobserveError], int], ...] = (
    (NotFound, 404),
    (Forbidden, 403),
    (UpstreamError, 502),
    (TemporarilyUnavailable, 503),
    (NoSpace, 507),
    (MethodNotAllowed, 405),
    (HeadTooSlow, 408),
    (TargetTooLong, 414),
    (HeadTooLarge, 431),
    (VersionNotSupported, 505),
    (BadRequest, 400),
)


def refusal(error: Exception, request_id: str, is_navigation: bool = False) -> Answer:
    """The answer to a request that ended in `error`; a navigation is told to load itself again."""
    status = _status_of(error)
    if isinstance(error, TemporarilyUnavailable):
        seconds = max(1, math.ceil(error.retry_after))
        refresh = [(b"Refresh", _PAGE_COMES_AGAIN_AFTER)] if is_navigation else []
        return plain(status, COME_AGAIN, (b"Retry-After", b"%d" % seconds), *refresh)
    if isinstance(error, MethodNotAllowed):
        return plain(status, f"{error}\n", ALLOW)
    if status == 500:
        return plain(status, f"internal error; the server's log has it as {request_id}\n")
    return plain(status, f"{error}\n")


def is_unexpected(error: Exception) -> bool:
    """Whether nobody raised this on purpose, so that the log must have it."""
    return _status_of(error) == 500


def plain(status: int, text: str, *headers: Header) -> Answer:
    """A refusal in so many words."""
    return Answer(
        status,
        (
            (b"Content-Type", b"text/plain; charset=utf-8"),
            NO_SNIFF,
            (b"Cache-Control", b"no-store"),
            *headers,
        ),
        BytesBody(text.encode("utf-8", "backslashreplace")),
    )


def _status_of(error: Exception) -> int:
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)
