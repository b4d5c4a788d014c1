"""The kinds of plain values: text, numbers, durations, sizes, addresses, paths of this host.

Each is a function from a `ConfigValue` to a value, see `blobserve.configfile.schema.Parser`.
"""

from __future__ import annotations

import ipaddress
import math
import re
from pathlib import Path
from typing import Literal, NoReturn, TypeVar

from twisted.internet.endpoints import serverFromString

from blobserve.config import BACKLOG, Address, LocalSource, Network
from blobserve.configfile.schema import ConfigValue, Parser, each
from blobserve.names.proxy import Proxy

T = TypeVar("T")

_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+", re.ASCII)
_DURATION_PART = re.compile(r"([\d.]+)([a-zµ]+)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(?:([KMGT])(i?))?B?", re.ASCII)
_MAPPED = 96  # the bits in front of an IPv4 address that is mapped into IPv6, RFC 4291 §2.5.5.2
_PROXY = "the URL of a proxy, such as http://proxy.example:3128, or none"
_SIZE_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}


def text(place: ConfigValue) -> str:
    """Any text."""
    if place.node.kind != "text":
        raise place.expected("text")
    return str(place.node.value)


def filled(place: ConfigValue) -> str:
    """Text of at least one character."""
    return text(place) or refuse(place, "must not be empty")


def flag(place: ConfigValue) -> bool:
    """True or false."""
    if place.node.kind != "boolean":
        raise place.expected("true or false")
    return bool(place.node.value)


def one_of(*choices: str) -> Parser[str]:
    """One of a few words."""

    def read(place: ConfigValue) -> str:
        if place.node.value not in choices:
            raise place.expected(" or ".join(choices))
        return str(place.node.value)

    return read


def unless(value: object, kind: Parser[T]) -> Parser[T]:
    """A kind with one value that is understood and does not work yet."""

    def read(place: ConfigValue) -> T:
        if (found := kind(place)) == value:
            raise place.wrong(f"{place.node.text or value}: not yet")
        return found

    return read


def count(place: ConfigValue) -> int:
    """A whole number, at least 1."""
    number = place.node.value
    if place.node.kind != "number" or not isinstance(number, int) or number < 1:
        raise place.expected("whole number of at least 1")
    return number


def port(place: ConfigValue) -> tuple[str, ...]:
    """A TCP port on all interfaces, as endpoint descriptions; 0 takes any that is free."""
    number = place.node.value
    if place.node.kind != "number" or not isinstance(number, int) or not 0 <= number < 1 << 16:
        raise place.expected("port number")
    return (f"tcp:{number}:backlog={BACKLOG}",)


def size(place: ConfigValue) -> int:
    """Bytes, as a number or as text such as ``10GiB``."""
    number = place.node.value
    if place.node.kind == "number" and isinstance(number, int) and number >= 0:
        return number
    found = _SIZE.fullmatch(number) if place.node.kind == "text" else None
    if found is None:
        raise place.expected("size such as 10GiB, or a number of bytes")
    base = 1024 if found[3] else 1000
    return int(float(found[1]) * base ** _SIZE_POWERS.get(found[2], 0))


def bound(place: ConfigValue) -> int | None:
    """A size; 0 means that there is no bound."""
    return size(place) or None


def positive_size(place: ConfigValue) -> int:
    """A size of more than nothing."""
    return size(place) or refuse(place, "must be more than nothing")


def duration(place: ConfigValue) -> float:
    """Seconds, written as text such as ``1m30s``."""
    written = str(place.node.value)
    if place.node.kind != "text" or not _DURATION.fullmatch(written):
        raise place.expected("duration with its unit, such as 30s, 5m or 500ms")
    return sum(float(n) * _SECONDS[unit] for n, unit in _DURATION_PART.findall(written))


def positive_duration(place: ConfigValue) -> float:
    """A duration of more than nothing."""
    return duration(place) or refuse(place, "must be more than nothing")


def timeout(place: ConfigValue) -> float:
    """A duration of more than nothing.

    In the original's form a bare number means nanoseconds, and zero that there is no bound.
    """
    if not place.document.is_original:
        return positive_duration(place)
    kind, value = place.node.kind, place.node.value
    if kind == "nothing":
        return math.inf
    seconds = value * 1e-9 if kind == "number" and value >= 0 else duration(place)
    return seconds or math.inf


