"""The table: each figure beside its target, both in the same unit. Pure."""

from __future__ import annotations

import attrs


@attrs.frozen
class Figure:
    """One figure of a case. `most` is its target, the highest good value; None if it has none."""

    name: str
    value: float
    most: float | None = None
    unit: str = ""
    note: str = ""

    @property
    def line(self) -> str:
        """Return its line of the table."""
        if self.most is None:
            return _line(self.name, _number(self.value), "", self.unit, "", self.note)
        verdict = "met" if self.value <= self.most else "NOT MET"
        most = _number(self.most)
        return _line(self.name, _number(self.value), most, self.unit, verdict, self.note)


def heading() -> str:
    """Return the line with the names of the columns."""
    return _line("", "measured", "at most", "", "", "")


def absent(name: str, why: str) -> str:
    """Return the line of a case that could not be measured."""
    return _line(name, "-", "", "", "not here", why)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _line(name: str, value: str, most: str, unit: str, verdict: str, note: str) -> str:
    return f"{name:54}{value:>10}{most:>10} {unit:7}{verdict:9}{note}".rstrip()
