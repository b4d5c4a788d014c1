"""The access log: one line per request, gathered here and written in large pieces.

A line must be cheap, so it never passes through `twisted.logger`. Nothing a client sends can end a
line or a field: control characters, quotes and bytes beyond ASCII are written ``\\xNN``, and so are
blanks in fields without quotes. An error of the log costs lines; it never reaches a request.
"""

from __future__ import annotations

import errno
import ipaddress
import json
import os
import re
import time
from collections.abc import Sequence
from functools import lru_cache

import attrs
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from blobserve.config import AccessLogRules, Network

_FLUSH_AFTER = 1.0
_FLUSH_AT = 64 * 1024
_STANDARD_OUTPUT = 1
_UNSAFE = re.compile(rb"[^ !#-\[\]-~]")
_ESCAPES = {byte: f"\\x{byte:02x}" for byte in (*range(0x20), 0x22, 0x5C, *range(0x7F, 0x100))}
_WORD = re.compile(r"[!#-\[\]-~]+")
_NO_ZONE = re.compile(r"[0-9A-Fa-f:.]{2,45}")


@attrs.define  # and not frozen, which takes thrice as long to make
class LogRecord:
    """What became of one request. `time` is when it came, in seconds since the epoch."""

    time: float
    address: str
    method: bytes
    target: bytes
    version: bytes
    status: int
    sent: int
    """Bytes of the body that were written; fewer than promised when the client left."""
    duration: float
    cache: str | None
    digest: str | None
    request_id: str
    referer: bytes | None
    agent: bytes | None


class AccessLog:
    """Writes what was served to the file of `rules`, a second late at most."""

    _log = Logger()

    def __init__(self, rules: AccessLogRules, reactor: IReactorTime) -> None:
        self._rules = rules
        self._reactor = reactor
        self._line = _json_line if rules.format == "json" else _text_line
        self._fd: int | None = None
        self._lines: list[str] = []
        self._size = 0
        self._flush_later: IDelayedCall | None = None
        self._torn = b""
        """The end of the last line in the file, when an error has cut that line in two."""
        self._lost: int | None = None
        """The lines that are lost since writing began to fail; None while it succeeds."""

    def open(self) -> None:
        """Open the file, before anything is written.

        :raises OSError: when that cannot be done.
        """
        if self._rules.format != "off":
            self._fd = self._opened()

    def write(self, served: LogRecord) -> None:
        """Add a line. Never raises: a line that cannot be written is lost."""
        if self._fd is None:
            return
        try:
            line = self._line(served)
            self._lines.append(line)
            self._size += len(line)
            if self._size >= _FLUSH_AT:
                self._flush()
            elif self._flush_later is None:
                self._flush_later = self._reactor.callLater(_FLUSH_AFTER, self._flush)
        except Exception as error:  # noqa: BLE001 - a request never fails because of its line
            self._note_loss(1, error)

    def reopen(self) -> None:
        """Go on in a new file under the same name, the old one having been moved away."""
        if self._fd is None:
            return
        self._flush()
        try:
            opened = self._opened()
        except (OSError, ValueError) as error:
            self._log.error("access log: cannot reopen, going on: {error}", error=error)
            return
        self._release()
        self._fd = opened

    def close(self) -> None:
        """Write what is left. Idempotent; later lines are dropped."""
        self._flush()
        self._release()
        self._fd = None

    def _opened(self) -> int:
        if self._rules.file == "-":
            # By number: `twist` makes sys.stdout a part of its log.
            return _STANDARD_OUTPUT
        return os.open(self._rules.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)

    def _release(self) -> None:
        fd, self._torn = self._fd, b""
        if fd is None or fd == _STANDARD_OUTPUT:
            return
        try:
            os.close(fd)
        except OSError as error:
            self._log.error("access log: cannot close: {error}", error=error)

    def _flush(self) -> None:
        later, self._flush_later = self._flush_later, None
        # Taken before anything can fail: lines must not gather when it does.
        lines, self._lines, self._size = self._lines, [], 0
        rest = b""
        try:
            if later is not None and later.active():
                later.cancel()
            if self._fd is None or not (lines or self._torn):
                return
            rest = self._torn + "".join(lines).encode("ascii", "backslashreplace")
            while rest:
                written = os.write(self._fd, rest)
                if not written:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                self._torn, rest = _line_end(self._torn, rest, written), rest[written:]
        except Exception as error:  # noqa: BLE001 - a request never fails because of the log
            self._note_loss(rest.count(b"\n") - bool(self._torn) if rest else len(lines), error)
        else:
            if self._lost is not None:
                self._log.warn("access log: goes on, {lost} lines were lost", lost=self._lost)
                self._lost = None

    def _note_loss(self, lines: int, error: Exception) -> None:
        """Count lines that are lost, and say so when they are the first."""
        if self._lost is None:
            self._log.error("access log: lines are lost: {error}", error=error)
        self._lost = (self._lost or 0) + lines


