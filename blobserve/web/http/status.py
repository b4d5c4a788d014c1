"""The one table from error classes to HTTP statuses, and error responses.

Pure. The text of a `BlobserveError` is shown to the client. Any other exception is a defect: the
client gets only the request id, under which the log has the details.
"""

from __future__ import annotations

import math

from blobserve.errors import (
    BadRequest,
    BlobserveError,
    BodyTooLarge,
    Forbidden,
    HeadTooLarge,
    HeadTooSlow,
    LengthRequired,
    MethodNotAllowed,
    NoSpace,
    NotAuthorized,
    NotFound,
    PostOnly,
    TargetTooLong,
    TemporarilyUnavailable,
    UpstreamError,
    VersionNotSupported,
)
from blobserve.web.http.caching import NO_SNIFF
from blobserve.web.http.response import Answer, BytesBody, Header

ALLOW: Header = (b"Allow", b"GET, HEAD, OPTIONS")

UNAVAILABLE_TEXT = "timeout"
"""The body of every 503, without a newline. Clients depend on it: see docs/reference/responses.md.
"""

_REFRESH_SECONDS = b"2"

_STATUSES: tuple[tuple[type[BlobserveError], int], ...] = (
    (NotFound, 404),
    (Forbidden, 403),
    (UpstreamError, 502),
    (TemporarilyUnavailable, 503),
    (NoSpace, 507),
    (NotAuthorized, 401),
    (LengthRequired, 411),
    (BodyTooLarge, 413),
    (MethodNotAllowed, 405),
    (HeadTooSlow, 408),
    (TargetTooLong, 414),
    (HeadTooLarge, 431),
    (VersionNotSupported, 505),
    (BadRequest, 400),
)


def refusal(error: Exception, request_id: str, is_navigation: bool = False) -> Answer:
    """Return the answer to a request that failed with `error`.

    A 503 to a browser navigation makes the browser load the page again.
    """
    status = _status_of(error)
    if isinstance(error, TemporarilyUnavailable):
        seconds = max(1, math.ceil(error.retry_after))
        refresh = [(b"Refresh", _REFRESH_SECONDS)] if is_navigation else []
        return plain(status, UNAVAILABLE_TEXT, (b"Retry-After", b"%d" % seconds), *refresh)
    if isinstance(error, MethodNotAllowed):
        allow = (b"Allow", b"POST") if isinstance(error, PostOnly) else ALLOW
        return plain(status, f"{error}\n", allow)
    if isinstance(error, NotAuthorized):
        return plain(status, f"{error}\n", (b"WWW-Authenticate", b"Bearer"))
    if status == 500:
        return plain(status, f"internal error; see request {request_id} in the server log\n")
    return plain(status, f"{error}\n")


def is_unexpected(error: Exception) -> bool:
    """Return whether `error` is a defect, which must be logged."""
    return _status_of(error) == 500


def plain(status: int, text: str, *headers: Header) -> Answer:
    """Return an error response with this text."""
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
