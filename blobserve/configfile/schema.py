"""Parsers of containers, and the values and errors that all parsers share.

A parser converts a `ConfigValue`, or raises `InvalidValue`. Containers go on after an invalid
value, so that one pass finds all problems. The keys are in `blobserve.configfile`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import attrs

from blobserve.configfile import habits
from blobserve.configfile.syntax import SyntaxNode

T = TypeVar("T")
_CLOSE = 0.7
"""The similarity from which on an unknown key is a misspelling."""

V_co = TypeVar("V_co", covariant=True)


class InvalidValue(Exception):
    """The problems of a value, in text for the operator, each with its line (0: none)."""

    def __init__(self, *problems: tuple[int, str]) -> None:
        super().__init__(*problems)
        self.problems = problems


class UnknownKey(InvalidValue):
    """A key that is not known at its place; ignored in the JSON form of the original."""


class NotText(InvalidValue):
    """A value of another kind in place of text."""


@attrs.frozen
class ConfigDocument:
    """The name of a configuration, and the directory of its relative paths."""

    name: str
    directory: Path
    is_original: bool = False
    """Whether it has the JSON form of the original."""
    warnings: list[str] = attrs.field(factory=list, eq=False)
    """The problems that do not make the configuration unusable."""

    def at(self, line: int | None, text: str) -> str:
        """Return `text` after the name, and the line if there is one."""
        return f"{self.name}:{line}: {text}" if line else f"{self.name}: {text}"


@attrs.frozen
class ConfigValue:
    """One value with its document and its path of keys."""

    document: ConfigDocument
    node: SyntaxNode
    path: str = ""
    written: SyntaxNode | None = None
    """The node that the file has, if `node` is the text that it would be in quotes."""

    def wrong(self, problem: str, line: int | None = None) -> InvalidValue:
        """Return the error for a problem with this value."""
        line = line or self.node.line
        return InvalidValue((line or 0, self.message(problem, line)))

    def unknown(self, problem: str) -> UnknownKey:
        """Return the error for a key that is not known at this place."""
        return UnknownKey(*self.wrong(problem).problems)

    def message(self, text: str, line: int | None = None) -> str:
        """Return `text` after the document, line and path of this value."""
        text = f"{self.path}: {text}" if self.path else text
        return self.document.at(line or self.node.line, text)

    def expected(self, what: str) -> InvalidValue:
        """Return the error for a value of the wrong kind."""
        node = self.written or self.node
        problem = f"expected {what}, got {node.kind}"
        if node.kind in ("text", "number", "boolean"):
            problem += " " + json.dumps(node.value, ensure_ascii=False)
        if node.kind == "text" and (variable := habits.names_variable(node.value)):
            problem += f"; {variable.partition(':')[0]}"
        return self.wrong(problem)

    def not_text(self) -> NotText:
        """Return the error for a value that is not text; see `parsed`."""
        return NotText(*self.wrong(f"expected text, got {self.node.kind}").problems)

    def items(self) -> list[ConfigValue]:
        """Return the items of a list; a key without a value is an empty list."""
        if self.node.kind == "nothing":
            return []
        if self.node.kind != "list":
            raise self.expected("list")
        return [
            ConfigValue(self.document, node, f"{self.path}[{number}]")
            for number, node in enumerate(self.node.value)
        ]

    def members(self) -> dict[str, ConfigValue]:
        """Return the members of a mapping; a key without a value is an empty mapping."""
        if self.node.kind == "nothing":
            return {}
        if self.node.kind != "mapping":
            raise self.expected("mapping")
        return {key: self._member(key, node) for key, node in self.node.value.items()}

    def _member(self, key: str, node: SyntaxNode) -> ConfigValue:
        shown = key if re.fullmatch(r"\w+", key) else f'"{key}"'
        return ConfigValue(self.document, node, f"{self.path}.{shown}" if self.path else shown)


class Parser(Protocol[V_co]):
    """A function that converts a value, or raises `InvalidValue`."""

    def __call__(self, value: ConfigValue, /) -> V_co:
        """Return the converted value."""
        ...


def parsed(kind: Parser[T], value: ConfigValue) -> T:
    """Return the result of a parser. If a value is only not text, say whether quotes are enough."""
    try:
        return kind(value)
    except NotText:
        node = value.node
        if node.kind in ("list", "mapping"):
            raise
        # An absent value of an embedding application has no text.
        text = node.text if node.kind != "nothing" or node.line else ""
        quoted = attrs.evolve(node, kind="text", value=text)
        kind(attrs.evolve(value, node=quoted, written=node))
        if not text:
            raise
    problem = f'expected text, got {value.node.kind}; quote it: "{value.node.text}"'
    raise value.wrong(problem)


class _Problems:
    """The problems of one container, raised together after all of it was read."""

    def __init__(self, value: ConfigValue) -> None:
        self._found: list[tuple[int, str]] = []
        members = value.members() if value.node.repeated else {}
        for key, line in value.node.repeated:
            first = members[key]
            with self.collected():
                raise first.wrong(f"duplicate key, first on line {first.node.line}", line)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Collect the errors raised inside, and go on."""
        try:
            yield
        except InvalidValue as wrong:
            self._found.extend(wrong.problems)

    def raise_any(self) -> None:
        """Raise the collected problems, if there are any."""
        if self._found:
            raise InvalidValue(*self._found)


