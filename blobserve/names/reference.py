"""References: how images are named, in configurations and in URLs.

Pure. A name is never completed by guessing: it begins with a registry host and ends with a tag or
a digest; the one abbreviation kept is ``docker.io/alpine`` for ``docker.io/library/alpine``. Knows
nothing of what a registry holds, nor how one is spoken to.
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
_TAG_OR_DIGEST = re.compile(rb"[:@]")

_NO_HOST = f"begin it with a registry host such as {DOCKER_HUB} or registry.example.com:5000"
_NO_REPOSITORY = "no repository: a reference is <registry>/<repository>:<tag>"
_NO_TAG = "no tag and no digest: add :<tag> or @sha256:<digest>"


@attrs.frozen(cache_hash=True)
class Repository:
    """One repository of one registry, in canonical form.

    The registry is `host` or `host:port`, in lower case, IPv6 addresses in brackets. See OCI
    distribution-spec, "Pulling manifests", for the grammar of the path. Made by `parse`.
    """

    registry: str
    path: str

    @classmethod
    def parse(cls, text: str) -> Repository:
        """Read ``registry.example.com:5000/team/site``.

        :raises MalformedReference: when no registry host or no valid path is there.
        """
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
                text, "a repository is lower-case letters and digits, parted by single . _ - or /"
            )
        if registry == DOCKER_HUB and len(components) == 1:
            path = f"library/{path}"
        return cls(registry, path)

    def __str__(self) -> str:
        return f"{self.registry}/{self.path}"


@attrs.frozen(cache_hash=True)
class Reference:
    """One image of a repository, by tag, by digest, or by both: then the digest counts.

    Made by `parse`, `split_path` or `at`; at least one of `tag` and `digest` is there.
    """

    repository: Repository
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read ``<repository>:<tag>``, ``<repository>@<digest>`` or both: ``:<tag>@<digest>``.

        :raises MalformedReference: saying what is wrong or missing.
        """
        name, at, digest = text.partition("@")
        slash = name.find("/")
        colon = name.find(":", slash) if slash >= 0 else -1
        if colon < 0 and not at:
            raise MalformedReference(text, _missing(name))
        repository = Repository.parse(name if colon < 0 else name[:colon])
        tag = None if colon < 0 else name[colon + 1 :]
        if tag is not None and not _TAG.fullmatch(tag):
            raise MalformedReference(
                text, "a tag is 1 to 128 letters, digits, _ . or -, and does not begin with . or -"
            )
        try:
            return cls(repository, tag, Digest.parse(digest) if at else None)
        except MalformedReference as error:
            raise MalformedReference(text, error.problem) from error

    def at(self, digest: Digest) -> Reference:
        """The reference that names exactly this content of the same repository, for ever."""
        return Reference(self.repository, None, digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        digest = f"@{self.digest}" if self.digest is not None else ""
        return f"{self.repository}{tag}{digest}"


def split_path(path: bytes) -> tuple[Reference, bytes | None]:
    """Part a URL's path, decoded once and without its leading slash, into reference and file.

    The first segment is the registry; the first later segment with a colon or an at sign ends the
    reference, whatever follows. Of the file's path None is left when no slash follows the
    reference, and ``b""`` when nothing follows that slash.

    :raises MalformedReference: saying what is wrong or missing.
    """
    mark = _TAG_OR_DIGEST.search(path, path.find(b"/") + 1)
    end = path.find(b"/", mark.end()) if mark else -1
    reference, rest = (path, None) if end < 0 else (path[:end], path[end + 1 :])
    # An escaped byte is in no grammar: what is not ASCII is malformed, whatever it is in.
    return _parse(reference.decode("ascii", "backslashreplace")), rest


_parse = lru_cache(1024)(Reference.parse)  # Few images, many files of each.


def _missing(name: str) -> str:
    """What has to be added to a name without tag and digest."""
    registry, _, path = name.partition("/")
    if canonical_registry(registry) is None:
        return _NO_HOST
    return _NO_TAG if path else _NO_REPOSITORY


def canonical_registry(authority: str) -> str | None:
    """The one spelling of a registry, `host` or `host:port`; None for what cannot be one.

    A host alone has a dot, or is localhost or an IPv6 address in brackets, as Docker has it.
    """
    found = _AUTHORITY.fullmatch(authority)
    if found is None or len(authority) > _HOST_LENGTH + len(":65535"):
        return None
    host, port = _host(found["host"].lower()), found["port"]
    if host is None or (port is not None and int(port) > 65535):
        return None
    if port is None:
        is_registry = "." in host or host.startswith("[") or host == "localhost"
        return _hub(host) if is_registry else None
    return f"{host}:{port}"


def _host(text: str) -> str | None:
    """A valid host in canonical form: a DNS name, or an IP address that is written in full."""
    try:
        if text.startswith("["):
            return f"[{ipaddress.IPv6Address(text[1:-1])}]"
        labels = text.split(".")
        if _NUMBER.fullmatch(labels[-1]):
            # Resolvers also take 127.1 and 0x7f000001 for addresses; one address, one spelling.
            return str(ipaddress.IPv4Address(text))
    except ValueError:
        return None
    if len(text) > _HOST_LENGTH or not all(map(_LABEL.fullmatch, labels)):
        return None
    return text


def _hub(host: str) -> str:
    return DOCKER_HUB if host == f"index.{DOCKER_HUB}" else host
