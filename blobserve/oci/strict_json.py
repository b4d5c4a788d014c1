"""Strict JSON, which all readers understand alike: RFC 8259 §4, §6, §8.1.

Pure. It refuses duplicate members, NaN, integers beyond 63 bits and text that is not UTF-8.
"""

from __future__ import annotations

import json
from typing import NoReturn

_LONGEST_INTEGER = len(str(-(1 << 63)))


def parse_object(content: bytes) -> dict[str, object]:
    """Read a JSON object.

    Takes linear time. The interpreter limits the depth, long before the stack overflows.

    :raises ValueError: for anything else; its text quotes nothing of `content`.
    """
    document = _decoded(content)
    if not isinstance(document, dict):
        raise ValueError("it is not a JSON object")
    return document


def parse_list(content: bytes) -> list[object]:
    """Read a JSON array. See `parse_object`.

    :raises ValueError: for anything else.
    """
    document = _decoded(content)
    if not isinstance(document, list):
        raise ValueError("it is not a JSON array")
    return document


def _decoded(content: bytes) -> object:
    try:
        return DECODER.decode(content.decode("utf-8"))
    except (ValueError, RecursionError):
        # Not chained: the error of the decoder has the whole text, which may be secret.
        raise ValueError("it is not strict JSON") from None


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a duplicate member")
    return members


def _integer(text: str) -> int:
    # The length is checked first: int() takes quadratic time up to Python 3.10.
    if len(text) > _LONGEST_INTEGER or abs(number := int(text)) >= 1 << 63:
        raise ValueError("an integer beyond 63 bits")
    return number


def _no_constant(name: str) -> NoReturn:
    raise ValueError("NaN or Infinity")


DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_constant=_no_constant
)
"""A decoder for documents that are read in parts; raises ValueError or RecursionError."""
