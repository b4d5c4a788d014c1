"""A search for a few names in the text of a table of contents, without parsing the rest.

For each name it finds the entry, the entries of the directories above, and those of possible coded
siblings. Writers put the name of an entry first, or after its type. A name in another position or
spelling is not found, and then the whole table must be read.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from blobserve.config import Limits
from blobserve.errors import BadToc
from blobserve.oci.strict_json import DECODER
from blobserve.store.lazy.toc.entries import TocEntries
from blobserve.store.lazy.toc.json_stream import NEXT
from blobserve.store.lazy.toc.location import TocLocation
from blobserve.store.lazy.toc.stream import TocText

LARGEST = 8 << 20
"""Bytes of the largest table that is searched."""

_MOST = 10_000  # Entries that a search may find.
_TYPE = r'(?:\s*"type"\s*:\s*"[a-z]+"\s*,)?'
_ENDING = r"(?:\.\w{1,4})?"


class TocSearch:
    """The entries of a few files in a table.

    See `blobserve.store.lazy.toc.index_builder.EntrySource`.
    """

    def __init__(
        self, place: TocLocation, packed: bytes, names: Collection[bytes], limits: Limits
    ) -> None:
        """`packed` is the compressed table; `names` are canonical paths.

        :raises BadToc: when the table does not match the manifest, or is too large.
        """
        self.contents = TocEntries(limits, place.end)
        self._text = _text(place, packed, limits)
        self._wanted = _pattern(names)

    def read(self) -> bool:
        """See `EntrySource.read`."""
        text, contents, following = self._text, self.contents, 0
        for count, found in enumerate(self._wanted.finditer(text)):
            if count == _MOST:
                raise BadToc("it has too many entries for a few files")
            entry, end = _entry(text, found.start())
            contents.take(entry)
            after = NEXT.match(text, end)
            following = after.end() if after else 0
            if following and not self._wanted.match(text, following):
                # The next entry has the end of this one's chunk.
                contents.skip(_entry(text, following)[0])
        contents.finish()
        contents.records.finish(contents.records.end)
        return False


def _text(place: TocLocation, packed: bytes, limits: Limits) -> str:
    pieces, size = [], 0
    for piece in TocText(place, packed, limits).pieces():
        size += len(piece)
        if size > LARGEST:
            raise BadToc("it is too large to be searched")
        pieces.append(piece)
    try:
        return b"".join(pieces).decode()
    except UnicodeDecodeError as error:
        raise BadToc("it is not UTF-8") from error


def _pattern(names: Collection[bytes]) -> re.Pattern[str]:
    above, wanted = set(), set()
    for name in (each.decode("utf-8", "replace") for each in names):
        wanted.add(re.escape(name) + _ENDING)
        parts = name.split("/")
        above |= {re.escape("/".join(parts[:n])) for n in range(1, len(parts))}
    alternatives = "|".join([*sorted(wanted), *sorted(above)])
    return re.compile(rf'\{{{_TYPE}\s*"name"\s*:\s*"(?:\./|/)?(?:{alternatives})/?"')


def _entry(text: str, at: int) -> tuple[dict[str, object], int]:
    try:
        entry, end = DECODER.raw_decode(text, at)
    except (ValueError, RecursionError) as error:
        raise BadToc("an entry is not JSON") from error
    return entry, end
