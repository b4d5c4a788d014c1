"""Patterns with ``*`` and ``:name``, and the texts that their captured values are put into.

A placeholder ``:name`` matches one or more characters up to the delimiter, ``*`` matches any
characters. The leftmost wildcard takes as much as it can, then the next one, as in a greedy regular
expression. No regular expression is built: each literal is searched from the right, so the time is
linear in the number of literals.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import attrs

SPLAT = b"splat"
"""The name of the value that ``*`` captures."""

_WILDCARD = re.compile(rb"\*|:([A-Za-z][A-Za-z0-9_]*)")
_PLACEHOLDER = re.compile(rb":([A-Za-z][A-Za-z0-9_]*)")
# Clients encode these in a path, or disagree about it; the backslash is a slash to browsers.
_UNSAFE = rb"[\x00-\x20\"#<>\\^`{}\x7f-\xff]"
_TO_ENCODE = re.compile(_UNSAFE)
_TO_NORMALISE = re.compile(_UNSAFE + rb"|%[0-9A-Fa-f]{2}")
_QUERY_TO_ENCODE = re.compile(rb"[\x00-\x20\"#<>\x7f-\xff]")

_ONE_DOT = (b".", b"%2e")
_TWO_DOTS = (b"..", b".%2e", b"%2e.", b"%2e%2e")


class PatternError(ValueError):
    """A pattern that cannot be used; the text says why, and what to write instead."""


def normalised(path: bytes) -> bytes:
    """Return a raw path in the form that patterns have.

    Characters that clients encode are encoded, and the digits of all encoded characters are in
    upper case. Nothing is decoded.
    """
    return _TO_NORMALISE.sub(_encode, path)


def encoded(text: bytes) -> bytes:
    """Return text with the characters encoded that must not stand in a path of a URL."""
    return _TO_ENCODE.sub(_encode, text)


def encoded_query(query: bytes) -> bytes:
    """Return a query with the characters encoded that must not stand in a URL."""
    return _QUERY_TO_ENCODE.sub(_encode, query)


def _encode(found: re.Match[bytes]) -> bytes:
    text = found[0]
    return text.upper() if len(text) == 3 else b"%%%02X" % text[0]


def without_dot_segments(path: bytes) -> bytes:
    """Return a path without ``.`` and ``..`` segments, resolved as browsers do."""
    kept: list[bytes] = []
    segments = path.split(b"/")[1:]
    for number, segment in enumerate(segments, 1):
        lower = segment.lower()
        is_last = number == len(segments)
        if lower in _TWO_DOTS:
            del kept[-1:]
        elif lower not in _ONE_DOT:
            kept.append(segment)
            continue
        if is_last:
            kept.append(b"")
    return b"/" + b"/".join(kept)


@attrs.frozen
class _Run:
    """Literals with one placeholder between each two: ``a:x-:y`` has ``a``, ``-`` and nothing."""

    literals: tuple[bytes, ...]

    def capture(self, text: bytes, start: int, end: int) -> tuple[bytes, ...] | None:
        """Match all of ``text[start:end]``."""
        first, last = self.literals[0], self.literals[-1]
        if len(self.literals) == 1:
            return () if text[start:end] == first else None
        if not text.startswith(first, start, end) or not text.endswith(last, start, end):
            return None
        return self._between(text, start + len(first), end - len(last))

    def capture_before(
        self, text: bytes, start: int, end: int
    ) -> tuple[tuple[bytes, ...], int] | None:
        """Match from `start` on, as far as possible, and return the end of the match too."""
        first, last = self.literals[0], self.literals[-1]
        if not text.startswith(first, start, end):
            return None
        inner = start + len(first)
        if len(self.literals) == 1:
            return (), inner
        at = text.rfind(last, inner, end)
        captured = None if at < 0 else self._between(text, inner, at)
        return None if captured is None else (captured, at + len(last))

    def capture_after(
        self, text: bytes, start: int, end: int
    ) -> tuple[tuple[bytes, ...], int] | None:
        """Match up to `end`, as little as possible, and return the start of the match too."""
        last = self.literals[-1]
        if not text.endswith(last, start, end):
            return None
        at = end - len(last)
        captured: list[bytes] = []
        for literal in reversed(self.literals[:-1]):
            found = text.rfind(literal, start, at - 1) if at > start else -1
            if found < 0:
                return None
            captured.append(text[found + len(literal) : at])
            at = found
        return tuple(reversed(captured)), at

    def _between(self, text: bytes, start: int, end: int) -> tuple[bytes, ...] | None:
        """Return the values between the first and the last literal."""
        captured: list[bytes] = []
        at = end
        for literal in reversed(self.literals[1:-1]):
            found = text.rfind(literal, start, at - 1) if at > start else -1
            if found < 0:
                return None
            captured.append(text[found + len(literal) : at])
            at = found
        if at <= start:
            return None
        captured.append(text[start:at])
        return tuple(reversed(captured))


@attrs.frozen
class Pattern:
    """A pattern with placeholders that end at a delimiter. Created by `parse`."""

    text: bytes
    names: tuple[bytes, ...]
    """The names of the values, in the order of the wildcards."""
    prefix: bytes
    """The literal before the first wildcard; the whole text if there is no wildcard."""
    anchor: tuple[int, bytes] | None
    """The place and the text of the first literal segment that is not empty, before any splat."""
    _suffix: bytes
    _delimiter: bytes
    _before: tuple[_Run, ...]
    _after: tuple[_Run, ...]
    _middle: tuple[_Run, _Run] | None
    """The parts of the splat's segment before and after it."""

    @classmethod
    def parse(cls, text: bytes, delimiter: bytes = b"/") -> Pattern:
        """Parse a pattern.

        :raises PatternError: if it has two splats, or a name twice.
        """
        if text.count(b"*") > 1:
            raise PatternError("only one `*` is possible; write `:name` for each other part")
        names = tuple(found[1] or SPLAT for found in _WILDCARD.finditer(text))
        for name in names:
            if names.count(name) > 1:
                raise PatternError(
                    f"the name `:{name.decode()}` stands twice; give each part its own name"
                )
        found = list(_WILDCARD.finditer(text))
        prefix = text[: found[0].start()] if found else text
        suffix = text[found[-1].end() :] if found else text
        before, star, after = text.partition(b"*")
        runs_before = [_run(part) for part in before.split(delimiter)]
        runs_after = [_run(part) for part in after.split(delimiter)] if star else []
        middle = (runs_before.pop(), runs_after.pop(0)) if star else None
        return cls(
            text,
            names,
            prefix,
            _anchor(runs_before),
            suffix,
            delimiter,
            tuple(runs_before),
            tuple(runs_after),
            middle,
        )

    def match(self, text: bytes) -> tuple[bytes, ...] | None:
        """Return the values of `names` if the pattern matches all of `text`, else None."""
        if not text.startswith(self.prefix) or not text.endswith(self._suffix):
            return None
        if not self.names:
            return () if text == self.text else None
        parts = text.split(self._delimiter)
        before, after = self._before, self._after
        if self._middle is None:
            return _captures(before, parts) if len(before) == len(parts) else None
        end = len(parts) - len(after)
        if end <= len(before):
            return None
        left = _captures(before, parts)
        right = None if left is None else _captures(after, parts[end:])
        if left is None or right is None:
            return None
        middle = self._delimiter.join(parts[len(before) : end])
        inner = self._match_middle(self._middle, middle)
        return None if inner is None else (*left, *inner, *right)

    def _match_middle(self, runs: tuple[_Run, _Run], text: bytes) -> tuple[bytes, ...] | None:
        """Match the part from the splat's segment on; only the splat contains delimiters."""
        left, right = runs
        after = right.capture_after(text, text.rfind(self._delimiter) + 1, len(text))
        if after is None:
            return None
        values_after, end = after
        first = text.find(self._delimiter)
        before = left.capture_before(text, 0, end if first < 0 else min(first, end))
        if before is None:
            return None
        values_before, start = before
        return (*values_before, text[start:end], *values_after)