def each(kind: Parser[T]) -> Parser[tuple[T, ...]]:
    """Return a parser of a list, with one parser for its items."""

    def read(value: ConfigValue) -> tuple[T, ...]:
        problems, values = _Problems(value), list[T]()
        if value.node.kind in ("text", "number", "boolean", "date"):
            raise _no_list(kind, value)
        for item in value.items():
            with problems.collected():
                values.append(parsed(kind, item))
        problems.raise_any()
        return tuple(values)

    return read


def _no_list(kind: Parser[T], value: ConfigValue) -> InvalidValue:
    """Return the error for one value in place of a list; it says when brackets are enough."""
    wrong = value.expected("list")
    try:
        kind(value)
    except InvalidValue:
        return wrong
    [(line, problem)] = wrong.problems
    return InvalidValue((line, f"{problem}; write [{json.dumps(value.node.value)}]"))


def by_name(
    name: Callable[[ConfigValue, str], str], kind: Callable[[ConfigValue, str], T]
) -> Parser[dict[str, T]]:
    """Return a parser of a mapping with free keys; `name` makes a key canonical."""

    def read(value: ConfigValue) -> dict[str, T]:
        problems, values = _Problems(value), dict[str, T]()
        for key, member in value.members().items():
            canonical = ""
            with problems.collected():
                canonical = name(member, key)
                if canonical in values:
                    raise member.wrong(f"another key also means {canonical}")
            with problems.collected():
                values[canonical] = _parsed_as(kind, member, canonical)
        problems.raise_any()
        return values

    return read


def _parsed_as(kind: Callable[[ConfigValue, str], T], value: ConfigValue, name: str) -> T:
    return parsed(lambda each: kind(each, name), value)


Keys = Mapping[str, tuple[str, Parser[Any]]]
"""The keys of a mapping: for each, its attribute and its parser."""


def attributes(value: ConfigValue, keys: Keys, required: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the attributes for the keys of a mapping; absent keys give none."""
    problems, values = _Problems(value), dict[str, Any]()
    members = value.members()
    missing = [key for key in required if key not in members]
    for written, member in members.items():
        key = _known_as(written, value, keys)
        with problems.collected(), _ignored_in_original(value.document):
            if key not in keys:
                raise _unknown(member, key, keys, missing)
            attribute, kind = keys[key]
            if attribute in values:
                twins = [name for name in keys if keys[name][0] == attribute and name != key]
                raise member.wrong(f"cannot be combined with {', '.join(twins)}")
            values[attribute] = parsed(kind, member)
    for key in missing:
        with problems.collected():
            raise value.wrong(f"the key {key} is missing")
    problems.raise_any()
    return values


def made(cls: Callable[..., T], keys: Keys, required: tuple[str, ...] = ()) -> Parser[T]:
    """Return a parser that calls `cls` with the attributes of a mapping."""
    return lambda value: cls(**attributes(value, keys, required))


def _known_as(key: str, value: ConfigValue, keys: Keys) -> str:
    """Return the known key that `key` means.

    The original's JSON reader accepts a key in any case where none has the exact spelling.
    """
    if value.document.is_original and key not in keys:
        for known in keys:
            if known.lower() == key.lower() and known not in value.node.value:
                return known
    return key


@contextmanager
def _ignored_in_original(document: ConfigDocument) -> Iterator[None]:
    """Turn unknown keys into warnings, if the document has the JSON form of the original."""
    try:
        yield
    except UnknownKey as error:
        if not document.is_original:
            raise
        document.warnings.extend(f"{text}; it is ignored" for _, text in error.problems)


def _unknown(value: ConfigValue, key: str, keys: Keys, missing: list[str]) -> UnknownKey:
    """Return the error for an unknown key. A missing key that it means is no second problem."""
    if difflib.get_close_matches(key.lower(), map(str.lower, keys), 1, _CLOSE):
        nearest = _nearest(key, keys)
        instead = f"the nearest known one is {nearest}"
    elif nearest := habits.meant(key, keys, ()) or (missing[0] if len(missing) == 1 else ""):
        instead = f"write {nearest}"
    else:
        instead = f"the nearest known one is {_nearest(key, keys)}"
    if nearest in missing and not value.document.is_original:
        missing.remove(nearest)
    return value.unknown(f"unknown key; {instead}")


def _nearest(key: str, known: Iterable[str]) -> str:
    lower = {name.lower(): name for name in known}
    [nearest] = difflib.get_close_matches(key.lower(), lower, 1, 0.0)
    return lower[nearest]
