"""One HTTP request and its response.

Reads the head and the body of Twisted's response, and closes or frees its connection. Text of an
upstream is read here, and never passed on.
"""

from __future__ import annotations

import json
import re
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import UNKNOWN_LENGTH, IResponse

from blobserve.config import Limits
from blobserve.oci.http.address_rules import Origin
from blobserve.oci.http.retry import Transient, retry_after
from blobserve.oci.http.stall_watch import StallWatch

RENAMED_CODING = "x-content-coding"
"""The field to which Content-Encoding is renamed, so that treq does not see it."""

_DISCARDED_SIZE = 64 << 10
_BUSY = (429, 503)
_TRANSIENT = (408, 429, 499)
_GZIP = 16 + zlib.MAX_WBITS
_JSON = re.compile(rb"[ \t\r\n]*\{")  # No gzip stream begins like that.
_TLS = re.compile(rb"\bHTTPS (?:server|port)\b|\bSSL\b|\bTLS\b")
_ERROR_CODE = re.compile(r"[A-Z][A-Z_]{0,63}")

_log = Logger()


@attrs.frozen
class Request:
    """One request. `authorization` goes only to the URL's origin, not along redirects."""

    method: str
    url: str
    headers: Mapping[str, str] = attrs.field(factory=dict)
    authorization: str | None = attrs.field(default=None, repr=False)
    form: Mapping[str, str] | None = attrs.field(default=None, repr=False)
    is_followed: bool = True


class BodyTooLong(Exception):
    """A body that is longer than its reader allows."""


class Response:
    """The head of a response, with methods to read its body.

    The connection stays in use until `body`, `read`, `error_code`, `discard` or `abandon` is
    called. After that, the last three do nothing.
    """

    def __init__(
        self,
        original: IResponse,
        origin: Origin,
        url: str,
        clock: IReactorTime,
        limits: Limits,
        located: Callable[[str], str] = str,
    ) -> None:
        self.url = url
        """The URL of the response, after redirects."""
        self.located = located
        """Adds the host to the text of a problem, unless it is the registry itself."""
        self._original = original
        self._clock = clock
        self._limits = limits
        self._error = b""
        self._is_taken = False
        self.origin = origin
        self.status: int = original.code
        self.length: int | None = None if original.length is UNKNOWN_LENGTH else original.length

    def values(self, name: str) -> list[str]:
        """Return the values of all fields of this name."""
        found = self._original.headers.getRawHeaders(name.encode(), [])
        # Not strip(): a byte of UTF-8 may be white space in Latin-1.
        return [value.decode("latin-1").strip(" \t") for value in found]

    def value(self, name: str) -> str | None:
        """Return the value of a field; None if it is missing, or has several values."""
        values = set(self.values(name))
        return values.pop() if len(values) == 1 else None

    @property
    def coding(self) -> str:
        """The announced content coding, which we did not request; empty for none.

        Storage often has the label of an uploaded file, although the body is not encoded.
        """
        coding = ",".join(self.values(RENAMED_CODING)).lower()
        return "" if coding == "identity" else coding

    def body(self, receive: Callable[[bytes], None]) -> BodyReceiver:
        """Return the body, not started, which will call `receive` with each chunk."""
        self._is_taken = True
        return BodyReceiver(self._original, receive, self._clock, self._limits, self._failed)

    async def read(self, limit: int) -> bytes:
        """Return the whole body, which should be JSON; it is decoded unless it may be JSON already.

        :raises BodyTooLong: as soon as it has more than `limit` bytes.
        :raises Transient: when it is cut off or stalls.
        """
        content = bytearray()

        def receive(chunk: bytes) -> None:
            content.extend(chunk)
            if len(content) > limit:
                body.fail(BodyTooLong())

        body = self.body(receive)
        await body.start()
        return self._decoded(bytes(content), limit)

    async def discard(self) -> None:
        """Read and drop the body, so that the connection can be reused; close it if too long."""
        if not self._is_taken:
            with suppress(BodyTooLong, Transient):
                await self.read(_DISCARDED_SIZE)

    async def error_code(self) -> str:
        """Return the code in the body of an error: OCI distribution-spec, "Error Codes"."""
        with suppress(ValueError, LookupError, TypeError, RecursionError):
            code = json.loads(await self._text())["errors"][0]["code"]
            if _ERROR_CODE.fullmatch(code):
                return str(code)
        return "no code"

    async def names_tls(self) -> bool:
        """Return whether the body says that the server expects TLS."""
        return _TLS.search(await self._text()) is not None

    async def _text(self) -> bytes:
        """Return the body of an error; empty if it is too long or already read."""
        if not self._is_taken:
            with suppress(BodyTooLong, Transient):
                self._error = await self.read(_DISCARDED_SIZE)
        return self._error

    async def unless_transient(self) -> None:
        """Check that the status is not transient.

        :raises Transient: for a status that only means a failure at the moment.
        """
        if self.status < 500 and self.status not in _TRANSIENT:
            return
        code = await self.error_code()
        _log.warn(
            "{origin}: {status} {code}", origin=self.origin.authority, status=self.status, code=code
        )
        seconds = retry_after(self.value("retry-after"), time.time())
        problem = self.located(f"it answered {self.status}")
        raise Transient(self.origin.host, problem, self.status in _BUSY, seconds)

    def abandon(self) -> None:
        """Close the connection without reading the body."""
        if not self._is_taken:
            body = self.body(lambda chunk: None)
            body.start()
            body.fail(None)

    def _decoded(self, content: bytes, limit: int) -> bytes:
        if not self.coding or _JSON.match(content):
            return content
        try:  # Some proxies compress against Accept-Encoding.
            decoded = zlib.decompressobj(_GZIP).decompress(content, limit + 1)
        except zlib.error:
            raise self._failed("it used an unknown content coding") from None
        if len(decoded) > limit:
            raise BodyTooLong
        return decoded

    def _failed(self, problem: str) -> Transient:
        return Transient(self.origin.host, self.located(problem))


