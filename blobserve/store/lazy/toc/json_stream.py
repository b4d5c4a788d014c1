"""A strict parser for the JSON of tables of contents, piece by piece.

A table has an object for every file of a layer, so it is never in memory as a whole. Input that two
readers might understand differently is refused.
"""

from __future__ import annotations

import codecs
import re

from blobserve.errors import BadToc
from blobserve.oci.strict_json import DECODER, parse_object

_LARGEST = 1 << 20
"""Characters of an entry, or of the text around all entries."""

_S = r"[ \t\n\r]*"
_SIMPLE = rf'{_S}"\w+"{_S}:{_S}(?:[0-9]+|"[^"\\]*")'
_HEAD = re.compile(rf'{_S}\{{(?:{_SIMPLE}{_S},)*{_S}"entries"{_S}:{_S}\[{_S}', re.ASCII)
_TAIL = re.compile(rf"\](?:{_S},{_SIMPLE})*{_S}\}}{_S}", re.ASCII)
NEXT = re.compile(rf"{_S},{_S}(?=\{{)")
"""The separator of two entries."""
_LAST = re.compile(rf"{_S}(?=\])")


class TocParser:
    """A parser of one table of contents. After an error it must not be used again.

    A table is an object of numbers and texts, with `version` 1, and one list of objects, `entries`.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._head = ""
        self._is_ended = False

    def feed(self, piece: bytes) -> list[dict[str, object]]:
        """Parse the next piece, of any size; return the entries that end in it.

        :raises BadToc: when the table is invalid.
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
            raise BadToc("it is not a table of contents, or has too large an entry")
        return entries

    def finish(self) -> None:
        """Check that the table is complete.

        :raises BadToc: when it is not, or is of another version.
        """
        if not self._is_ended or not _TAIL.fullmatch(self._text):
            raise BadToc("it is cut short, or not a table of contents")
        try:
            around = parse_object((self._head + self._text).encode())
        except ValueError as error:
            raise BadToc(str(error)) from error
        if around.get("version") != 1:
            raise BadToc("its version is not 1")

    def _begin(self) -> int:
        found = _HEAD.match(self._text)
        # A match at the end of the text may become longer with the next piece.
        if found is None or found.end() == len(self._text):
            return 0
        self._head = found[0]
        self._is_ended = self._text[found.end()] == "]"
        return found.end()

    def _entries(self, at: int) -> tuple[int, list[dict[str, object]]]:
        """Return the complete entries from `at` on, and the offset of the first incomplete one."""
        text = self._text
        entries: list[dict[str, object]] = []
        while True:
            try:
                entry, end = DECODER.raw_decode(text, at)
            except ValueError:
                # The entry is incomplete or invalid; the next piece shows which.
                return at, entries
            except RecursionError as error:
                raise BadToc("an entry is nested too deep") from error
            following = NEXT.match(text, end) or _LAST.match(text, end)
            if following is None:
                return at, entries
            if type(entry) is not dict:
                raise BadToc("an entry is not an object")
            entries.append(entry)
            at = following.end()
            if text[at] == "]":
                self._is_ended = True
                return at, entries
