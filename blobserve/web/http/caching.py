"""The header fields of what is served: validators and the policy for caches.

Pure. A URL fixes its bytes when it names a digest, or a tag that is promised never to move; that,
and whether the bytes are the image's own, decides how long they may be kept.
"""

from __future__ import annotations

import fnmatch
from base64 import urlsafe_b64encode
from email.utils import formatdate
from functools import lru_cache

from blobserve.config import RepositoryRules
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference
from blobserve.web.http.media_types import is_html
from blobserve.web.http.response import Header
from blobserve.web.http.target import Target

NO_SNIFF: Header = (b"X-Content-Type-Options", b"nosniff")
INLINE_VARIABLES = b"X-BlobServe-InlineVars"

_FOR_EVER = b"public, max-age=31536000, immutable"


def entity_tag(sha256: bytes) -> bytes:
    """The strong ``ETag`` of bytes with this hash: the same on every replica."""
    return b'"' + urlsafe_b64encode(sha256).rstrip(b"=") + b'"'


def vary(*names: bytes) -> Header:
    """The field that says which fields of a request decide what its URL shows."""
    return (b"Vary", b", ".join(names))


def content_location(location: Target, rules: RepositoryRules, image: Digest) -> tuple[Header, ...]:
    """Return the field that names a URL under a tag by `image`, where the rules ask for it."""
    if not rules.content_location or location.reference.digest is not None:
        return ()
    return ((b"Content-Location", location.with_digest(image)),)


def http_date(seconds: int) -> bytes:
    """An IMF-fixdate, RFC 9110 §5.6.7."""
    return formatdate(seconds, usegmt=True).encode()


def is_fixed(reference: Reference, rules: RepositoryRules) -> bool:
    """Whether URLs with this reference name the same bytes for ever."""
    if reference.digest is not None:
        return True
    return reference.tag is not None and rules.is_immutable_tag(reference.tag)


def is_immutable_path(path: bytes, rules: RepositoryRules) -> bool:
    """Whether a file at `path`, as in the URL, changes its name when it changes its content."""
    if not rules.immutable_paths:
        return False
    text = path.decode("utf-8", "backslashreplace")
    return any(fnmatch.fnmatchcase(text, glob) for glob in rules.immutable_paths)


def cache_control(content_type: bytes, is_immutable: bool, rules: RepositoryRules) -> bytes:
    """How long a file may be kept that depends on no header of the request."""
    if is_immutable:
        return _FOR_EVER
    if is_html(content_type):
        return b"no-cache"
    return _for_a_while(int(rules.tag_max_age))


@lru_cache(64)
def _for_a_while(seconds: int) -> bytes:
    return b"public, max-age=%d, stale-while-revalidate=%d" % (seconds, seconds)
