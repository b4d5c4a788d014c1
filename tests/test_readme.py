"""What the README says, held against the tree."""

from __future__ import annotations

import re

from tests.rig.server import ROOT

README = (ROOT / "README.md").read_text()


def test_the_second_command_is_what_ci_runs() -> None:
    """The command that the README gives for the tests is the one that the checks run."""
    [command] = [line for line in README.splitlines() if line.endswith("-m pytest")]
    assert command in (ROOT / ".ci" / "check").read_text().splitlines()


def test_what_it_links_to_is_there() -> None:
    """Every file that the README links to is in the tree."""
    linked = re.findall(r"\]\(([^):#]+)(?:#[^)]*)?\)", README)
    assert linked
    assert [path for path in linked if not (ROOT / path).exists()] == []
