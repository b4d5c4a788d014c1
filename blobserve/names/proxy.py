"""Proxies: the choice of a proxy for a host, by the configuration and the environment.

Pure. Reads the usual environment variables; ``NO_PROXY`` has the meaning of Go's standard client.
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
    """An HTTP proxy, connected to with TLS if `scheme` is https. Create it with `parse`.

    `setting` names the proxy in messages, which do not reveal its address to clients.
    """

    scheme: Literal["http", "https"]
    host: str
    port: int
    user: str | None = None
    password: str = attrs.field(default="", repr=False)
    setting: str = ""

    @classmethod
    def parse(cls, text: str, setting: str = "") -> Proxy:
        """Read ``http://user:password@proxy.example:3128``; the default scheme is http.

        :raises ValueError: for anything else; its text never quotes `text`.
        """
        found = _URL.fullmatch(text.strip())
        if found is None:
            raise ValueError("it is not the URL of a proxy, such as http://proxy.example:3128")
        scheme = (found["scheme"] or "http").lower()
        if scheme not in ("http", "https"):
            raise ValueError("the URL of a proxy begins with http:// or https://")
        port = int(found["port"] or _DEFAULT_PORTS[scheme])
        if not 0 < port < 1 << 16:
            raise ValueError("its port is not between 1 and 65535")
        user = None if found["user"] is None else unquote(found["user"])
        host = found["host"].lower().strip("[]")
        is_secure: Literal["http", "https"] = "https" if scheme == "https" else "http"
        return cls(is_secure, host, port, user, unquote(found["password"] or ""), setting)


@attrs.frozen
class UnusableProxy:
    """An invalid proxy setting; requests for which it counts fail, and are not sent directly."""

    setting: str
    problem: str


@attrs.frozen
class NoProxy:
    """The hosts that are reached without a proxy. Create it with `parse`."""

    _is_all: bool = False
    _networks: _Networks = ()
    _domains: tuple[tuple[str, bool, str], ...] = ()
    """For each: the domain with a leading dot, whether its own name counts, and a port or none."""

    @classmethod
    def parse(cls, text: str) -> NoProxy:
        """Read the value of ``NO_PROXY``; invalid entries are ignored."""
        networks: list[tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, str]] = []
        domains: list[tuple[str, bool, str]] = []
        for entry in text.split(","):
            item = entry.strip().lower()
            if item == "*":
                return cls(is_all=True)
            if (network := _network(item)) is not None:
                networks.append((network, ""))
                continue
            host, port = _split(item)
            if (address := _address(host)) is not None:
                networks.append((ipaddress.ip_network(address), port))
            elif host:
                host = host.removeprefix("*") if host.startswith("*.") else host
                domains.append((_ascii(f".{host.removeprefix('.')}"), host[0] != ".", port))
        return cls(False, tuple(networks), tuple(domains))

    def covers(self, host: str, port: int) -> bool:
        """Return whether the host at this port is included; an IPv6 address has no brackets."""
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
    """The proxies by scheme, with exceptions. Without arguments, there is no proxy."""

    https: Proxy | UnusableProxy | None = None
    http: Proxy | UnusableProxy | None = None
    no_proxy: NoProxy = NoProxy()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Proxies:
        """Read HTTPS_PROXY, HTTP_PROXY and NO_PROXY, or the same names in lower case."""
        return cls(
            _named_by(environ, "HTTPS_PROXY"),
            _named_by(environ, "HTTP_PROXY"),
            NoProxy.parse(environ.get("NO_PROXY") or environ.get("no_proxy") or ""),
        )

    def configured(self, proxy: Proxy | Literal["none"] | None, setting: str) -> Proxies:
        """Return the proxies for a registry with this ``proxy`` in its entry."""
        if proxy is None:
            return self
        if proxy == "none":
            return Proxies()
        proxy = attrs.evolve(proxy, setting=setting)
        return Proxies(proxy, proxy)

    def leading_to(self, scheme: str, host: str, port: int) -> Proxy | UnusableProxy | None:
        """Return the proxy for an origin; its IPv6 host may have brackets.

        This machine has none, since a proxy would read its name as the proxy's own.
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
    """Return a network in CIDR notation; IPv4-mapped IPv6 becomes IPv4."""
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
    """Return an address without a zone; IPv4-mapped IPv6 becomes IPv4."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if address.version == 4:
        return address
    return None if address.scope_id else address.ipv4_mapped or address


def _split(text: str) -> tuple[str, str]:
    """Split ``host:port`` and ``[address]:port``; other text is a host without a port."""
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
