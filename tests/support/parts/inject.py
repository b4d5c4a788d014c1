"""strace, which has the kernel kill a process, or fail it, at any call we choose.

A process that does the same each time is traced once; then it is run again for each of its calls.
It has one thread: strace counts the calls of each.
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
"""The calls that change what is on a disk. Of opening, only what creates."""
READING = ("read", "pread64", "preadv2")

_LINE = re.compile(r"^\d+ +(\w+)\((.*)$")
_WITHIN = 60.0


@attrs.frozen
class Call:
    """One call that a process makes: the `number`-th of this name; ``2+``: all from the second."""

    name: str
    number: int | str
    arguments: str = attrs.field(default="", eq=False)

    @property
    def creates(self) -> bool:
        """Whether it may make a file."""
        return "O_CREAT" in self.arguments

    def __str__(self) -> str:
        return f"{self.name} {self.number}"


def calls(arguments: Sequence[str], scratch: Path, begin: str, end: str) -> list[Call]:
    """The calls that a Python program makes between asking for the files `begin` and `end`."""
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
    """Those of them that change what is on the disk."""
    return [
        each for each in found if each.name in CHANGING and (each.name != "openat" or each.creates)
    ]


def injected(
    arguments: Sequence[str], scratch: Path, call: Call, fault: str
) -> subprocess.CompletedProcess[str]:
    """Run the same program with ``signal=...`` or ``error=...`` at this call."""
    # Not --seccomp-bpf, under which no signal is sent.
    options = ["-f", "-qq", "-e", f"trace={call.name}", "-e", "signal=none"]
    options += ["-e", f"inject={call.name}:{fault}:when={call.number}", "-o", os.devnull]
    return _run(options, arguments, scratch)


def spread(found: Sequence[T], most: int) -> list[T]:
    """At most so many of them, evenly spread, the first and the last included."""
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
