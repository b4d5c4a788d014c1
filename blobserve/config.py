"""The configuration as frozen values: what the rest of the house reads.

Every default stands here, and nowhere else. How a file becomes these values is the business of
`blobserve.configfile`; no rule of YAML or JSON is known here.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import attrs

from blobserve.names.platform import Platform
from blobserve.names.proxy import Proxy
from blobserve.names.reference import Repository

KIB, MIB = 1 << 10, 1 << 20

# Twisted's own backlog of 50 has clients of a busy moment wait for whole seconds.
BACKLOG = 1024
DEFAULT_LISTEN = (f"tcp:8080:backlog={BACKLOG}",)
"""Where the server of `twist blobserve` listens when its configuration does not say."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@attrs.frozen
class Limits:
    """Every bound on what an image, a registry or a client can make us do. Bytes and seconds."""

    manifest_size: int = 4 * MIB
    token_size: int = 128 * KIB
    entries: int = 1_000_000
    name_size: int = 4096
    names_size: int = 256 * MIB
    depth: int = 1024
    extension_size: int = MIB
    extensions_in_a_row: int = 16
    link_hops: int = 40
    layers: int = 256
    unpacked_size: int | None = None
    rewrite_size: int = 8 * MIB
    listing_entries: int = 100_000
    parallel_downloads: int = 10
    queued_downloads: int = 1000
    connect_timeout: float = 10.0
    header_timeout: float = 30.0
    silence_timeout: float = 30.0
    minimum_rate: int = KIB
    client_head_timeout: float = 10.0
    client_idle_timeout: float = 60.0
    client_minimum_rate: int = KIB
    client_connections: int = 10_000
    client_connections_per_address: int | None = None
    response_cache_size: int = 28 * MIB
    published_index_min_size: int = 8 * MIB
    published_index_size: int = 64 * MIB
    chunk_cache_size: int = 32 * MIB
    parallel_chunk_reads: int = 8


@attrs.frozen
class Replacement:
    """Replace every `search` by `replacement` in the file at `path` (from the image's root)."""

    path: str
    search: str
    replacement: str


@attrs.frozen
class InlineVariable:
    """Replace `search` in index.html by `replacement`, whose ``${name}`` the request fills in."""

    search: str
    replacement: str


@attrs.frozen
class LocalSource:
    """Images in a directory or a file of this host, in one of the forms that tools write."""

    form: Literal["oci", "oci-archive", "docker-archive"]
    path: Path


@attrs.frozen
class RepositoryRules:
    """What the configuration says of one repository, or of all that match one key."""

    key: str = ""
    listed: bool = True
    """False for a repository that is served only because of `allowAnyRepo`."""
    pre_pull: tuple[str, ...] = ()
    workdir: str = "/"
    replacements: tuple[Replacement, ...] = ()
    inline_static: tuple[InlineVariable, ...] = ()
    layers: Literal["first", "all"] = "first"
    platform: Platform | None = None
    tag_max_age: float = 60.0
    immutable_tags: tuple[str, ...] = ()
    immutable_paths: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    listing: bool = False
    content_location: bool = False
    """Whether responses under a tag name the URL by digest, which shows the image's digest."""
    fallback: str | None = None
    not_found: str | None = None
    early_serve: bool = False
    codings: tuple[str, ...] = ("zstd", "gzip")
    """What text is compressed with here, for clients that accept it."""
    precompressed: bool = False
    """Whether ``app.js.br`` in the image is ``app.js`` in another coding, and so on."""
    source: LocalSource | None = None
    """Where to serve from, instead of a registry."""

    def is_immutable_tag(self, tag: str) -> bool:
        """Whether this tag is promised never to move."""
        globs = self.immutable_tags
        return bool(globs) and any(fnmatch.fnmatchcase(tag, glob) for glob in globs)


UNLISTED = RepositoryRules(listed=False)


@attrs.frozen
class RegistryRules:
    """How one registry, named `host` or `host:port`, may be spoken to."""

    insecure: bool = False
    ca: Path | None = None
    allow_hosts: frozenset[str] = frozenset()
    """Hosts that the registry may send us to although their addresses are not public."""
    allow_any_repo: bool = False
    """Whether repositories that are not listed may be asked for at an address that is not public.

    `Config.allow_any_repo` decides whether they are served at all.
    """
    proxy: Proxy | Literal["none"] | None = None
    """The proxy that leads to the registry and where it sends us; None: as the environment has it.
    """


def default_location() -> Path:
    """Where systemd wants caches kept, else where the user keeps them."""
    if given := os.environ.get("CACHE_DIRECTORY"):
        return Path(given.partition(":")[0])
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(caches, "blobserve").absolute()


@attrs.frozen
class BlobSpaceRules:
    """Where layers are kept, and how many bytes all of it may take (None: no bound).

    With `verify_on_read`, each file is checked against its hash once in every process.
    """

    location: Path = attrs.field(factory=default_location)
    max_size: int | None = None
    gc_interval: float = 600.0
    verify_on_read: bool = False


@attrs.frozen
class AccessLogRules:
    """One line per request to `file` (``-``: standard output), as text, JSON or not at all."""

    format: Literal["text", "json", "off"] = "text"
    file: str = "-"


@attrs.frozen
class Address:
    """Where to listen on TCP; an empty host means all interfaces."""

    host: str
    port: int


@attrs.frozen
class Config:
    """A whole configuration, valid as it stands."""

    blob_space: BlobSpaceRules = attrs.field(factory=BlobSpaceRules)
    listen: tuple[str, ...] = ()
    """Twisted server endpoint descriptions. None: an embedding application mounts the resource."""
    timeout: float = 5.0
    """Seconds from a request's head until the image is READY; ``math.inf``: no bound."""
    drain_timeout: float = 30.0
    allow_any_repo: bool = False
    hot_path: bool = True
    """Whether requests that can be answered at once take the short way, see `fast_path`."""
    repos: Mapping[str, RepositoryRules] = attrs.field(factory=dict)
    """By canonical repository, or by ``<registry>/<path>/*``."""
    registries: Mapping[str, RegistryRules] = attrs.field(factory=dict)
    limits: Limits = Limits()
    trusted_proxies: tuple[Network, ...] = ()
    access_log: AccessLogRules = AccessLogRules()
    docker_auth: Path | None = None
    prometheus_addr: Address | None = None
    readiness_addr: Address | None = None
    warnings: tuple[str, ...] = attrs.field(default=(), eq=False)
    """What works and yet should be mended, for the operator."""

    def rules_for(self, repository: Repository) -> RepositoryRules | None:
        """The rules of the longest key that matches, or None for a repository not allowed."""
        prefix = str(repository)
        if rules := self.repos.get(prefix):
            return rules
        while prefix := prefix.rpartition("/")[0]:
            if rules := self.repos.get(f"{prefix}/*"):
                return rules
        return UNLISTED if self.allow_any_repo else None
