"""Endpoints: connections to checked addresses, with TLS for https URLs.

A name is resolved once, and only addresses that `AddressRules` permits are connected to. TLS still
sends and verifies the name of the host.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import attrs
from OpenSSL import SSL, crypto
from twisted.internet._sslverify import IOpenSSLTrustRoot  # Public only in Twisted's documentation.
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IOpenSSLClientConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IReactorPluggableNameResolver,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from twisted.internet.ssl import Certificate, platformTrust, trustRootFromCertificates
from twisted.web.client import BrowserLikePolicyForHTTPS, HostnameCachingHTTPSPolicy
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from blobserve.concurrency.threads import Threads
from blobserve.errors import AddressRefused, RegistryFailed
from blobserve.names.proxy import Proxies, Proxy, UnusableProxy
from blobserve.oci.http.address_rules import AddressRules
from blobserve.oci.http.name_lookup import Addresses, Names
from blobserve.oci.http.tunnel import ProxyEndpoint, Tunnel

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


@attrs.frozen
class Routes:
    """The ways to reach hosts: name lookups and proxies."""

    names: Names
    proxies: Proxies = attrs.field(factory=Proxies)
    proxy_names: Names | None = None
    """The lookups of the names of proxies; None: `names`."""


@implementer(IAgentEndpointFactory)
class Endpoints:
    """The endpoints for the client of one registry.

    :param ca: a PEM file of certificates to trust besides the system's. It counts for the registry
        and the hosts that it redirects to, as its storage often has the same authority. It is read
        in `threads` on first use.
    :param timeout: the seconds for resolving a name, and for connecting to each address.
    """

    def __init__(
        self,
        reactor: Any,
        rules: AddressRules,
        ca: Path | None,
        threads: Threads,
        routes: Routes,
        timeout: float,
    ) -> None:
        self._reactor = reactor
        self._rules = rules
        self._ca = ca
        self._threads = threads
        self._routes = routes
        self._timeout = timeout
        self._proxies: dict[Proxy, IStreamClientEndpoint] = {}
        self._policy: HostnameCachingHTTPSPolicy | None = None

    def endpointForURI(self, uri: Any) -> IStreamClientEndpoint:
        """See `IAgentEndpointFactory.endpointForURI`."""
        return _Endpoint(self.connect, uri.host.decode("ascii"), uri.port, uri.scheme == b"https")

    async def connect(
        self, host: str, port: int, has_tls: bool, factory: IProtocolFactory
    ) -> IProtocol:
        """Connect to the first permitted address of a host that answers.

        With TLS, connect through the proxy for the host, if there is one.
        """
        name = f"[{host}]" if ":" in host else host
        proxy = self.proxy_to("https", name, port) if has_tls else None
        if proxy is not None:
            tunnel = Tunnel(proxy, self.of_proxy(proxy), f"{name}:{port}")
            return await wrapClientTLS(await self._tls(host, port), tunnel).connect(factory)
        addresses = await self._routes.names.addresses(host, port, self._timeout)
        permitted = [each for each in addresses if self._rules.permits(name, port, each.host)]
        if addresses and not permitted:
            raise AddressRefused(name, self._rules.key(name, port))
        if not permitted:
            raise DNSLookupError("no addresses")
        return await (await self._endpoint(permitted, host, port, has_tls)).connect(factory)

    def proxy_to(self, scheme: str, host: str, port: int) -> Proxy | None:
        """Return the proxy for an origin, or None; an IPv6 host has brackets.

        :raises AddressRefused: when the host is an address that must not be connected to.
        :raises RegistryFailed: when its port is not allowed, or the proxy's setting is invalid.
        """
        proxy = self._routes.proxies.leading_to(scheme, host, port)
        if proxy is None:
            return None
        if isinstance(proxy, UnusableProxy):
            problem = f"{proxy.setting} cannot be used: {proxy.problem}"
            raise RegistryFailed(self._rules.registry, problem)
        if not self._rules.permits_unresolved(host, port):
            raise AddressRefused(host, self._rules.key(host, port))
        if not self._rules.permits_port(host, port):
            problem = f"port {port} of {host} is not allowed through a proxy"
            key = self._rules.key(host, port)
            raise RegistryFailed(self._rules.registry, f"{problem}; to allow it, {key}")
        return proxy

    def of_proxy(self, proxy: Proxy) -> IStreamClientEndpoint:
        """Return the endpoint of a proxy; the same object each time."""
        if proxy not in self._proxies:
            place = proxy.host, proxy.port, proxy.scheme == "https"
            self._proxies[proxy] = ProxyEndpoint(proxy, _Endpoint(self._connect_proxy, *place))
        return self._proxies[proxy]

    async def _connect_proxy(
        self, host: str, port: int, has_tls: bool, factory: IProtocolFactory
    ) -> IProtocol:
        names = self._routes.proxy_names or self._routes.names
        addresses = await names.addresses(host, port, self._timeout)
        if not addresses:
            raise DNSLookupError("no addresses")
        return await (await self._endpoint(addresses, host, port, has_tls)).connect(factory)

    async def _endpoint(
        self, addresses: Addresses, host: str, port: int, has_tls: bool
    ) -> IStreamClientEndpoint:
        endpoint: IStreamClientEndpoint = HostnameEndpoint(
            _PinnedResolver(self._reactor, addresses), addresses[0].host, port, self._timeout
        )
        return wrapClientTLS(await self._tls(host, port), endpoint) if has_tls else endpoint

    async def _tls(self, host: str, port: int) -> IOpenSSLClientConnectionCreator:
        if self._policy is None:
            trust = platformTrust()
            if self._ca is not None:
                trust = _CombinedTrust(trust, await self._authorities(self._ca))
            self._policy = HostnameCachingHTTPSPolicy(BrowserLikePolicyForHTTPS(trust))
        return self._policy.creatorForNetloc(host.encode("ascii"), port)

    async def _authorities(self, path: Path) -> IOpenSSLTrustRoot:
        try:
            found = _PEM.findall(await self._threads.run(path.read_bytes))
            if not found:
                raise ValueError("no certificate")
            root: IOpenSSLTrustRoot = trustRootFromCertificates(map(Certificate.loadPEM, found))
        except (OSError, ValueError, crypto.Error) as error:
            raise RegistryFailed(self._rules.registry, "its ca file cannot be used") from error
        return root


@implementer(IStreamClientEndpoint)
class _Endpoint:
    def __init__(
        self,
        connect: Callable[[str, int, bool, IProtocolFactory], Coroutine[Any, Any, IProtocol]],
        host: str,
        port: int,
        has_tls: bool,
    ) -> None:
        self._connect = connect
        self._place = (host, port, has_tls)

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """See `IStreamClientEndpoint.connect`."""
        return Deferred.fromCoroutine(self._connect(*self._place, factory))


@implementer(IOpenSSLTrustRoot)
class _CombinedTrust:
    """A trust root that combines several; one of our own alone would replace the system's."""

    def __init__(self, *roots: IOpenSSLTrustRoot) -> None:
        self._roots = roots

    def _addCACertsToContext(self, context: SSL.Context) -> None:
        for root in self._roots:
            root._addCACertsToContext(context)


@implementer(IReactorPluggableNameResolver, IHostnameResolver, IHostResolution)
class _PinnedResolver:
    """A reactor with a resolver that gives the checked addresses for every name.

    `HostnameEndpoint` then races connections to them: RFC 8305.
    """

    def __init__(self, reactor: Any, addresses: Sequence[IAddress]) -> None:
        self._addresses = addresses
        self.name = ""
        self.nameResolver = self
        self.connectTCP = reactor.connectTCP
        self.callLater = reactor.callLater
        self.seconds = reactor.seconds

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        """See `IHostnameResolver.resolveHostName`."""
        resolutionReceiver.resolutionBegan(self)
        for address in self._addresses:
            resolutionReceiver.addressResolved(address)
        resolutionReceiver.resolutionComplete()
        return self

    def installNameResolver(self, resolver: IHostnameResolver) -> IHostnameResolver:
        """See `IReactorPluggableNameResolver.installNameResolver`. Installs nothing."""
        return self

    def cancel(self) -> None:
        """See `IHostResolution.cancel`. The resolution has already ended."""
