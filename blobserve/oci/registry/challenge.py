"""Challenges in the 401 of a registry.

Pure. Reads WWW-Authenticate fields, RFC 9110 §11.6.1, in the forms that registries write.
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
# Includes a token68, if there is one, so that `abc==` is not read as a parameter.
_SCHEME = re.compile(
    rf"""[\s,]* (?P<scheme>{_TOKEN}) (?=[\s,]|$)
    (?: [ ]+ [0-9A-Za-z._~+/-]+=* (?=[ \t]*(?:,|$)) )?""",
    re.VERBOSE,
)
_URL = re.compile(r"[!-~]+")


@attrs.frozen
class Basic:
    """A challenge for user and password: RFC 7617."""


@attrs.frozen
class Bearer:
    """A challenge for a token from `realm`: RFC 6750 §3.

    `realm` is a URL, absolute or relative to the request. `scope` may have several scopes, with
    spaces between them. Missing parameters are empty.
    """

    realm: str
    service: str = ""
    scope: str = ""
    error: str = ""


def parse(values: Sequence[str]) -> Bearer | Basic | None:
    """Return the best challenge in all fields of a response, Bearer before Basic; None if none.

    A malformed field is ignored as a whole. So is a Bearer challenge without a valid realm.
    """
    challenges = [challenge for value in values for challenge in _challenges(value)]
    for scheme, parameters in challenges:
        if scheme == "bearer" and _URL.fullmatch(parameters.get("realm", "")):
            known = ("realm", "service", "scope", "error")
            return Bearer(**{name: parameters.get(name, "") for name in known})
    return Basic() if any(scheme == "basic" for scheme, _ in challenges) else None


def _challenges(value: str) -> list[tuple[str, dict[str, str]]]:
    """Return the schemes of one field with their parameters; names are in lower case."""
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
    """Yield each parameter with its value and each scheme with None, in order.

    :raises ValueError: at other text.
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
