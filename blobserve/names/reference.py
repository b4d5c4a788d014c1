"""References: the names of images in configurations and URLs.

Pure. A reference begins with a registry host and ends with a tag or a digest; no part has a
default. The only abbreviation is ``docker.io/alpine`` for ``docker.io/library/alpine``.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

import attrs

from blobserve.errors import MalformedReference
from blobserve.names.digest import Digest

DOCKER_HUB = "docker.io"

_PATH_LENGTH = 255
_HOST_LENGTH = 253  # RFC 1035 §2.3.4, written as text

_AUTHORITY = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z.-]+)(?::(?P<port>[1-9][0-9]{0,4}))?"
)
_LABEL = re.compile(r"[0-9a-z](?:[0-9a-z-]{0,61}[0-9a-z])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.-]{0,127}")
_SCOPE = "#"  # in no reference
_TAG_OR_DIGEST = re.compile(rb"[:@]")

_SCHEME = re.compile(
    r"(?:https?|docker|oci|oci-archive|docker-archive|docker-daemon|containers-storage):/{1,2}",
    re.IGNORECASE,
)

_NO_HOST = f"begin it with a registry host such as {DOCKER_HUB} or registry.example.com:5000"
_NO_REPOSITORY = "no repository: a reference is <registry>/<repository>:<tag>"
_NO_TAG = "no tag and no digest: add :<tag> or @sha256:<digest>"
_BAD_TAG = "a tag is 1 to 128 letters, digits, _ . or -, and does not begin with . or -"


@attrs.frozen(cache_hash=True)
class Repository:
    """One repository of one registry, in canonical form.

    Create it with `parse`. The registry is `host` or `host:port`, in lower case, with IPv6
    addresses in brackets. OCI distribution-spec, "Pulling manifests", has the grammar of the path.
    """

    registry: str
    path: str
    scope: str = ""
    """Which rules choose its images: empty for those of ``repos``, else a name from `Config.sites`.

    The same repository in two scopes is two repositories for the store, with a state each.
    """

    def within(self, scope: str) -> Repository:
        """Return the same repository in another scope."""
        return self if self.scope == scope else attrs.evolve(self, scope=scope)

    @property
    def key(self) -> str:
        """The repository with its scope as text, for the metadata of the blob space."""
        return f"{self}{_SCOPE}{self.scope}" if self.scope else str(self)

    @classmethod
    def parse(cls, text: str) -> Repository:
        """Read ``registry.example.com:5000/team/site``.

        :raises MalformedReference: when the registry host or a valid path is missing.
        """
        check_no_url(text)
        authority, _, path = text.partition("/")
        registry = canonical_registry(authority)
        if registry is None:
            raise MalformedReference(text, _NO_HOST)
        if not path:
            raise MalformedReference(text, "no repository after the registry host")
        if len(path) > _PATH_LENGTH:
            raise MalformedReference(text, f"its repository exceeds {_PATH_LENGTH} characters")
        components = path.split("/")
        if not all(map(_COMPONENT.fullmatch, components)):
            raise MalformedReference(
                text,
                "a repository has lower-case letters and digits, separated by single . _ - or /",
            )
        if registry == DOCKER_HUB and len(components) == 1:
            path = f"library/{path}"
        return cls(registry, path)

    def __str__(self) -> str:
        return f"{self.registry}/{self.path}"


@attrs.frozen(cache_hash=True)
class Reference:
    """One image of a repository, by tag, digest or both; the digest takes precedence.

    Create it with `parse`, `tagged`, `split_path` or `at`, which give it a tag or a digest.
    """

    repository: Repository
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read ``<repository>:<tag>``, ``<repository>@<digest>`` or both: ``:<tag>@<digest>``.

        :raises MalformedReference: with the fault in its text.
        """
        check_no_url(text)
        name, at, digest = text.partition("@")
        slash = name.find("/")
        colon = name.find(":", slash) if slash >= 0 else -1
        if colon < 0 and not at:
            raise MalformedReference(text, _missing(name))
        repository = Repository.parse(name if colon < 0 else name[:colon])
        tag = None if colon < 0 else name[colon + 1 :]
        if tag is not None and not _TAG.fullmatch(tag):
            raise MalformedReference(text, _BAD_TAG)
        try:
            return cls(repository, tag, Digest.parse(digest) if at else None)
        except MalformedReference as error:
            raise MalformedReference(text, error.problem) from error

    @classmethod
    def tagged(cls, repository: Repository, tag: str) -> Reference:
        """Return the reference by tag.

        :raises MalformedReference: when `tag` cannot be a tag; its text does not name `repository`.
        """
        if not _TAG.fullmatch(tag):
            raise MalformedReference(tag, _BAD_TAG)
        return cls(repository, tag)

    @classmethod
    def from_key(cls, text: str) -> Reference:
        """Read `key`.

        :raises MalformedReference: with the fault in its text.
        """
        plain, _, scope = text.partition(_SCOPE)
        return cls.parse(plain).within(scope)

    @property
    def key(self) -> str:
        """The reference with its scope as text, for the metadata of the blob space."""
        scope = self.repository.scope
        return f"{self}{_SCOPE}{scope}" if scope else str(self)

    def within(self, scope: str) -> Reference:
        """Return the same reference in another scope. See `Repository.scope`."""
        if self.repository.scope == scope:
            return self
        return attrs.evolve(self, repository=self.repository.within(scope))

    def at(self, digest: Digest) -> Reference:
        """Return the reference by digest, in the same repository."""
        return Reference(self.repository, None, digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        digest = f"@{self.digest}" if self.digest is not None else ""
        return f"{self.repository}{tag}{digest}"


def split_path(path: bytes) -> tuple[Reference, bytes | None]:
    """Split the path of a URL into the reference and the path of the file.

    `path` is percent-decoded once and has no leading slash. Its first segment is the registry. The
    first later segment with a colon or an at sign ends the reference. The file's path is None when
    no slash follows the reference, and ``b""`` when nothing follows that slash.

    :raises MalformedReference: with the fault in its text.
    """
    mark = _TAG_OR_DIGEST.search(path, path.find(b"/") + 1)
    end = path.find(b"/", mark.end()) if mark else -1
    reference, rest = (path, None) if end < 0 else (path[:end], path[end + 1 :])
    # The backslash of an escaped byte is malformed everywhere, so all non-ASCII text is refused.
    return _parse(reference.decode("ascii", "backslashreplace")), rest


# A server has few images with many files each.
_parse = lru_cache(1024)(Reference.parse)


def is_url(text: str) -> bool:
    """Return whether a name begins with a scheme, such as ``https://`` or ``docker://``."""
    return _SCHEME.match(text) is not None


def without_scheme(text: str) -> str:
    """Return a name without the scheme that it may begin with."""
    return _SCHEME.sub("", text, count=1) if is_url(text) else text


def check_no_url(text: str) -> None:
    """Check that a name does not begin with a scheme.

    :raises MalformedReference: with the name to write instead.
    """
    if found := _SCHEME.match(text):
        bare = text[found.end() :].rstrip("/")
        raise MalformedReference(text, f"leave out {found[0]}" + (bare and f": write {bare}"))


def _missing(name: str) -> str:
    """Return a text that says how to complete a name without tag and digest."""
    registry, _, path = name.partition("/")
    if canonical_registry(registry) is None:
        return _NO_HOST
    return _NO_TAG if path else _NO_REPOSITORY


def canonical_registry(authority: str) -> str | None:
    """Return the canonical spelling of a registry, `host` or `host:port`; None if it is invalid.

    Without a port, as in Docker, the host has a dot, or is localhost or an IPv6 address in
    brackets.
    """
    found = _AUTHORITY.fullmatch(authority)
    if found is None or len(authority) > _HOST_LENGTH + len(":65535"):
        return None
    host, port = _host(found["host"].lower()), found["port"]
    if host is None or (port is not None and int(port) > 65535):
        return None
    if port is None:
        is_registry = "." in host or host.startswith("[") or host == "localhost"
        host = DOCKER_HUB if host == f"index.{DOCKER_HUB}" else host
        return host if is_registry else None
    return f"{host}:{port}"


def _host(text: str) -> str | None:
    """Return a host in canonical form; None unless it is a DNS name or a complete IP address."""
    try:
        if text.startswith("["):
            return f"[{ipaddress.IPv6Address(text[1:-1])}]"
        labels = text.split(".")
        if _NUMBER.fullmatch(labels[-1]):
            # Resolvers also accept 127.1 and 0x7f000001; only the full spelling is allowed.
            return str(ipaddress.IPv4Address(text))
    except ValueError:
        return None
    if len(text) > _HOST_LENGTH or not all(map(_LABEL.fullmatch, labels)):
        return None
    return text
