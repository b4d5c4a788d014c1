"""The access log: one line per request, collected and written in large pieces.

A line must be cheap, so it does not go through `twisted.logger`. Client data cannot end a line or a
field: control characters, quotes and bytes beyond ASCII are written as ``\\xNN``, and so are blanks
in fields without quotes. If writing fails, lines are lost and requests are not affected.
"""

from __future__ import annotations

import errno
import ipaddress
import json
import os
import re
import select
import stat
import time
from collections import deque
from collections.abc import Sequence
from functools import lru_cache

import attrs
from prometheus_client import Counter
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from blobserve.concurrency.threads import Threads
from blobserve.config import AccessLogRules, Network
from blobserve.web.hosting.host_table import host_of

_FLUSH_AFTER = 1.0
_FLUSH_AT = 256 * 1024
_FILE_FLUSH_AT = 64 * 1024
"""The same for a file: a larger piece would no longer be in the cache of the processor."""
_MOST_WAITING = 4 * 1024 * 1024
_LAST_WAIT = 2.0
"""Seconds that remain for writing the last lines before a file is closed."""
_LOOK_EVERY = 200
"""Milliseconds between two checks for the end of waiting for a reader."""
_STANDARD_OUTPUT = 1
_UNSAFE = re.compile(rb"[^ !#-\[\]-~]")
_ESCAPES = {byte: f"\\x{byte:02x}" for byte in (*range(0x20), 0x22, 0x5C, *range(0x7F, 0x100))}
_WORD = re.compile(r"[!#-\[\]-~]+")
_THREE_WORDS = re.compile(rb"[!#-\[\]-~]+(?: [!#-\[\]-~]+){2}")
_NO_ZONE = re.compile(r"[0-9A-Fa-f:.]{2,45}")


@attrs.define  # not frozen: creating a frozen instance takes three times as long
class LogRecord:
    """The result of one request. `time` is its start, in seconds since the epoch."""

    time: float
    address: str
    method: bytes
    target: bytes
    version: bytes
    status: int
    sent: int
    """Bytes of the body that were written; fewer than Content-Length if the client left."""
    duration: float
    cache: str | None
    digest: str | None
    request_id: str
    referer: bytes | None
    agent: bytes | None
    host: bytes | None = None
    """The host that the client asked for, maybe with a port. Only lines of JSON show it."""


