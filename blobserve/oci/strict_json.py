"""JSON of which every reader makes the same: RFC 8259 §4, §6, §8.1.

Pure. Whoever checks a document and whoever uses it must not be able to disagree, so a member that
stands twice, NaN, an integer beyond 63 bits or text that is not UTF-8 is no JSON here.
"""

from __future__ import annotations

import json
from typing import NoReturn

_LONGEST_INTEGER = len(str(-(1 << 63)))


def parse_object(content: bytes) -> dict[str, object]:
    """Read a JSON object.

    Takes linear time. Depth is bounded by the interpreter, which gives up long before the stack.

    :raises ValueError: for anything else; its text quotes nothing of `content`.
    """
    document = _decoded(content)
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    return document


def parse_list(content: bytes) -> list[object]:
    """Read a JSON array. See `parse_object`.

    :raises ValueError: for anything else.
    """
    document = _decoded(content)
    if not isinstance(document, list):
        raise ValueError("it is no JSON array")
    return document


def _decoded(content: bytes) -> object:
    try:
        return DECODER.decode(content.decode("utf-8"))
    except (ValueError, RecursionError):
        # Not chained: the decoder's own error carries the whole text, which may be a secret.
        raise ValueError("it is not strict JSON") from None


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member twice")
    return members


def _integer(text: str) -> int:
    # Measured before converting: int() takes quadratic time up to Python 3.10.
    if len(text) > _LONGEST_INTEGER or abs(number := int(text)) >= 1 << 63:
        raise ValueError("an integer beyond 63 bits")
    return number


def _no_constant(name: str) -> NoReturn:
    raise ValueError("NaN or Infinity")


DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_constant=_no_constant
)
"""For documents that are read part by part; raises ValueError, and RecursionError."""
