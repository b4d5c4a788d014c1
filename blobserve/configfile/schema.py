"""Reading a configuration's tree: kinds of values, and the containers that hold them.

A kind is a function from a `ConfigValue` to a value of ours; it raises `InvalidValue`. Containers
go on after one, so that a single pass finds every problem. No key of ours is known here.
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

from blobserve.configfile.syntax import SyntaxNode

T = TypeVar("T")
V_co = TypeVar("V_co", covariant=True)


class InvalidValue(Exception):
    """What cannot be used, for the operator: the problems, each with its line (0: none)."""

    def __init__(self, *problems: tuple[int, str]) -> None:
        super().__init__(*problems)
        self.problems = problems


class UnknownKey(InvalidValue):
    """A key that has no meaning at its place. The original's own form ignores such keys."""


@attrs.frozen
class ConfigDocument:
    """What a configuration is called, and the directory that relative paths start from."""

    name: str
    directory: Path
    is_original: bool = False
    """Whether it has the form of the original's own configuration."""
    warnings: list[str] = attrs.field(factory=list, eq=False)
    """The problems that do not keep the configuration from being used."""

    def at(self, line: int | None, text: str) -> str:
        """`text` with the name in front, and the line if there are lines."""
        return f"{self.name}:{line}: {text}" if line else f"{self.name}: {text}"


@attrs.frozen
class ConfigValue:
    """One value, the path of keys that leads to it, and the document it stands in."""

    document: ConfigDocument
    node: SyntaxNode
    path: str = ""

    def wrong(self, problem: str, line: int | None = None) -> InvalidValue:
        """One problem with this value, to be raised."""
        line = line or self.node.line
        return InvalidValue((line or 0, self.said(problem, line)))

    def unknown(self, problem: str) -> UnknownKey:
        """Return the error that says why the key of this value means nothing here."""
        return UnknownKey(*self.wrong(problem).problems)

    def said(self, text: str, line: int | None = None) -> str:
        """`text` about this value, with document, line and path in front."""
        text = f"{self.path}: {text}" if self.path else text
        return self.document.at(line or self.node.line, text)

    def expected(self, what: str) -> InvalidValue:
        """The usual problem; says how to write text that YAML takes for something else."""
        node = self.node
        problem = f"expected {what}, got {node.kind}"
        if what.startswith("text") and node.kind in ("number", "boolean", "date"):
            return self.wrong(f'{problem}; quote it: "{node.text}"')
        if node.kind in ("text", "number", "boolean"):
            problem += " " + json.dumps(node.value, ensure_ascii=False)
        return self.wrong(problem)

    def items(self) -> list[ConfigValue]:
        """The items of a list; a key with nothing after it is an empty one."""
        if self.node.kind == "nothing":
            return []
        if self.node.kind != "list":
            raise self.expected("list")
        return [
            ConfigValue(self.document, node, f"{self.path}[{number}]")
            for number, node in enumerate(self.node.value)
        ]

    def members(self) -> dict[str, ConfigValue]:
        """The members of a mapping; a key with nothing after it is an empty one."""
        if self.node.kind == "nothing":
            return {}
        if self.node.kind != "mapping":
            raise self.expected("mapping")
        return {key: self._member(key, node) for key, node in self.node.value.items()}

    def _member(self, key: str, node: SyntaxNode) -> ConfigValue:
        shown = key if re.fullmatch(r"\w+", key) else f'"{key}"'
        return ConfigValue(self.document, node, f"{self.path}.{shown}" if self.path else shown)


class Parser(Protocol[V_co]):
    """Makes the value at a place into one of ours, or raises `InvalidValue`."""

    def __call__(self, place: ConfigValue, /) -> V_co:
        """The value."""
        ...


class _Problems:
    """What went wrong in one container; raised together when all of it has been read."""

    def __init__(self, place: ConfigValue) -> None:
        self._found: list[tuple[int, str]] = []
        members = place.members() if place.node.repeated else {}
        for key, line in place.node.repeated:
            first = members[key]
            with self.noted():
                raise first.wrong(f"duplicate key, first on line {first.node.line}", line)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Keep what goes wrong inside, and go on."""
        try:
            yield
        except InvalidValue as wrong:
            self._found.extend(wrong.problems)

    def settle(self) -> None:
        """Raise what was kept, if anything."""
        if self._found:
            raise InvalidValue(*self._found)


def each(kind: Parser[T]) -> Parser[tuple[T, ...]]:
    """A list of one kind."""

    def read(place: ConfigValue) -> tuple[T, ...]:
        problems, values = _Problems(place), list[T]()
        for item in place.items():
            with problems.noted():
                values.append(kind(item))
        problems.settle()
        return tuple(values)

    return read


def by_name(
    name: Callable[[ConfigValue, str], str], kind: Callable[[ConfigValue, str], T]
) -> Parser[dict[str, T]]:
    """A mapping whose keys are names of the operator's; `name` makes one canonical."""

    def read(place: ConfigValue) -> dict[str, T]:
        problems, values = _Problems(place), dict[str, T]()
        for key, member in place.members().items():
            canonical = ""
            with problems.noted():
                canonical = name(member, key)
                if canonical in values:
                    raise member.wrong(f"another key means {canonical} as well")
            with problems.noted():
                values[canonical] = kind(member, canonical)
        problems.settle()
        return values

    return read


Keys = Mapping[str, tuple[str, Parser[Any]]]
"""The keys of a mapping: for each, the attribute it becomes and its kind."""


def attributes(place: ConfigValue, keys: Keys, required: tuple[str, ...] = ()) -> dict[str, Any]:
    """The attributes that the keys of a mapping give; what is not written is not there."""
    problems, values = _Problems(place), dict[str, Any]()
    members = place.members()
    for key in required:
        if key not in members:
            with problems.noted():
                raise place.wrong(f"the key {key} is missing")
    for written, member in members.items():
        key = _known_as(written, place, keys)
        with problems.noted(), _ignored_in_original(place.document):
            if key not in keys:
                raise member.unknown(f"unknown key; the nearest known one is {_nearest(key, keys)}")
            attribute, kind = keys[key]
            if attribute in values:
                twins = [name for name in keys if keys[name][0] == attribute and name != key]
                raise member.wrong(f"cannot stand beside {', '.join(twins)}")
            values[attribute] = kind(member)
    problems.settle()
    return values


def made(cls: Callable[..., T], keys: Keys, required: tuple[str, ...] = ()) -> Parser[T]:
    """A mapping that becomes one value of ours; keys without a default are `required`."""
    return lambda place: cls(**attributes(place, keys, required))


def _known_as(key: str, place: ConfigValue, keys: Keys) -> str:
    """Return the known key that `key` means.

    The original's JSON reader accepts a key in any case where none has the exact spelling.
    """
    if place.document.is_original and key not in keys:
        for known in keys:
            if known.lower() == key.lower() and known not in place.node.value:
                return known
    return key


@contextmanager
def _ignored_in_original(document: ConfigDocument) -> Iterator[None]:
    """Turn unknown keys inside into warnings, if the document has the original's form."""
    try:
        yield
    except UnknownKey as error:
        if not document.is_original:
            raise
        document.warnings.extend(f"{text}; it is ignored" for _, text in error.problems)


def _nearest(key: str, known: Iterable[str]) -> str:
    lower = {name.lower(): name for name in known}
    [nearest] = difflib.get_close_matches(key.lower(), lower, 1, 0.0)
    return lower[nearest]
