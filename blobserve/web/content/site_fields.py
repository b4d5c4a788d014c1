"""The header fields that sites add to their responses."""

from __future__ import annotations

import attrs

from blobserve.web.http.header_changes import HeaderChanges
from blobserve.web.http.mount import Mount
from blobserve.web.http.response import Answer, Header

_NO_INDEX: Header = (b"X-Robots-Tag", b"noindex")


def dressed(answer: Answer, changes: HeaderChanges | None, mount: Mount) -> Answer:
    """Return the answer with the changes of the site's ``_headers``, and the mark of a preview."""
    headers = answer.headers
    if changes is not None:
        headers = changes.apply(headers, answer.status)
    if mount.is_preview and all(name.lower() != b"x-robots-tag" for name, _ in headers):
        headers = (*headers, _NO_INDEX)
    return answer if headers is answer.headers else attrs.evolve(answer, headers=headers)
