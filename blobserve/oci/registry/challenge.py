"""Challenges: what a registry's 401 asks for.

Pure. Reads the values of WWW-Authenticate fields, RFC 9110 §11.6.1, as registries really write
them. Knows nothing of credentials, nor of where a realm may be.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import attrs

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(
    rf"""[\s,]* (?P<name>{_TOKEN}) [ \t]*=[ \t]*
    (?: "(?P<quoted>[^"\\]*(?:\\.[^"\\]*)*)" | (?P<plain>[^\s,"=][^\s,"]*) ) (?=[\s,]|$)""",
    re.VERBOSE,
)
# With its token68, where it has one: there `abc==` is no parameter.
_SCHEME = re.compile(
    rf"""[\s,]* (?P<scheme>{_TOKEN}) (?=[\s,]|$)
    (?: [ ]+ [0-9A-Za-z._~+/-]+=* (?=[ \t]*(?:,|$)) )?""",
    re.VERBOSE,
)
_URL = re.compile(r"[!-~]+")


@attrs.frozen
class Basic:
    """User and password are asked for: RFC 7617."""


@attrs.frozen
class Bearer:
    """A token is asked for, which `realm` gives out: RFC 6750 §3.

    `realm` is a URL, absolute or relative to the request. `scope` may hold several, parted by
    spaces. Whatever the registry left out is empty.
    """

    realm: str
    service: str = ""
    scope: str = ""
    error: str = ""


def parse(values: Sequence[str]) -> Bearer | Basic | None:
    """The best challenge that we can meet, of all fields of a response: Bearer, then Basic.

    None when there is none: a field that is malformed counts as absent, whole, and so does a
    Bearer challenge without a usable realm.
    """
    challenges = [challenge for value in values for challenge in _challenges(value)]
    for scheme, parameters in challenges:
        if scheme == "bearer" and _URL.fullmatch(parameters.get("realm", "")):
            known = ("realm", "service", "scope", "error")
            return Bearer(**{name: parameters.get(name, "") for name in known})
    return Basic() if any(scheme == "basic" for scheme, _ in challenges) else None


def _challenges(value: str) -> list[tuple[str, dict[str, str]]]:
    """The schemes of one field, each with its parameters, all names in lower case."""
    found: list[tuple[str, dict[str, str]]] = []
    try:
        for name, text in _items(value):
            if text is None:
                found.append((name, {}))
            elif not found or name in found[-1][1]:
                return []
            else:
                found[-1][1][name] = text
    except ValueError:
        return []
    return found


def _items(value: str) -> Iterator[tuple[str, str | None]]:
    """Every parameter with its value and every scheme with None, in order.

    :raises ValueError: at whatever is neither.
    """
    position, end = 0, len(value.rstrip(" \t,"))
    while position < end:
        if item := _PARAMETER.match(value, position):
            quoted = item["quoted"]
            text = item["plain"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            yield item["name"].lower(), text
        elif item := _SCHEME.match(value, position):
            yield item["scheme"].lower(), None
        else:
            raise ValueError("neither a parameter nor a scheme")
        position = item.end()
