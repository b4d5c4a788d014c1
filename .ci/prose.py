#!/usr/bin/env python3
"""Measure the prose of docstrings and Markdown pages, and fail if too much of it is hard to read.

Three shares are measured, each in per cent:

inverted starts
    sentences that begin with a word such as "What", "Who", "Of" or "By";
vague pronouns
    sentences with words such as "whoever", "whose", "nobody" or "is to be";
bare clauses
    first lines of docstrings, and headings of pages, that are a clause ("Whether ...", "What ...").
    A function's first line should be an imperative. Classes, modules and headings take a noun
    phrase.

Code, tables and quoted texts do not count. Run it without arguments in the root of the project to
hold the docstrings of blobserve/, tests/ and benchmarks/ and the Markdown pages to the limit, or
with files and directories, for example those of an installed package. `--list` prints each
offending sentence with its file and line.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

LIMIT = 3.0
"""The largest share, in per cent, that passes."""

Fault = Literal["inverted start", "vague pronoun", "bare clause"]

_INVERTED = re.compile(
    r"(?:what|whatever|who|whoever|whom|whose|whosever|which|whichever|of|by|nobody|somebody|where"
    r"|wherever|whereas|whence|so (?:many|much))\b",
    re.IGNORECASE,
)
_VAGUE = re.compile(
    r"\b(?:who|whoever|whom|whomever|whose|whosever|somebody|nobody|anybody|everybody|whatever"
    r"|of (?:which|what)|so many|so much(?= (?:as|of))|(?:is|are|was|were) to be"
    r"|what (?:is|was|are|were|has|had|it|they|we|he|can|may|must|will|should|comes?|came))\b",
    re.IGNORECASE,
)
_BARE = re.compile(
    r"(?:what|whatever|whether|where|wherever|how|who|whoever|whom|whose|which|whichever|why|when"
    r"|whenever|if|nobody|somebody|of|by|(?:for|from|to) (?:who|whoever|what|where)"
    r"|so (?:many|much|that))\b",
    re.IGNORECASE,
)

_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|cf|vs|approx|Sec|No|incl)|\b[A-Z])\.$")
_SENTENCE_END = re.compile(r"[.!?][\"')\]*_]*\s+(?=[\"'(\[*_]*[A-Z0-9\x00])")  # NUL: see `_masked`
_CODE = "X"  # Stands for code and quoted text: a word that no rule knows.
_INLINE = (
    re.compile(r":[a-z:]+:`[^`]*`"),  # reST roles
    re.compile(r"``.+?``|`[^`]+`"),
    re.compile(r"\b[A-Z]\{[^}]*\}"),  # epytext, as Twisted has it
    re.compile(r"\"[^\"]*\"|“[^”]*”"),
    re.compile(r"https?://\S+"),
)
_LINK = re.compile(r"!?\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])")
_LIST_ITEM = re.compile(r"\s*(?:[-*+]|\d+[.)])\s+")
_FIELD = re.compile(r"\s*(?::[a-z]+(?: [^:]*)?:|@[a-z]+(?: [^:]*)?:)\s*")
_RULE_OR_TABLE = re.compile(r"\s*(?:\||\+[-=+]+\+|[=\-~^*#]{3,}[=\-~^*# ]*$)")

_DOCTEST_OR_TABLE = re.compile(r"\s*(?:>>> |=+ +=[= ]*$)")


class Sentence(NamedTuple):
    """One sentence, with code and quotations taken out."""

    path: Path
    line: int
    text: str
    is_title: bool = False
    """Whether this is the first line of a docstring, or a heading."""

    def faults(self, *, is_page: bool) -> Iterator[Fault]:
        """Yield the faults of this sentence."""
        # A heading is no sentence; the first line of a docstring is one, and a title too.
        if not (is_page and self.is_title):
            if _INVERTED.match(self.text):
                yield "inverted start"
            if _VAGUE.search(self.text):
                yield "vague pronoun"
        if self.is_title and _BARE.match(self.text):
            yield "bare clause"


class Shares(NamedTuple):
    """The counts of sentences and titles in a body of text, with the faults found in them."""

    sentences: int
    titles: int
    faults: tuple[tuple[Fault, Sentence], ...]

    def percent(self, fault: Fault) -> float:
        """Return the share of sentences, or of titles, with this fault."""
        whole = self.titles if fault == "bare clause" else self.sentences
        return 100 * sum(each == fault for each, _ in self.faults) / max(whole, 1)


def measure(sentences: Iterable[Sentence], *, is_page: bool) -> Shares:
    """Count the sentences and their faults; `is_page` for Markdown."""
    count = titles = 0
    faults: list[tuple[Fault, Sentence]] = []
    for sentence in sentences:
        titles += sentence.is_title
        count += not (is_page and sentence.is_title)
        faults += ((fault, sentence) for fault in sentence.faults(is_page=is_page))
    return Shares(count, titles, tuple(faults))


def docstrings(path: Path) -> Iterator[Sentence]:
    """Yield the sentences of every docstring of a Python file, attribute docstrings included."""
    tree = ast.parse(path.read_bytes(), str(path))
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        for position, statement in enumerate(node.body):
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                text = statement.value.value
                if isinstance(text, str):
                    found = list(_sentences(path, statement.lineno, text, is_page=False))
                    if position == 0 and found:
                        found[0] = found[0]._replace(is_title=True)
                    yield from found


def page(path: Path) -> Iterator[Sentence]:
    """Yield the sentences and headings of a Markdown page."""
    return _sentences(path, 1, path.read_text("utf-8"), is_page=True)


class _Block(NamedTuple):
    lines: list[tuple[int, str]]
    is_heading: bool = False


def _sentences(path: Path, first: int, text: str, *, is_page: bool) -> Iterator[Sentence]:
    for block in (_page_blocks if is_page else _docstring_blocks)(first, text.split("\n")):
        starts: list[tuple[int, int]] = []
        joined = ""
        for number, line in block.lines:
            joined += " " if joined else ""
            starts.append((len(joined), number))
            joined += line.strip()
        yield from _split(path, joined, starts, block.is_heading)


def _split(
    path: Path, text: str, starts: list[tuple[int, int]], is_heading: bool
) -> Iterator[Sentence]:
    # Code is put out of the way, in its own length, before dots are looked for.
    for pattern in (*_INLINE[:2], _LINK, *_INLINE[2:]):
        text = pattern.sub(_masked, text)
    begin = 0
    for end in [*_ends(text), len(text)]:
        plain = re.sub(r"\x00+", _CODE, text[begin:end])
        plain = " ".join(re.sub(r"[*_]{1,3}(?=\S)|(?<=\S)[*_]{1,3}", "", plain).split())
        plain = plain.lstrip("\"'([ ")
        if re.search(r"[A-Za-z]", plain.replace(_CODE, "")):
            line = max(number for offset, number in starts if offset <= begin)
            yield Sentence(path, line, plain, is_heading)
        begin = end


def _ends(text: str) -> Iterator[int]:
    for match in _SENTENCE_END.finditer(text):
        if not _ABBREVIATION.search(text[: match.start() + 1]):
            yield match.end()


def _masked(match: re.Match[str]) -> str:
    """Return as many NUL bytes as code is long; the text of a link, between blanks."""
    if match.re is _LINK:
        begin, end = match.start(1) - match.start(), match.end(1) - match.start()
        return " " * begin + match[1] + " " * (len(match[0]) - end)
    return "\0" * len(match[0])


def _docstring_blocks(first: int, lines: list[str]) -> Iterator[_Block]:
    block: list[tuple[int, str]] = []
    literal_above: int | None = (
        None  # the indentation of the paragraph that a literal block follows
    )
    in_code = False
    for number, line in enumerate(lines, first):
        indent = len(line) - len(line.lstrip())
        if literal_above is not None and line.strip() and indent <= literal_above:
            literal_above = None
        is_skipped = literal_above is not None
        # A doctest and a table end at an empty line.
        in_code = bool(line.strip()) and (in_code or bool(_DOCTEST_OR_TABLE.match(line)))
        if not line.strip() or is_skipped or in_code or _RULE_OR_TABLE.match(line):
            if block:
                yield _Block(block)
            block = []
            continue
        marker = _LIST_ITEM.match(line) or _FIELD.match(line)
        if marker:
            if block:
                yield _Block(block)
            block = []
            line = line[marker.end() :]
        block.append((number, line))
        if line.rstrip().endswith("::"):
            yield _Block(block)
            block = []
            # The first line of a docstring stands behind its quotes.
            literal_above = indent if number > first else 4
    if block:
        yield _Block(block)


def _page_blocks(first: int, lines: list[str]) -> Iterator[_Block]:
    block: list[tuple[int, str]] = []
    fence = ""
    in_list = in_comment = False
    for number, line in enumerate(lines, first):
        stripped = line.strip()
        if fence:
            fence = "" if stripped.startswith(fence) and not stripped.strip(fence[0]) else fence
            continue
        opening = re.match(r"\s*(?:[-*+]\s+)?(`{3,}|~{3,})", line)
        in_comment = in_comment or stripped.startswith("<!--")
        is_code = bool(re.match(r" {4}|\t", line)) and not block and not in_list
        is_heading = line.startswith("#")
        if opening or in_comment or is_code or is_heading or not stripped or _is_apart(line):
            if block:
                yield _Block(block)
            block = []
        if opening:
            fence = opening[1]
        elif in_comment:
            in_comment = "-->" not in stripped
        elif is_heading:
            in_list = False
            yield _Block([(number, stripped.strip("# "))], is_heading=True)
        elif stripped and not is_code and not _is_apart(line):
            line = re.sub(r"^\s*>\s?", "", line)
            marker = _LIST_ITEM.match(line)
            if marker:
                if block:
                    yield _Block(block)
                block = []
                line = line[marker.end() :]
                in_list = True
            elif not line.startswith(" "):
                in_list = in_list and bool(block)
            block.append((number, line))
    if block:
        yield _Block(block)


def _is_apart(line: str) -> bool:
    """Return whether a line of a page is of a table, a rule, or the target of a link."""
    return bool(_RULE_OR_TABLE.match(line) or re.match(r"\s*\[[^\]]+\]:\s", line))


def _files(roots: Iterable[Path], suffix: str) -> Iterator[Path]:
    for root in roots:
        if root.is_file():
            if root.suffix == suffix:
                yield root
            continue
        for path in sorted(root.iterdir()):
            if path.is_dir():
                is_foreign = path.name in {"node_modules", "build", "dist", "__pycache__"}
                is_foreign = is_foreign or (path / "pyvenv.cfg").exists()
                if not is_foreign and (not path.name.startswith(".") or path.name == ".github"):
                    yield from _files([path], suffix)
            elif path.suffix == suffix:
                yield path


def main(arguments: list[str] | None = None) -> int:
    """Print the shares; return 1 if one of them is too large."""
    parser = argparse.ArgumentParser(description="Measure the prose of docstrings and pages.")
    parser.add_argument("--list", action="store_true", help="print each offending sentence")
    parser.add_argument("--limit", type=float, default=LIMIT, help="the largest share, in per cent")
    parser.add_argument("paths", nargs="*", type=Path, help="files and directories")
    options = parser.parse_args(arguments)
    # The name, the files, whether they are pages.
    bodies: list[tuple[str, list[Path], bool]] = []
    if options.paths:
        bodies.append(("docstrings", list(_files(options.paths, ".py")), False))
        bodies.append(("pages", list(_files(options.paths, ".md")), True))
    else:
        for name in ("blobserve", "tests", "benchmarks"):
            bodies.append((f"docstrings of {name}/", list(_files([Path(name)], ".py")), False))
        bodies.append(("Markdown pages", list(_files([Path()], ".md")), True))
    if not any(files for _, files, _ in bodies):
        parser.error("no Python file and no Markdown page there")

    has_failed = False
    for name, files, is_page in bodies:
        if not files:
            continue
        read = page if is_page else docstrings
        found = measure((each for path in files for each in read(path)), is_page=is_page)
        print(f"{name}: {found.sentences} sentences, {found.titles} first lines or headings")
        for fault in ("inverted start", "vague pronoun", "bare clause"):
            share = found.percent(fault)
            is_bad = share > options.limit
            has_failed = has_failed or is_bad
            print(f"  {fault:15} {share:5.1f} %, {'too many' if is_bad else 'good'}")
            if options.list:
                for each, sentence in found.faults:
                    if each == fault:
                        print(f"    {sentence.path}:{sentence.line}: {sentence.text}")
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main())
