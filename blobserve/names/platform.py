"""Platforms of images: ``os/architecture[/variant]``. Pure."""

from __future__ import annotations

import re

import attrs

_PLATFORM = re.compile(r"[a-z0-9._-]+/[a-z0-9._-]+(?:/[a-z0-9._-]+)?")
# Names that uname and other tools use, with the names that OCI takes from Go.
_ARCHITECTURES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "i386": "386",
    "i686": "386",
}
# The default variants: OCI image-spec image-index.md, "Platform Variants".
_USUAL_VARIANTS = {"amd64": "v1", "arm": "v7", "arm64": "v8"}


@attrs.frozen
class Platform:
    """The platform of an image. Create it with `parse`, which drops the default variant."""

    os: str
    architecture: str
    variant: str | None = None

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Read ``os/architecture`` or ``os/architecture/variant``.

        ``x86_64`` is read as ``amd64``, ``aarch64`` as ``arm64``, ``linux/arm64/v8`` as
        ``linux/arm64``.

        :raises ValueError: for anything else.
        """
        if not _PLATFORM.fullmatch(text):
            raise ValueError("a platform is written os/architecture, such as linux/arm64")
        os, architecture, *rest = text.split("/")
        architecture = _ARCHITECTURES.get(architecture, architecture)
        variant = rest[0] if rest else None
        return cls(
            os, architecture, None if variant == _USUAL_VARIANTS.get(architecture) else variant
        )

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))