class AccessLog:
    """The access log in the file of `rules`; lines are passed on after at most a second.

    A regular file is written in the reactor's thread: that takes microseconds, and a thread would
    cost more. Pipes and devices are written by one thread of `threads` at a time, so that a pipe
    without a reader blocks nothing else. At most 4 MiB wait to be written, and further lines are
    lost. The counter `lost` counts lost lines. The server log reports the start and the end of a
    loss.
    """

    _log = Logger()

    def __init__(
        self, rules: AccessLogRules, reactor: IReactorTime, threads: Threads, lost: Counter
    ) -> None:
        self._rules = rules
        self._reactor = reactor
        self._threads = threads
        self._counter = lost
        self._line = _json_line if rules.format == "json" else _text_line
        self._output: _Output | None = None
        self._flush_at = _FLUSH_AT
        self._lines: list[str] = []
        self._size = 0
        self._flush_later: IDelayedCall | None = None
        self._waiting: deque[tuple[_Output, bytes | None]] = deque()
        """The texts to write, each with its output; None closes the output."""
        self._waiting_size = 0
        self._writing: Deferred[None] | None = None
        self._lost: int | None = None
        """The number of lines lost since writing began to fail; None while it succeeds."""

    def open(self) -> None:
        """Open the file. Call this before any `write`. Does not wait for the reader of a pipe.

        :raises OSError: when the file cannot be opened.
        """
        if self._rules.format != "off":
            self._use(_Output.open(self._rules.file))

    def write(self, served: LogRecord) -> None:
        """Add a line. Never raises: a line that cannot be written is lost."""
        if self._output is None:
            return
        try:
            line = self._line(served)
            self._lines.append(line)
            self._size += len(line)
            if self._size >= self._flush_at:
                self._flush()
            elif self._flush_later is None:
                self._flush_later = self._reactor.callLater(_FLUSH_AFTER, self._flush)
        except Exception as error:  # noqa: BLE001 - a request never fails because of its line
            self._note_loss(1, error)

    def reopen(self) -> None:
        """Continue in a new file under the same name, after a log rotation."""
        if self._output is None:
            return
        self._flush()
        try:
            opened = _Output.open(self._rules.file)
        except (OSError, ValueError) as error:
            self._log.error(
                "access log: cannot reopen, the old file stays in use: {error}", error=error
            )
            return
        self._finish(self._output)
        self._use(opened)

    def close(self) -> Deferred[None]:
        """Write the remaining lines, for at most two seconds, and close the file. Idempotent.

        Later lines are dropped.
        """
        self._flush()
        if self._output is not None:
            self._finish(self._output)
            self._output = None
        ended: Deferred[None] = Deferred()
        if self._writing is None:
            ended.callback(None)
        else:
            self._writing.addCallback(lambda _: ended.callback(None))
        return ended

    def _use(self, output: _Output) -> None:
        self._output = output
        self._flush_at = _FILE_FLUSH_AT if output.is_regular else _FLUSH_AT

    def _flush(self) -> None:
        later, self._flush_later = self._flush_later, None
        if later is not None and later.active():
            later.cancel()
        # Removed before anything can fail, so that lines do not accumulate after errors.
        lines, self._lines, self._size = self._lines, [], 0
        if self._output is None or not (lines or self._output.torn):
            return
        text = "".join(lines).encode("ascii", "backslashreplace")
        if self._output.is_regular:
            self._note(*self._output.put(text), is_last=not self._waiting)
        elif self._waiting_size + len(text) > _MOST_WAITING:
            self._note_loss(len(lines), "the output is too slow")
        else:
            self._hand_over(self._output, text)

    def _finish(self, output: _Output) -> None:
        """Close an output after its waiting texts are written, or after `_LAST_WAIT` seconds."""
        if output.is_regular:
            self._release(output)
            return
        output.patience = self._reactor.callLater(_LAST_WAIT, output.give_up)
        self._hand_over(output, None)

    def _hand_over(self, output: _Output, text: bytes | None) -> None:
        self._waiting.append((output, text))
        self._waiting_size += len(text or b"")
        if self._writing is None:
            self._writing = Deferred()
            Deferred.fromCoroutine(self._write_all())

    async def _write_all(self) -> None:
        """Write the waiting texts in order, until there are none."""
        while self._waiting:
            output, text = self._waiting[0]
            if text is None:
                self._release(output)
            else:
                lost, error = await self._threads.run(output.put, text)
                self._waiting_size -= len(text)
                self._note(lost, error, is_last=len(self._waiting) == 1)
            self._waiting.popleft()
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.callback(None)

    def _release(self, output: _Output) -> None:
        if output.patience is not None and output.patience.active():
            output.patience.cancel()
        try:
            output.close()
        except OSError as error:
            self._log.error("access log: cannot close: {error}", error=error)

    def _note(self, lost: int, error: Exception | None, is_last: bool) -> None:
        """Report the result of `_Output.put`; `is_last` if no other text waits to be written."""
        if error is not None:
            self._note_loss(lost, error)
        elif is_last and self._lost is not None:
            self._log.warn("access log: writing again, {lost} lines were lost", lost=self._lost)
            self._lost = None

    def _note_loss(self, lines: int, reason: object) -> None:
        """Count lost lines, and log an error when they are the first ones."""
        if self._lost is None:
            self._log.error("access log: lines are lost: {error}", error=reason)
        self._lost = (self._lost or 0) + lines
        self._counter.inc(lines)


