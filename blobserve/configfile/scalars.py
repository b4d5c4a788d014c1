"""Parsers of plain values: text, numbers, durations, sizes, addresses, paths of this host.

See `blobserve.configfile.schema.Parser`.
"""

from __future__ import annotations

import ipaddress
import math
import re
from pathlib import Path
from typing import Literal, NoReturn

from twisted.internet.endpoints import serverFromString

from blobserve.config import BACKLOG, Address, LocalSource, Network
from blobserve.configfile.habits import expands_variable
from blobserve.configfile.schema import ConfigValue, Parser, each
from blobserve.names.proxy import Proxy

_SECONDS = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h|d))+", re.ASCII)
_DURATION_PART = re.compile(r"([\d.]+)([a-zµ]+)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(?:([KMGT])(i?))?B?", re.ASCII)
_MAPPED = 96  # Prefix bits of an IPv4-mapped IPv6 address, RFC 4291 §2.5.5.2.
_PROXY = "the URL of a proxy, such as http://proxy.example:3128, or none"
_SIZE_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}


def text(value: ConfigValue) -> str:
    """Return any text."""
    if value.node.kind != "text":
        raise value.not_text()
    return str(value.node.value)


def filled(value: ConfigValue) -> str:
    """Return text of at least one character."""
    return text(value) or refuse(value, "must not be empty")


def flag(value: ConfigValue) -> bool:
    """Return true or false."""
    if value.node.kind != "boolean":
        raise value.expected("true or false")
    return bool(value.node.value)


def one_of(*choices: str) -> Parser[str]:
    """Return a parser that accepts only these words."""

    def read(value: ConfigValue) -> str:
        if value.node.value not in choices:
            raise value.expected(" or ".join(choices))
        return str(value.node.value)

    return read


def count(value: ConfigValue) -> int:
    """Return a whole number, at least 1."""
    number = value.node.value
    if value.node.kind != "number" or not isinstance(number, int) or number < 1:
        raise value.expected("whole number of at least 1")
    return number


def port(value: ConfigValue) -> tuple[str, ...]:
    """Return the endpoint description of a TCP port on all interfaces; 0: any free port."""
    number = value.node.value
    if value.node.kind != "number" or not isinstance(number, int) or not 0 <= number < 1 << 16:
        raise value.expected("port number")
    return (f"tcp:{number}:backlog={BACKLOG}",)


def size(value: ConfigValue) -> int:
    """Return a number of bytes, which may be written as text such as ``10GiB``."""
    number = value.node.value
    if value.node.kind == "number" and isinstance(number, int) and number >= 0:
        return number
    found = _SIZE.fullmatch(number) if value.node.kind == "text" else None
    if found is None:
        raise value.expected("size such as 10GiB, or a number of bytes")
    base = 1024 if found[3] else 1000
    return int(float(found[1]) * base ** _SIZE_POWERS.get(found[2], 0))


def bound(value: ConfigValue) -> int | None:
    """Return a size; 0 means no limit, for which it returns None."""
    return size(value) or None


def positive_size(value: ConfigValue) -> int:
    """Return a size greater than zero."""
    return size(value) or refuse(value, "must be greater than zero")


def duration(value: ConfigValue) -> float:
    """Return the seconds of a duration such as ``1m30s``."""
    written = str(value.node.value)
    if value.node.kind != "text" or not _DURATION.fullmatch(written):
        raise value.expected("duration with its unit, such as 30s, 5m or 500ms")
    return sum(float(n) * _SECONDS[unit] for n, unit in _DURATION_PART.findall(written))


def positive_duration(value: ConfigValue) -> float:
    """Return a duration greater than zero."""
    if value.node.kind == "number" and not value.node.value:
        raise value.wrong("must be greater than zero")
    return duration(value) or refuse(value, "must be greater than zero")


def timeout(value: ConfigValue) -> float:
    """Return a duration greater than zero.

    In the JSON form of the original, a bare number means nanoseconds, and zero means no limit.
    """
    if not value.document.is_original:
        return positive_duration(value)
    kind, number = value.node.kind, value.node.value
    if kind == "nothing":
        return math.inf
    seconds = number * 1e-9 if kind == "number" and number >= 0 else duration(value)
    return seconds or math.inf


def path(value: ConfigValue) -> Path:
    """Return a path of this host; a relative one starts at the configuration file."""
    return _path(value, filled(value))


def file(value: ConfigValue) -> Path:
    """Return the path of an existing file."""
    return _existing(value, path(value))


def optional_file(value: ConfigValue) -> Path | None:
    """Return the path of an existing file; None for empty text."""
    return file(value) if text(value) else None


