"""The site that a host and a path belong to.

Pure. Exact hosts win over a wildcard of one label, which wins over ``*``. At one host the longest
prefix wins. The cost of a look-up does not depend on the number of sites.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote_from_bytes, unquote_to_bytes

import attrs

from blobserve.config import Site
from blobserve.names.host import folded_host

_LONGEST = 260
"""The length of the longest host with a port. Longer ones are not remembered."""
_REMEMBERED = 4096
"""The number of spellings of hosts that are remembered. Clients choose them."""


@attrs.frozen
class SiteMatch:
    """A site that serves an image at this host and path."""

    site: Site
    label: str | None
    """The label that a wildcard host matched, in lower case; None for any other host."""
    rest: bytes
    """The path below the prefix, as the client sent it. It begins with a slash, maybe with two."""


@attrs.frozen
class HostRedirect:
    """A site that redirects all its requests to another host."""

    host: str
    """The other host, maybe with a port."""
    site: Site


@attrs.frozen
class PrefixSlash:
    """The path of a prefix without the slash at its end."""

    site: Site
    location: bytes
    """The path with the slash, percent-encoded. It begins with a single slash."""


@attrs.frozen
class UnknownPath:
    """A path outside all prefixes, at a host that has only prefixes."""

    host: str
    """The `Site.host` that matched."""


Found = SiteMatch | HostRedirect | PrefixSlash | UnknownPath


class _Host:
    """The sites of one host, or of all hosts that one wildcard matches."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.root: Site | None = None
        self.prefixes: dict[bytes, Site] = {}
        self.lengths: tuple[int, ...] = ()
        """The lengths of the prefixes, the longest first."""

    def add(self, site: Site) -> None:
        """Add a site of this host."""
        if not site.prefix:
            self.root = site
            return
        self.prefixes[site.prefix.encode()] = site
        self.lengths = tuple(sorted({len(each) for each in self.prefixes}, reverse=True))

    def find(self, label: str | None, path: bytes) -> Found:
        """Return the place of a path at this host."""
        if self.lengths:
            prefix, end = self._longest(path)
            if prefix:
                return self._below(prefix, label, path, end)
        site = self.root
        if site is None:
            return UnknownPath(self.host)
        if site.redirect is not None:
            return HostRedirect(site.redirect, site)
        return SiteMatch(site, label, path)

    def _below(self, prefix: bytes, label: str | None, path: bytes, end: int) -> Found:
        site = self.prefixes[prefix]
        if site.redirect is not None:
            return HostRedirect(site.redirect, site)
        if end == len(path):
            return PrefixSlash(site, quote_from_bytes(prefix).encode() + b"/")
        return SiteMatch(site, label, path[end:])

    def _longest(self, path: bytes) -> tuple[bytes, int]:
        """Return the longest prefix of a path, and its end in the path; empty if there is none."""
        if b"%" in path or b"//" in path or b"/." in path:
            return self._longest_decoded(path)
        for length in self.lengths:
            if (
                length <= len(path)
                and path[length : length + 1] in (b"/", b"")
                and path[:length] in self.prefixes
            ):
                return path[:length], length
        return b"", 0

    def _longest_decoded(self, path: bytes) -> tuple[bytes, int]:
        """Do the same for a path with escapes, or with empty or ``.`` segments, as files are found.

        An escaped slash does not separate segments.
        """
        found, seen, end = (b"", 0), b"", 0
        while len(seen) <= self.lengths[0] and end < len(path):
            begin = end + 1
            end = path.find(b"/", begin)
            end = len(path) if end < 0 else end
            segment = unquote_to_bytes(path[begin:end])
            if b"/" in segment:
                break
            if segment not in (b"", b"."):
                seen += b"/" + segment
                if seen in self.prefixes:
                    found = seen, end
        return found


class HostTable:
    """All sites of one configuration, by host and prefix."""

    def __init__(self, sites: Iterable[Site]) -> None:
        hosts: dict[str, _Host] = {}
        for site in sites:
            hosts.setdefault(site.host, _Host(site.host)).add(site)
        self._any = hosts.pop("*", None)
        self._wildcards = {
            host[2:]: hosts.pop(host) for host in list(hosts) if host.startswith("*.")
        }
        self._exact: dict[bytes, _Host] = {host.encode(): each for host, each in hosts.items()}
        self._remembered: dict[bytes, tuple[_Host | None, str | None]] = {}

    def __bool__(self) -> bool:
        return bool(self._exact or self._wildcards or self._any)

    def find(self, authority: bytes, path: bytes) -> Found | None:
        """Return the site of a request; None if its host matches none.

        `authority` is the value of ``Host`` or the authority of an absolute target, as the client
        sent it. `path` begins with a slash and has no query.
        """
        host = self._exact.get(authority)
        if host is not None:
            return host.find(None, path)
        known = self._remembered.get(authority)
        if known is None:
            known = self._match(authority)
            if len(authority) > _LONGEST:
                return None if known[0] is None else known[0].find(known[1], path)
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            self._remembered[authority] = known
        host, label = known
        return None if host is None else host.find(label, path)

    def has_one_site(self, authority: bytes) -> bool:
        """Return whether all paths of a host, which `find` has found, belong to one site."""
        host = self._exact.get(authority) or self._remembered.get(authority, (None, None))[0]
        return host is not None and not host.prefixes

    def _match(self, authority: bytes) -> tuple[_Host | None, str | None]:
        name = host_of(authority)
        exact = self._exact.get(name.encode())
        if exact is not None:
            return exact, None
        label, _, parent = name.partition(".")
        wildcard = self._wildcards.get(parent) if label else None
        return (wildcard, label) if wildcard else (self._any, None)


def host_of(authority: bytes) -> str:
    """Return the host of an authority as sites are compared: without port, in lower case.

    Text that is no host name is returned in a form that equals no site's host.
    """
    text = unquote_to_bytes(authority).decode("utf-8", "replace")
    if text.startswith("["):
        return text.partition("]")[0].lower() + "]"
    try:
        return folded_host(text.partition(":")[0])
    except ValueError:
        return ""
