"""Mounts: the places in the URLs of a server with all images, or with one image at the root.

Pure. A mount turns the path of a URL into a `Target`, and knows the rules of that target.
"""

from __future__ import annotations

import attrs

from blobserve.config import Config, RepositoryRules, Site
from blobserve.names.reference import Reference
from blobserve.web.http.target import Target


@attrs.frozen
class Detour:
    """The answer for a host or a path that leads to no image: a redirect, or 404."""

    status: int
    location: bytes = b""
    """The URL without its query, and without the path below the mount if that is kept."""
    keeps_path: bool = False

    def target(self, path: bytes, query: bytes | None) -> bytes:
        """Return the URL that a request with this path and query is redirected to."""
        kept = path or b"/" if self.keeps_path else b""
        return self.location + kept + (b"" if query is None else b"?" + query)


@attrs.frozen
class Mount:
    """A place in the URLs of a server. Created by a class method, or one of the constants."""

    name: str
    """A different text for each mount of a server, for keys of cached responses."""
    reference: Reference | None = None
    """The image at the root of the mount; None if the URLs name their images."""
    site: Site | None = None
    """The site that is configured for the mount."""
    is_preview: bool = False
    """Whether the host is one of a wildcard, whose label chooses the image."""
    detour: Detour | None = None
    """The answer to all requests, if there is no image."""
    host: str = ""
    """The host of the site, for its pages; empty if any host leads to it."""

    @classmethod
    def of_image(cls, reference: Reference) -> Mount:
        """Return the mount of one image."""
        return cls(str(reference), reference)

    @classmethod
    def of_site(cls, site: Site, label: str | None) -> Mount:
        """Return the mount of a site; `label` is the one that a wildcard host matched.

        :raises MalformedReference: when the label does not make a valid tag.
        """
        name = f"site {site.key} {label or ''}"
        host = site.host if label is None else site.host.replace("*", label, 1)
        return cls(name, site.reference(label), site, label is not None, host=host.strip("*"))

    @classmethod
    def moved(cls, detour: Detour, site: Site) -> Mount:
        """Return the mount of a host or path that redirects."""
        return cls(f"moved {site.key}", None, site, detour=detour)

    @classmethod
    def to_host(cls, host: str, site: Site) -> Mount:
        """Return the mount of a site that redirects to another host, maybe with a port."""
        return cls.moved(Detour(308, b"//" + host.encode(), keeps_path=True), site)

    def target(self, path: bytes, url: bytes) -> Target:
        """Return the image and the file that a URL names.

        :param path: the path of the URL below the mount, see `RequestHead.path`.
        :param url: the whole request target.
        :raises NotFound: when it cannot name a file.
        """
        if self.reference is None:
            return Target.parse(path[1:])
        return Target.of_image(self.reference, path, url)

    def rules(self, config: Config, target: Target) -> RepositoryRules | None:
        """Return the rules for a target of this mount; None if it is forbidden."""
        return self.site.rules if self.site else config.rules_for(target.reference.repository)


BY_PATH = Mount("")
"""All images: the URLs name them."""

NOWHERE = Mount("nowhere", site=Site("", ""), detour=Detour(404))
"""A path of a site's host that no site has, or a preview with a label that cannot be a tag."""
