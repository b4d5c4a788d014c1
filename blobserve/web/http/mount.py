"""Mounts: the places in the URLs of a server with all images, or with one image at the root.

Pure. A mount turns the path of a URL into a `Target`, and knows the rules of that target.
"""

from __future__ import annotations

import attrs

from blobserve.config import Config, RepositoryRules
from blobserve.names.reference import Reference
from blobserve.web.http.target import Target


@attrs.frozen
class Mount:
    """A place in the URLs of a server. Created by `of_image`, or one of the constants."""

    name: str
    """A different text for each mount of a server, for keys of cached responses."""
    reference: Reference | None = None
    """The image at the root of the mount; None if the URLs name their images."""

    @classmethod
    def of_image(cls, reference: Reference) -> Mount:
        """Return the mount of one image."""
        return cls(str(reference), reference)

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
        return config.rules_for(target.reference.repository)


BY_PATH = Mount("")
"""All images: the URLs name them."""
