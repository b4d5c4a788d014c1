"""strace, which makes the kernel kill a process, or fail a system call, at a chosen call.

A process that makes the same calls in each run is traced once, and then run again for each call. It
has one thread, since strace counts the calls of each thread.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import attrs

from tests.support.parts.programs import program
from tests.support.parts.server import ROOT

T = TypeVar("T")

CHANGING = (
    "openat",
    "mkdir",
    "rename",
    "unlink",
    "unlinkat",
    "rmdir",
    "write",
    "pwrite64",
    "ftruncate",
    "fallocate",
    "fsync",
    "fdatasync",
    "fchmod",
)
"""The calls that change the disk; of `openat` only those that create a file."""
READING = ("read", "pread64", "preadv2")

_LINE = re.compile(r"^\d+ +(\w+)\((.*)$")
_WITHIN = 60.0


@attrs.frozen
class Call:
    """One system call: the `number`-th of this name; ``2+`` means all from the second on."""

    name: str
    number: int | str
    arguments: str = attrs.field(default="", eq=False)

    @property
    def creates(self) -> bool:
        """Return whether the call may create a file."""
        return "O_CREAT" in self.arguments

    def __str__(self) -> str:
        return f"{self.name} {self.number}"


def calls(arguments: Sequence[str], scratch: Path, begin: str, end: str) -> list[Call]:
    """Return the calls of a Python program between its opens of the files `begin` and `end`."""
    names = (*CHANGING, *READING)
    trace = scratch / "trace"
    _run(
        ["-f", "-qq", "-y", "-e", f"trace={','.join(names)}", "-o", str(trace)], arguments, scratch
    )
    made: Counter[str] = Counter()
    found: list[Call] = []
    inside = False
    for line in trace.read_text("latin-1").splitlines():
        if (call := _LINE.match(line)) is None:
            continue
        name, rest = call.groups()
        made[name] += 1
        if f'"{begin}"' in rest:
            inside = True
        elif f'"{end}"' in rest:
            break
        elif inside:
            found.append(Call(name, made[name], rest))
    trace.unlink()
    return found


def changing(found: Iterable[Call]) -> list[Call]:
    """Return the calls that change the disk."""
    return [
        each for each in found if each.name in CHANGING and (each.name != "openat" or each.creates)
    ]


def injected(
    arguments: Sequence[str], scratch: Path, call: Call, fault: str
) -> subprocess.CompletedProcess[str]:
    """Run the same program again with ``signal=...`` or ``error=...`` at this call."""
    # Without --seccomp-bpf, with which no signal is sent.
    options = ["-f", "-qq", "-e", f"trace={call.name}", "-e", "signal=none"]
    options += ["-e", f"inject={call.name}:{fault}:when={call.number}", "-o", os.devnull]
    return _run(options, arguments, scratch)


def spread(found: Sequence[T], most: int) -> list[T]:
    """Return at most this number of items, evenly spread, with the first and the last."""
    if len(found) <= most:
        return list(found)
    return [found[round(n * (len(found) - 1) / (most - 1))] for n in range(most)]


def _run(
    options: Sequence[str], arguments: Sequence[str], scratch: Path
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    path = filter(None, [str(ROOT), environment.get("PYTHONPATH")])
    environment["PYTHONPATH"] = os.pathsep.join(path)
    return subprocess.run(
        [program("strace"), *options, sys.executable, *arguments],
        cwd=scratch,
        env=environment,
        capture_output=True,
        timeout=_WITHIN,
        text=True,
        check=False,
    )
