"""slowhttptest, the usual tool for slow attacks on HTTP servers."""

from __future__ import annotations

import csv
import re
import subprocess
from pathlib import Path

import attrs

from tests.support.parts.programs import program

CONNECTIONS = 500


@attrs.frozen
class Attack:
    """The result of an attack."""

    ending: str
    """The reason of its end, in the tool's words."""
    was_served: bool
    """Whether the tool's probe was answered in each second."""

    @property
    def was_repelled(self) -> bool:
        """Return whether the server closed every connection before the attack was over."""
        return self.ending == "No open connections left"


def attack(directory: Path, url: str, seconds: int, *options: str) -> Attack:
    """Attack `url` on `CONNECTIONS` connections; `options` are those of the tool, mode first."""
    many = str(CONNECTIONS)
    report = ["-g", "-o", "attack"]
    arguments = ["-c", many, "-r", many, "-l", str(seconds), "-p", "3", *report, "-u", url]
    said = subprocess.run(
        [program("slowhttptest"), *options, *arguments],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=seconds + 20,
        check=True,
        text=True,
    ).stdout
    ending = re.findall(r"Exit status:(?:\x1b\[[0-9;]*m)? (.*?)\s*(?:\x1b|$)", said, re.MULTILINE)
    with (directory / "attack.csv").open() as rows:
        served = [row["Service Available"] for row in csv.DictReader(rows)]
    assert ending, said
    assert served, said
    return Attack(ending[-1], "0" not in served)
