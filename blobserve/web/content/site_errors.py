"""Error responses of sites.

Visitors of a site see its host and nothing of the registry behind it: no reference, and no text of
an error. The log has both. Navigations get a page, other requests a short text.
"""

from __future__ import annotations

import attrs

from blobserve.errors import PullTimeout, QueueFull
from blobserve.web.content.site_fields import site_name
from blobserve.web.hosting.pages import HEADERS, error_page, error_text, preparing_page
from blobserve.web.http.request_head import RequestHead
from blobserve.web.http.response import Answer, BytesBody
from blobserve.web.http.status import UNAVAILABLE_TEXT, refusal


def refusal_on_site(error: Exception, request_id: str, head: RequestHead) -> Answer:
    """Return the answer to a request to a site that failed with `error`."""
    answer = refusal(error, request_id, head.is_navigation)
    shown_id = request_id if answer.status >= 500 and answer.status != 503 else None
    if not head.is_navigation:
        text = UNAVAILABLE_TEXT.encode()
        if answer.status != 503:
            text = error_text(answer.status, shown_id)
        return attrs.evolve(answer, body=BytesBody(text))
    if isinstance(error, PullTimeout | QueueFull):
        page = preparing_page(site_name(head))
    else:
        page = error_page(answer.status, site_name(head), head.root, shown_id)
    names = {name for name, _ in HEADERS}
    headers = (*HEADERS, *(each for each in answer.headers if each[0] not in names))
    return attrs.evolve(answer, headers=headers, body=BytesBody(page))