@attrs.define(eq=False)
class _Output:
    """An open file, pipe or device to which lines are written."""

    descriptor: int
    is_regular: bool
    torn: bytes = b""
    """The missing end of the last line in the file, after an incomplete write."""
    patience: IDelayedCall | None = None
    _is_given_up: bool = False

    @classmethod
    def open(cls, path: str) -> _Output:
        """Open the file at `path`; ``-`` is standard output.

        :raises OSError: when the file cannot be opened.
        """
        # The descriptor itself, because `twist` redirects sys.stdout to its log.
        descriptor = _STANDARD_OUTPUT if path == "-" else _opened(path)
        return cls(descriptor, stat.S_ISREG(os.fstat(descriptor).st_mode))

    def put(self, text: bytes) -> tuple[int, Exception | None]:
        """Write lines. Return the number of lost lines and the error. Blocks until it is done."""
        rest = self.torn + text
        try:
            while rest:
                piece = rest if self.is_regular else self._takeable(rest)
                try:
                    written = os.write(self.descriptor, piece)
                except BlockingIOError:
                    continue
                if not written:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                self.torn, rest = _line_end(self.torn, rest, written), rest[written:]
        except Exception as error:  # noqa: BLE001 - a request never fails because of the log
            return rest.count(b"\n") - bool(self.torn), error
        return 0, None

    def give_up(self) -> None:
        """Stop waiting for a reader. May be called in any thread."""
        self._is_given_up = True

    def close(self) -> None:
        """Close the file, unless it is standard output."""
        if self.descriptor != _STANDARD_OUTPUT:
            os.close(self.descriptor)

    def _takeable(self, text: bytes) -> bytes:
        """Wait until the output accepts data, and return the first lines of `text` to write."""
        poll = select.poll()
        poll.register(self.descriptor, select.POLLOUT)
        is_ready = False
        while not is_ready:
            if self._is_given_up:
                raise TimeoutError(errno.ETIMEDOUT, "the output is too slow")
            is_ready = bool(poll.poll(_LOOK_EVERY))
        # PIPE_BUF bytes fit into a ready pipe. Whole lines, because others may write to it too.
        piece = text[: select.PIPE_BUF]
        return piece[: piece.rfind(b"\n") + 1] or piece


def _opened(path: str) -> int:
    try:
        is_pipe = stat.S_ISFIFO(os.stat(path).st_mode)
    except OSError:
        is_pipe = False
    if not is_pipe:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
    try:
        # With a reading end of our own, the pipe can be opened and stay open without a reader.
        return os.open(path, os.O_RDWR | os.O_NONBLOCK)
    except PermissionError:
        return os.open(path, os.O_WRONLY | os.O_NONBLOCK)


def _line_end(torn: bytes, text: bytes, written: int) -> bytes:
    """Return the missing end of the last line, after `written` bytes of `text` were written.

    `torn` is the end that was missing before; `text` begins with it.
    """
    if written < len(torn):
        return torn[written:]
    if text[written - 1] == 0x0A:
        return b""
    return text[written : text.index(b"\n", written) + 1]


def client_address(peer: str, forwarded: Sequence[bytes], trusted: Sequence[Network]) -> str:
    """Return the address of the client, by X-Forwarded-For as far as trusted proxies wrote it.

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


@lru_cache(1024)
def is_trusted(peer: str, proxies: tuple[Network, ...]) -> bool:
    """Return whether a peer is a trusted proxy."""
    return is_within(peer, proxies)


def is_within(address: str, networks: Sequence[Network]) -> bool:
    """Return whether `address` is an address in one of these networks."""
    parsed = parse_address(address)
    return parsed is not None and any(parsed in network for network in networks)


def parse_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return an address as a value, or None for any other text.

    An IPv4 address that is mapped into IPv6 becomes the IPv4 address. Text with a zone
    (``fe80::1%eth0``) is refused: a zone may be any text, and has a meaning on one host only.
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
    name = served.request_id
    if not _WORD.fullmatch(name):
        name = _word(name)
    return (
        f"{_words(served.address)} - - [{_clock_time(int(served.time))}]"
        f' "{_request_line(served.method, served.target, served.version)}"'
        f" {served.status} {served.sent} {_quoted(served.referer, served.agent)}"
        f" {served.duration:.6f} {_words(served.cache, served.digest)} {name}\n"
    )


def _json_line(served: LogRecord) -> str:
    fields = {
        name: value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
        for name, value in attrs.asdict(served).items()
    }
    fields["host"] = _host(served.host) if served.host else None
    return json.dumps(fields, separators=(",", ":")) + "\n"


@lru_cache(maxsize=2)
def _clock_time(second: int) -> str:
    return time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(second))


# Escaped fields are cached, because clients repeat them. Otherwise a line would take twice as long.


@lru_cache(maxsize=512)
def _host(authority: bytes) -> str | None:
    """Return a host as sites are compared; None if it is no host name."""
    return host_of(authority) or None


@lru_cache(maxsize=512)
def _request_line(*parts: bytes) -> str:
    """Return three parts for one quoted field."""
    line = b" ".join(parts)
    if _THREE_WORDS.fullmatch(line):
        return line.decode("ascii")
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


@lru_cache(maxsize=512)
def _safe(text: bytes) -> str:
    decoded = text.decode("latin-1")
    # Translation takes longer than the rest of a line, and is rarely needed.
    return decoded.translate(_ESCAPES) if _UNSAFE.search(text) else decoded
