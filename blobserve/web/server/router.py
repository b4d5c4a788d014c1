"""From the host and the path of a request to the mount that answers it.

Pure. Hosts that match no site use the URLs that name their images.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from blobserve.config import Config
from blobserve.errors import NotFound
from blobserve.web.hosting.host_table import (
    HostRedirect,
    HostTable,
    PrefixSlash,
    SiteMatch,
    UnknownPath,
)
from blobserve.web.http.mount import BY_PATH, NOWHERE, Detour, Mount
from blobserve.web.http.target import Target
from blobserve.web.server.access_log import is_trusted

_MOST_MOUNTS = 4096
"""Previews whose mounts are remembered. Clients choose their labels."""


class Router:
    """The mounts of the current configuration."""

    def __init__(self, config: Callable[[], Config]) -> None:
        self._config = config
        self._used: Config | None = None
        self._table: HostTable | None = None
        self._mounts: dict[tuple[str, str | None], Mount] = {}
        self._direct: dict[bytes, Mount] = {}
        """The mounts of hosts that have one site for all their paths, by spellings of the host."""

    def route(self, host: bytes | None, path: bytes) -> tuple[Mount, bytes]:
        """Return the mount of a request, and the path of the URL below it.

        :param host: the result of the function `asked_host`.
        :param path: the path below the resource with all images: empty, or with its leading slash.
        """
        config = self._config()
        if config is not self._used:
            self._follow(config)
        if self._table is None:
            return BY_PATH, path
        asked = host or b""
        direct = self._direct.get(asked)
        if direct is not None:
            return direct, path or b"/"
        found = self._table.find(asked, path or b"/")
        if found is None:
            return BY_PATH, path
        matched = found.host if isinstance(found, UnknownPath) else found.site.host
        if matched == "*" and _names_image(path, config):
            return BY_PATH, path
        if isinstance(found, SiteMatch):
            mount = self._mount(found)
            if matched != "*" and self._table.has_one_site(asked):
                if len(self._direct) >= _MOST_MOUNTS:
                    self._direct.clear()
                self._direct[asked] = mount
            return mount, found.rest
        if isinstance(found, HostRedirect):
            return Mount.to_host(found.host, found.site), path
        if isinstance(found, PrefixSlash):
            # A relative reference, because the resource may be mounted below another path.
            last = path.rpartition(b"/")[2]
            return Mount.moved(Detour(301, b"./" + last + b"/"), found.site), path
        return NOWHERE, path

    def _follow(self, config: Config) -> None:
        self._used = config
        self._table = HostTable(config.sites.values()) if config.sites else None
        self._mounts.clear()
        self._direct.clear()

    def _mount(self, found: SiteMatch) -> Mount:
        key = found.site.key, found.label
        mount = self._mounts.get(key)
        if mount is None:
            try:
                mount = Mount.of_site(found.site, found.label)
            except NotFound:
                mount = attrs.evolve(NOWHERE, is_preview=found.label is not None)
            if len(self._mounts) >= _MOST_MOUNTS:
                self._mounts.clear()
            self._mounts[key] = mount
        return mount


def asked_host(
    host: bytes | None, forwarded: bytes | None, peer: str, config: Config
) -> bytes | None:
    """Return the host that the client asked for, maybe with a port; None if there is none.

    :param host: the authority of an absolute request target, else the value of ``Host``.
    :param forwarded: the result of the function `forwarded_host`; it counts from trusted proxies.
    """
    if forwarded is not None and is_trusted(peer, config.trusted_proxies):
        return forwarded
    return host


def _names_image(path: bytes, config: Config) -> bool:
    """Return whether a path names an image of ``repos``."""
    try:
        rules = config.rules_for(Target.parse(path[1:]).reference.repository)
    except NotFound:
        return False
    return rules is not None and rules.listed
