"""Programs of the system: found or skipped, run as an ordinary user, stopped by process id.

This module knows no particular program; each program has a module with its configuration.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.slack import SLACK

STARTS_WITHIN = 20.0 * SLACK
"""The time in seconds in which a part must answer, even on a busy machine."""


def program(name: str) -> str:
    """Return the path of a program; a missing one skips the test, unless `conftest` forbids it."""
    found = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"]))
    if found is not None:
        return found
    pytest.skip(f"{name} is not installed")


def free_port() -> int:
    """Return a free port on loopback, outside the range of client ports."""
    while True:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def answers(port: int) -> bool:
    """Return whether this port on loopback accepts connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def own_directory() -> Iterator[Path]:
    """Make a directory that the ordinary user owns, and remove it afterwards."""
    with tempfile.TemporaryDirectory(prefix="blobserve-", ignore_cleanup_errors=True) as name:
        give_away(Path(name))
        yield Path(name)


def give_away(path: Path) -> None:
    """Change the owner of `path` to the ordinary user, if that is another user."""
    if os.geteuid() == 0:
        shutil.chown(path, "nobody", "nogroup")


def run(arguments: Sequence[str | Path], directory: Path) -> str:
    """Run a program to its end as the ordinary user, with `directory` as home; return its output.

    :raises subprocess.CalledProcessError: if it failed; its errors are in the output of the test.
    """
    return subprocess.run(
        [program(str(arguments[0])), *arguments[1:]],
        cwd=directory,
        env={**os.environ, "HOME": str(directory), "XDG_RUNTIME_DIR": str(directory)},
        stdout=subprocess.PIPE,
        timeout=120,
        check=True,
        text=True,
        **ordinary_user(),
    ).stdout


class Part:
    """A program that runs until it is stopped, with its files in `directory`."""

    def __init__(self, arguments: Sequence[str | Path], directory: Path) -> None:
        self.arguments = [program(str(arguments[0])), *map(str, arguments[1:])]
        self.directory = directory
        self.output = directory / "output"
        """The file with standard output and standard error of every run."""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, ready: Callable[[], bool]) -> None:
        """Start it and wait until it is `ready`."""
        with self.output.open("ab") as output:
            self._process = process = subprocess.Popen(
                self.arguments,
                cwd=self.directory,
                env={**os.environ, "HOME": str(self.directory)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                **ordinary_user(),
            )
        wait_until(ready, process, self.output)

    def stop(self) -> None:
        """Stop it and wait until it has ended; do nothing if it does not run."""
        if self._process is not None:
            end(self._process)
            self._process = None


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[bytes], output: Path) -> None:
    """Wait until `ready` while `process` lives; fail with its output after a bounded time."""
    for _ in range(int(STARTS_WITHIN / 0.02)):
        if ready():
            return
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
        break
    end(process)
    text = output.read_text(errors="replace")
    pytest.fail(f"{process.args!r} did not start:\n{text}", pytrace=False)


def end(process: subprocess.Popen[bytes]) -> int:
    """Terminate a process, and kill it after ten seconds; return its exit code."""
    process.terminate()
    try:
        return process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def ordinary_user() -> dict[str, Any]:
    """Return arguments for `subprocess` that run a program as the ordinary user."""
    if os.geteuid() != 0:
        return {}
    return {"user": "nobody", "group": "nogroup", "extra_groups": []}
