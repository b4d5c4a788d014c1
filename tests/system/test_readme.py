"""Statements in the documents that the tree can confirm."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.parts.server import ROOT

README = ROOT / "README.md"
SECURITY = ROOT / "docs" / "security.md"
DOCUMENTS = [README, SECURITY, *(ROOT / name for name in ("SECURITY.md", "CONTRIBUTING.md"))]


def test_the_second_command_is_what_ci_runs() -> None:
    """The README gives the same command for the tests as the checks run."""
    [command] = [line for line in README.read_text().splitlines() if line.endswith("-m pytest")]
    assert command in (ROOT / ".ci" / "check").read_text().splitlines()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_it_links_to_is_there(document: Path) -> None:
    """Every file that a document links to exists."""
    linked = re.findall(r"\]\(([^):#]+)(?:#[^)]*)?\)", document.read_text())
    assert linked
    assert [path for path in linked if not (document.parent / path).exists()] == []


def test_the_tests_that_the_security_page_names() -> None:
    """Every test file that the security page names exists."""
    text = SECURITY.read_text()
    named = re.findall(r"`(tests/[^`]+)`", text)
    assert len(named) > 15
    assert [path for path in named if not (ROOT / path).is_file()] == []
