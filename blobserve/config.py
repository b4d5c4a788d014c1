"""The configuration as frozen values, with all defaults.

`blobserve.configfile` reads files and mappings into these values.
"""

from __future__ import annotations

import fnmatch
import hashlib
import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import attrs

from blobserve.errors import MalformedReference
from blobserve.names.digest import Digest
from blobserve.names.platform import Platform
from blobserve.names.proxy import Proxy
from blobserve.names.reference import Reference, Repository

KIB, MIB = 1 << 10, 1 << 20

# With Twisted's default of 50, clients wait whole seconds when many connect at once.
BACKLOG = 1024
DEFAULT_LISTEN = (f"tcp:8080:backlog={BACKLOG}",)
"""The endpoints of `twist blobserve` when its configuration has none."""

MOST_VERSIONS = 100
"""The largest `KeepVersions.count`."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@attrs.frozen
class Limits:
    """All limits on images, registries and clients, in bytes and seconds."""

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
    """Replace `search` in index.html by `replacement`; the request gives values for ``${name}``."""

    search: str
    replacement: str


@attrs.frozen
class LocalSource:
    """Images in a directory or a file of this host."""

    form: Literal["oci", "oci-archive", "docker-archive"]
    path: Path


@attrs.frozen
class FileType:
    """The type of files that have names of this pattern, and their coding if they are coded."""

    pattern: str
    """A glob for the last component of a path, in lower case."""
    media_type: str
    coding: str | None = None


@attrs.frozen
class KeepVersions:
    """The earlier versions of a tag that stay reachable. See docs/reference/versions.md."""

    count: int = 10
    """The number of versions, besides the current one; 0 turns it off."""
    seconds: float = 7 * 86400.0
    """The time for which a version is kept after the tag has left it."""
    paths: tuple[str, ...] | None = None
    """Globs of the files that earlier versions may answer with.

    None: files below the folders of bundlers, and those of ``immutablePaths``.
    """

    def wider(self, other: KeepVersions | None) -> KeepVersions:
        """Return the values that keep all versions that either of the two keeps."""
        if other is None:
            return self
        return KeepVersions(max(self.count, other.count), max(self.seconds, other.seconds))


@attrs.frozen
class RepositoryRules:
    """The configuration of one repository, or of all that match one key."""

    key: str = ""
    listed: bool = True
    """False for a repository that is served only because of `allowAnyRepo`."""
    pre_pull: tuple[str, ...] = ()
    """Tags, and in `Config.pull_rules_for` also the digests of sites."""
    workdir: str = "/"
    replacements: tuple[Replacement, ...] = ()
    inline_static: tuple[InlineVariable, ...] = ()
    layers: Literal["first", "all"] = "first"
    platform: Platform | None = None
    tag_max_age: float = 60.0
    immutable_tags: tuple[str, ...] = ()
    immutable_paths: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    types: tuple[FileType, ...] = ()
    """Types of files by name, instead of those that all servers give; the first match counts."""
    listing: bool = False
    content_location: bool = False
    """Whether responses under a tag name the URL by digest, which shows the image's digest."""
    fallback: str | None = None
    not_found: str | None = None
    early_serve: bool = False
    codings: tuple[str, ...] = ("zstd", "gzip")
    """The codings in which text files are stored, for clients that accept them."""
    precompressed: bool = False
    """Whether a file such as ``app.js.br`` in the image is served as a coding of ``app.js``."""
    source: LocalSource | None = None
    """Local images to serve instead of those of the registry."""
    keep_versions: KeepVersions | None = None
    """The earlier versions that stay reachable; None: the configuration names none."""
    version_header: bool = False
    """Whether ``X-Deployment-Id`` of a request chooses among the versions."""
    version_cookie: bool = False
    """Whether the cookie ``__vdpl`` chooses among the versions."""

    @property
    def versions(self) -> KeepVersions | None:
        """The earlier versions that stay reachable; None if there are none."""
        keep = self.keep_versions
        return keep if keep is not None and keep.count else None

    def is_immutable_tag(self, tag: str) -> bool:
        """Return whether the configuration promises that this tag never moves."""
        globs = self.immutable_tags
        return bool(globs) and any(fnmatch.fnmatchcase(tag, glob) for glob in globs)

    def file_type(self, name: bytes) -> FileType | None:
        """Return the configured type of a file of this name, which may be a path."""
        if not self.types:
            return None
        last = name.rpartition(b"/")[2].decode("utf-8", "surrogateescape").lower()
        return next((each for each in self.types if fnmatch.fnmatchcase(last, each.pattern)), None)


