"""An index of rules by path, which keeps the order of the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from operator import itemgetter
from typing import Generic, TypeVar

from blobserve.web.hosting.rule_pattern import Pattern, normalised

Rule = TypeVar("Rule")
Result = TypeVar("Result")

_Entry = tuple[int, Pattern, Rule]
"""The place in the file, the pattern and the rule."""

MEMO_ENTRIES = 512
"""The largest number of paths with a remembered result, for each file of a site."""
MEMO_PATH = 256
"""The longest path with a remembered result, in bytes."""


class RuleIndex(Generic[Rule]):
    """The rules of one file in their order.

    Rules without wildcards are found by one look-up. A rule with wildcards is tried only if the
    path has the first literal segment of its pattern at the same place, or if there is none.
    """

    def __init__(self, rules: Iterable[tuple[Pattern, Rule]], ignores_slash: bool) -> None:
        self._ignores_slash = ignores_slash
        self._literal: dict[bytes, list[tuple[int, Rule]]] = {}
        self._anywhere: list[_Entry[Rule]] = []
        self._anchored: dict[int, dict[bytes, list[_Entry[Rule]]]] = {}
        for order, (pattern, rule) in enumerate(rules):
            if not pattern.names:
                key = without_slash(pattern.text) if ignores_slash else pattern.text
                self._literal.setdefault(key, []).append((order, rule))
            elif pattern.anchor is None:
                self._anywhere.append((order, pattern, rule))
            else:
                place, segment = pattern.anchor
                entries = self._anchored.setdefault(place, {}).setdefault(segment, [])
                entries.append((order, pattern, rule))

    def matches(self, path: bytes) -> Iterator[tuple[Rule, tuple[bytes, ...]]]:
        """Yield each rule that matches a raw path, with the captured values, in file order."""
        path = normalised(path)
        other = _other_slash(path) if self._ignores_slash else None
        literal = self._literal.get(without_slash(path) if self._ignores_slash else path, [])
        done = 0
        for order, pattern, rule in self._candidates(path):
            while done < len(literal) and literal[done][0] < order:
                yield literal[done][1], ()
                done += 1
            values = pattern.match(path)
            if values is None and other is not None:
                values = pattern.match(other)
            if values is not None:
                yield rule, values
        for _, rule in literal[done:]:
            yield rule, ()

    def _candidates(self, path: bytes) -> list[_Entry[Rule]]:
        """Return the rules with wildcards that may match, in file order."""
        if not self._anchored:
            return self._anywhere
        segments = path.split(b"/")
        lists = [self._anywhere] if self._anywhere else []
        for place, by_segment in self._anchored.items():
            if place < len(segments):
                entries = by_segment.get(segments[place])
                if entries is not None:
                    lists.append(entries)
        if len(lists) == 1:
            return lists[0]
        return sorted(chain.from_iterable(lists), key=itemgetter(0))


def remember(memo: dict[bytes, Result], path: bytes, result: Result) -> None:
    """Store the result for a path, unless the path is long; a full memo is emptied."""
    if len(path) > MEMO_PATH:
        return
    if len(memo) >= MEMO_ENTRIES:
        memo.clear()
    memo[path] = result


def without_slash(path: bytes) -> bytes:
    """Return a path without the slash at its end; the root keeps its own."""
    return path[:-1] if len(path) > 1 and path.endswith(b"/") else path


def _other_slash(path: bytes) -> bytes | None:
    """Return the path with a slash at its end if it has none, else without it."""
    if len(path) == 1:
        return None
    return path[:-1] if path.endswith(b"/") else path + b"/"
