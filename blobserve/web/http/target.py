"""From the bytes of a request target to an image reference and a path in the image.

Pure. Percent-encoding is decoded exactly once, before the path is split. ``..`` segments are
refused, not resolved.
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
"""The target of an OPTIONS request about the server as a whole."""

_ABSOLUTE_FORM = re.compile(rb"https?://([^/?]+)(/[^?]*)?(\?.*)?", re.IGNORECASE)
_USER = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=:-]|%[0-9A-Fa-f]{2})*")
_HOST = re.compile(
    rb"(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*(?::[0-9]*)?|\[([0-9A-Fa-f:.]+)\](?::[0-9]*)?"
)
# All reserved characters of RFC 3986 except '#', so that the client's escaping does not change.
_URL_CHARACTERS = "%/?:@!$&'()*+,;=-._~[]"


def origin_form(method: bytes, target: bytes) -> bytes:
    """Return a request target as path and query, or `WHOLE_SERVER`, RFC 9112 §3.2.

    :raises BadRequest: for a target that has no path.
    """
    if b"#" in target:
        raise BadRequest("a request target must not have a fragment")
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
        raise BadRequest("the request target has no valid host")
    if method == b"OPTIONS" and not (path or query):
        return WHOLE_SERVER  # RFC 9112 §3.2.4
    return (path or b"/") + query


def authority_of(target: bytes) -> bytes | None:
    """Return the host and port of a target in absolute form; None for any other target."""
    absolute = None if target.startswith(b"/") else _ABSOLUTE_FORM.fullmatch(target)
    return None if absolute is None else absolute[1].rpartition(b"@")[2]


@lru_cache(64)  # Most requests name one of a few hosts.
def is_host(value: bytes) -> bool:
    """Return whether this is a host with an optional port, RFC 9112 §3.2."""
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
    """The image and the path in it that a URL names. Created by `parse` or `of_image`."""

    raw: bytes
    """The URL's path below its `Mount` as the client sent it, without its leading slash."""
    reference: Reference
    path: bytes | None
    """The relative path, without empty and ``.`` segments. It is empty or ends with a slash if the
    URL asks for a directory. None if no slash follows the reference or the mount of the image."""
    is_named: bool = True
    """Whether the URL names the reference. Else it may have another one at another time."""

    @classmethod
    def parse(cls, raw: bytes) -> Target:
        """Parse the path of a URL, which is not decoded and has no leading slash.

        :raises MalformedReference: if the image reference is malformed or missing.
        :raises PathNotFound: if there is a ``..`` segment or a NUL.
        """
        path = canonical(raw)
        if not path:
            raise MalformedReference("/", URL_FORM)
        return cls(raw, *split_path(path))

    @classmethod
    def of_image(cls, reference: Reference, path: bytes, url: bytes) -> Target:
        """Parse the path of a URL below the mount of one image; neither is decoded.

        :param path: the path: empty, or with its leading slash.
        :param url: the whole request target.
        :raises PathNotFound: if there is a ``..`` segment or a NUL.
        """
        if not path:
            last = url.partition(b"?")[0].rpartition(b"/")[2]
            return cls(last, reference, None, is_named=False)
        return cls(path[1:], reference, canonical(path[1:]), is_named=False)

    @property
    def depth(self) -> int:
        """The number of segments of the path in the image."""
        if not self.path:
            return 0
        return self.path.count(b"/") + (not self.path.endswith(b"/"))

    @property
    def asks_directory(self) -> bool:
        """Return whether the URL ends with a slash, like that of a directory."""
        return self.path is not None and (not self.path or self.path.endswith(b"/"))

    def with_slash(self, query: bytes | None) -> bytes:
        """Return the same URL with a slash at its end, as a relative reference.

        It begins with ``./``, because clients would take a segment such as ``x:1`` for a scheme.
        """
        last = quote(self.raw.rpartition(b"/")[2], safe=_URL_CHARACTERS)
        tail = "" if query is None else "?" + quote(query, safe=_URL_CHARACTERS)
        return f"./{last}/{tail}".encode()

    def to(self, path: bytes, query: bytes | None) -> bytes:
        """Return the URL of another file below the same mount, as a relative reference.

        :param path: the path from the root of the mount, not encoded.
        """
        tail = "" if query is None else "?" + quote(query, safe=_URL_CHARACTERS)
        return f"{self._to_root}{quote(path)}{tail}".encode()

    def with_digest(self, digest: Digest) -> bytes:
        """Return the URL of the same file under the digest of its image, as a relative reference.

        It climbs to the root of the resource, for any segments in this URL.
        """
        rest = "" if self.path is None else "/" + quote(self.path)
        return f"{self._to_root}{self.reference.at(digest)}{rest}".encode()

    @property
    def _to_root(self) -> str:
        """The relative reference from this URL to the root of the mount."""
        # A client removes ``.`` segments before it resolves ``..``, so they do not count.
        above = [segment for segment in self.raw.split(b"/")[:-1] if segment != b"."]
        return "../" * len(above) or "./"


def canonical(raw: bytes) -> bytes:
    """Decode a path, and remove its empty and ``.`` segments.

    The result ends with a slash for the path of a directory, and is empty for the root.

    :raises PathNotFound: if there is a ``..`` segment or a NUL.
    """
    decoded = unquote_to_bytes(raw)
    segments = decoded.split(b"/")
    if b".." in segments or b"\0" in decoded:
        raise PathNotFound(shown(decoded))
    kept = [segment for segment in segments if segment not in (b"", b".")]
    is_directory = bool(kept) and segments[-1] in (b"", b".")
    return b"/".join(kept) + (b"/" if is_directory else b"")


def shown(path: bytes) -> str:
    """Return a path from an image or a URL as printable text."""
    return "/" + path.decode("utf-8", "backslashreplace").translate(_CONTROLS)


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
