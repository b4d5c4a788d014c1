"""slowhttptest, the tool by which slow attacks on HTTP servers are known."""

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
    """What became of one."""

    ending: str
    """Why it ended, in the tool's words."""
    was_served: bool
    """Whether a probe of its own was answered, each second anew."""

    @property
    def was_repelled(self) -> bool:
        """Whether the server closed every connection before its time was up."""
        return self.ending == "No open connections left"


def attack(directory: Path, url: str, seconds: int, *options: str) -> Attack:
    """Attack `url` on `CONNECTIONS` connections; `options` are the tool's own, its mode first."""
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
