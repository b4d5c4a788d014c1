"""Programs on cores: started on one, counted by what the kernel says of them, ended by their id.

Nothing is known here of any one program.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.parts.programs import answers, end, free_port, wait_until

_TICK = os.sysconf("SC_CLK_TCK")


def found(name: str) -> str | None:
    """Where the program `name` is, if it is installed."""
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"]))


def program(name: str) -> str:
    """Where the program `name` is, which has been `found` before."""
    where = found(name)
    assert where is not None
    return where


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Let what is started meanwhile run on `core` alone, and this thread too."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Process:
    """A server process of the user who runs this, on a free port of 127.0.0.1."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process that was started; it may have children."""
        assert self._process is not None
        return self._process.pid

    def run(
        self, arguments: Sequence[str | Path], environment: Mapping[str, str] | None = None
    ) -> None:
        """Start it, and wait until it accepts connections."""
        output = self.directory / "output"
        with output.open("ab") as opened:
            self._process = subprocess.Popen(
                list(map(str, arguments)),
                cwd=self.directory,
                env={**os.environ, "HOME": str(self.directory), **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=opened,
                stderr=opened,
            )
        wait_until(lambda: answers(self.port), self._process, output)

    def stop(self) -> None:
        """End it, and wait until it is gone."""
        if self._process is not None:
            end(self._process)
            self._process = None


def cpu_seconds(pid: int) -> float:
    """User and system time of the process and its children, all their threads included."""
    ticks = 0
    for each in _family(pid):
        # The name, in parentheses, may hold anything (proc(5)); utime and stime are 14 and 15.
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICK


def waited_seconds(pid: int) -> float:
    """How long the threads that it has now were ready to run while something else had their core.

    Nothing, on a kernel that does not tell.
    """
    waited = 0
    for each in _family(pid):
        for told in Path(f"/proc/{each}/task").glob("*/schedstat"):
            waited += int(told.read_text().split()[1])
    return waited / 1e9


def peak_memory(pid: int) -> int:
    """The most bytes that the process and its children have held, each by itself, added up."""
    peak = 0
    for each in _family(pid):
        status = Path(f"/proc/{each}/status").read_text()
        [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        peak += int(line.split()[1]) * 1024
    return peak


def _family(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from _family(int(child))
