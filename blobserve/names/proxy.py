"""Proxies: which proxy leads to which host, by the configuration and the environment.

Pure. Reads the variables that command-line tools share; ``NO_PROXY`` as Go's standard client reads
it. Knows nothing of connections, and of which hosts may be asked for.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Literal
from urllib.parse import unquote

import attrs

from blobserve.names.host import is_loopback_name

_URL = re.compile(
    r"(?:(?P<scheme>[a-z][a-z0-9+.-]*)://)?"
    r"(?:(?P<user>[^:@/?#\s]*)(?::(?P<password>[^@/?#\s]*))?@)?"
    r"(?P<host>[0-9a-z_](?:[0-9a-z._-]*[0-9a-z_])?|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?/?",
    re.IGNORECASE,
)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_LOCAL_NAMES = (
    "localhost.localdomain",
    "localhost4",
    "localhost6",
    "ip6-localhost",
    "ip6-loopback",
)

_Networks = tuple[tuple["ipaddress.IPv4Network | ipaddress.IPv6Network", str], ...]


@attrs.frozen
class Proxy:
    """An HTTP proxy, spoken to over TLS if `scheme` is https. Made by `parse`.

    `setting` is what named it, for messages: they do not tell clients where it is.
    """

    scheme: Literal["http", "https"]
    host: str
    port: int
    user: str | None = None
    password: str = attrs.field(default="", repr=False)
    setting: str = ""

    @classmethod
    def parse(cls, text: str, setting: str = "") -> Proxy:
        """Read ``http://user:password@proxy.example:3128``; without a scheme it is http.

        :raises ValueError: for anything else; its text repeats nothing of what was written.
        """
        found = _URL.fullmatch(text.strip())
        if found is None:
            raise ValueError("it is no URL of a proxy, such as http://proxy.example:3128")
        scheme = (found["scheme"] or "http").lower()
        if scheme not in ("http", "https"):
            raise ValueError("a proxy is spoken to by http:// or https://")
        port = int(found["port"] or _DEFAULT_PORTS[scheme])
        if not 0 < port < 1 << 16:
            raise ValueError("its port is not between 1 and 65535")
        user = None if found["user"] is None else unquote(found["user"])
        host = found["host"].lower().strip("[]")
        is_secure: Literal["http", "https"] = "https" if scheme == "https" else "http"
        return cls(is_secure, host, port, user, unquote(found["password"] or ""), setting)


@attrs.frozen
class UnusableProxy:
    """A setting that should name a proxy and does not: nothing is sent past it."""

    setting: str
    problem: str


@attrs.frozen
class NoProxy:
    """The hosts that no proxy leads to. Made by `parse`."""

    _is_all: bool = False
    _networks: _Networks = ()
    _domains: tuple[tuple[str, bool, str], ...] = ()
    """Each with its leading dot, whether the name without the dot counts, and a port or none."""

    @classmethod
    def parse(cls, text: str) -> NoProxy:
        """Read the value of ``NO_PROXY``: what has no meaning in it counts for nothing."""
        networks: list[tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, str]] = []
        domains: list[tuple[str, bool, str]] = []
        for entry in text.split(","):
            item = entry.strip().lower()
            if item == "*":
                return cls(is_all=True)
            if (network := _network(item)) is not None:
                networks.append((network, ""))
                continue
            host, port = _parted(item)
            if (address := _address(host)) is not None:
                networks.append((ipaddress.ip_network(address), port))
            elif host:
                host = host.removeprefix("*") if host.startswith("*.") else host
                domains.append((_ascii(f".{host.removeprefix('.')}"), host[0] != ".", port))
        return cls(False, tuple(networks), tuple(domains))

    def covers(self, host: str, port: int) -> bool:
        """Return whether the host at this port is named; an IPv6 address has no brackets."""
        if self._is_all:
            return True
        address = _address(host)
        if address is not None:
            return any(
                address in network and named in ("", str(port)) for network, named in self._networks
            )
        return any(
            (host.endswith(domain) or (is_name and host == domain[1:])) and named in ("", str(port))
            for domain, is_name, named in self._domains
        )


@attrs.frozen
class Proxies:
    """Which proxy leads where. Without arguments, none."""

    https: Proxy | UnusableProxy | None = None
    http: Proxy | UnusableProxy | None = None
    no_proxy: NoProxy = NoProxy()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Proxies:
        """Read HTTPS_PROXY, HTTP_PROXY and NO_PROXY, or else the same in lower case."""
        return cls(
            _named_by(environ, "HTTPS_PROXY"),
            _named_by(environ, "HTTP_PROXY"),
            NoProxy.parse(environ.get("NO_PROXY") or environ.get("no_proxy") or ""),
        )

    def configured(self, proxy: Proxy | Literal["none"] | None, setting: str) -> Proxies:
        """Return what counts for a registry with this ``proxy`` in its own entry."""
        if proxy is None:
            return self
        if proxy == "none":
            return Proxies()
        proxy = attrs.evolve(proxy, setting=setting)
        return Proxies(proxy, proxy)

    def leading_to(self, scheme: str, host: str, port: int) -> Proxy | UnusableProxy | None:
        """Return the proxy for an origin; its IPv6 host may have brackets. This machine has none.

        A proxy would take a name of this machine for its own.
        """
        name = host.strip("[]").lower()
        if is_loopback_name(name) or name.removesuffix(".") in _LOCAL_NAMES:
            return None
        if self.no_proxy.covers(name, port):
            return None
        return self.https if scheme == "https" else self.http


def _named_by(environ: Mapping[str, str], name: str) -> Proxy | UnusableProxy | None:
    setting = name if environ.get(name) else name.lower()
    text = environ.get(setting, "")
    if not text:
        return None
    try:
        return Proxy.parse(text, setting)
    except ValueError as error:
        return UnusableProxy(setting, str(error))


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """Return the network in CIDR notation, one of mapped IPv4 addresses as the IPv4 one it is."""
    address, slash, length = text.partition("/")
    if not slash or not re.fullmatch("[0-9]+", length, re.ASCII) or "%" in address:
        return None
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
    mapped = network.network_address.ipv4_mapped if network.version == 6 else None
    if mapped is None or network.prefixlen < 96:
        return network
    return ipaddress.ip_network((mapped, network.prefixlen - 96))


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return an address without a zone, a mapped one as the IPv4 address it is."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if address.version == 4:
        return address
    return None if address.scope_id else address.ipv4_mapped or address


def _parted(text: str) -> tuple[str, str]:
    """Part ``host:port`` and ``[address]:port``; what has no one port is all host."""
    if found := re.fullmatch(r"\[([^][]*)\]:([^:]*)|([^][:]*):([^][:]*)", text):
        return found[1] or found[3] or "", found[2] or found[4] or ""
    return text, ""


def _ascii(host: str) -> str:
    if host.isascii():
        return host
    try:
        return "." + host[1:].encode("idna").decode("ascii")
    except UnicodeError:
        return host
