"""The kinds of names: of images and what is in them, of registries, of HTTP headers.

See `blobserve.configfile.schema.Parser`.
"""

from __future__ import annotations

import re

from blobserve.configfile.scalars import filled, refuse, text
from blobserve.configfile.schema import ConfigValue
from blobserve.errors import MalformedReference
from blobserve.names.platform import Platform
from blobserve.names.reference import Reference, Repository, canonical_registry

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 §5.6.2
_OUR_FRAMING = {"content-length", "content-encoding", "content-range", "transfer-encoding"}
_HOP_BY_HOP = {"connection", "keep-alive", "te", "trailer", "upgrade", "proxy-connection"}
_OUR_VALIDATORS = {"etag", "last-modified", "accept-ranges", "date", "vary"}
_OURS_ALONE = _OUR_FRAMING | _HOP_BY_HOP | _OUR_VALIDATORS


def image_path(place: ConfigValue) -> str:
    """A path in an image, in canonical form without its leading slash."""
    segments = [segment for segment in filled(place).split("/") if segment not in ("", ".")]
    if ".." in segments or "\0" in place.node.value:
        raise place.wrong("a path in an image has no .. in it")
    return "/".join(segments)


def workdir(place: ConfigValue) -> str:
    """A directory of an image."""
    return "/" + image_path(place) if text(place) else "/"


def page(place: ConfigValue) -> str:
    """A file below the working directory: an absolute path."""
    if not text(place).startswith("/") or place.node.value.endswith("/"):
        raise place.expected("path of a file that begins with /")
    return "/" + image_path(place)


def platform(place: ConfigValue) -> Platform:
    """``os/architecture``."""
    try:
        return Platform.parse(text(place))
    except ValueError as error:
        raise place.wrong(str(error)) from error


def tag(place: ConfigValue) -> str:
    """A tag of an image."""
    try:
        return Reference.parse(f"a.example/b:{text(place)}").tag or ""
    except MalformedReference as error:
        raise place.wrong(error.problem) from error


def repository_key(place: ConfigValue, key: str) -> str:
    """A repository in canonical form, or ``<registry>/<path>/*`` for all below."""
    wild = "/*" if key.endswith("/*") else ""
    # Two components keep docker.io/* from meaning docker.io/library/*.
    below = "/a/a" if wild else ""
    try:
        name = str(Repository.parse(key.removesuffix(wild) + below))
    except MalformedReference as error:
        if re.search("[:@]", key.partition("/")[2]):
            raise place.wrong("a repository, without tag or digest; tags go to prePull") from error
        raise place.wrong(error.problem) from error
    return name.removesuffix(below) + wild


def registry_key(place: ConfigValue, key: str) -> str:
    """A registry: ``host`` or ``host:port``."""
    return canonical_registry(key) or refuse(place, "expected a registry: host or host:port")


def upstream_host(place: ConfigValue) -> str:
    """A host that a registry sends us to, with or without a port."""
    written = text(place)
    if found := canonical_registry(written):
        return found
    # Inside a network a host may have a name without a dot, which is no registry by itself.
    found = canonical_registry(f"{written}:443")
    return found.removesuffix(":443") if found else refuse(place, "expected host or host:port")


def header_name(place: ConfigValue, key: str) -> str:
    """The name of a response header that is not blobserve's own to write."""
    if not _TOKEN.fullmatch(key):
        raise place.wrong("not a header name")
    if key.lower() in _OURS_ALONE or key.lower().startswith("proxy-auth"):
        raise place.wrong("this header is blobserve's own; it cannot be configured")
    return "-".join(part.capitalize() for part in key.split("-"))


def header_value(place: ConfigValue, _name: str) -> str:
    """The value of a header: visible characters and blanks."""
    value = text(place)
    if not re.fullmatch(r"[\t\x20-\x7e\x80-\xff]*", value):
        raise place.wrong("a header's value is one line of printable Latin-1 characters")
    return value.strip()