def path(place: ConfigValue) -> Path:
    """A path of this host; a relative one starts at the configuration file."""
    return place.document.directory / Path(filled(place)).expanduser()


def file(place: ConfigValue) -> Path:
    """The path of a file that is there."""
    return _there(place, path(place))


def optional_file(place: ConfigValue) -> Path | None:
    """The path of a file that is there; empty text means none."""
    return file(place) if text(place) else None


def source(place: ConfigValue) -> LocalSource:
    """Images of this host: ``<form>:<path>``."""
    form, colon, name = text(place).partition(":")
    if form not in ("oci", "oci-archive", "docker-archive") or not colon or not name:
        raise place.expected("oci:<directory>, oci-archive:<file> or docker-archive:<file>")
    found = place.document.directory / Path(name).expanduser()
    if form == "oci-archive":
        return LocalSource("oci-archive", _there(place, found))
    if form == "docker-archive":
        return LocalSource("docker-archive", _there(place, found))
    if not found.is_dir():
        raise place.wrong(f"there is no directory {found}")
    if not (found / "index.json").is_file():
        raise place.wrong(f"{found} is no image layout: no index.json in it")
    return LocalSource("oci", found)


def log_file(place: ConfigValue) -> str:
    """The path of a file that need not be there; ``-`` means standard output."""
    return "-" if place.node.value == "-" else str(path(place))


def address(place: ConfigValue) -> Address | None:
    """``host:port`` to listen on; without a host, all interfaces; empty text: none."""
    if place.node.kind != "text":
        raise place.expected("host:port")
    written = text(place)
    if not written:
        return None
    host, colon, number = written.rpartition(":")
    if not colon or not number.isascii() or not number.isdecimal() or int(number) >= 1 << 16:
        raise place.expected("host:port")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise place.expected("host:port, IPv6 addresses in []")
    return Address(host.strip("[]"), int(number))


def proxy(place: ConfigValue) -> Proxy | Literal["none"]:
    """The URL of a proxy, or ``none``. No message repeats it: there may be a password in it."""
    if place.node.kind != "text":
        raise place.wrong(f"expected {_PROXY}, got {place.node.kind}")
    written = text(place).strip()
    if written.lower() == "none":
        return "none"
    try:
        return Proxy.parse(written)
    except ValueError as error:
        raise place.wrong(f"expected {_PROXY}: {error}") from None


def endpoint(place: ConfigValue) -> str:
    """A Twisted server endpoint description."""
    description = filled(place)
    if description.startswith("systemd:"):
        # What systemd hands over is known only to the process that it starts.
        if not re.fullmatch(r"systemd:domain=[A-Z0-9]+:(?:name=.+|index=\d+)", description):
            raise place.expected("systemd:domain=INET:name=<name of the socket>")
        return description
    try:
        serverFromString(None, description)
    except Exception as error:
        raise place.wrong(f"not an endpoint description: {error}") from error
    return description


def endpoints(place: ConfigValue) -> tuple[str, ...]:
    """One server endpoint description, or a list of at least one."""
    if place.node.kind == "text":
        return (endpoint(place),)
    return each(endpoint)(place) or refuse(place, "names nothing to listen on")


def network(place: ConfigValue) -> Network:
    """Addresses in CIDR notation; IPv4 ones that are mapped into IPv6 as the IPv4 ones they are."""
    written = text(place)
    if "%" in written:
        raise place.wrong("expected a network such as fe80::/10, without a zone")
    try:
        found = ipaddress.ip_network(written)
    except ValueError as error:
        raise place.wrong(f"expected a network such as 10.0.0.0/8: {error}") from error
    mapped = found.network_address.ipv4_mapped if found.version == 6 else None
    if mapped is None or found.prefixlen < _MAPPED:
        return found
    return ipaddress.IPv4Network((mapped, found.prefixlen - _MAPPED))


def _there(place: ConfigValue, found: Path) -> Path:
    return found if found.is_file() else refuse(place, f"there is no file {found}")


def refuse(place: ConfigValue, problem: str) -> NoReturn:
    """Say what is wrong, in the middle of an expression."""
    raise place.wrong(problem)
