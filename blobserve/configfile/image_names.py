"""Parsers of names: images, files in images, registries, HTTP header fields.

See `blobserve.configfile.schema.Parser`.
"""

from __future__ import annotations

import re

from blobserve.configfile import habits
from blobserve.configfile.scalars import filled, refuse, text
from blobserve.configfile.schema import ConfigValue
from blobserve.errors import MalformedReference
from blobserve.names.platform import Platform
from blobserve.names.reference import (
    Reference,
    Repository,
    canonical_registry,
    is_url,
    without_scheme,
)

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 §5.6.2
_OUR_FRAMING = {"content-length", "content-encoding", "content-range", "transfer-encoding"}
_HOP_BY_HOP = {"connection", "keep-alive", "te", "trailer", "upgrade", "proxy-connection"}
_OUR_VALIDATORS = {"etag", "last-modified", "accept-ranges", "date", "vary"}
_OUR_DESCRIPTION = {"content-type", "content-location", "location", "allow", "retry-after"}
_OUR_DIGESTS = {"content-digest", "content-md5", "digest", "repr-digest"}
_OURS_ALONE = _OUR_FRAMING | _HOP_BY_HOP | _OUR_VALIDATORS | _OUR_DESCRIPTION | _OUR_DIGESTS
_INSTEAD = {
    "content-type": "types sets it by file name",
    "content-location": "contentLocation: true sends it",
    "content-encoding": "types sets it by file name",
}
_MEDIA_TYPE = re.compile(  # RFC 9110 §8.3.1
    rf"{_TOKEN.pattern}/{_TOKEN.pattern}(?:\s*;\s*{_TOKEN.pattern}=(?:{_TOKEN.pattern}|\"[^\"\\]*\"))*"
)


def image_path(value: ConfigValue) -> str:
    """Return a path in an image, in canonical form without a leading slash."""
    segments = [segment for segment in filled(value).split("/") if segment not in ("", ".")]
    if ".." in segments or "\0" in value.node.value:
        raise value.wrong("a path in an image must not contain ..")
    if remedy := habits.names_variable(value.node.value):
        value.document.warnings.append(value.message(remedy))
    return "/".join(segments)


def path_glob(value: ConfigValue) -> str:
    """Return a glob for paths in an image."""
    if remedy := habits.is_regexp(filled(value)):
        raise value.wrong(remedy)
    return image_path(value)


def tag_glob(value: ConfigValue) -> str:
    """Return a glob for tags."""
    glob = filled(value)
    if remedy := habits.is_no_tag_glob(glob):
        raise value.wrong(remedy)
    if remedy := habits.is_doubtful_glob(glob):
        value.document.warnings.append(value.message(remedy))
    return glob


def workdir(value: ConfigValue) -> str:
    """Return the absolute path of a directory in an image."""
    return "/" + image_path(value) if text(value) else "/"


def page(value: ConfigValue) -> str:
    """Return the absolute path of a file below the working directory."""
    if not text(value).startswith("/") or value.node.value.endswith("/"):
        raise value.expected("path of a page, such as /index.html")
    return "/" + image_path(value)


def platform(value: ConfigValue) -> Platform:
    """Return a platform, such as ``linux/arm64``."""
    try:
        return Platform.parse(text(value))
    except ValueError as error:
        raise value.wrong(str(error)) from error


def tag(value: ConfigValue) -> str:
    """Return the tag of an image."""
    try:
        return Reference.parse(f"a.example/b:{text(value)}").tag or ""
    except MalformedReference as error:
        raise value.wrong(error.problem) from error


def repository_key(value: ConfigValue, key: str) -> str:
    """Return a repository in canonical form; ``<registry>/<path>/*`` stands for all below."""
    wild = "/*" if key.endswith("/*") else ""
    # Two components keep docker.io/* from meaning docker.io/library/*.
    below = "/a/a" if wild else ""
    try:
        name = str(Repository.parse(key.removesuffix(wild) + below))
    except MalformedReference as error:
        if not is_url(key) and (remedy := habits.is_no_key(key)):
            raise value.wrong(remedy) from error
        if not is_url(key) and re.search("[:@]", key.partition("/")[2]):
            problem = "expected a repository without tag or digest; list tags under prePull"
            raise value.wrong(problem) from error
        raise value.wrong(error.problem) from error
    return name.removesuffix(below) + wild


def registry_key(value: ConfigValue, key: str) -> str:
    """Return a registry: ``host`` or ``host:port``."""
    return canonical_registry(key) or refuse(value, _no_host(key, "a registry: host or host:port"))


def upstream_host(value: ConfigValue) -> str:
    """Return a host that a registry redirects to, with or without a port."""
    written = text(value)
    if found := canonical_registry(written):
        return found
    # A host in an internal network may have no dot; a registry then needs a port.
    found = canonical_registry(f"{written}:443")
    if found:
        return found.removesuffix(":443")
    raise value.wrong(_no_host(written, "host or host:port"))


def _no_host(written: str, what: str) -> str:
    """Return a text that says how to write a registry."""
    host = without_scheme(written).partition("/")[0]
    if host != written and canonical_registry(host):
        return f"expected {what}, without scheme and path: write {host}"
    if "*" in written:
        return f"expected {what}, without *: write one for each host"
    if "$" in written:
        return f"expected {what}; variables are not expanded"
    if canonical_registry(f"{written}:443"):
        return f"expected {what}; a host without a dot needs its port"
    return f"expected {what}"


def header_name(value: ConfigValue, key: str) -> str:
    """Return the name of a response header that blobserve does not set itself."""
    if not _TOKEN.fullmatch(key):
        raise value.wrong("not a header name")
    if key.lower() in _OURS_ALONE or key.lower().startswith("proxy-auth"):
        instead = _INSTEAD.get(key.lower(), "it cannot be configured")
        raise value.wrong(f"blobserve sets this header itself; {instead}")
    return "-".join(part.capitalize() for part in key.split("-"))


def header_value(value: ConfigValue, _name: str) -> str:
    """Return the value of a header: visible characters, spaces and tabs."""
    written = text(value)
    if not re.fullmatch(r"[\t\x20-\x7e\x80-\xff]*", written):
        raise value.wrong("a header's value is one line of printable Latin-1 characters")
    return written.strip()


def file_pattern(value: ConfigValue, key: str) -> str:
    """Return a glob for the last component of a path, such as ``*.ext``, in lower case."""
    if remedy := habits.is_regexp(key):
        raise value.wrong(remedy)
    if not key or "/" in key:
        raise value.wrong("expected a file name or a glob such as *.wasm, without /")
    return key.lower()


def media_type(value: ConfigValue) -> str:
    """Return a media type, with or without parameters."""
    written = text(value).strip()
    if not written.isascii() or not written.isprintable() or not _MEDIA_TYPE.fullmatch(written):
        raise value.expected("text such as application/wasm, or a mapping with type and coding")
    return written
