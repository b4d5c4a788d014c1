"""A registry on loopback with scripted answers, to the byte if needed.

Without a script it is an ordinary registry for pulls: manifests, blobs, ranges, HEAD, ETag, and
tokens or a password if configured. `script` changes single answers. It writes HTTP itself, because
no library would send the faulty answers of some registries.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from blobserve.names.digest import Digest
from blobserve.names.reference import Reference
from blobserve.oci.source import Document
from blobserve.testing import MadeImage

_PATH = re.compile(r"/v2/(.+)/(manifests|blobs)/([^/?]+)")
_RANGE = re.compile(r"bytes=([0-9]+)-([0-9]*)")


@attrs.frozen
class Asked:
    """One request, as received."""

    method: str
    target: str
    headers: dict[str, str]
    """Fields by lower-case name; the last of several."""
    body: bytes = b""

    @property
    def authorization(self) -> str | None:
        """The Authorization field."""
        return self.headers.get("authorization")


@attrs.frozen
class Answer:
    """One response, with its faults.

    `announced` is the Content-Length, None for the real length. `sent` is the number of body bytes
    that are sent, None for all. Then the connection stays open for the next request, or is closed,
    reset, or left silent.
    """

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = attrs.field(default=b"", repr=False)
    framing: Literal["length", "chunked", "close"] = "length"
    announced: int | None = None
    sent: int | None = None
    end: Literal["keep", "close", "reset", "silence"] = "keep"

    def having(self, **fields: str) -> Answer:
        """Return the answer with header fields replaced, ``_`` for ``-``; None removes one."""
        names = {name.replace("_", "-").lower(): value for name, value in fields.items()}
        kept = tuple(each for each in self.headers if each[0].lower() not in names)
        return attrs.evolve(self, headers=kept + tuple(names.items()))

    def head(self) -> bytes:
        """Return the status line and fields, with the framing of the body."""
        lines = [f"HTTP/1.1 {self.status} Scripted", *(f"{n}: {v}" for n, v in self.headers)]
        if self.framing == "length":
            length = len(self.body) if self.announced is None else self.announced
            lines.append(f"Content-Length: {length}")
        elif self.framing == "chunked":
            lines.append("Transfer-Encoding: chunked")
        else:
            lines.append("Connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


NOTHING = Answer(end="silence", sent=-1)
"""No answer at all, not even a head, on an open connection."""

Step = Callable[[Asked, Answer], Answer | bytes]
"""A function from a request and its usual answer to an answer; bytes are sent unchanged."""


def cut(after: int, end: Literal["close", "reset", "silence"] = "close") -> Step:
    """Return a step that sends only this number of bytes of the usual body."""
    return lambda asked, usual: attrs.evolve(usual, sent=after, end=end)


def status(code: int, **fields: str) -> Step:
    """Return a step with an empty answer of this status and fields (``Retry_After="2"``)."""
    return lambda asked, usual: Answer(code).having(**fields)


def redirect(location: str, code: int = 307) -> Step:
    """Return a step that redirects the client."""
    return status(code, Location=location)


class Scripted:
    """A scripted registry, run by `listening`; `host` is its name in references."""

    def __init__(self) -> None:
        self.host = ""
        self.scheme = "http"
        self.requests: list[Asked] = []
        self.connections: list[_Connection] = []
        """The open connections."""
        self.accepted = 0
        """The number of connections so far."""
        self.user: str | None = None
        """The required ``name:password``, by Basic, or at the realm if there are tokens."""
        self.has_tokens = False
        """Whether requests need a Bearer token of the registry's own realm, ``/token``."""
        self.granted: dict[str, tuple[str, ...]] = {}
        """The valid tokens with their scopes."""
        self.token_life: object = 300
        self._manifests: dict[tuple[str, str], Document] = {}
        self._blobs: dict[tuple[str, str], bytes] = {}
        self._script: list[tuple[re.Pattern[str], list[Step], bool]] = []
        self._given = 0

    def push(self, name: str, image: MadeImage) -> Reference:
        """Store `image` as `name` (``team/site:v1``); return its reference."""
        repository, _, tag = name.partition(":")
        for document in image.documents:
            self._manifests[repository, str(document.digest)] = document
        self._manifests[repository, tag] = image.documents[0]
        for digest, blob in image.blobs.items():
            self._blobs[repository, str(digest)] = blob
        return Reference.parse(f"{self.host}/{name}")

    def hold(self, repository: str, blob: bytes) -> Digest:
        """Store one blob."""
        digest = Digest.of(blob)
        self._blobs[repository, str(digest)] = blob
        return digest

    def script(self, pattern: str, *steps: Step) -> None:
        """Queue one step each for the next requests with `pattern` in their ``METHOD /target``."""
        self._script.append((re.compile(pattern), list(steps), False))

    def always(self, pattern: str, step: Step) -> None:
        """Use this step for every request without a queued one."""
        self._script.append((re.compile(pattern), [step], True))

    def asked(self, pattern: str) -> list[Asked]:
        """Return all requests so far with `pattern` in their ``METHOD /target``."""
        return [each for each in self.requests if re.search(pattern, _line(each))]

    def forget_tokens(self) -> None:
        """Invalidate every token."""
        self.granted.clear()

    def answer(self, asked: Asked) -> Answer | bytes:
        """Return the answer to a request, by script or as usual."""
        self.requests.append(asked)
        usual = self._usual(asked)
        for pattern, steps, is_lasting in sorted(self._script, key=lambda each: each[2]):
            if steps and pattern.search(_line(asked)):
                return (steps[0] if is_lasting else steps.pop(0))(asked, usual)
        return usual

    def _usual(self, asked: Asked) -> Answer:
        if asked.target.startswith("/token"):
            return self._grant(asked)
        found = _PATH.fullmatch(urlsplit(asked.target).path)
        if found is None:
            return Answer(404)
        repository, kind, name = found.groups()
        refusal = self._refusal(asked, repository)
        if refusal is not None:
            return refusal
        if kind == "manifests":
            answer = self._manifest(asked, self._manifests.get((repository, name)))
        else:
            answer = _ranged(asked, self._blobs.get((repository, name)))
        if asked.method == "HEAD":
            return attrs.evolve(answer, body=b"", announced=len(answer.body))
        return answer

    def _manifest(self, asked: Asked, document: Document | None) -> Answer:
        if document is None or document.media_type not in asked.headers.get("accept", ""):
            return _error(404, "MANIFEST_UNKNOWN")
        digest = str(document.digest)
        fields = {"docker_content_digest": digest, "etag": f'"{digest}"'}
        if asked.headers.get("if-none-match") == f'"{digest}"':
            return Answer(304).having(**fields)
        answer = Answer(body=document.content).having(**fields)
        return answer.having(content_type=document.media_type)

    def _refusal(self, asked: Asked, repository: str) -> Answer | None:
        sent = asked.authorization or ""
        if self.has_tokens:
            scope = f"repository:{repository}:pull"
            if scope in self.granted.get(sent.removeprefix("Bearer "), ()):
                return None
            realm = f'realm="{self.scheme}://{self.host}/token"'
            challenge = f'Bearer {realm},service="scripted",scope="{scope}"'
            return _error(401, "UNAUTHORIZED").having(www_authenticate=challenge)
        if self.user is None or sent == self._basic:
            return None
        return _error(401, "UNAUTHORIZED").having(www_authenticate='Basic realm="scripted"')

    def _grant(self, asked: Asked) -> Answer:
        if self.user is not None and asked.authorization != self._basic:
            return _error(401, "UNAUTHORIZED")
        self._given += 1
        token = f"token-{self._given}"
        self.granted[token] = tuple(parse_qs(urlsplit(asked.target).query).get("scope", ()))
        return Answer(body=json.dumps({"token": token, "expires_in": self.token_life}).encode())

    @property
    def _basic(self) -> str:
        return "Basic " + base64.b64encode((self.user or "").encode()).decode()


