"""Address rules: the hosts that may be connected to, and those that may be without TLS.

Pure. A host is judged by the address of the connection, never by its name. So no name and no
redirect leads to hosts that only this machine can reach. The hosts that the configuration names for
a registry may have any address. All others must have a public one.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import TypeAlias
from urllib.parse import urlsplit

import attrs

from blobserve.names.host import is_loopback_name

_IPAddress: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"

_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[0-9a-z_](?:[0-9a-z._-]*[0-9a-z_.])?|\[[0-9a-f:.]+\]")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # https://url.spec.whatwg.org, "ends in a number"
_VISIBLE = re.compile(r"[!-~]+")

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # RFC 4291 §2.4, as assigned so far
_NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        (
            # https://www.iana.org/assignments/iana-ipv4-special-registry
            "0.0.0.0/8",  # this network, RFC 791
            "10.0.0.0/8",  # private, RFC 1918
            "100.64.0.0/10",  # shared, RFC 6598
            "127.0.0.0/8",  # loopback, RFC 1122
            "169.254.0.0/16",  # link-local, RFC 3927
            "172.16.0.0/12",  # private, RFC 1918
            "192.0.0.0/24",  # protocol assignments, RFC 6890
            "192.0.2.0/24",  # documentation, RFC 5737
            "192.88.99.0/24",  # deprecated relays, RFC 7526 and RFC 6751
            "192.168.0.0/16",  # private, RFC 1918
            "198.18.0.0/15",  # benchmarks, RFC 2544
            "198.51.100.0/24",  # documentation, RFC 5737
            "203.0.113.0/24",  # documentation, RFC 5737
            "224.0.0.0/4",  # multicast, RFC 5771
            "240.0.0.0/4",  # reserved and broadcast, RFC 1112
            # https://www.iana.org/assignments/iana-ipv6-special-registry, inside 2000::/3
            "2001::/23",  # protocol assignments, RFC 2928
            "2001:db8::/32",  # documentation, RFC 3849
            "2002::/16",  # 6to4, RFC 3056: the embedded IPv4 address decides
            "3fff::/20",  # documentation, RFC 9637
        ),
    )
)
_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        (
            "192.0.0.9/32",  # port control, RFC 7723
            "192.0.0.10/32",  # TURN, RFC 8155
            "2001:1::1/128",  # port control, RFC 7723
            "2001:1::2/128",  # TURN, RFC 8155
            "2001:1::3/128",  # service registration, RFC 9665
            "2001:3::/32",  # AMT, RFC 7450
            "2001:4:112::/48",  # AS112, RFC 7535
            "2001:20::/28",  # ORCHIDv2, RFC 7343
            "2001:30::/28",  # drone remote identification, RFC 9374
        ),
    )
)
"""The parts of `_NOT_PUBLIC` that are globally reachable."""

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052 §2.1
_IPV4_COMPATIBLE = ipaddress.IPv6Network("::/96")  # RFC 4291 §2.5.5.1


@attrs.frozen
class Origin:
    """Scheme, host and port of a URL: RFC 6454 §4. Create it with `of`."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Origin:
        """Return the origin of an absolute URL; an IPv6 host keeps its brackets.

        :raises ValueError: unless it is an http or https URL without user and password.
        """
        parts = urlsplit(url)
        host, port = parts.netloc.lower(), _DEFAULT_PORTS.get(parts.scheme)
        if numbered := re.fullmatch(r"(.*):([1-9][0-9]{0,4})", host):
            host, port = numbered[1], int(numbered[2])
        if port is None or port > 65535 or not _HOST.fullmatch(host) or not _VISIBLE.fullmatch(url):
            raise ValueError("it is not an http or https URL that can be followed")
        return cls(parts.scheme, host, port)

    @property
    def authority(self) -> str:
        """`host:port`, as in the configuration."""
        return f"{self.host}:{self.port}"


@attrs.frozen
class AddressRules:
    """The rules for connections on behalf of one registry.

    `named` has the registry itself and its `allowHosts`, each as `host:port`; one without a port
    stands for ports 80 and 443. `registry` is the key of the registry in the configuration. With
    `is_public_only`, no host counts as named: the connections are for unlisted repositories.
    """

    registry: str
    named: frozenset[str]
    insecure: bool = False
    is_public_only: bool = False

    def is_named(self, host: str, port: int) -> bool:
        """Return whether this host at this port is named, so that any address is allowed."""
        if self.is_public_only:
            return False
        is_default = port in _DEFAULT_PORTS.values()
        return f"{host}:{port}" in self.named or (is_default and host in self.named)

    def permits(self, host: str, port: int, address: str) -> bool:
        """Return whether `address`, to which `host` resolved, may be connected to."""
        return self.is_named(host, port) or is_public(address)

    def permits_unresolved(self, host: str, port: int) -> bool:
        """Return whether a proxy may be asked for a host. Any name is allowed, as it resolves it.

        An address must have its usual spelling, since a proxy may read others differently.
        """
        if self.is_named(host, port):
            return True
        try:
            address = _literal(host)
        except ValueError:
            return False
        return address is None or is_public(address)

    def permits_port(self, host: str, port: int) -> bool:
        """Return whether a proxy may be asked for this port of a host."""
        return port == _DEFAULT_PORTS["https"] or self.is_named(host, port)

    def permits_plain(self, host: str, port: int) -> bool:
        """Return whether HTTP without TLS is allowed for this host."""
        return self.is_named(host, port) and (self.insecure or is_loopback_name(host))

    def key(self, host: str, port: int) -> str:
        """Return the change of the configuration that makes `permits` true."""
        is_registry = self.registry in (host, f"{host}:{port}")
        if self.is_public_only:
            key = f'list the repository, or set allowAnyRepo: true in registries."{self.registry}"'
            return key if is_registry else f'{key} and add "{host}:{port}" to its allowHosts'
        if is_registry:
            return f'name it: add "{self.registry}": {{}} to registries'
        return f'add "{host}:{port}" to registries."{self.registry}".allowHosts'

    def plain_key(self, host: str, port: int) -> str:
        """Return the change of the configuration that makes `permits_plain` true."""
        if self.insecure or is_loopback_name(host):
            return self.key(host, port)
        return f'set insecure: true in registries."{self.registry}"'


def _literal(host: str) -> str | None:
    """Return the host if it is an address; None if it is a name.

    :raises ValueError: for text that programs read as different addresses, or only some as one.
    """
    if host.startswith("["):
        return str(ipaddress.IPv6Address(host[1:-1]))
    if _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
        return str(ipaddress.IPv4Address(host))
    return None


def is_public(address: str) -> bool:
    """Return whether an IP address is public, and so are the addresses embedded in it."""
    return all(map(_is_global, _meant(ipaddress.ip_address(address.partition("%")[0]))))


def _is_global(address: _IPAddress) -> bool:
    """Return whether an address is globally reachable.

    We have tables of our own, since those of the standard library change between versions.
    """
    if address.version == 6 and address not in _GLOBAL_UNICAST:
        return False
    if any(address in network for network in _PUBLIC):
        return True
    return not any(address in network for network in _NOT_PUBLIC)


def _meant(address: _IPAddress) -> Iterator[_IPAddress]:
    """Yield every address that packets to this one may reach."""
    if isinstance(address, ipaddress.IPv4Address):
        yield address
    elif address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    elif address.sixtofour is not None:
        yield address.sixtofour
    elif address.teredo is not None:
        yield from address.teredo
    elif address in _NAT64 or address in _IPV4_COMPATIBLE:
        yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    else:
        yield address