UNLISTED = RepositoryRules(listed=False)


@attrs.frozen
class ImageTemplate:
    """The image of a site: a fixed one, or one for each label of a wildcard host."""

    repository: Repository
    tag: str | None = None
    """The tag, with at most one `LABEL`."""
    digest: Digest | None = None
    _fixed: Reference | None = attrs.field(init=False, eq=False, repr=False)

    LABEL: ClassVar = "{1}"
    """The part of a tag that stands for the label."""

    @_fixed.default
    def _(self) -> Reference | None:
        if self.tag is not None and self.LABEL in self.tag:
            return None
        return Reference(self.repository, self.tag, self.digest)

    @property
    def is_fixed(self) -> bool:
        """Return whether the image is the same for each label."""
        return self._fixed is not None

    @property
    def version(self) -> str:
        """The digest, or else the tag."""
        return str(self.digest or self.tag)

    def reference(self, label: str | None = None) -> Reference:
        """Return the image for a label of the host, in lower case.

        :raises MalformedReference: when the label does not make a valid tag.
        """
        if self._fixed is not None:
            return self._fixed
        return Reference.tagged(self.repository, (self.tag or "").replace(self.LABEL, label or ""))

    def __str__(self) -> str:
        return str(self._fixed or f"{self.repository}:{self.tag}")


@attrs.frozen
class Site:
    """A host, or a path prefix of a host, and the image that it serves or the host it leads to."""

    key: str
    """The host and the prefix, in canonical form. It names the site in messages."""
    host: str
    """The host in lower case, with A-labels; or ``*.`` and a host; or ``*`` for any other host."""
    prefix: str = ""
    """Empty, or a path such as ``/docs``: not percent-encoded, without a slash at the end."""
    redirect: str | None = None
    """The host that all requests are redirected to, maybe with a port. Then there is no image."""
    image: ImageTemplate | None = None
    rules: RepositoryRules = RepositoryRules()
    """The rules of the image's repository, with the site's own keys on top."""
    has_app_fallback: bool = True
    """Whether paths that look like routes may be answered with ``index.html``.

    False for `fallback: false`, and when `fallback` or `notFound` is configured.
    """
    has_immutable_names: bool = True
    """Whether names with a content hash are immutable. False when `immutablePaths` is configured,
    also as an empty list."""
    trailing_slash: Literal["keep", "add", "remove"] = "keep"
    clean_urls: bool = False
    dialect: Literal["cloudflare", "netlify", "none"] = "cloudflare"
    """The grammar of ``_redirects`` and ``_headers``; none: they are ordinary files."""
    is_pulled_at_start: bool = True
    """Always False for a wildcard."""

    scope: str = attrs.field(init=False, eq=False, repr=False)
    """The `Repository.scope` of its images: the same for sites that choose images in one way."""

    @scope.default
    def _(self) -> str:
        rules = self.rules
        deciding = (
            rules.layers,
            str(rules.platform),
            str(rules.source),
            rules.tag_max_age,
            rules.immutable_tags,
        )
        return hashlib.sha256(repr(deciding).encode()).hexdigest()[:16]

    def reference(self, label: str | None = None) -> Reference:
        """Return the image for a label of the host, in the scope of the site.

        :raises MalformedReference: when the label does not make a valid tag.
        """
        if self.image is None:
            raise ValueError(f"{self.key} has no image")
        return self.image.reference(label).within(self.scope)

    def has_image(self, reference: Reference) -> bool:
        """Return whether the site may serve an image of its scope."""
        if self.image is None or reference.repository != self.image.repository.within(self.scope):
            return False
        return not self.image.is_fixed or self.reference() == reference

    @property
    def pulled_versions(self) -> tuple[str, ...]:
        """The tag or digest that is pulled at start and kept fresh, if any."""
        return (self.image.version,) if self.image and self.is_pulled_at_start else ()

    @property
    def is_wildcard(self) -> bool:
        """Return whether the site has more than one host."""
        return self.host.startswith("*")