@asynccontextmanager
async def listening(
    registry: Scripted | None = None, tls: Any = None, interface: str = "127.0.0.1"
) -> AsyncIterator[Scripted]:
    """Run a scripted registry on a free port of loopback, with TLS if `tls` is given."""
    from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

    registry = registry or Scripted()
    factory = Factory.forProtocol(lambda: _Connection(registry))
    factory.noisy = False
    if tls is None:
        port = reactor.listenTCP(0, factory, interface=interface)
    else:
        port = reactor.listenSSL(0, factory, tls, interface=interface)
        registry.scheme = "https"
    name = f"[{interface}]" if ":" in interface else interface
    registry.host = f"{name}:{port.getHost().port}"
    try:
        yield registry
    finally:
        await port.stopListening()
        for connection in list(registry.connections):
            connection.transport.abortConnection()
        while registry.connections:
            await registry.connections[0].lost


class _Connection(Protocol):
    transport: Any

    def __init__(self, registry: Scripted) -> None:
        self._registry = registry
        self._received = b""
        self._is_silent = False
        self.lost: Deferred[None] = Deferred()
        """Fires when this connection has ended."""

    def connectionMade(self) -> None:
        self._registry.accepted += 1
        self._registry.connections.append(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._registry.connections.remove(self)
        self.lost.callback(None)

    def dataReceived(self, data: bytes) -> None:
        self._received += data
        if self._received.startswith(b"\x16"):  # TLS on a plain port: answered as servers do
            self.transport.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            self.transport.loseConnection()
            return
        while not self._is_silent and (asked := self._next()) is not None:
            self._send(self._registry.answer(asked), asked)

    def _next(self) -> Asked | None:
        head, found, rest = self._received.partition(b"\r\n\r\n")
        if not found:
            return None
        line, *fields = head.decode("latin-1").split("\r\n")
        headers = {n.lower(): v.strip() for n, _, v in (each.partition(":") for each in fields)}
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            return None
        self._received = rest[length:]
        method, target, _ = line.split(" ")
        return Asked(method, target, headers, rest[:length])

    def _send(self, answer: Answer | bytes, asked: Asked) -> None:
        if isinstance(answer, bytes):
            self.transport.write(answer)
            return
        self._is_silent = answer.end != "keep"
        if answer.sent != -1:
            self.transport.write(answer.head() + b"".join(_framed(answer, asked)))
        if answer.end == "close" or (answer.end == "keep" and answer.framing == "close"):
            self.transport.loseConnection()
        elif answer.end == "reset":
            # A reset overtakes written bytes, so wait until they were sent.
            self._registry_reset()

    def _registry_reset(self) -> None:
        from twisted.internet import reactor  # noqa: TID251 - the one pytest-twisted runs

        reactor.callLater(0.05, self._reset)

    def _reset(self) -> None:
        if self in self._registry.connections:
            self.transport.abortConnection()


def _framed(answer: Answer, asked: Asked) -> Iterable[bytes]:
    if asked.method == "HEAD" or answer.status in (204, 304):
        return
    body = answer.body[: answer.sent]
    if answer.framing != "chunked":
        yield body
        return
    if body:
        yield b"%x\r\n%b\r\n" % (len(body), body)
    if answer.end == "keep":
        yield b"0\r\n\r\n"


def _ranged(asked: Asked, blob: bytes | None) -> Answer:
    """Return a blob or the requested range of it, with its digest as ETag."""
    if blob is None:
        return _error(404, "BLOB_UNKNOWN")
    etag = f'"{Digest.of(blob)}"'
    whole = Answer(body=blob).having(etag=etag, content_type="application/octet-stream")
    found = _RANGE.fullmatch(asked.headers.get("range", ""))
    if found is None or asked.headers.get("if-range", etag) != etag:
        return whole
    first, last = int(found[1]), int(found[2] or len(blob) - 1)
    if first >= len(blob):
        return Answer(416).having(content_range=f"bytes */{len(blob)}")
    last = min(last, len(blob) - 1)
    part = attrs.evolve(whole, status=206, body=blob[first : last + 1])
    return part.having(content_range=f"bytes {first}-{last}/{len(blob)}")


def _error(code: int, name: str) -> Answer:
    content = {"errors": [{"code": name, "message": "scripted text", "detail": "scripted detail"}]}
    return Answer(code, body=json.dumps(content).encode())


def _line(asked: Asked) -> str:
    return f"{asked.method} {asked.target}"
