"""The page that the run wrote, and the README's table of builders."""

from __future__ import annotations

import pytest

from tests.interop import pinned_builders, registries
from tests.interop.__main__ import BUILDERS, PAGE, REGISTRIES, TEXT, attempt
from tests.interop.behaviours import BEHAVIOURS
from tests.interop.matrix import PASS, Line, Matrix, Result
from tests.interop.site import ROWS
from tests.support.parts.server import ROOT

REFUSED = Result("FAIL", "status 404")
UNSUITED = Result("not applicable", "it has no folders")
MATRIX = Matrix(
    "tool", ("one", "two"), (Line("a 1", (PASS, UNSUITED)), Line("b 2", (REFUSED, PASS)))
)


def cells(text: str) -> dict[str, list[str]]:
    """Return the cells of every table by the first cell of their row."""
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_tables_have_their_reasons() -> None:
    """A table has a row for each line, and a note for each reason."""
    text = MATRIX.markdown()
    assert cells(text) == {
        "tool": ["one", "two"],
        "a 1": ["PASS", "not applicable (1)"],
        "b 2": ["FAIL (2)", "PASS"],
    }
    assert text.endswith("\n\n1. It has no folders.\n2. Status 404.\n")


def test_tables_can_be_turned() -> None:
    """A turned table has the same results, and the same failures with their names exchanged."""
    turned = MATRIX.turned("side")
    assert cells(turned.markdown())["two"] == ["not applicable (2)", "PASS"]
    assert (MATRIX.failures, turned.failures) == (
        ["b 2, one: status 404"],
        ["one, b 2: status 404"],
    )
    assert turned.turned("tool") == MATRIX


@pytest.mark.parametrize("error", [AssertionError("bytes"), OSError("gone")], ids=repr)
def test_a_failed_check_is_a_failure(error: Exception) -> None:
    """A check that raises any error is a failure with its text."""

    def check() -> None:
        raise error

    assert attempt(check) == Result("FAIL", f"{type(error).__name__}: {error}")


def test_the_page_is_complete() -> None:
    """The page has every builder, registry, kind of file and behaviour, and no failure."""
    found = cells(PAGE.read_text())
    assert found["builder"] == [row.name for row in ROWS]
    for builder in BUILDERS:
        start, end = f"{builder.tool} ", f", {builder.way}"
        [row] = [name for name in found if name.startswith(start) and name.endswith(end)]
        assert all(cell.startswith(("PASS", "not applicable (")) for cell in found[row])
    names = [name.rpartition(" ")[0] for name in found["behaviour"]]
    assert names == [kind.name for kind in REGISTRIES]
    for behaviour in BEHAVIOURS:
        assert len(found[behaviour.name]) == len(REGISTRIES)
    assert "FAIL" not in PAGE.read_text()


def test_the_page_has_the_text_of_the_run() -> None:
    """The page has the paragraphs and the reasons that a run writes today, also after an edit."""
    text = PAGE.read_text()
    paragraphs = [each for each in TEXT.split("\n\n") if "{" not in each]
    assert len(paragraphs) > 3
    assert [each for each in paragraphs if each not in text] == []
    reasons = {reason for builder in BUILDERS for reason in builder.omits.values()}
    assert [each for each in reasons if each[1:] not in text] == []


def test_the_page_has_the_pinned_versions() -> None:
    """The page was written with the versions that a run installs today."""
    text = PAGE.read_text()
    for builder in pinned_builders.PINNED:
        assert f"| {builder.tool} {builder.version()}, {builder.way} |" in text
    for kind in registries.PINNED:
        assert f"| {kind.name} {kind.version()} |" in text


def test_readme_has_each_builder() -> None:
    """The README's table has a command of each builder."""
    section = (ROOT / "README.md").read_text().partition("## Push a site")[2].partition("\n## ")[0]
    commands = " ".join(cells(section))
    assert {each.tool for each in BUILDERS if each.tool.lower() not in commands.lower()} == set()