def _captures(runs: Iterable[_Run], parts: Sequence[bytes]) -> tuple[bytes, ...] | None:
    """Match each run with its part."""
    values: tuple[bytes, ...] = ()
    for run, part in zip(runs, parts, strict=False):
        captured = run.capture(part, 0, len(part))
        if captured is None:
            return None
        values += captured
    return values


def _anchor(runs: Iterable[_Run]) -> tuple[int, bytes] | None:
    for place, run in enumerate(runs):
        if len(run.literals) == 1 and run.literals[0]:
            return place, run.literals[0]
    return None


def _run(part: bytes) -> _Run:
    return _Run(tuple(_PLACEHOLDER.split(part)[::2]))


@attrs.frozen
class Template:
    """A text with names that are replaced by captured values. Created by `parse`."""

    text: bytes
    names: tuple[bytes, ...]
    """The names that are replaced, in order."""
    _literals: tuple[bytes, ...]

    @classmethod
    def parse(cls, text: bytes, known: Iterable[bytes]) -> Template:
        """Parse a text; names that are not `known` stay as they are."""
        permitted = frozenset(known)
        names: list[bytes] = []
        literals: list[bytes] = []
        start = 0
        for found in _PLACEHOLDER.finditer(text):
            if found[1] in permitted:
                literals.append(text[start : found.start()])
                names.append(found[1])
                start = found.end()
        literals.append(text[start:])
        return cls(text, tuple(names), tuple(literals))

    def expand(self, values: Mapping[bytes, bytes]) -> bytes:
        """Return the text with the values in place of the names."""
        if not self.names:
            return self.text
        parts = [self._literals[0]]
        for name, literal in zip(self.names, self._literals[1:], strict=True):
            parts += (values[name], literal)
        return b"".join(parts)


def unknown_names(text: bytes, known: Iterable[bytes]) -> list[bytes]:
    """Return the names in a text that no pattern captures."""
    permitted = frozenset(known)
    return [found[1] for found in _PLACEHOLDER.finditer(text) if found[1] not in permitted]
