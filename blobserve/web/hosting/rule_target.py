"""Targets of redirect rules: a URL or a path with names, and the checks that keep it safe.

A captured value comes from the client. A finished target is checked as a whole, so that a value
cannot become unsafe together with the text around it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import unquote_to_bytes

import attrs

from blobserve.web.hosting.rule_lines import quoted
from blobserve.web.hosting.rule_match import RULE_FILES
from blobserve.web.hosting.rule_pattern import (
    PatternError,
    Template,
    encoded,
    encoded_query,
    without_dot_segments,
)
from blobserve.web.http.target import is_host

_SCHEME = re.compile(rb"https?://", re.IGNORECASE)
_AFTER_HOST = re.compile(rb"[/?#]")
_PLAIN_HOST = re.compile(rb"[A-Za-z0-9._-]+(?::[0-9]{1,5})?")
_HOST_NAME = re.compile(rb":[A-Za-z][A-Za-z0-9_]*")
# A browser takes the text after two slashes for a host. Other software decodes before it looks.
_SLASHES = re.compile(rb"/(?:(?:\.|%2e)?(?:[/\\]|%2f|%5c))+", re.IGNORECASE)
_ENCODED_CONTROL = re.compile(rb"%(?:[01][0-9a-f]|7f)", re.IGNORECASE)
_SEPARATORS = re.compile(rb"[/\\]")
_LABEL = re.compile(rb"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


@attrs.frozen
class RuleTarget:
    """The second word of a redirect rule, in its parts. Created by `parse`."""

    origin: Template
    """The scheme and the host; empty for a path of the site."""
    path: Template
    query: Template
    """The query with its question mark; empty if the request's query is kept."""
    fragment: Template
    """The fragment with its number sign, or nothing."""

    @classmethod
    def parse(cls, word: str, names: Iterable[bytes]) -> RuleTarget:
        """Parse a target with the names that its source captures.

        :raises PatternError: if it is no target, or can never be safe.
        """
        names = tuple(names)
        text = word.encode()
        scheme = _SCHEME.match(text)
        origin = b""
        if scheme is not None:
            rest = text[scheme.end() :]
            stop = _AFTER_HOST.search(rest)
            length = stop.start() if stop is not None else len(rest)
            origin = scheme[0].lower() + _authority(rest[:length], names)
            text = rest[length:] if rest[length : length + 1] == b"/" else b"/" + rest[length:]
        elif not text.startswith(b"/"):
            raise PatternError(
                f"the target {quoted(word)} is neither a path nor a URL;"
                " begin it with `/`, `https://` or `http://`"
            )
        text, mark, fragment = text.partition(b"#")
        path, _, query = text.partition(b"?")
        path = encoded(without_dot_segments(path))
        if not origin and _SLASHES.match(path):
            raise PatternError(
                f"the target {quoted(word)} begins with two slashes;"
                " write one slash for a path, or `https://` before a host"
            )
        query, fragment = encoded_query(query), encoded(fragment)
        if _ENCODED_CONTROL.search(path):
            raise PatternError(
                f"the path of the target {quoted(word)} has an encoded control character; remove it"
            )
        return cls(
            Template.parse(origin, names),
            Template.parse(path, names),
            Template.parse(b"?" + query if query else b"", names),
            Template.parse(b"#" + fragment if mark else b"", names),
        )

    @property
    def is_local(self) -> bool:
        """Return whether the target is a path of the site."""
        return not self.origin.text

    def url(self, values: Mapping[bytes, bytes]) -> tuple[bytes, bytes, bytes] | None:
        """Return URL, query and fragment of a redirect; None if it would not be safe.

        A path of the site begins with exactly one slash.
        """
        labels = [values[name] for name in self.origin.names]
        if not all(_LABEL.fullmatch(label) for label in labels):
            return None
        origin, path = self.origin.expand(values), self.path.expand(values)
        if self.path.names:
            if b".." in _SEPARATORS.split(unquote_to_bytes(path)):
                return None
            slashes = None if origin else _SLASHES.match(path)
            if slashes is not None:
                path = b"/" + path[slashes.end() :]
        others = [values[name] for name in (*self.query.names, *self.fragment.names)]
        if any(_ENCODED_CONTROL.search(text) for text in (path, *others)):
            return None
        return origin + path, self.query.expand(values), self.fragment.expand(values)

    def file(self, values: Mapping[bytes, bytes]) -> bytes | None:
        """Return the path that a rewrite serves; None if it is not a file within the site.

        Query and fragment are left out, since they select no file.
        """
        path = self.path.expand(values)
        decoded = unquote_to_bytes(path)
        segments = decoded.split(b"/")
        if b".." in segments or _ENCODED_CONTROL.search(path):
            return None
        kept = [segment for segment in segments if segment not in (b"", b".")]
        return None if len(kept) == 1 and kept[0] in RULE_FILES else path


def _authority(text: bytes, names: tuple[bytes, ...]) -> bytes:
    """Check the host of a target, and return it.

    :raises PatternError: if it is no host, or if a value could choose another domain.
    """
    shown = quoted(text.decode())
    found = list(_HOST_NAME.finditer(text)) if not text.startswith(b"[") else []
    for name in found:
        before, after = text[: name.start()], text[name.end() :]
        is_label = (not before or before.endswith(b".")) and after.startswith(b".")
        if name[0][1:] not in names or not is_label or len(after) < 2:
            raise PatternError(
                f"a name in the host {shown} must be one label below a domain, such as"
                " `https://:name.example.com/`; write a slash before a name of the path"
            )
    plain = _HOST_NAME.sub(b"x", text) if found else text
    if plain.startswith(b"["):
        is_valid = is_host(plain)
    else:
        is_valid = _PLAIN_HOST.fullmatch(plain) is not None and not plain.startswith(b".")
    if is_valid:
        return text
    if not text.isascii():
        raise PatternError(f"the host {shown} is not ASCII; write its `xn--` form")
    raise PatternError(
        f"{shown} is not a host; write a name and at most a port, such as `example.com:8443`"
    )
