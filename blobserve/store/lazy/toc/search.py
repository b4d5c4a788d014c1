"""A few entries of a table of contents, picked out of its text: the rest is not read.

Of each name that is looked for there are its entry, those of the directories it is in, and those
that may be the same file in a content coding. Writers put the name of an entry first, or behind its
type: where one did not, or wrote it in another spelling, nothing is found, and the table must be
read whole. Pure.
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
"""Bytes of a table that is searched; a larger one is read piece by piece only."""

_MOST = 10_000  # Entries that are picked.
_TYPE = r'(?:\s*"type"\s*:\s*"[a-z]+"\s*,)?'
_ENDING = r"(?:\.\w{1,4})?"


class TocSearch:
    """What a table says of a few files.

    See `blobserve.store.lazy.toc.index_builder.EntrySource`.
    """

    def __init__(
        self, place: TocLocation, packed: bytes, names: Collection[bytes], limits: Limits
    ) -> None:
        """`packed`: the compressed table; `names`: canonical paths.

        :raises BadTable: when it is not what the manifest says, or too large.
        """
        self.contents = TocEntries(limits, place.end)
        self._text = _text(place, packed, limits)
        self._wanted = _pattern(names)

    def read(self) -> bool:
        """See `Source.read`."""
        text, contents, following = self._text, self.contents, 0
        for count, found in enumerate(self._wanted.finditer(text)):
            if count == _MOST:
                raise BadToc("it says too much of a few files")
            entry, end = _entry(text, found.start())
            contents.take(entry)
            after = NEXT.match(text, end)
            following = after.end() if after else 0
            if following and not self._wanted.match(text, following):
                # Where a chunk ends is said by the next.
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
        raise BadToc("an entry is no JSON") from error
    return entry, end
