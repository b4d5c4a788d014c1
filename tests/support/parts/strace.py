"""strace, as a log of the system calls of a process on files."""

from __future__ import annotations

import codecs
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import pytest

from tests.support.parts.programs import STARTS_WITHIN, program
from tests.support.parts.server import Server

_CALLS = frozenset(
    [
        "openat",
        "open",
        "creat",
        "mkdir",
        "mkdirat",
        "rename",
        "renameat",
        "renameat2",
        "link",
        "linkat",
        "symlink",
        "symlinkat",
        "unlink",
        "unlinkat",
        "rmdir",
        "chmod",
        "fchmodat",
        "fchmodat2",
        "chown",
        "lchown",
        "fchownat",
        "truncate",
        "mknod",
        "mknodat",
        "utimensat",
        "setxattr",
        "lsetxattr",
        "removexattr",
    ]
)
_CALL = re.compile(r"^(\d+) +(\w+)\((.*)$")
_PATH = re.compile(r'(?:(?:AT_FDCWD|\d+)<((?:[^>\\]|\\.)*)>, )?"((?:[^"\\]|\\.)*)"')
_WRITING = re.compile(r"O_(?:WRONLY|RDWR|CREAT|TRUNC|APPEND|TMPFILE)")


@attrs.frozen
class Touched:
    """A file that a process opened, changed or tried to."""

    call: str
    path: str
    """The absolute path without ``..``; links are not resolved."""
    is_changed: bool
    """Whether the file was, or could have been, created, changed or removed."""


class Traced(Server):
    """A blobserve process with a trace of all file accesses by every thread.

    See `Server` for the arguments.
    """

    def __init__(self, directory: Path, config: Mapping[str, object]) -> None:
        self._trace = directory / "trace"
        # With -D the started process is blobserve itself and not strace, so that it can be stopped.
        options = ["-D", "-f", "--seccomp-bpf", "-y", "-qq", "-e", "signal=none"]
        options += ["-e", f"trace={','.join(f'?{name}' for name in _CALLS)}", "-o", self._trace]
        environment = {"PYTHONDONTWRITEBYTECODE": "1"}
        super().__init__(
            directory, config, None, [program("strace"), *map(str, options)], environment
        )

    def touched(self) -> list[Touched]:
        """Return the file accesses in order; the process must have ended."""
        return list(self._read(self._all()))

    def _all(self) -> str:
        """Return the whole trace; strace may still write when the process has ended."""
        size, deadline = -1, time.monotonic() + STARTS_WITHIN
        while size != (size := self._trace.stat().st_size):
            time.sleep(0.2)  # the test waits for another process, and has no clock to advance
            if time.monotonic() > deadline:
                pytest.fail("strace goes on writing")
        return self._trace.read_text("latin-1")

    def _read(self, trace: str) -> Iterator[Touched]:
        for line in trace.splitlines():
            if (call := _CALL.match(line)) is None or call[2] not in _CALLS:
                continue
            _, name, arguments = call.groups()
            changes = not name.startswith("open") or bool(_WRITING.search(arguments))
            for directory, path in _PATH.findall(arguments):
                base = _unescaped(directory) if directory else str(self.directory)
                whole = os.path.normpath(os.path.join(base, _unescaped(path)))
                yield Touched(name, whole, changes)


def _unescaped(text: str) -> str:
    escaped, _ = codecs.escape_decode(text.encode("latin-1"))  # type: ignore[attr-defined]
    return os.fsdecode(escaped)
