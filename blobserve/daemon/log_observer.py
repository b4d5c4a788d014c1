"""The server log as lines of text, for people and journals.

`twist` writes JSON records unless the log is a terminal; they lack the rendered message.
"""

from __future__ import annotations

import time
from typing import TextIO

from twisted.logger import ILogObserver, LogEvent, formatEvent
from twisted.python.failure import Failure
from zope.interface import implementer

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}


@implementer(ILogObserver)
class LineLogObserver:
    """An observer that writes one line per event: time, level, name space, message.

    Tracebacks follow, indented.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def __call__(self, event: LogEvent) -> None:
        """See `ILogObserver`."""
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(event["log_time"]))
        message = formatEvent(event).translate(_CONTROLS)
        lines = [f"{when} {event['log_level'].name} {event.get('log_namespace', '-')}: {message}"]
        failure = event.get("log_failure")
        if isinstance(failure, Failure):
            traceback = failure.getTraceback().splitlines()
            lines += [f"    {line.translate(_CONTROLS)}" for line in traceback]
        self._file.write("\n".join(lines) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; standard streams stay open."""
        if self._file.fileno() > 2:
            self._file.close()

    def reopen(self) -> None:
        """Open the file again under the same name; standard streams stay open."""
        if self._file.fileno() > 2:
            reopened = open(self._file.name, "a", encoding="utf-8")  # noqa: SIM115 - see close
            self.close()
            self._file = reopened
