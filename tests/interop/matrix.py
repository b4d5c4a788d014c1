"""Results in a table, as Markdown with a note for each reason."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import attrs

Verdict = Literal["PASS", "FAIL", "not applicable"]


@attrs.frozen
class Result:
    """The result of one cell, with the reason unless it passed."""

    verdict: Verdict
    reason: str = ""


PASS = Result("PASS")


@attrs.frozen
class Line:
    """One row of a table: its name, with any version, and a result for each column."""

    name: str
    results: tuple[Result, ...]


@attrs.frozen
class Matrix:
    """A table: `corner` names the first column, `columns` those of the results."""

    corner: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]

    @property
    def failures(self) -> list[str]:
        """The failures, each with its row, column and reason."""
        return [
            f"{line.name}, {column}: {result.reason}"
            for line in self.lines
            for column, result in zip(self.columns, line.results, strict=True)
            if result.verdict == "FAIL"
        ]

    def turned(self, corner: str) -> Matrix:
        """Return the same results with rows as columns."""
        columns = zip(*(line.results for line in self.lines), strict=True)
        lines = tuple(map(Line, self.columns, columns))
        return Matrix(corner, tuple(line.name for line in self.lines), lines)

    def markdown(self) -> str:
        """Return the table, and below it the reasons by number."""
        reasons = list(
            dict.fromkeys(
                result.reason for line in self.lines for result in line.results if result.reason
            )
        )
        rows = [_row([self.corner, *self.columns])]
        rows.append("|---" * (len(self.columns) + 1) + "|")
        for line in self.lines:
            cells = (
                f"{each.verdict} ({reasons.index(each.reason) + 1})"
                if each.reason
                else each.verdict
                for each in line.results
            )
            rows.append(_row([line.name, *cells]))
        notes = [f"{number}. {_one_line(text)}" for number, text in enumerate(reasons, 1)]
        return "\n".join([*rows, *([""] if notes else []), *notes]) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _one_line(text: str) -> str:
    text = re.sub(r"\s+", " ", text).strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
