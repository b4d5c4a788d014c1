"""The changes that header rules make to a response, and the fields that they cannot change."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

Header = tuple[bytes, bytes]

_FRAMING = frozenset(
    b"connection content-length http2-settings keep-alive proxy-connection te trailer"
    b" transfer-encoding upgrade".split()
)
_OF_THE_SERVER = {
    **dict.fromkeys(_FRAMING, "belongs to the connection, and only the server sets it; remove it"),
    b"accept-ranges": "says how the server answers ranges, and only the server sets it; remove it",
    b"age": "is for caches, and only they set it; remove it",
    b"content-encoding": "says how the server has coded the response; remove it",
    b"content-range": "says which part the server sends; remove it",
    b"date": "is the time of the response, and only the server sets it; remove it",
    b"etag": "is made from the content, and only the server sets it; remove it",
    b"last-modified": "is made from the image, and only the server sets it; remove it",
    b"location": "cannot be set here; write a rule in `_redirects`",
    b"proxy-authenticate": "is for proxies, and only they set it; remove it",
}
_PASSWORD = (
    "protects nothing here, so it is not sent, since it holds a password; remove it, and protect"
    " the site in front of the server"
)
_VARY_STAYS = "can get further values but cannot be removed, since caches need it; remove the line"

# RFC 9110 §15.4.5; Date and ETag are the server's.
_ON_NOT_MODIFIED = frozenset((b"cache-control", b"content-location", b"expires", b"vary"))
_CACHE_FIELDS = frozenset((b"expires", b"surrogate-control", b"edge-control", b"x-accel-expires"))


def problem_of_setting(name: bytes) -> str | None:
    """Return why rules cannot set the field with this name in lower case; None if they can."""
    if name == b"basic-auth":
        return _PASSWORD
    return _OF_THE_SERVER.get(name)


def problem_of_removal(name: bytes) -> str | None:
    """Return why rules cannot remove the field with this name in lower case; None if they can."""
    return _VARY_STAYS if name == b"vary" else _OF_THE_SERVER.get(name)


@attrs.frozen
class HeaderChanges:
    """The changes for one path: names in lower case to remove, and fields to set.

    Every name occurs in `added` once, except ``Set-Cookie``.
    """

    removed: frozenset[bytes]
    added: tuple[Header, ...]

    def apply(self, headers: tuple[Header, ...], status: int) -> tuple[Header, ...]:
        """Return the fields of a response with the changes made.

        A field that is set replaces that of the server. ``Vary`` is added to. A response that the
        server marks ``no-store`` or ``private`` keeps its fields for caches. A 304 gets only the
        fields of RFC 9110 §15.4.5.
        """
        if not self.removed and not self.added:
            return headers
        own = {name.lower(): value for name, value in headers}
        control = own.get(b"cache-control", b"").lower()
        is_uncacheable = b"no-store" in control or b"private" in control
        is_multipart = own.get(b"content-type", b"").lower().startswith(b"multipart/byteranges")

        def may_change(name: bytes) -> bool:
            if is_uncacheable and _controls_caches(name):
                return False
            return not (is_multipart and name == b"content-type")

        dropped = {name for name in self.removed if may_change(name)}
        fields: list[Header] = []
        for name, value in self.added:
            lower = name.lower()
            if not may_change(lower) or (status == 304 and lower not in _ON_NOT_MODIFIED):
                continue
            dropped.add(lower)
            if lower == b"vary":
                fields.append((name, _joined(_all(headers, lower), value)))
            else:
                fields.append((name, value))
        return (*(field for field in headers if field[0].lower() not in dropped), *fields)


def _controls_caches(name: bytes) -> bool:
    return name.endswith(b"cache-control") or name in _CACHE_FIELDS


def _all(headers: Iterable[Header], lower: bytes) -> list[bytes]:
    return [value for name, value in headers if name.lower() == lower]


def _joined(own: list[bytes], value: bytes) -> bytes:
    """Return the members of several lists, each once, RFC 9110 §12.5.5."""
    members: dict[bytes, bytes] = {}
    for each in (*own, value):
        for member in each.split(b","):
            name = member.strip(b" \t")
            if name:
                members.setdefault(name.lower(), name)
    return b", ".join(members.values())


NO_CHANGES = HeaderChanges(frozenset(), ())
"""The changes for a path that no rule matches."""
