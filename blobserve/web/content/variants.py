"""Variants: which bytes of a file a request gets, by the content codings that it accepts.

Coded are the siblings that an image brings with it, once they were found to decode to the file, and
what is made of text-like files here. The first requests for a coding get the file as it is, rather
than wait. A range is a part of the file as it is, unless the request says which coding it has the
rest of.
"""

from __future__ import annotations

import attrs

from blobserve.errors import PathNotFound
from blobserve.store.disk.codings_file import NoCoding
from blobserve.store.index.entry import Entry, EntryKind
from blobserve.store.lease import Lease
from blobserve.store.space.coding_queue import LARGEST, SMALLEST
from blobserve.web.content.representation import Role, Variant
from blobserve.web.content.selection import Selection
from blobserve.web.http.accept_encoding import CODINGS, accepted
from blobserve.web.http.caching import entity_tag
from blobserve.web.http.conditional import Fields
from blobserve.web.http.media_types import is_compressible

_SIBLINGS = {b"br": b".br", b"zstd": b".zst", b"gzip": b".gz"}


@attrs.frozen
class Choice:
    """A variant, and the entry whose bytes it is."""

    entry: Entry
    variant: Variant
    is_final: bool = True
    """Whether a later request would get the same: no better one is being made."""


def choose(lease: Lease, selection: Selection, fields: Fields) -> Choice:
    """Which variant of an entry, not rewritten, a request gets."""
    own = selection.page.entry
    siblings = _siblings(lease, selection)
    offered = tuple(each for each in CODINGS if each in siblings or _is_made(each, selection))
    if not offered:
        return Choice(own, Variant(own.size, entity_tag(own.sha256)))
    is_range, condition = b"range" in fields, fields.get(b"if-range")
    is_final = True
    for coding in () if is_range and condition is None else accepted(fields, offered):
        found: Entry | NoCoding | None = siblings.get(coding)
        if found is None and coding in siblings:
            is_final = False
        if found is None and _is_made(coding, selection):
            found = lease.coded(own, coding, is_wanted=is_final and not is_range)
            is_final = is_final and found is not NoCoding.PENDING
        if not isinstance(found, Entry):
            continue
        tag = entity_tag(found.sha256)
        if not is_range or tag == condition:
            return Choice(found, Variant(found.size, tag, coding, True), is_final)
    return Choice(own, Variant(own.size, entity_tag(own.sha256), None, True), is_final)


def _is_made(coding: bytes, selection: Selection) -> bool:
    """Whether a coding of the entry that is selected is made here."""
    return (
        coding.decode() in selection.rules.codings
        and SMALLEST <= selection.page.entry.size <= LARGEST
        and is_compressible(selection.kind)
        and selection.page.role is not Role.NOT_FOUND
    )


def _siblings(lease: Lease, selection: Selection) -> dict[bytes, Entry | None]:
    """Return what the image brings in each coding; None while a file is not known to be right."""
    if not selection.rules.precompressed or selection.page.role is Role.NOT_FOUND:
        return {}
    siblings: dict[bytes, Entry | None] = {}
    for coding, ending in _SIBLINGS.items():
        try:
            entry = lease.filesystem.lookup(selection.page.name + ending)
        except PathNotFound:
            continue
        if entry.kind is not EntryKind.FILE:
            continue
        is_right = lease.is_coding(entry, coding, selection.page.entry)
        if is_right is not False:
            siblings[coding] = entry if is_right else None
    return siblings
