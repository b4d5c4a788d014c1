"""Where a request points: from a request target's bytes to an image reference and a path in it.

Pure. Percent-encoding is decoded exactly once, before anything is split; what would climb is
refused, not resolved. Knows nothing of what an image holds.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv6Address
from urllib.parse import quote, unquote_to_bytes

import attrs

from blobserve.errors import BadRequest, MalformedReference, PathNotFound
from blobserve.names.digest import Digest
from blobserve.names.reference import Reference, split_path

URL_FORM = (
    "the path of a URL is /<registry>/<repository>:<tag>/<file>, or @<digest> in place of :<tag>"
)

WHOLE_SERVER = b"*"
"""The target of an OPTIONS request that is about the server and no file of it."""

_ABSOLUTE_FORM = re.compile(rb"https?://([^/?]+)(/[^?]*)?(\?.*)?", re.IGNORECASE)
_USER = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=:-]|%[0-9A-Fa-f]{2})*")
_HOST = re.compile(
    rb"(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*(?::[0-9]*)?|\[([0-9A-Fa-f:.]+)\](?::[0-9]*)?"
)
# All of RFC 3986 but '#': what a client escaped, or not, is repeated as it came.
_URL_CHARACTERS = "%/?:@!$&'()*+,;=-._~[]"


def origin_form(method: bytes, target: bytes) -> bytes:
    """Return a request target as path and query, or `WHOLE_SERVER`, RFC 9112 §3.2.

    :raises BadRequest: for a target that has no path.
    """
    if b"#" in target:
        raise BadRequest("a request target has no fragment")
    if target.startswith(b"/"):
        return target
    if target == WHOLE_SERVER and method == b"OPTIONS":
        return target
    absolute = _ABSOLUTE_FORM.fullmatch(target)
    if absolute is None or method == b"CONNECT":
        raise BadRequest("the request target is neither a path nor an http URL")
    authority, path, query = absolute.groups(b"")
    user, _, host = authority.rpartition(b"@")
    if _USER.fullmatch(user) is None or host[:1] in (b"", b":") or not is_host(host):
        raise BadRequest("the request target has no host that can be one")
    if method == b"OPTIONS" and not (path or query):
        return WHOLE_SERVER  # RFC 9112 §3.2.4
    return (path or b"/") + query


@lru_cache(64)  # The same few hosts are named again and again.
def is_host(value: bytes) -> bool:
    """Return whether this is a host and perhaps a port, RFC 9112 §3.2."""
    found = _HOST.fullmatch(value)
    if found is None or found[1] is None:
        return found is not None
    try:
        IPv6Address(found[1].decode())
    except ValueError:
        return False
    return True


@attrs.frozen
class Target:
    """An image and a path in it, as a URL names them. Made by `parse`."""

    raw: bytes
    """The URL's path as it was sent, without its leading slash."""
    reference: Reference
    path: bytes | None
    """Relative, without empty and ``.`` segments; with a slash at the end, or empty, where a
    directory was asked for. None when no slash follows the reference."""

    @classmethod
    def parse(cls, raw: bytes) -> Target:
        """Read the path of a URL, not decoded, without its leading slash.

        :raises MalformedReference: saying what is wrong or missing.
        :raises PathNotFound: for ``..`` segments and NUL.
        """
        decoded = unquote_to_bytes(raw)
        segments = decoded.split(b"/")
        if b".." in segments or b"\0" in decoded:
            raise PathNotFound(shown(decoded))
        kept = [segment for segment in segments if segment not in (b"", b".")]
        if not kept:
            raise MalformedReference("/", URL_FORM)
        is_directory = segments[-1] in (b"", b".")
        return cls(raw, *split_path(b"/".join(kept) + (b"/" if is_directory else b"")))

    @property
    def depth(self) -> int:
        """How many segments the path in the image has."""
        if not self.path:
            return 0
        return self.path.count(b"/") + (not self.path.endswith(b"/"))

    @property
    def asks_directory(self) -> bool:
        """Whether the URL ends as a directory's does."""
        return self.path is not None and (not self.path or self.path.endswith(b"/"))

    def with_slash(self, query: bytes | None) -> bytes:
        """The same URL with a slash at its end, as a relative reference.

        It begins with ``./``: a last segment such as ``x:1`` would be taken for a scheme.
        """
        last = quote(self.raw.rpartition(b"/")[2], safe=_URL_CHARACTERS)
        tail = "" if query is None else "?" + quote(query, safe=_URL_CHARACTERS)
        return f"./{last}/{tail}".encode()

    def with_digest(self, digest: Digest) -> bytes:
        """The same file under the digest of its image, as a relative reference.

        It climbs to where our URLs begin, whatever the segments of this one look like.
        """
        # Who resolves it drops single dots first: they are no level to climb from.
        above = [segment for segment in self.raw.split(b"/")[:-1] if segment != b"."]
        rest = "" if self.path is None else "/" + quote(self.path)
        start = "../" * len(above) or "./"
        return f"{start}{self.reference.at(digest)}{rest}".encode()


def shown(path: bytes) -> str:
    """A path from an image or a URL as text for people, every byte of it printable."""
    return "/" + path.decode("utf-8", "backslashreplace").translate(_CONTROLS)


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
