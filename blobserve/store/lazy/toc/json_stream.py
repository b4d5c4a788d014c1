"""Tables of contents as JSON, piece by piece: the entries come out as they come in.

A table has an object for every file of a layer, so it is never held whole. Strict: of what two
readers might understand differently there is none here. Pure; knows nothing of what entries mean.
"""

from __future__ import annotations

import codecs
import re

from blobserve.errors import BadToc
from blobserve.oci.strict_json import DECODER, parse_object

_LARGEST = 1 << 20
"""Characters of an entry, or of what stands around all of them."""

_S = r"[ \t\n\r]*"
_SIMPLE = rf'{_S}"\w+"{_S}:{_S}(?:[0-9]+|"[^"\\]*")'
_HEAD = re.compile(rf'{_S}\{{(?:{_SIMPLE}{_S},)*{_S}"entries"{_S}:{_S}\[{_S}', re.ASCII)
_TAIL = re.compile(rf"\](?:{_S},{_SIMPLE})*{_S}\}}{_S}", re.ASCII)
NEXT = re.compile(rf"{_S},{_S}(?=\{{)")
"""What stands between two entries."""
_LAST = re.compile(rf"{_S}(?=\])")


class TocParser:
    """One table of contents, fed in pieces of any size. After an error it must not be used again.

    It is an object of plain numbers and texts, `version` 1 among them, and one list of objects.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._head = ""
        self._is_ended = False

    def feed(self, piece: bytes) -> list[dict[str, object]]:
        """Read on, and return the entries that end within this piece.

        :raises BadTable: when it is no such table.
        """
        try:
            self._text += self._decoder.decode(piece)
        except UnicodeDecodeError as error:
            raise BadToc("it is not UTF-8") from error
        at = 0
        entries: list[dict[str, object]] = []
        if not self._head:
            at = self._begin()
        if self._head and not self._is_ended:
            at, entries = self._entries(at)
        self._text = self._text[at:]
        if len(self._text) > _LARGEST:
            raise BadToc("it is no table of contents, or has an entry that is too large")
        return entries

    def finish(self) -> None:
        """Say that it is complete.

        :raises BadTable: when it is not, or of another version.
        """
        if not self._is_ended or not _TAIL.fullmatch(self._text):
            raise BadToc("it is cut short, or no table of contents")
        try:
            around = parse_object((self._head + self._text).encode())
        except ValueError as error:
            raise BadToc(str(error)) from error
        if around.get("version") != 1:
            raise BadToc("it is of another version than 1")

    def _begin(self) -> int:
        found = _HEAD.match(self._text)
        # What is not followed by anything may be the beginning of more of the same.
        if found is None or found.end() == len(self._text):
            return 0
        self._head = found[0]
        self._is_ended = self._text[found.end()] == "]"
        return found.end()

    def _entries(self, at: int) -> tuple[int, list[dict[str, object]]]:
        """The whole entries from `at` on, and where the first that is not whole begins."""
        text = self._text
        entries: list[dict[str, object]] = []
        while True:
            try:
                entry, end = DECODER.raw_decode(text, at)
            except ValueError:
                # Cut off, or no JSON: which of the two shows when there is more of it.
                return at, entries
            except RecursionError as error:
                raise BadToc("an entry is nested too deep") from error
            following = NEXT.match(text, end) or _LAST.match(text, end)
            if following is None:
                return at, entries
            if type(entry) is not dict:
                raise BadToc("an entry is no object")
            entries.append(entry)
            at = following.end()
            if text[at] == "]":
                self._is_ended = True
                return at, entries
