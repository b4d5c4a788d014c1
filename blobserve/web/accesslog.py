"""The access log: one line per request, gathered here and written in large pieces.

A line must be cheap, so it never passes through `twisted.logger`. Nothing a client sends can end a
line or a quoted field: control characters, quotes and bytes beyond ASCII are written ``\\xNN``.
"""

from __future__ import annotations

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


@attrs.define  # and not frozen, which takes thrice as long to make
class Served:
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

    def open(self) -> None:
        """Open the file, before anything is written.

        :raises OSError: when that cannot be done.
        """
        if self._rules.format != "off":
            self._fd = self._opened()

    def write(self, served: Served) -> None:
        """Add a line."""
        if self._fd is None:
            return
        line = self._line(served)
        self._lines.append(line)
        self._size += len(line)
        if self._size >= _FLUSH_AT:
            self._flush()
        elif self._flush_later is None:
            self._flush_later = self._reactor.callLater(_FLUSH_AFTER, self._flush)

    def reopen(self) -> None:
        """Go on in a new file under the same name, the old one having been moved away."""
        if self._fd is None:
            return
        self._flush()
        try:
            opened = self._opened()
        except OSError as error:
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
        if self._fd not in (None, _STANDARD_OUTPUT):
            os.close(self._fd)

    def _flush(self) -> None:
        if self._flush_later is not None and self._flush_later.active():
            self._flush_later.cancel()
        self._flush_later = None
        if self._fd is None or not self._lines:
            return
        rest = memoryview("".join(self._lines).encode("ascii"))
        self._lines, self._size = [], 0
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            self._log.error("access log: {size} bytes lost: {error}", size=len(rest), error=error)


def client_address(peer: str, forwarded: Sequence[bytes], trusted: Sequence[Network]) -> str:
    """Who asks, by X-Forwarded-For as far as it was written by proxies that are trusted.

    :param forwarded: the values of that header, in order.
    """
    if not trusted or not forwarded:
        return peer
    hops = b",".join(forwarded).decode("latin-1").split(",")
    while is_within(peer, trusted) and hops:
        hop = hops.pop().strip()
        if parse_address(hop) is None:
            break
        peer = hop
    return peer


def is_within(address: str, networks: Sequence[Network]) -> bool:
    """Whether this is an address, and in one of these networks."""
    parsed = parse_address(address)
    return parsed is not None and any(parsed in network for network in networks)


def parse_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address as a value, one that is mapped into IPv6 as the IPv4 one it is; else None."""
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return mapped or parsed


def _text_line(served: Served) -> str:
    """A line in the combined format of common web servers, and five fields more."""
    return (
        f"{served.address} - - [{_clock_time(int(served.time))}]"
        f' "{_safe(served.method)} {_safe(served.target)} {_safe(served.version)}"'
        f" {served.status} {served.sent}"
        f' "{_safe(served.referer)}" "{_safe(served.agent)}"'
        f" {served.duration:.6f} {served.cache or '-'} {served.digest or '-'} {served.request_id}\n"
    )


def _json_line(served: Served) -> str:
    fields = {
        name: value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
        for name, value in attrs.asdict(served).items()
    }
    return json.dumps(fields, separators=(",", ":")) + "\n"


@lru_cache(maxsize=2)
def _clock_time(second: int) -> str:
    return time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(second))


@lru_cache(maxsize=512)  # the same browsers ask for the same files
def _safe(text: bytes | None) -> str:
    if text is None:
        return "-"
    decoded = text.decode("latin-1")
    # Translating takes longer than all the rest of a line, and is hardly ever needed.
    return decoded.translate(_ESCAPES) if _UNSAFE.search(text) else decoded