@attrs.frozen
class RegistryRules:
    """The configuration of one registry, which is named `host` or `host:port`."""

    insecure: bool = False
    ca: Path | None = None
    allow_hosts: frozenset[str] = frozenset()
    """Hosts at addresses that are not public and that the registry may redirect to."""
    allow_any_repo: bool = False
    """Whether unlisted repositories are served if the registry's address is not public.

    `Config.allow_any_repo` decides whether they are served at all.
    """
    proxy: Proxy | Literal["none"] | None = None
    """The proxy for the registry and its redirects; None: that of the environment."""


def default_location() -> Path:
    """Return systemd's cache directory if there is one, else one in the user's caches."""
    if given := os.environ.get("CACHE_DIRECTORY"):
        return Path(given.partition(":")[0])
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(caches, "blobserve").absolute()


@attrs.frozen
class BlobSpaceRules:
    """The directory of the blob space, and its quota in bytes (None: no quota).

    With `verify_on_read`, each process checks each file against its hash once.
    """

    location: Path = attrs.field(factory=default_location)
    max_size: int | None = None
    gc_interval: float = 600.0
    verify_on_read: bool = False


@attrs.frozen
class AccessLogRules:
    """The form of the access log, which goes to `file` (``-``: standard output)."""

    format: Literal["text", "json", "off"] = "text"
    file: str = "-"


@attrs.frozen
class WebhookRules:
    """The places where registries post their notifications.

    Without `secret_file` there is none. Without `listen` and `path`, only the resource of an
    embedding application takes notifications.
    """

    listen: tuple[str, ...] = ()
    """Twisted server endpoint descriptions of listeners for notifications alone."""
    path: str | None = None
    """The path on the main listeners, at every host; it has no slash at the end."""
    secret_file: Path | None = None
    """The file with the secrets, one a line."""


@attrs.frozen
class Address:
    """A TCP address to listen on; an empty host means all interfaces."""

    host: str
    port: int


