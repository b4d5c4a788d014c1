"""One command that runs every campaign against blobserve and prints one table of results.

``python -m tests.faults.campaign`` runs each campaign at its promised size, ``--quick`` at the size
of the test suite, ``--long`` for hours; names select campaigns. ``--read FILE`` runs nothing and
makes the table from the report that pytest wrote. The command fails if a test failed or was
skipped, or if a campaign has no tests.

This module only adds up the results of pytest; each campaign is defined by its tests.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree

import attrs

from tests.faults.scale import VARIABLE
from tests.support.examples import PROFILE
from tests.support.parts.server import ROOT

PROPERTY = "is_property"
"""The property that `conftest` adds to the report of each property test."""


@attrs.frozen
class Campaign:
    """A named set of test files; without patterns, all property tests of no other campaign."""

    name: str
    patterns: tuple[str, ...]

    @property
    def files(self) -> list[Path]:
        """Return the test files of the campaign."""
        if self.patterns:
            return sorted(path for each in self.patterns for path in TESTS.glob(each))
        claimed = {path for each in CAMPAIGNS if each.patterns for path in each.files}
        found = set(TESTS.rglob("test_*.py")) - claimed
        return sorted(path for path in found if "from hypothesis " in path.read_text())

    def has(self, case: Case) -> bool:
        """Return whether a test belongs to the campaign."""
        return case.file in self.files and (bool(self.patterns) or case.is_property)


TESTS = ROOT / "tests"
CAMPAIGNS = [
    Campaign("transfer", ("traps/test_transfer.py",)),
    Campaign("authentication", ("traps/test_auth.py",)),
    Campaign("names", ("traps/test_names.py",)),
    Campaign("manifests", ("traps/test_manifests.py",)),
    Campaign(
        "layers",
        (
            "faults/test_hostile_layers.py",
            "traps/test_layers.py",
            "traps/test_whiteouts.py",
            "traps/test_compression.py",
        ),
    ),
    Campaign("properties", ()),
    Campaign("model", ("store/test_blobspace_model.py",)),
    Campaign(
        "crashes",
        ("store/blobs/test_recovery.py", "faults/test_crash_points.py", "traps/test_faults.py"),
    ),
    Campaign(
        "disks",
        (
            "faults/test_disk_faults.py",
            "store/blobs/test_damage.py",
            "daemon/test_fsck_report.py",
            "store/blobs/test_verify_on_read.py",
        ),
    ),
    Campaign(
        "trees",
        (
            "traps/test_merged.py",
            "store/index/test_merged_index.py",
            "store/space/test_merged_indexes.py",
        ),
    ),
    Campaign(
        "indexes",
        (
            "store/lazy/test_*.py",
            "web/content/test_lazy_serve.py",
            "oci/registry/test_range_read.py",
        ),
    ),
    Campaign(
        "early",
        (
            "store/ingest/test_early_files.py",
            "web/content/test_early_serve.py",
        ),
    ),
    Campaign("storms", ("traps/test_storms.py", "faults/test_storms.py", "faults/test_crowd.py")),
    Campaign("soak", ("faults/test_soak.py",)),
    Campaign("clients", ("faults/test_hostile_clients.py",)),
    Campaign("requests", ("traps/test_raw.py", "traps/test_proxies.py")),
]

ENVIRONMENTS = {
    "quick": {VARIABLE: "suite", PROFILE: "suite"},
    "whole": {VARIABLE: "whole", PROFILE: "campaign"},
    "long": {VARIABLE: "long", PROFILE: "long"},
}
HOURS = {"quick": 0.5, "whole": 2.0, "long": 24.0}
"""The time after which a campaign is stopped and counts as failed."""


@attrs.frozen
class Case:
    """One test of a report."""

    file: Path
    name: str
    seconds: float
    has_passed: bool
    count: int = 1
    """The number of cases that the test stands for."""
    figure: str = ""
    """The measured values, as a sentence."""
    is_property: bool = False

    @classmethod
    def read(cls, element: ElementTree.Element) -> Case:
        """Parse a ``testcase`` element of a JUnit report."""
        said = {each.get("name"): each.get("value", "") for each in element.iter("property")}
        parts = element.get("classname", "").split(".")
        # The class name is the name of a module, perhaps followed by a class.
        depth = next((n for n, part in enumerate(parts, 1) if part.startswith("test_")), len(parts))
        return cls(
            (ROOT / Path(*parts[:depth])).with_suffix(".py"),
            element.get("name", ""),
            float(element.get("time", 0.0)),
            not any(element.find(kind) is not None for kind in ("failure", "error", "skipped")),
            int(said.get("cases", 1)),
            said.get("figure", ""),
            PROPERTY in said,
        )


def read(report: Path) -> list[Case]:
    """Parse every test of a report; return an empty list if there is no report."""
    if not report.exists() or not report.stat().st_size:
        return []
    return [Case.read(each) for each in ElementTree.parse(report).iter("testcase")]


def run(campaign: Campaign, size: str) -> tuple[list[Case], bool]:
    """Run a campaign; return its tests and whether pytest succeeded."""
    if not campaign.files:
        return [], False
    # A campaign that runs for minutes on purpose needs no dump of its threads.
    quiet = ["-q", "-o", "faulthandler_timeout=0"]
    command = [sys.executable, "-m", "pytest", *quiet, *map(str, campaign.files)]
    if not campaign.patterns:
        command += ["-m", "hypothesis"]
    environment = {**os.environ, **ENVIRONMENTS[size], "BLOBSERVE_REQUIRE_PARTS": "1"}
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory, "report.xml")
        try:
            done = subprocess.run(
                [*command, f"--junitxml={report}"],
                cwd=ROOT,
                env=environment,
                stdout=sys.stderr,
                timeout=HOURS[size] * 3600,
            )
        except subprocess.TimeoutExpired:
            return read(report), False
        return read(report), done.returncode == 0


def row(*cells: object) -> str:
    """Format a line of the table."""
    return "{:16} {:>8} {:>8} {:>8}".format(*map(str, cells))


def table(results: Iterable[tuple[Campaign, list[Case], bool]]) -> bool:
    """Print the table line by line as results arrive; return whether all passed."""
    below, all_cases, is_well = [], [], True
    print(row("campaign", "cases", "passed", "time"), flush=True)
    for campaign, cases, is_content in results:
        print(row(campaign.name, *sums(cases)), flush=True)
        below += [f"{campaign.name}: {each.figure}" for each in cases if each.figure]
        below += [f"{campaign.name}: failed: {e.name}" for e in cases if not e.has_passed]
        if not cases:
            below.append(f"{campaign.name}: there is none")
        is_well &= bool(cases) and is_content and all(each.has_passed for each in cases)
        all_cases += cases
    print(row("in all", *sums(all_cases)), *below, sep="\n", flush=True)
    return is_well


def sums(cases: Sequence[Case]) -> tuple[int, int, str]:
    """Return the number of cases, the number that passed, and the total time."""
    passed = sum(each.count for each in cases if each.has_passed)
    seconds = round(sum(each.seconds for each in cases))
    return sum(each.count for each in cases), passed, f"{seconds // 60}:{seconds % 60:02}"


def main(arguments: Sequence[str]) -> int:
    """Run the selected campaigns, print the table and return the exit code."""
    names = [each.name for each in CAMPAIGNS]
    parser = argparse.ArgumentParser(prog="python -m tests.faults.campaign", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    size = parser.add_mutually_exclusive_group()
    for each in ("quick", "long"):
        size.add_argument(f"--{each}", dest="size", action="store_const", const=each)
    size.add_argument("--read", type=Path, metavar="FILE")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.names) - set(names):
        parser.error(
            f"no such campaign: {', '.join(sorted(unknown))}; there are {', '.join(names)}"
        )
    chosen = [each for each in CAMPAIGNS if not asked.names or each.name in asked.names]
    if asked.read is not None:
        cases = read(asked.read)
        is_well = table((each, [case for case in cases if each.has(case)], True) for each in chosen)
    else:
        is_well = table((each, *run(each, asked.size or "whole")) for each in chosen)
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
