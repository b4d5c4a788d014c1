"""Configuration text as a tree with line numbers: YAML with scalars of YAML 1.2, and strict JSON.

YAML 1.1 reads ``no`` as a boolean, and loses the text of a tag such as ``1.10``. So scalars follow
the core schema of YAML 1.2 §10.3.2, dates are a kind of their own, and each node keeps its text.
"""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import attrs
import yaml

T = TypeVar("T")
Kind = Literal["text", "number", "boolean", "date", "nothing", "list", "mapping"]


@attrs.frozen
class SyntaxNode:
    """One value: its kind, its Python value, its text and its line.

    The line of a mapping's value is that of its key. A tree made from Python values has no lines.
    """

    kind: Kind
    value: Any
    line: int | None = None
    text: str = ""
    repeated: tuple[tuple[str, int], ...] = ()
    """The duplicate keys of a mapping, each with its line; the first occurrence counts."""


class Unreadable(Exception):
    """Text that cannot be parsed, with the line of the fault."""

    def __init__(self, line: int | None, problem: str) -> None:
        super().__init__(line, problem)
        self.line = line
        self.problem = problem


def from_yaml(text: str) -> SyntaxNode:
    """Read one YAML document.

    :raises Unreadable: for text that is not YAML, and for tags of other languages.
    """
    try:
        root = yaml.compose(text, Loader=_CoreSchema)
        return _NOTHING if root is None else _from_yaml_node(root, root.start_mark.line + 1)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(filter(None, (error.context, error.problem)))
        if "'\\t'" in problem:
            problem = "a tab; indent with spaces"
        if error.context == "while scanning an alias":
            problem = 'a * at the beginning; quote the text, as in "*.example.com"'
        raise Unreadable(mark.line + 1 if mark else None, f"not YAML: {problem}") from error
    except (yaml.YAMLError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise Unreadable(None, f"not YAML: {problem}") from error


def from_json(text: str) -> SyntaxNode:
    """Read one JSON document (RFC 8259).

    :raises Unreadable: for anything else.
    """
    reader = _JsonReader(text)
    try:
        root = reader.value()
        reader.end()
    except json.JSONDecodeError as error:
        raise Unreadable(error.lineno, f"not JSON: {error.msg}") from error
    except RecursionError as error:
        raise Unreadable(None, "not JSON: nested too deeply") from error
    return root


def from_python(value: object) -> SyntaxNode:
    """Convert the mapping of an embedding application; paths become text."""
    if isinstance(value, Mapping):
        return SyntaxNode("mapping", {str(key): from_python(each) for key, each in value.items()})
    if isinstance(value, os.PathLike):
        return SyntaxNode("text", os.fspath(value))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return SyntaxNode("list", [from_python(each) for each in value])
    return SyntaxNode(_kind_of(value), value, None, str(value))


def _kind_of(value: object) -> Kind:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    return "date" if isinstance(value, datetime.date) else "text"


_NOTHING = SyntaxNode("nothing", None)


class _CoreSchema(yaml.SafeLoader):
    """A loader with plain scalars of YAML 1.2; `yaml_implicit_resolvers` is filled below."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - the base class declares it so


_TAG = "tag:yaml.org,2002:"
for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)"
        r"|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("timestamp", r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt ].*)?", list("0123456789")),
):
    _CoreSchema.add_implicit_resolver(_TAG + _name, re.compile(f"(?:{_pattern})\\Z"), _first)

_KINDS: Mapping[str, Kind] = {
    "str": "text",
    "null": "nothing",
    "bool": "boolean",
    "int": "number",
    "float": "number",
    "timestamp": "date",
    "seq": "list",
    "map": "mapping",
}


def _from_yaml_node(node: yaml.Node, line: int) -> SyntaxNode:
    kind = _KINDS.get(node.tag.removeprefix(_TAG))
    if kind is None:
        raise Unreadable(node.start_mark.line + 1, f"the tag {node.tag} is not supported")
    if isinstance(node, yaml.SequenceNode):
        items = [_from_yaml_node(item, item.start_mark.line + 1) for item in node.value]
        return SyntaxNode("list", items, line)
    if isinstance(node, yaml.MappingNode):
        return _mapping((_yaml_member(key, value) for key, value in node.value), line)
    return SyntaxNode(kind, _scalar(kind, node.value), line, node.value)


def _yaml_member(key: yaml.Node, value: yaml.Node) -> tuple[str, SyntaxNode]:
    line = key.start_mark.line + 1
    if not isinstance(key, yaml.ScalarNode):
        raise Unreadable(line, "a key must be text")
    return key.value, _from_yaml_node(value, line)


def _mapping(members: Iterable[tuple[str, SyntaxNode]], line: int) -> SyntaxNode:
    mapping: dict[str, SyntaxNode] = {}
    repeated: list[tuple[str, int]] = []
    for key, node in members:
        if mapping.setdefault(key, node) is not node:
            repeated.append((key, node.line or line))
    return SyntaxNode("mapping", mapping, line, "", tuple(repeated))


def _scalar(kind: Kind, text: str) -> object:
    if kind == "boolean":
        return text.lower() == "true"
    if kind == "number":
        if text[:2] in ("0x", "0o"):
            return int(text, 0)
        # Python writes infinity and not-a-number without the dot.
        bare = text.lower().replace(".inf", "inf").replace(".nan", "nan")
        return int(text) if re.fullmatch(r"[-+]?[0-9]+", text) else float(bare)
    return None if kind == "nothing" else text


class _JsonReader:
    """A JSON parser that keeps line numbers; the library parses strings and numbers."""

    _SPACE = re.compile(r"[ \t\r\n]*")

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._scalars = json.JSONDecoder(parse_constant=self._refuse)

    def value(self) -> SyntaxNode:
        """Read one value, and the white space before it."""
        self._skip()
        line = self._line()
        if self._take("{"):
            return _mapping(self._each(self._member, "}"), line)
        if self._take("["):
            return SyntaxNode("list", list(self._each(self.value, "]")), line)
        begin = self._at
        value, self._at = self._scalars.raw_decode(self._text, begin)
        return SyntaxNode(_kind_of(value), value, line, self._text[begin : self._at])

    def end(self) -> None:
        """Check that no text follows."""
        self._skip()
        if self._at != len(self._text):
            raise self._wrong("unexpected text after the end")

    def _member(self) -> tuple[str, SyntaxNode]:
        self._skip()
        line = self._line()
        if not self._text.startswith('"', self._at):
            raise self._wrong('expected a key in ""')
        key, self._at = self._scalars.raw_decode(self._text, self._at)
        self._skip()
        if not self._take(":"):
            raise self._wrong("expected : after a key")
        return key, attrs.evolve(self.value(), line=line)

    def _each(self, read: Callable[[], T], bracket: str) -> Iterator[T]:
        """Yield the results of `read` up to the closing bracket."""
        self._skip()
        if self._take(bracket):
            return
        while True:
            yield read()
            self._skip()
            if self._take(bracket):
                return
            if not self._take(","):
                raise self._wrong(f"expected , or {bracket}")

    def _skip(self) -> None:
        found = self._SPACE.match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _take(self, character: str) -> bool:
        found = self._text.startswith(character, self._at)
        self._at += found
        return found

    def _line(self) -> int:
        return self._text.count("\n", 0, self._at) + 1

    def _refuse(self, constant: str) -> None:
        raise self._wrong(f"{constant} is not a JSON number")

    def _wrong(self, problem: str) -> json.JSONDecodeError:
        return json.JSONDecodeError(problem, self._text, self._at)
