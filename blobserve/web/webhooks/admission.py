"""Admission of notifications: place, secret and size, as far as the head of a request shows them.

The same checks apply to complete requests, because the server of an embedding application does not
ask before it receives a body.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Literal
from urllib.parse import unquote_to_bytes

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from blobserve.config import Config
from blobserve.errors import (
    BlobserveError,
    BodyTooLarge,
    BodyTooSlow,
    HeadTooSlow,
    LengthRequired,
    NotAuthorized,
    PostOnly,
    TemporarilyUnavailable,
    TooManyConnections,
)
from blobserve.metrics import Metrics
from blobserve.web.http.conditional import Fields
from blobserve.web.http.request_head import HeadCheck
from blobserve.web.http.target import origin_form
from blobserve.web.webhooks.secrets import HookCredentials, Secrets

MOST_BYTES = 1 << 20
"""The largest body."""

_MOST_BODIES = 64
"""Bodies that are received at a time on all listeners."""

_MOST_SIGNED = 16
"""The bodies among them with a signature that is not checked before their end."""

_LOG_EVERY = 60.0
"""Seconds between two lines of the log about refused notifications."""

_MASK = b"***"

_log = Logger()

Result = Literal[
    "accepted",
    "unmatched",
    "ignored",
    "unauthorized",
    "malformed",
    "too-large",
    "too-slow",
    "busy",
]


class Admission:
    """The notifications of one service: which of them are received."""

    def __init__(
        self,
        secrets: Callable[[], Secrets],
        config: Callable[[], Config],
        metrics: Metrics,
        reactor: IReactorTime,
    ) -> None:
        self._secrets = secrets
        self._config = config
        self._metrics = metrics
        self._reactor = reactor
        self._bodies: Counter[bool] = Counter()
        """The bodies that are being received, by whether a secret was shown."""
        self._unlogged = 0
        self._logged_at = -_LOG_EVERY

    @property
    def is_on(self) -> bool:
        """Return whether the configuration has webhooks."""
        return self._config().webhooks.secret_file is not None

    def place(self) -> tuple[bytes, ...]:
        """Return the segments of the path on the main listeners; none: there is no such path."""
        path = self._config().webhooks.path
        return tuple(path.encode().split(b"/")[1:]) if path else ()

    def is_secret(self, word: bytes) -> bool:
        """Return whether a text is a secret."""
        return self._secrets().has_any((word,))

    def check(self, fields: Fields, last_segment: bytes, body: bytes | None = None) -> bool:
        """Check the credentials of a request; return whether one of them is a secret.

        Without `body` it returns False for a request that a signature may authorize.

        :raises NotAuthorized: when none is valid.
        """
        shown = HookCredentials.of(fields, last_segment)
        if self._secrets().has_any(shown.words):
            return True
        if shown.signature is not None:
            if body is None:
                return False
            if self._secrets().has_signed(shown.signature, body):
                return True
        raise NotAuthorized("a notification needs a valid secret")

    def check_size(self, length: int | None) -> None:
        """Check the announced size of a body.

        :raises LengthRequired: when none is announced.
        :raises BodyTooLarge: when it is too large.
        """
        if length is None:
            raise LengthRequired("a notification needs Content-Length")
        if length > MOST_BYTES:
            raise BodyTooLarge(f"a notification has at most {MOST_BYTES} bytes")

    def permit(self, is_authorized: bool) -> IncomingBody:
        """Return the permission to receive one more body.

        :raises TooManyConnections: when too many are being received.
        """
        most = _MOST_BODIES if is_authorized else _MOST_SIGNED
        if self._bodies.total() >= _MOST_BODIES or self._bodies[is_authorized] >= most:
            raise TooManyConnections
        self._bodies[is_authorized] += 1
        seconds = self._config().limits.client_head_timeout
        return IncomingBody(self._reactor, seconds, lambda: self._bodies.subtract([is_authorized]))

    def count(self, result: Result) -> None:
        """Count a notification."""
        self._metrics.notifications.labels(result).inc()

    def refused(self, error: BlobserveError, peer: str) -> None:
        """Count a refused notification; log a line once in a while."""
        self.count(_result_of(error))
        if isinstance(error, PostOnly):
            return
        self._unlogged += 1
        now = self._reactor.seconds()
        if now - self._logged_at < _LOG_EVERY:
            return
        _log.warn(
            "webhooks: refused notifications: {count}, the last one from {peer}: {error}",
            count=self._unlogged,
            peer=peer,
            error=str(error),
        )
        self._unlogged, self._logged_at = 0, now


def _result_of(error: BlobserveError) -> Result:
    if isinstance(error, NotAuthorized):
        return "unauthorized"
    if isinstance(error, BodyTooLarge):
        return "too-large"
    if isinstance(error, HeadTooSlow):
        return "too-slow"
    return "busy" if isinstance(error, TemporarilyUnavailable) else "malformed"


class IncomingBody:
    """The permission to receive one body. See `BodyPermit`."""

    def __init__(
        self, reactor: IReactorTime, seconds: float, released: Callable[[], object]
    ) -> None:
        self._reactor = reactor
        self._seconds = seconds
        self._released: Callable[[], object] | None = released
        self._timer: IDelayedCall | None = None

    def begin(self, too_late: Callable[[BlobserveError], None]) -> None:
        """See `BodyPermit.begin`."""
        error = BodyTooSlow("the body took too long")
        self._timer = self._reactor.callLater(self._seconds, too_late, error)

    def end(self) -> None:
        """See `BodyPermit.end`."""
        released, self._released = self._released, None
        if released is not None:
            released()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()


class HookGate:
    """The bodies of one listener. See `BodyGate`.

    :param place: returns the segments of the path below which notifications are taken.
    :param is_whole: whether the listener takes nothing else.
    """

    def __init__(
        self, admission: Admission, place: Callable[[], tuple[bytes, ...]], is_whole: bool
    ) -> None:
        self.admission = admission
        self._place = place
        self._is_whole = is_whole

    def below(self, path: bytes) -> tuple[bytes, ...] | None:
        """Return the segments of a path below the place of notifications; None: it is elsewhere.

        :param path: the path of a URL, not decoded.
        """
        place = self._place()
        if not (place or self._is_whole) or not self.admission.is_on:
            return None
        if place and place[0] not in path and b"%" not in path:
            return None  # at once, because every request for a file comes here
        segments = segments_of(path)
        return segments[len(place) :] if segments[: len(place)] == place else None

    def admit(self, head: HeadCheck) -> IncomingBody | None:
        """See `BodyGate.admit`."""
        target = origin_form(head.method, head.target)
        below = self.below(target.partition(b"?")[0])
        if below is None:
            return None
        if head.method != b"POST":
            raise PostOnly("only POST is answered here")
        is_authorized = self.admission.check(head.credentials, last_of(below))
        self.admission.check_size(head.length)
        return self.admission.permit(is_authorized)

    def concerns(self, target: bytes) -> bool:
        """Return whether a request target is that of a notification."""
        return self.below(_path_of(target)) is not None

    def masked(self, target: bytes) -> bytes:
        """Return a request target without the secret that may end its path.

        At the place of notifications, wrong secrets are masked too: they may be almost right.
        """
        path, mark, query = target.partition(b"?")
        head, _, last = path.rstrip(b"/").rpartition(b"/")
        segments = segments_of(_path_of(target))
        if not last or not segments:
            return target
        place = self._place()
        if self._is_whole or self.admission.is_secret(segments[-1]):
            return head + b"/" + _MASK + mark + query
        if place and segments[: len(place)] == place and len(segments) > len(place):
            return b"".join(b"/" + each for each in (*place, _MASK)) + mark + query
        return target


def _path_of(target: bytes) -> bytes:
    """Return the path of a request target, which may be a whole URL."""
    path = target.partition(b"?")[0]
    if path.startswith(b"/"):
        return path
    return b"/" + path.partition(b"://")[2].partition(b"/")[2]


def segments_of(path: bytes) -> tuple[bytes, ...]:
    """Return the segments of a path, decoded, without empty ones."""
    return tuple(unquote_to_bytes(each) for each in path.split(b"/") if each)


def last_of(segments: tuple[bytes, ...]) -> bytes:
    """Return the last segment; empty if there is none."""
    return segments[-1] if segments else b""
