"""The lines of ``_redirects`` and ``_headers``, and the problems that are reported for them.

Both files come from an image, so they may hold anything. All work and memory is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import attrs

Dialect = Literal["cloudflare", "netlify"]

MAX_BYTES = 16 * 1024 * 1024
"""The largest part of a file that is read."""
MAX_LINES = 100_000
"""The largest number of lines of a file that are read."""
MAX_PROBLEMS = 100
"""The largest number of problems of a file that are listed; the others are counted."""

_QUOTED_CHARACTERS = 60


@attrs.frozen
class RuleProblem:
    """One report about a rule file: the name of the file, the line from 1 on, and the text."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


@attrs.define
class ProblemList:
    """The problems of one file: the first `MAX_PROBLEMS`, and the count of all."""

    file: str
    listed: list[RuleProblem] = attrs.field(factory=list)
    count: int = 0

    @property
    def in_order(self) -> tuple[RuleProblem, ...]:
        """The listed problems in the order of the lines."""
        return tuple(sorted(self.listed, key=lambda problem: problem.line))

    def add(self, line: int, text: str) -> None:
        """Count a problem, and list it if there is room."""
        self.count += 1
        if len(self.listed) < MAX_PROBLEMS:
            self.listed.append(RuleProblem(self.file, line, text))


def rule_lines(
    content: bytes, max_characters: int, problems: ProblemList
) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each line that is neither empty nor a comment.

    Space around a line is removed. A line that is too long, is not UTF-8, or has a control
    character is reported and left out.
    """
    for number, raw in _split(content, problems):
        line = raw.strip()
        if not line or line.startswith(b"#"):
            continue
        # No character of UTF-8 has more than four bytes.
        text = None if len(line) > 4 * max_characters else _decode(line)
        if len(line) > 4 * max_characters or (text is not None and len(text) > max_characters):
            limit = f"{max_characters:,} characters"
            problems.add(number, f"the line is longer than {limit}; shorten it")
        elif text is None:
            problems.add(number, "the line is not UTF-8; save the file as UTF-8")
        elif any(character < " " and character != "\t" for character in text) or "\x7f" in text:
            problems.add(number, "the line has a control character; remove it")
        elif stripped := text.strip():
            yield number, stripped


def quoted(text: str) -> str:
    """Return text from a file in backquotes, printable and cut to a short length."""
    cut = text if len(text) <= _QUOTED_CHARACTERS else f"{text[:_QUOTED_CHARACTERS]}..."
    shown = "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in cut
    )
    return f"`{shown}`"


def _split(content: bytes, problems: ProblemList) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the bytes of each line within the limits."""
    start = 3 if content.startswith(b"\xef\xbb\xbf") else 0
    end = min(len(content), MAX_BYTES)
    number = 0
    # `split` would need memory for millions of empty lines.
    while start < end:
        number += 1
        if number > MAX_LINES:
            problems.add(number, f"the file has more than {MAX_LINES:,} lines; the rest is ignored")
            return
        stop = content.find(b"\n", start, end)
        if stop < 0 and end < len(content):
            break
        yield number, content[start : stop if stop >= 0 else end]
        start = stop + 1 if stop >= 0 else end
    if len(content) > MAX_BYTES:
        limit = f"{MAX_BYTES >> 20} MiB"
        problems.add(number, f"the file is larger than {limit}; it is ignored from this line on")


def _decode(line: bytes) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None
