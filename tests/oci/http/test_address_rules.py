"""The addresses to which connections are allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHostnameResolver, IReactorPluggableNameResolver
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock
from twisted.web.client import URI
from zope.interface import implementer

from blobserve.errors import AddressRefused
from blobserve.names.host import is_loopback_name
from blobserve.oci.http.address_rules import AddressRules, Origin, is_public
from blobserve.oci.http.endpoints import Endpoints, Routes
from blobserve.oci.http.name_lookup import Names
from blobserve.testing import InlineThreads


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "2606:4700::1111",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
        "2002:808:808::1",
        "::808:808",
        "2001:0:808:808:0:0:f7f7:f7f7",
        # Globally reachable parts of ranges that are not: the first and the last address of each.
        "192.0.0.9",
        "192.0.0.10",
        "2001:1::1",
        "2001:1::2",
        "2001:1::3",
        "2001:3::",
        "2001:3:ffff:ffff:ffff:ffff:ffff:ffff",
        "2001:4:112::",
        "2001:4:112:ffff:ffff:ffff:ffff:ffff",
        "2001:20::",
        "2001:2f:ffff:ffff:ffff:ffff:ffff:ffff",
        "2001:30::",
        "2001:3f:ffff:ffff:ffff:ffff:ffff:ffff",
        # Special purposes that are globally reachable.
        "192.31.196.1",
        "192.52.193.1",
        "192.175.48.1",
        "2620:4f:8000::1",
        # Neighbours of ranges that are not public.
        "1.0.0.0",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "192.0.1.0",
        "192.0.3.0",
        "192.88.98.255",
        "192.88.100.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "198.51.99.255",
        "198.51.101.0",
        "203.0.112.255",
        "203.0.114.0",
        "223.255.255.255",
        "2000::",
        "2001:200::",
        "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff",
        "2001:db9::",
        "2003::",
        "3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "3fff:1000::",
    ],
)
def test_public(address: str) -> None:
    """A global address is public in each of its notations."""
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.0.0.1",
        "100.64.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "192.168.1.1",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:127.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:c0a8:101::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "0.255.255.255",
        "100.127.255.255",
        "192.0.0.0",
        "192.0.0.8",
        "192.0.0.11",
        "192.0.0.170",
        "192.0.0.255",
        "192.88.99.1",
        "192.88.99.2",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "239.255.255.255",
        "::ffff:0:10.0.0.1",
        "100::1",
        "100:0:0:1::1",
        "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "2001:1::",
        "2001:1::4",
        "2001:2::1",
        "2001:4:111:ffff::",
        "2001:4:113::",
        "2001:5::1",
        "2001:10::1",
        "2001:40::1",
        "2001:1ff:ffff::",
        "2001:0:808:808::f5ff:fffe",
        "2002:c058:6301::1",
        "3fff::",
        "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff",
        "4000::",
        "5f00::1",
    ],
)
def test_not_public(address: str) -> None:
    """Loopback, private, link-local, reserved and multicast addresses are not public, also mapped.

    Row C35.
    """
    assert not is_public(address)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://Registry.Example/v2/", Origin("https", "registry.example", 443)),
        ("http://a.b:5000?x=@", Origin("http", "a.b", 5000)),
        ("https://[::1]:5000/", Origin("https", "[::1]", 5000)),
        ("https://2130706433/", Origin("https", "2130706433", 443)),
    ],
)
def test_origin(url: str, origin: Origin) -> None:
    """The origin of a URL is its scheme, host and port, with defaults."""
    assert Origin.of(url) == origin


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a.b/",
        "//a.b/",
        "https:///x",
        "https://user:secret@a.b/",
        "https://a.b:0/",
        "https://a.b:70000/",
        "https://a.b:x/",
        "https://a b/",
        "https://a.b\\@c.d/",
        "https://a.b/\u00e9",
        "https://a.b/\r\nX: y",
    ],
)
def test_no_origin(url: str) -> None:
    """A URL that programs read differently is refused."""
    with pytest.raises(ValueError, match="not an http or https URL"):
        Origin.of(url)


@pytest.mark.parametrize(
    ("host", "port", "is_named"),
    [
        ("registry.internal", 5000, True),
        ("registry.internal", 5001, False),
        ("registry.internal", 443, False),
        ("minio.internal", 443, True),
        ("minio.internal", 80, True),
        ("minio.internal", 9000, False),
        ("other-minio.internal", 443, False),
        ("[::1]", 5000, True),
    ],
)
def test_named(host: str, port: int, is_named: bool) -> None:
    """A configured host with a port is allowed at that port, and without one at 80 and 443."""
    named = frozenset({"registry.internal:5000", "minio.internal", "[::1]:5000"})
    rules = AddressRules("registry.internal:5000", named)
    assert rules.permits(host, port, "10.0.0.1") is is_named
    assert rules.permits(host, port, "8.8.8.8")


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("localhost", True),
        ("registry.localhost", True),
        ("127.0.0.1", True),
        ("127.0.1.1", True),
        ("[::1]", True),
        ("[::ffff:127.0.0.1]", True),
        ("localhost.", True),
        ("[64:ff9b::7f00:1]", False),
        ("127.256.0.1", False),
        ("127.0.0.1.other.example", False),
        ("my127.0.0.1registry.io", False),
        ("10.0.0.1", False),
        ("localhost.other.example", False),
    ],
)
def test_loopback_name(host: str, is_loopback: bool) -> None:
    """Only names that always mean this machine are loopback names (N06)."""
    assert is_loopback_name(host) is is_loopback


@pytest.mark.parametrize(
    ("host", "insecure", "permitted"),
    [
        ("127.0.0.1", False, True),
        ("registry.internal", False, False),
        ("registry.internal", True, True),
        ("elsewhere.internal", True, False),
        ("127.0.0.2", True, False),
    ],
)
def test_plain(host: str, insecure: bool, permitted: bool) -> None:
    """Plain HTTP is allowed for configured registries on loopback or marked insecure."""
    named = frozenset({"127.0.0.1:5000", "registry.internal:5000"})
    rules = AddressRules("registry.internal:5000", named, insecure)
    assert rules.permits_plain(host, 5000) is permitted


def test_plain_key() -> None:
    """The error for plain HTTP names allowHosts or the insecure key, as needed."""
    strict = AddressRules("registry.internal:5000", frozenset({"registry.internal:5000"}))
    insecure = AddressRules("registry.internal:5000", strict.named, insecure=True)
    add = 'add "minio.internal:9000" to registries."registry.internal:5000".allowHosts'
    assert insecure.plain_key("minio.internal", 9000) == add
    mark = 'set insecure: true in registries."registry.internal:5000"'
    assert strict.plain_key("minio.internal", 9000) == mark


def test_named_addresses_are_connected_to() -> None:
    """A connection to a private address is allowed if its host is configured."""
    net = _Net({"registry.internal": ["10.0.0.7"]})
    net.connect("registry.internal", 5000, named={"registry.internal:5000"})
    assert net.connected == [("10.0.0.7", 5000)]


@pytest.mark.parametrize("address", ["10.0.0.7", "127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_rebinding(address: str) -> None:
    """A public name with a private address is refused, and the error has the key to allow it.

    Row C35.
    """
    net = _Net({"cdn.example": [address]})
    failed = net.connect("cdn.example", 8443)
    error = net.failure_of(failed)
    assert isinstance(error, AddressRefused)
    assert error.key == 'add "cdn.example:8443" to registries."registry.example".allowHosts'
    assert net.connected == []


def test_own_key() -> None:
    """For a private registry the error suggests an entry in registries, not in allowHosts."""
    net = _Net({"registry.example": ["10.0.0.7"]})
    error = net.failure_of(net.connect("registry.example", 443))
    assert isinstance(error, AddressRefused)
    assert error.key == 'name it: add "registry.example": {} to registries'


def test_nothing_is_named_for_repositories_that_are_not_listed() -> None:
    """For an unlisted repository no configured host helps, and the error names its registry."""
    named = frozenset({"registry.internal:5000", "minio.internal"})
    rules = AddressRules("registry.internal:5000", named, insecure=True, is_public_only=True)
    for host, port in [("registry.internal", 5000), ("minio.internal", 443)]:
        assert not rules.permits(host, port, "10.0.0.1")
        assert not rules.permits_plain(host, port)
        assert rules.permits(host, port, "8.8.8.8")
    key = 'list the repository, or set allowAnyRepo: true in registries."registry.internal:5000"'
    assert rules.key("registry.internal", 5000) == key
    elsewhere = f'{key} and add "minio.internal:443" to its allowHosts'
    assert rules.key("minio.internal", 443) == elsewhere


def test_mixed_addresses() -> None:
    """Only the public addresses of a name are used for connections (C35)."""
    net = _Net({"cdn.example": ["127.0.0.1", "93.184.216.34", "10.0.0.1"]})
    net.connect("cdn.example", 443)
    net.reactor.advance(10)
    assert {host for host, _ in net.connected} == {"93.184.216.34"}


def test_resolved_once() -> None:
    """A name is resolved once for both the check and the connection."""
    net = _Net({"cdn.example": ["93.184.216.34"]})
    net.connect("cdn.example", 443)
    assert net.resolved == ["cdn.example"]
    assert net.connected == [("93.184.216.34", 443)]


@implementer(IHostnameResolver, IReactorPluggableNameResolver)
class _Net:
    """A reactor without a network, which resolves names as the test says."""

    def __init__(self, names: dict[str, list[str]]) -> None:
        self.names = names
        self.resolved: list[str] = []
        self.reactor = MemoryReactorClock()
        self.reactor.nameResolver = self

    @property
    def connected(self) -> list[tuple[str, int]]:
        """The addresses of all connection attempts."""
        return [(host, port) for host, port, *_ in self.reactor.tcpClients]

    def connect(self, host: str, port: int, named: Sequence[str] | set[str] = ()) -> Deferred[Any]:
        """Connect on behalf of registry.example."""
        rules = AddressRules("registry.example", frozenset(named))
        threads = InlineThreads()
        endpoints = Endpoints(
            self.reactor, rules, None, threads, Routes(Names(self.reactor, threads)), 5.0
        )
        uri = URI.fromBytes(f"http://{host}:{port}/".encode())
        return endpoints.endpointForURI(uri).connect(Factory())

    def failure_of(self, deferred: Deferred[Any]) -> object:
        """Return the error of a connection that has failed."""
        failures: list[Any] = []
        deferred.addErrback(failures.append)
        return failures[0].value

    def resolveHostName(
        self,
        receiver: Any,
        name: str,
        port: int = 0,
        types: Any = None,
        semantics: str = "TCP",
    ) -> None:
        """See `IHostnameResolver.resolveHostName`."""
        self.resolved.append(name)
        receiver.resolutionBegan(None)
        for address in self.names[name]:
            kind = IPv6Address if ":" in address else IPv4Address
            receiver.addressResolved(kind("TCP", address, port))
        receiver.resolutionComplete()
