"""The validators and cache directives of responses.

Pure. A URL with a digest, or with a tag that is configured as immutable, always names the same
bytes. Such responses may be cached for ever if the bytes come from the image unchanged.
"""

from __future__ import annotations

import fnmatch
from base64 import urlsafe_b64encode
from email.utils import formatdate
from functools import lru_cache

from blobserve.config import RepositoryRules
from blobserve.names.digest import Digest
from blobserve.web.http.media_types import is_html
from blobserve.web.http.response import Header
from blobserve.web.http.target import Target

NO_SNIFF: Header = (b"X-Content-Type-Options", b"nosniff")
INLINE_VARIABLES = b"X-BlobServe-InlineVars"

_IMMUTABLE = b"public, max-age=31536000, immutable"


def entity_tag(sha256: bytes) -> bytes:
    """Return the strong ``ETag`` of bytes with this hash, the same on every replica."""
    return b'"' + urlsafe_b64encode(sha256).rstrip(b"=") + b'"'


def vary(*names: bytes) -> Header:
    """Return a ``Vary`` field with these request fields."""
    return (b"Vary", b", ".join(names))


def content_location(target: Target, rules: RepositoryRules, image: Digest) -> tuple[Header, ...]:
    """Return the Content-Location field: the same URL with the digest `image`.

    Empty if the rules do not ask for it, if the URL already has a digest, or if no URL with a
    digest leads to the file.
    """
    if not rules.content_location or not target.is_named or target.reference.digest is not None:
        return ()
    return ((b"Content-Location", target.with_digest(image)),)


def http_date(seconds: int) -> bytes:
    """Return an IMF-fixdate, RFC 9110 §5.6.7; `seconds` are since the epoch."""
    return formatdate(seconds, usegmt=True).encode()


def is_fixed(target: Target, rules: RepositoryRules) -> bool:
    """Return whether URLs with the reference of `target` always name the same bytes."""
    reference = target.reference
    if not target.is_named:
        return False
    if reference.digest is not None:
        return True
    return reference.tag is not None and rules.is_immutable_tag(reference.tag)


def is_immutable_path(path: bytes, rules: RepositoryRules) -> bool:
    """Return whether `path`, as in the URL, matches one of the rules' ``immutablePaths``."""
    if not rules.immutable_paths:
        return False
    text = path.decode("utf-8", "backslashreplace")
    return any(fnmatch.fnmatchcase(text, glob) for glob in rules.immutable_paths)


def cache_control(content_type: bytes, is_immutable: bool, rules: RepositoryRules) -> bytes:
    """Return the ``Cache-Control`` of a file that depends on no header field of the request."""
    if is_immutable:
        return _IMMUTABLE
    if is_html(content_type):
        return b"no-cache"
    return _with_max_age(int(rules.tag_max_age))


@lru_cache(64)
def _with_max_age(seconds: int) -> bytes:
    return b"public, max-age=%d, stale-while-revalidate=%d" % (seconds, seconds)
