"""The header fields that sites add to their responses."""

from __future__ import annotations

import attrs

from blobserve.web.hosting.host_table import host_of
from blobserve.web.http.header_changes import HeaderChanges
from blobserve.web.http.mount import Mount
from blobserve.web.http.request_head import RequestHead
from blobserve.web.http.response import Answer, Header

_POLICY = b"Content-Security-Policy"
_NO_INDEX: Header = (b"X-Robots-Tag", b"noindex")


def site_name(head: RequestHead) -> str:
    """Return the name of a site for its visitors: its host, or the host that was asked for."""
    return head.mount.host or host_of(head.asked_host or b"")


def dressed(answer: Answer, changes: HeaderChanges | None, mount: Mount) -> Answer:
    """Return the answer with the changes of the site's ``_headers``, and the mark of a preview."""
    headers = answer.headers
    if changes is not None:
        # Only pages of ours have a policy, and with another one they would lose their style.
        own = tuple(each for each in headers if each[0] == _POLICY)
        headers = changes.apply(headers, answer.status)
        if own:
            headers = (*(each for each in headers if each[0].lower() != _POLICY.lower()), *own)
    if mount.is_preview and all(name.lower() != b"x-robots-tag" for name, _ in headers):
        headers = (*headers, _NO_INDEX)
    return answer if headers is answer.headers else attrs.evolve(answer, headers=headers)
