"""The log as lines of text."""

from __future__ import annotations

from pathlib import Path

from twisted.logger import Logger
from twisted.python.failure import Failure

from blobserve.daemon.log_observer import LineLogObserver


def test_a_line_for_an_event_and_a_traceback_for_a_failure(tmp_path: Path) -> None:
    """An event is one line with any content; the traceback of a failure follows, indented."""
    path = tmp_path / "log"
    with path.open("w") as file:
        log = Logger("blobserve.x", observer=LineLogObserver(file))
        log.warn("what: {what}", what="a\nb\x1b[31m")
        try:
            raise ValueError("no\r")
        except ValueError:
            log.failure("it failed", failure=Failure())
    first, second, *traceback = path.read_text().splitlines()
    assert first.endswith("Z warn blobserve.x: what: a\\x0ab\\x1b[31m")
    assert second.endswith("Z critical blobserve.x: it failed")
    assert traceback
    assert all(line.startswith("    ") for line in traceback)
    assert "ValueError: no" in traceback[-1]


def test_a_log_follows_a_rotation(tmp_path: Path) -> None:
    """A log that is reopened goes on in a new file under its name."""
    path = tmp_path / "log"
    lines = LineLogObserver(path.open("a"))
    log = Logger("x", observer=lines)
    log.info("one")
    moved = path.rename(tmp_path / "log.1")
    lines.reopen()
    log.info("two")
    lines.reopen()
    assert moved.read_text().endswith("x: one\n")
    assert path.read_text().endswith("x: two\n")
    lines.close()
