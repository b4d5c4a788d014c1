"""The campaign command: one table, and no success for a campaign without tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.campaign import CAMPAIGNS, Campaign, main, read
from tests.support.parts.server import ROOT

SUITE = """<testsuites><testsuite name="pytest">
<testcase classname="tests.traps.test_auth" name="test_a" time="61.6"/>
<testcase classname="tests.traps.test_auth" name="test_b" time="0.1"><failure/></testcase>
<testcase classname="tests.faults.test_soak" name="test_soak" time="20"><properties>
<property name="cases" value="5000"/><property name="figure" value="quick"/>
</properties></testcase>
<testcase classname="tests.web.http.test_ranges" name="test_c" time="1"/>
<testcase classname="tests.web.http.test_ranges" name="test_d" time="1"><properties>
<property name="is_property" value="yes"/></properties></testcase>
</testsuite></testsuites>"""


@pytest.mark.parametrize("campaign", CAMPAIGNS, ids=lambda each: each.name)
def test_every_campaign_has_tests(campaign: Campaign) -> None:
    """Every campaign has test files."""
    assert campaign.files


def test_no_file_is_of_two_campaigns() -> None:
    """No test file belongs to two campaigns, so that each test counts once."""
    files = [path for campaign in CAMPAIGNS for path in campaign.files]
    assert len(files) == len(set(files))


def test_the_table_of_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A report becomes a table with measurements, failures and campaigns without tests."""
    (tmp_path / "suite.xml").write_text(SUITE)
    asked = ["--read", str(tmp_path / "suite.xml")]
    assert main([*asked, "authentication", "soak", "properties", "names"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "campaign            cases   passed     time",
        "authentication          2        1     1:02",
        "names                   0        0     0:00",
        "properties              1        1     0:01",
        "soak                 5000     5000     0:20",
        "in all               5003     5002     1:23",
        "authentication: failed: test_b",
        "names: there is none",
        "soak: quick",
    ]
    assert main([*asked, "soak", "properties"]) == 0
    assert read(tmp_path / "none.xml") == []


def test_a_campaign_that_is_run(tmp_path: Path) -> None:
    """The command runs the tests of a campaign, prints the table alone, and exits by the result."""
    command = [sys.executable, "-m", "tests.faults.campaign", "--quick", "manifests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    first, of_manifests, *_ = done.stdout.splitlines()
    assert first.split() == ["campaign", "cases", "passed", "time"]
    name, cases, passed, _ = of_manifests.split()
    assert (name, cases) == ("manifests", passed)
    assert int(cases) > 20
    lame = subprocess.run([*command, "soaks"], cwd=ROOT, capture_output=True, timeout=60)
    assert lame.returncode == 2
