"""Exchanges: one request, and its one answer as it comes in.

Knows Twisted's half of an HTTP answer: its head, its body, and how a connection is given up. Knows
nothing of registries, redirects or authentication. What an upstream says is read here, and its
texts end here.
"""

from __future__ import annotations

import json
import re
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
"""Content-Encoding, where treq does not see it."""

_DISCARDED_SIZE = 64 << 10
_BUSY = (429, 503)
_TRANSIENT = (408, 429, 499)
_GZIP = 16 + zlib.MAX_WBITS
_JSON = re.compile(rb"[ \t\r\n]*\{")  # nothing that gzip makes begins like that
_TLS = re.compile(rb"\bHTTPS (?:server|port)\b|\bSSL\b|\bTLS\b")
_ERROR_CODE = re.compile(r"[A-Z][A-Z_]{0,63}")

_log = Logger()


@attrs.frozen
class Request:
    """What is asked. `authorization` goes to the URL's origin alone, whatever redirects say."""

    method: str
    url: str
    headers: Mapping[str, str] = attrs.field(factory=dict)
    authorization: str | None = attrs.field(default=None, repr=False)
    form: Mapping[str, str] | None = attrs.field(default=None, repr=False)
    is_followed: bool = True


class BodyTooLong(Exception):
    """A body that is longer than whoever reads it allows."""


class Response:
    """The head of an answer; the body is for whoever asks.

    Until one of `body`, `read`, `error_code`, `discard` and `abandon` is called, the connection is
    taken; after that the last three do nothing more.
    """

    def __init__(
        self,
        original: IResponse,
        origin: Origin,
        url: str,
        clock: IReactorTime,
        limits: Limits,
        said: Callable[[str], str] = str,
    ) -> None:
        self.url = url
        """Where it is from: not where the request was sent, if that was redirected."""
        self.said = said
        """Names the host it is from in a problem with it, where that is not the registry itself."""
        self._original = original
        self._clock = clock
        self._limits = limits
        self._error = b""
        self._is_taken = False
        self.origin = origin
        self.status: int = original.code
        self.length: int | None = None if original.length is UNKNOWN_LENGTH else original.length

    def values(self, name: str) -> list[str]:
        """Every field of this name."""
        found = self._original.headers.getRawHeaders(name.encode(), [])
        # Not all that Unicode calls blank: a byte of UTF-8 may look like that.
        return [value.decode("latin-1").strip(" \t") for value in found]

    def value(self, name: str) -> str | None:
        """The one field of this name; None if there is none, or several that disagree."""
        values = set(self.values(name))
        return values.pop() if len(values) == 1 else None

    @property
    def coding(self) -> str:
        """The content coding that is announced, which nobody asked for; empty for none.

        Often a label alone, which storage keeps with what was uploaded: the body may be as it is.
        """
        coding = ",".join(self.values(RENAMED_CODING)).lower()
        return "" if coding == "identity" else coding

    def body(self, receive: Callable[[bytes], None]) -> BodyReceiver:
        """The body, of which `receive` will be given each chunk as it is sent. Not begun yet."""
        self._is_taken = True
        return BodyReceiver(self._original, receive, self._clock, self._limits, self._failed)

    async def read(self, limit: int) -> bytes:
        """The whole body, of which JSON is expected: as it came if it may be that, else decoded.

        :raises TooLong: as soon as it has more than `limit` bytes.
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
        """Read the body away, so that its connection can be used again; give up on a long one."""
        if not self._is_taken:
            with suppress(BodyTooLong, Transient):
                await self.read(_DISCARDED_SIZE)

    async def error_code(self) -> str:
        """The code in the body of a registry's error, OCI distribution-spec "Error Codes"."""
        with suppress(ValueError, LookupError, TypeError, RecursionError):
            code = json.loads(await self._text())["errors"][0]["code"]
            if _ERROR_CODE.fullmatch(code):
                return str(code)
        return "no code"

    async def names_tls(self) -> bool:
        """Return whether the body says that TLS was expected, as servers say it to plain HTTP."""
        return _TLS.search(await self._text()) is not None

    async def _text(self) -> bytes:
        """Return the body of an error, or nothing if it is long or used otherwise."""
        if not self._is_taken:
            with suppress(BodyTooLong, Transient):
                self._error = await self.read(_DISCARDED_SIZE)
        return self._error

    async def unless_transient(self) -> None:
        """Nothing, for a status that says something about what was asked for.

        :raises Transient: for one that only says that it cannot be had now.
        """
        if self.status < 500 and self.status not in _TRANSIENT:
            return
        code = await self.error_code()
        _log.warn(
            "{origin}: {status} {code}", origin=self.origin.authority, status=self.status, code=code
        )
        seconds = retry_after(self.value("retry-after"), self._clock.seconds())
        problem = self.said(f"it answered {self.status}")
        raise Transient(self.origin.host, problem, self.status in _BUSY, seconds)

    def abandon(self) -> None:
        """Close the connection, body and all."""
        if not self._is_taken:
            body = self.body(lambda chunk: None)
            body.start()
            body.fail(None)

    def _decoded(self, content: bytes, limit: int) -> bytes:
        if not self.coding or _JSON.match(content):
            return content
        try:  # some proxies compress whatever one asks for
            decoded = zlib.decompressobj(_GZIP).decompress(content, limit + 1)
        except zlib.error:
            raise self._failed("it used an unknown content coding") from None
        if len(decoded) > limit:
            raise BodyTooLong
        return decoded

    def _failed(self, problem: str) -> Transient:
        return Transient(self.origin.host, self.said(problem))


class BodyReceiver(Protocol):
    """One body on its way to `receive`; see `Response.body`."""

    transport: Any  # Twisted's proxy of it, which provides none of its interfaces

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
        """Let it come; fires at its end. Cancelling closes the connection."""
        self._is_paused = is_paused
        if not is_paused:
            self._watch.start()
        self._response.deliverBody(self)
        if self._is_paused:  # said once more: deliverBody ends by resuming the transport
            self.transport.pauseProducing()
        return self._ended

    def pause(self) -> None:
        """Let nothing more come, soon; no time counts until `resume`."""
        self._is_paused = True
        self._watch.stop()
        self.transport.pauseProducing()

    def resume(self) -> None:
        """Let it come again."""
        self._is_paused = False
        if not self._is_over:
            self._watch.start()
            self.transport.resumeProducing()

    def fail(self, error: Exception | None) -> None:
        """Close the connection; its end is `error`, or none. Does nothing once it is over."""
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
