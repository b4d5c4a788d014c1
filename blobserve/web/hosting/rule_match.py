"""The files with hosting rules, and the effect of a redirect rule. Pure."""

from __future__ import annotations

import attrs

RULE_FILES = (b"_redirects", b"_headers")
"""The files at the root of a site that hold its rules. They are never served."""


@attrs.frozen
class RuleMatch:
    """The effect of a rule on a request.

    With a redirect status, `location` is the value of ``Location``: a URL, or a path below the
    site that begins with one slash. With 200 it is the path of the file to serve, and with 404 the
    path of the page to send; both are encoded and have no query. `is_forced` says that the rule
    wins over an existing file, as all rules of Cloudflare do.
    """

    status: int
    location: bytes
    is_forced: bool
