"""Processes: start on one core, CPU time and memory by the kernel's counts, end by process id."""

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
    """Return the path of the program `name`, if it is installed."""
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"]))


def program(name: str) -> str:
    """Return the path of the program `name`, which is installed."""
    where = found(name)
    assert where is not None
    return where


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Run this thread, and all processes that it starts meanwhile, on `core` alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Process:
    """A server process of the current user, on a free port of 127.0.0.1."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Return the id of the process that was started; it may have children."""
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
        """End it, and wait until it has ended."""
        if self._process is not None:
            end(self._process)
            self._process = None


def cpu_seconds(pid: int) -> float:
    """Return user and system time of the process and its children, with all their threads."""
    ticks = 0
    for each in _family(pid):
        # The name, in parentheses, may hold anything (proc(5)); utime and stime are 14 and 15.
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICK


def waited_seconds(pid: int) -> float:
    """Return the seconds for which its present threads were ready to run but had no core.

    Return 0 if the kernel does not count them.
    """
    waited = 0
    for each in _family(pid):
        for told in Path(f"/proc/{each}/task").glob("*/schedstat"):
            waited += int(told.read_text().split()[1])
    return waited / 1e9


def peak_memory(pid: int) -> int:
    """Return the sum of the peak memory of the process and its children, in bytes."""
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
