"""Registries, each started on a free port with its data in a temporary directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import attrs

from tests.interop.commands import package_version
from tests.interop.modules import version_of
from tests.support.parts.programs import free_port, give_away
from tests.support.parts.registry import DockerRegistry, Registry

Settings = Mapping[str, object]


@attrs.frozen
class Kind:
    """One registry program; `make` takes a directory, settings and ``name:password``."""

    name: str
    version: Callable[[], str]
    make: Callable[[Path, Settings, str | None], Registry]
    has_authentication: bool = True


class CraneRegistry(Registry):
    """The registry inside crane, which keeps manifests in memory and blobs in files."""

    def __init__(self, directory: Path, settings: Settings, user: str | None) -> None:
        port, storage = free_port(), directory / "storage"
        storage.mkdir()
        give_away(storage)
        serve = ["crane", "registry", "serve", "--address", f"127.0.0.1:{port}", "--disk", storage]
        super().__init__(directory, port, serve, user)

    def blob_file(self, digest: str) -> Path:
        """See `Registry.blob_file`."""
        return self.storage.joinpath(*digest.split(":"))


def _distribution(directory: Path, settings: Settings, user: str | None) -> Registry:
    return DockerRegistry(directory, settings, user, program="registry")


DEBIAN = Kind("docker-registry", partial(package_version, "docker-registry"), DockerRegistry)
"""Debian's docker-registry."""

PINNED = (
    Kind("distribution", version_of("registry"), _distribution),
    Kind("crane registry", version_of("crane"), CraneRegistry, has_authentication=False),
)
"""Registries of pinned versions."""