@attrs.frozen
class Config:
    """A complete and valid configuration."""

    blob_space: BlobSpaceRules = attrs.field(factory=BlobSpaceRules)
    listen: tuple[str, ...] = ()
    """Twisted server endpoint descriptions; may be empty in an embedding application."""
    timeout: float = 5.0
    """Seconds from a request's head until the image is READY; ``math.inf``: no limit."""
    drain_timeout: float = 30.0
    allow_any_repo: bool = False
    hot_path: bool = True
    """Whether the fast path is on, see `blobserve.web.server.fast_path`."""
    repos: Mapping[str, RepositoryRules] = attrs.field(factory=dict)
    """Rules by canonical repository or ``<registry>/<path>/*``."""
    sites: Mapping[str, Site] = attrs.field(factory=dict)
    """Sites by `Site.key`."""
    registries: Mapping[str, RegistryRules] = attrs.field(factory=dict)
    limits: Limits = Limits()
    trusted_proxies: tuple[Network, ...] = ()
    access_log: AccessLogRules = AccessLogRules()
    webhooks: WebhookRules = WebhookRules()
    docker_auth: Path | None = None
    prometheus_addr: Address | None = None
    readiness_addr: Address | None = None
    warnings: tuple[str, ...] = attrs.field(default=(), eq=False)
    """Problems for the operator that do not prevent a start."""

    _scopes: Mapping[Repository, RepositoryRules] = attrs.field(init=False, eq=False, repr=False)
    """The rules of the repositories of sites, by repository with scope. See `Site.scope`."""
    _scoped: Mapping[str, tuple[Repository, ...]] = attrs.field(init=False, eq=False, repr=False)
    """The repositories of sites with their scopes, by repository."""
    _registries: frozenset[str] = attrs.field(init=False, eq=False, repr=False)
    """Every registry that the configuration names."""
    _expected: Mapping[Repository, tuple[Reference, ...]] = attrs.field(
        init=False, eq=False, repr=False
    )
    """The references that `expected_images` returns."""

    @_scopes.default
    def _(self) -> Mapping[Repository, RepositoryRules]:
        found: dict[Repository, RepositoryRules] = {}
        for site in self.sites.values():
            if site.image is not None:
                scoped = site.image.repository.within(site.scope)
                kept = found[scoped].pre_pull if scoped in found else ()
                versions = tuple(sorted({*kept, *site.pulled_versions}))
                keep = site.rules.versions
                if scoped in found and keep is not None:
                    keep = keep.wider(found[scoped].keep_versions)
                elif scoped in found:
                    keep = found[scoped].keep_versions
                found[scoped] = attrs.evolve(site.rules, pre_pull=versions, keep_versions=keep)
        return found

    @_registries.default
    def _(self) -> frozenset[str]:
        named = (*self.repos, *self._scoped)
        return frozenset((*self.registries, *(key.partition("/")[0] for key in named)))

    @_scoped.default
    def _(self) -> Mapping[str, tuple[Repository, ...]]:
        found: dict[str, tuple[Repository, ...]] = {}
        for repository in self._scopes:
            found[str(repository)] = (*found.get(str(repository), ()), repository)
        return found

    @_expected.default
    def _(self) -> Mapping[Repository, tuple[Reference, ...]]:
        fixed = {
            site.reference() for site in self.sites.values() if site.image and site.image.is_fixed
        }
        found: dict[Repository, tuple[Reference, ...]] = {}
        for reference in fixed | self.kept_images:
            found[reference.repository] = (*found.get(reference.repository, ()), reference)
        return found

    def rules_for(self, repository: Repository) -> RepositoryRules | None:
        """Return the rules of a repository that is named in a URL; None: it is forbidden.

        They are those of the longest key that matches. A repository that only `sites` names is
        forbidden in URLs, with `allow_any_repo` too.
        """
        rules = self._listed(repository)
        if rules is None and self.allow_any_repo and str(repository) not in self._scoped:
            return UNLISTED
        return rules

    def pull_rules_for(self, repository: Repository) -> RepositoryRules | None:
        """Return the rules by which images of a repository are pulled and kept fresh.

        They are those of `rules_for`, or those of the sites with the scope of the repository. None:
        nothing may be pulled.
        """
        return self._scopes.get(repository) if repository.scope else self.rules_for(repository)

    def repositories_at(self, path: str, registry: str | None = None) -> tuple[Repository, ...]:
        """Return the repositories, in each scope, that have this path at a named registry.

        :param path: the path as the registry writes it.
        :param registry: the only registry to look at; None: every one.
        """
        found: list[Repository] = []
        for host in self._registries if registry is None else self._registries & {registry}:
            try:
                repository = Repository.parse(f"{host}/{path}")
            except MalformedReference:
                continue
            if self.rules_for(repository) is not None:
                found.append(repository)
            found.extend(self._scoped.get(str(repository), ()))
        return tuple(found)

    def expected_images(self, repository: Repository) -> tuple[Reference, ...]:
        """Return the images of a repository that the configuration names one by one."""
        return self._expected.get(repository, ())

    def tags_named(self, name: str) -> set[Reference]:
        """Return the tags that a site key, or a reference by tag, stands for.

        The tag of a reference stands for itself, and for the same tag in the scope of each site.

        :raises MalformedReference: when it is no site with one tag, and no reference by tag.
        """
        site = self.sites.get(name)
        if site is not None:
            if site.image is None or site.image.tag is None or site.image.digest is not None:
                raise MalformedReference(name, "this site has no tag")
            if not site.image.is_fixed:
                raise MalformedReference(name, "this site has an image for each label; name a tag")
            return {site.reference()}
        reference = Reference.parse(name)
        if reference.tag is None or reference.digest is not None:
            raise MalformedReference(name, "a reference by tag is needed")
        scopes = self._scoped.get(str(reference.repository), ())
        found = {reference.within(scoped.scope) for scoped in scopes}
        if self.rules_for(reference.repository) is not None:
            found.add(reference)
        return found

    @property
    def kept_images(self) -> set[Reference]:
        """The images that are pulled at start and kept fresh without requests."""
        of_sites = {site.reference() for site in self.sites.values() if site.pulled_versions}
        return of_sites | {
            Reference(Repository.parse(key), tag)
            for key, rules in self.repos.items()
            for tag in rules.pre_pull
        }

    @property
    def sources(self) -> set[LocalSource]:
        """All local sources of images."""
        rules = (*self.repos.values(), *self._scopes.values())
        return {each.source for each in rules if each.source is not None}

    def _listed(self, repository: Repository) -> RepositoryRules | None:
        prefix = str(repository)
        if rules := self.repos.get(prefix):
            return rules
        while prefix := prefix.rpartition("/")[0]:
            if rules := self.repos.get(f"{prefix}/*"):
                return rules
        return None
