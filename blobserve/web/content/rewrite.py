"""Rewriting: a repository's ``replacements`` and inline variables, applied to files of an image.

The blob itself does not change. The cache key of a rewritten file contains all its replacements,
so repositories with different rules can share a layer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import attrs

from blobserve.config import InlineVariable, RepositoryRules
from blobserve.errors import BadRequest, RuleTooLarge
from blobserve.store.blobs.filesystem import Filesystem
from blobserve.store.index.entry import Entry
from blobserve.web.content.derived import DerivedContent
from blobserve.web.http.target import shown

INDEX = b"index.html"

Variables = Mapping[str, str]

_NAMED = re.compile(r"\$\{([^}]*)\}")
# The values come from a proxy, which may take them from untrusted clients. So they must not end an
# attribute, a string or a tag of the page, and must have no scheme other than http and https.
_VALUE = re.compile(
    r"https?://[A-Za-z0-9._~%!$&()*+,;=:@/?#\[\]-]+"
    r"|/(?!/)[A-Za-z0-9._~%!$&()*+,;=:@/?#-]*"
    r"|[A-Za-z0-9._~%!*+,=@-]*"
)


@attrs.frozen
class Edit:
    """The replacement of every `search` by `replacement`; `rule` is its configuration key."""

    search: bytes
    replacement: bytes
    rule: str


def parse_variables(value: bytes) -> Variables:
    """Parse ``X-BlobServe-InlineVars``: a JSON object of names and harmless values.

    :raises BadRequest: if it is malformed or has a value that is not allowed.
    """
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
    """Return whether inline variables apply to this entry, found under `name`."""
    return INDEX in (name.rpartition(b"/")[2], entry.path.rpartition(b"/")[2])


def edits_for(
    name: bytes, entry: Entry, rules: RepositoryRules, variables: Variables | None
) -> Edits:
    """Return the edits of an entry, in order; `name` is its path from the image's root."""
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


@attrs.frozen
class RewriteRecipe:
    """The rewriting of a file by `edits`. See `Recipe`.

    `make` raises `RuleTooLarge` if the file is larger than `limit` bytes, before or after an edit.
    """

    edits: Edits
    limit: int

    @property
    def size(self) -> int:
        """See `Recipe.size`."""
        return sum(len(edit.search) + len(edit.replacement) for edit in self.edits)

    def fetched(self, entry: Entry) -> int:
        """See `Recipe.fetched`."""
        self._check(entry, entry.size, self.edits[0])
        return entry.size

    def make(self, filesystem: Filesystem, entry: Entry, content: bytes) -> DerivedContent:
        """See `Recipe.make`."""
        self._check(entry, entry.size, self.edits[0])
        for edit in self.edits:
            growth = len(edit.replacement) - len(edit.search)
            # Checked before the replacement, which could make a page a thousand times larger.
            self._check(entry, len(content) + content.count(edit.search) * growth, edit)
            content = content.replace(edit.search, edit.replacement)
        return DerivedContent.of(content)

    def _check(self, entry: Entry, size: int, edit: Edit) -> None:
        if size > self.limit:
            raise RuleTooLarge(shown(entry.path), edit.rule, self.limit)