def _line_end(torn: bytes, text: bytes, written: int) -> bytes:
    """Return the end of the line that is in the file in part, once `written` bytes of `text` are.

    Until then that end was `torn`, with which `text` begins.
    """
    if written < len(torn):
        return torn[written:]
    if text[written - 1] == 0x0A:
        return b""
    return text[written : text.index(b"\n", written) + 1]


def client_address(peer: str, forwarded: Sequence[bytes], trusted: Sequence[Network]) -> str:
    """Who asks, by X-Forwarded-For as far as it was written by proxies that are trusted.

    :param forwarded: the values of that header, in order.
    """
    if not trusted or not forwarded:
        return peer
    hops = b",".join(forwarded).split(b",")
    while is_within(peer, trusted) and hops:
        hop = parse_address(hops.pop().strip(b" \t").decode("latin-1"))
        if hop is None:
            break
        peer = str(hop)
    return peer


def is_within(address: str, networks: Sequence[Network]) -> bool:
    """Whether this is an address, and in one of these networks."""
    parsed = parse_address(address)
    return parsed is not None and any(parsed in network for network in networks)


def parse_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return an address as a value, or None for any other text.

    An IPv4 address that is mapped into IPv6 becomes the IPv4 address. Text with a zone
    (``fe80::1%eth0``) is no address: a zone may be any text, and means something on one host only.
    """
    if _NO_ZONE.fullmatch(text) is None:
        return None
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return mapped or parsed


def _text_line(served: LogRecord) -> str:
    """Return a line in the combined format of common web servers, with five more fields."""
    return (
        f"{_words(served.address)} - - [{_clock_time(int(served.time))}]"
        f' "{_request_line(served.method, served.target, served.version)}"'
        f" {served.status} {served.sent} {_quoted(served.referer, served.agent)}"
        f" {served.duration:.6f} {_words(served.cache, served.digest)} {_word(served.request_id)}\n"
    )


def _json_line(served: LogRecord) -> str:
    fields = {
        name: value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
        for name, value in attrs.asdict(served).items()
    }
    return json.dumps(fields, separators=(",", ":")) + "\n"


@lru_cache(maxsize=2)
def _clock_time(second: int) -> str:
    return time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(second))


# The same browsers ask for the same files: what is escaped is remembered, or a line would take
# twice as long.


@lru_cache(maxsize=512)
def _request_line(*parts: bytes) -> str:
    return " ".join(map(_part, parts))


@lru_cache(maxsize=512)
def _quoted(*fields: bytes | None) -> str:
    return " ".join('"-"' if each is None else f'"{_safe(each)}"' for each in fields)


@lru_cache(maxsize=512)
def _words(*words: str | None) -> str:
    return " ".join(map(_word, words))


def _word(text: str | None) -> str:
    """Return `text` for a field without quotes."""
    if not text:
        return "-"
    if _WORD.fullmatch(text):
        return text
    return _part(text.encode("utf-8", "backslashreplace"))


def _part(text: bytes) -> str:
    """Return `text` for a field that a blank ends."""
    return _safe(text).replace(" ", "\\x20") or "-"


def _safe(text: bytes) -> str:
    decoded = text.decode("latin-1")
    # Translating takes longer than all the rest of a line, and is hardly ever needed.
    return decoded.translate(_ESCAPES) if _UNSAFE.search(text) else decoded
