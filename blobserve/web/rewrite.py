"""Rewriting: a repository's replacements and inline variables, as views on the files of an image.

The blob stays as it is. A view is keyed by the entry and by what is replaced in it, so repositories
that share a layer each see their own, and a changed rule is another view. Computed in threads,
kept in memory up to a bound, forgotten by last use.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import closing

import attrs

from blobserve.config import InlineVariable, RepositoryRules
from blobserve.errors import BadRequest, RuleTooLarge
from blobserve.oci.digest import Digest
from blobserve.store.flight import Flights
from blobserve.store.lease import Lease
from blobserve.store.tree import Entry, ImageFilesystem
from blobserve.web.headers import entity_tag
from blobserve.web.hold import Hold
from blobserve.web.paths import shown
from blobserve.web.representation import Variant

INDEX = b"index.html"
CAPACITY = 64 << 20
"""Bytes of views that are kept."""

_OVERHEAD = 512

Variables = Mapping[str, str]

_NAMED = re.compile(r"\$\{([^}]*)\}")
# Nothing that could end an attribute, a string or a tag of the page it is put into, and no scheme
# but http: the values come from a proxy, which may have them from anywhere.
_VALUE = re.compile(
    r"https?://[A-Za-z0-9._~%!$&()*+,;=:@/?#\[\]-]+"
    r"|/(?!/)[A-Za-z0-9._~%!$&()*+,;=:@/?#-]*"
    r"|[A-Za-z0-9._~%!*+,=@-]*"
)


@attrs.frozen
class Edit:
    """Replace every `search` by `replacement`; `rule` is the setting that says so."""

    search: bytes
    replacement: bytes
    rule: str


@attrs.frozen
class View:
    """An entry's bytes after its edits, and what names them."""

    content: bytes = attrs.field(repr=False)
    variant: Variant


def parse_variables(value: bytes | None) -> Variables | None:
    """Read ``X-BlobServe-InlineVars``: a JSON object of names and harmless values.

    :raises BadRequest: for anything else.
    """
    if value is None:
        return None
    try:
        variables = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadRequest("X-BlobServe-InlineVars is not JSON") from error
    if not isinstance(variables, dict):
        raise BadRequest("X-BlobServe-InlineVars is not a JSON object")
    for name, text in variables.items():
        if not isinstance(text, str) or not _VALUE.fullmatch(text):
            raise BadRequest(
                f"X-BlobServe-InlineVars: {name!r} is neither an http or https URL, "
                "nor an absolute path, nor a token of URL characters"
            )
    return variables


def is_index(name: bytes, entry: Entry) -> bool:
    """Whether inline variables concern this entry, found under this name."""
    return INDEX in (name.rpartition(b"/")[2], entry.path.rpartition(b"/")[2])


def edits_for(
    name: bytes, entry: Entry, rules: RepositoryRules, variables: Variables | None
) -> Edits:
    """What `rules` change in an entry found under `name`, both from the image's root, in order."""
    paths = (name, entry.path)
    edits = [
        Edit(each.search.encode(), each.replacement.encode(), "replacements")
        for each in rules.replacements
        if each.path.strip("/").encode() in paths
    ]
    if variables is not None and is_index(name, entry):
        edits += [_inlined(each, variables) for each in rules.inline_static]
    return tuple(edits)


def _inlined(rule: InlineVariable, variables: Variables) -> Edit:
    replacement = _NAMED.sub(lambda found: variables.get(found[1], found[0]), rule.replacement)
    return Edit(rule.search.encode(), replacement.encode(), "inlineStatic")


Edits = tuple[Edit, ...]
_Key = tuple[Digest, bytes, Edits, int]


class Views:
    """The views that are kept, and those being made."""

    def __init__(self) -> None:
        self._kept: OrderedDict[_Key, View] = OrderedDict()
        self.size = 0
        """Bytes that are kept; at most `CAPACITY`."""
        self._making: Flights[_Key, View] = Flights()

    async def view(self, hold: Hold, entry: Entry, edits: Edits, limit: int) -> View:
        """An entry as `edits` make it; made once, however many ask.

        :raises RuleTooLarge: when it is, or becomes, larger than `limit` bytes.
        """
        kept = self.kept(hold.lease, entry, edits, limit)
        if kept is not None:
            return kept
        if hold.lease.is_published:  # what is not verified as a whole is nothing to keep
            return await _fetched(hold, entry, edits, limit)
        key = _key(hold.lease, entry, edits, limit)
        making = self._making.get(key) or self._making.begin(
            key,
            lambda _: _made(hold, entry, edits, limit),
            lambda view: self._keep(key, view),
        )
        return await making.wait()

    def kept(self, lease: Lease, entry: Entry, edits: Edits, limit: int) -> View | None:
        """The same, if it has been made and is still kept."""
        key = _key(lease, entry, edits, limit)
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
        return kept

    def flush(self) -> None:
        """Forget all of them."""
        self._kept.clear()
        self.size = 0

    def _keep(self, key: _Key, view: View) -> None:
        self._kept[key] = view
        self.size += _cost(key, view)
        while self.size > CAPACITY:
            self.size -= _cost(*self._kept.popitem(last=False))


def _key(lease: Lease, entry: Entry, edits: Edits, limit: int) -> _Key:
    return (lease.filesystem.digest, entry.path, edits, limit)


def _cost(key: _Key, view: View) -> int:
    edits = sum(len(edit.search) + len(edit.replacement) for edit in key[2])
    return len(view.content) + edits + _OVERHEAD


async def _made(hold: Hold, entry: Entry, edits: Edits, limit: int) -> View:
    return await hold.run(_make, hold.lease.filesystem, entry, edits, limit)


def _make(filesystem: ImageFilesystem, entry: Entry, edits: Edits, limit: int) -> View:
    """Read and rewrite an entry; blocks."""
    _check(entry, entry.size, edits[0], limit)
    return _edited(filesystem.read(entry, 0, entry.size), entry, edits, limit)


async def _fetched(hold: Hold, entry: Entry, edits: Edits, limit: int) -> View:
    """The same of an entry that is not here yet."""
    _check(entry, entry.size, edits[0], limit)
    content = bytearray()
    if entry.size:
        with closing(hold.lease.reading(entry)) as reading:
            while len(content) < entry.size:
                content += await reading.read(len(content), entry.size - len(content))
    return await hold.run(_edited, bytes(content), entry, edits, limit)


def _edited(content: bytes, entry: Entry, edits: Edits, limit: int) -> View:
    for edit in edits:
        grown = len(edit.replacement) - len(edit.search)
        # Before it is done: a page of one letter could grow a thousandfold.
        _check(entry, len(content) + content.count(edit.search) * grown, edit, limit)
        content = content.replace(edit.search, edit.replacement)
    etag = entity_tag(hashlib.sha256(content).digest())
    return View(content, Variant(len(content), etag))


def _check(entry: Entry, size: int, edit: Edit, limit: int) -> None:
    if size > limit:
        raise RuleTooLarge(shown(entry.path), edit.rule, limit)