class BodyReceiver(Protocol):
    """A protocol that passes one body to `receive`; see `Response.body`."""

    transport: Any  # Twisted's wrapper, which provides no interface.

    def __init__(
        self,
        response: IResponse,
        receive: Callable[[bytes], None],
        clock: IReactorTime,
        limits: Limits,
        failed: Callable[[str], Transient],
    ) -> None:
        self._response = response
        self._receive = receive
        self._failed = failed
        self._is_over = False
        self._is_paused = False
        self._watch = StallWatch(clock, limits.silence_timeout, limits.minimum_rate, self._stalled)
        self._ended: Deferred[None] = Deferred(lambda _: self._give_up())

    def start(self, is_paused: bool = False) -> Deferred[None]:
        """Start; return a Deferred that fires at the end. Cancelling closes the connection."""
        self._is_paused = is_paused
        if not is_paused:
            self._watch.start()
        self._response.deliverBody(self)
        if self._is_paused:  # Again, since deliverBody resumed the transport.
            self.transport.pauseProducing()
        return self._ended

    def pause(self) -> None:
        """Pause the transport; a chunk may still come. Time does not count until `resume`."""
        self._is_paused = True
        self._watch.stop()
        self.transport.pauseProducing()

    def resume(self) -> None:
        """Resume the transport."""
        self._is_paused = False
        if not self._is_over:
            self._watch.start()
            self.transport.resumeProducing()

    def fail(self, error: Exception | None) -> None:
        """Close the connection, and fail with `error` or, if None, succeed; idempotent."""
        if not self._is_over:
            self._give_up()
            self._end(error)

    def dataReceived(self, data: bytes) -> None:
        """See `twisted.internet.protocol.Protocol.dataReceived`."""
        if not self._is_over:
            self._watch.saw(len(data))
        if not self._is_over:
            self._receive(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `twisted.internet.protocol.Protocol.connectionLost`."""
        if self._is_over:
            return
        self._is_over = True
        self._watch.stop()
        is_whole = reason.check(ResponseDone, PotentialDataLoss)
        self._end(None if is_whole else self._failed("it cut off its answer"))

    def _stalled(self, problem: str) -> None:
        self.fail(self._failed(problem))

    def _give_up(self) -> None:
        self._is_over = True
        self._watch.stop()
        self.transport.loseConnection()

    def _end(self, error: Exception | None) -> None:
        if error is None:
            self._ended.callback(None)
        else:
            self._ended.errback(error)