def source(value: ConfigValue) -> LocalSource:
    """Return local images: ``<form>:<path>``."""
    form, colon, name = text(value).partition(":")
    if form not in ("oci", "oci-archive", "docker-archive") or not colon or not name:
        raise value.expected("oci:<directory>, oci-archive:<file> or docker-archive:<file>")
    found = _path(value, name)
    if form == "oci-archive":
        return LocalSource("oci-archive", _existing(value, found))
    if form == "docker-archive":
        return LocalSource("docker-archive", _existing(value, found))
    if not found.is_dir():
        raise value.wrong(f"there is no directory {found}")
    if not (found / "index.json").is_file():
        raise value.wrong(f"{found} is not an image layout: it has no index.json")
    return LocalSource("oci", found)


def log_file(value: ConfigValue) -> str:
    """Return the path of a file that need not exist; ``-`` means standard output."""
    return "-" if value.node.value == "-" else str(path(value))


def address(value: ConfigValue) -> Address | None:
    """Return ``host:port`` to listen on; an empty host: all interfaces; empty text: None."""
    if value.node.kind != "text":
        raise value.expected("host:port")
    written = text(value)
    if not written:
        return None
    if scheme := re.match("https?://", written, re.IGNORECASE):
        raise value.expected(f"host:port without {scheme[0]}")
    host, colon, number = written.rpartition(":")
    if not colon or not number.isascii() or not number.isdecimal() or int(number) >= 1 << 16:
        raise value.expected("host:port")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise value.expected("host:port, with IPv6 addresses in []")
    return Address(host.strip("[]"), int(number))


def proxy(value: ConfigValue) -> Proxy | Literal["none"]:
    """Return the URL of a proxy, or ``none``. Messages never quote it: it may have a password."""
    if value.node.kind != "text":
        raise value.wrong(f"expected {_PROXY}, got {value.node.kind}")
    written = text(value).strip()
    if written.lower() == "none":
        return "none"
    try:
        return Proxy.parse(written)
    except ValueError as error:
        raise value.wrong(f"expected {_PROXY}: {error}") from None


def endpoint(value: ConfigValue) -> str:
    """Return a Twisted server endpoint description."""
    description = filled(value)
    if description.startswith("systemd:"):
        # Only a process that systemd starts can know the sockets, so only the form is checked.
        if not re.fullmatch(r"systemd:domain=[A-Z0-9]+:(?:name=.+|index=\d+)", description):
            raise value.expected("systemd:domain=INET:name=<name of the socket>")
        return description
    if found := re.fullmatch(
        r"(?:(\[[0-9a-fA-F:.]+\]|localhost|[\w-]+(?:\.[\w-]+)+)?:)?(\d+)", description, re.ASCII
    ):
        # The form of other servers.
        interface = (found[1] or "").strip("[]").replace(":", r"\:")
        where = f":interface={interface}" if interface else ""
        raise value.expected(f"endpoint description such as tcp:{found[2]}{where}")
    try:
        serverFromString(None, description)
    except Exception as error:
        raise value.wrong(f"not an endpoint description: {error}") from error
    return description


def endpoints(value: ConfigValue) -> tuple[str, ...]:
    """Return server endpoint descriptions, from one text or a list that is not empty."""
    if value.node.kind == "text":
        return (endpoint(value),)
    if value.node.kind == "number":
        raise value.expected(f"endpoint description such as tcp:{value.node.text}, or use port")
    return each(endpoint)(value) or refuse(value, "must have at least one endpoint")


def network(value: ConfigValue) -> Network:
    """Return a network in CIDR notation; IPv4-mapped IPv6 addresses become IPv4."""
    written = text(value)
    if "%" in written:
        raise value.wrong("expected a network such as fe80::/10, without a zone")
    try:
        found = ipaddress.ip_network(written)
    except ValueError as error:
        raise value.wrong(f"expected a network such as 10.0.0.0/8: {error}") from error
    mapped = found.network_address.ipv4_mapped if found.version == 6 else None
    if mapped is None or found.prefixlen < _MAPPED:
        return found
    return ipaddress.IPv4Network((mapped, found.prefixlen - _MAPPED))


def _path(value: ConfigValue, written: str) -> Path:
    if remedy := expands_variable(written):
        raise value.wrong(remedy)
    try:
        return value.document.directory / Path(written).expanduser()
    except RuntimeError as error:
        user = written.partition("/")[0]
        raise value.wrong(f"{user} has no home directory: write the path itself") from error


def _existing(value: ConfigValue, found: Path) -> Path:
    return found if found.is_file() else refuse(value, f"there is no file {found}")


def refuse(value: ConfigValue, problem: str) -> NoReturn:
    """Raise an `InvalidValue`; usable within an expression."""
    raise value.wrong(problem)
