"""The choice among a file's variants, by the content codings that a request accepts.

A coded variant is either a sibling file in the image, such as ``app.js.br``, or made by blobserve
in the background. Siblings are used after they were decoded and compared with the file. Until a
variant is available, requests get the uncoded file and do not wait. A range refers to the uncoded
file, unless If-Range names the entity tag of a coded variant.
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
    """A variant, and the entry with its bytes."""

    entry: Entry
    variant: Variant
    is_final: bool = True
    """False while a better variant is being made or checked."""


def choose(lease: Lease, selection: Selection, fields: Fields) -> Choice:
    """Return the variant of a file that is not rewritten."""
    own = selection.page.entry
    if (coding := selection.coding) is not None:
        return Choice(own, Variant(own.size, entity_tag(own.sha256), coding))
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
    """Return whether blobserve itself makes this coding of the selected file."""
    return (
        coding.decode() in selection.rules.codings
        and SMALLEST <= selection.page.entry.size <= LARGEST
        and is_compressible(selection.kind)
        and selection.page.role is not Role.NOT_FOUND
    )


def _siblings(lease: Lease, selection: Selection) -> dict[bytes, Entry | None]:
    """Return the coded sibling for each coding; None while a sibling is being checked."""
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
